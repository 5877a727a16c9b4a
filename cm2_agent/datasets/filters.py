"""Which traces become tasks, and which tasks are the same.

Of tasks with the same system message, turns and tools the best-scored one is selected. **Their recorded calls are not
merged**: two customers may ask in the same words, and the answers that one of them got are no examples for the
other's environment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cm2_agent.datasets.from_traces import UNTYPED
from cm2_agent.types.json_values import canonical_json, content_hash
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a trace must be like. Bounds are inclusive, None is no bound; `min_score` and `max_score` bound
    `Score.lower` and want a score that is not pending, bounds on the outcome want an outcome: the one of that `outcome`
    name, else the trace's only one. `tools` must each have been called, `models` name those of which every answer is.
    `since` and `until` bound the start of the dialogue, in nanoseconds since the epoch; a trace whose record tells no
    time is in neither."""

    min_score: float | None = None
    max_score: float | None = None
    outcome: str | None = None
    min_outcome: float | None = None
    max_outcome: float | None = None
    min_turns: int | None = None
    max_turns: int | None = None
    min_calls: int | None = None
    max_calls: int | None = None
    tools: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    since: int | None = None
    until: int | None = None

    def against(self, trace: Trace, score: Score | None) -> str | None:
        """Why the trace is not chosen, in words that sort alike traces together; None where it is."""
        calls = [call for step in trace.steps for call in step.message.tool_calls]
        models = {call.model for call in trace.calls if call.message is not None}
        started = min((run.started for run in trace.runs if run.started), default=None)
        bounds = (
            ("score", None if score is None else score.lower, self.min_score, self.max_score),
            ("outcome", self._outcome(trace), self.min_outcome, self.max_outcome),
            ("number of turns", len(trace.turns), self.min_turns, self.max_turns),
            ("number of calls", len(calls), self.min_calls, self.max_calls),
            ("time", started, self.since, self.until),
        )
        for name, value, least, most in bounds:
            if least is None and most is None:
                continue
            if value is None:
                return f"no {name}"
            if (least is not None and value < least) or (most is not None and value > most):
                return f"{name} out of bounds"
        if not {call.name for call in calls}.issuperset(self.tools):
            return "tool not called"
        if self.models and not (models and models <= set(self.models)):
            return "another model"
        return None

    def _outcome(self, trace: Trace) -> float | None:
        if self.outcome is not None:
            return trace.outcomes.get(self.outcome)
        return next(iter(trace.outcomes.values())) if len(trace.outcomes) == 1 else None


@dataclass(frozen=True, kw_only=True)
class Distinct:
    """`selected` in the given order; `dropped` says of each task left out, by id, which selected one is the same."""

    selected: tuple[Task, ...]
    dropped: tuple[tuple[str, str], ...]


def distinct(tasks: Iterable[Task]) -> Distinct:
    """One task of those that are the same: the one with the highest `metadata["score"]`, the first of equals; no score
    ranks below 0.

    >>> found = distinct([Task(id="a", turns=["Where is 7?"]), Task(id="b", turns=["where is  7?"])])
    >>> [task.id for task in found.selected], found.dropped
    (['a'], (('b', 'a'),))
    """
    given = list(tasks)
    best: dict[str, int] = {}
    keys = [likeness(task) for task in given]
    for index, key in enumerate(keys):
        if key not in best or _score(given[index]) > _score(given[best[key]]):
            best[key] = index
    dropped = tuple(
        (task.id, given[best[key]].id)
        for index, (task, key) in enumerate(zip(given, keys, strict=True))
        if best[key] != index
    )
    return Distinct(selected=tuple(given[index] for index in sorted(best.values())), dropped=dropped)


def likeness(task: Task) -> str:
    """A hash that tasks share whose system message, turns and tools differ in white space and case alone. Tools that
    are known by their calls alone don't count: which of them were called tells of the agent, not of the task."""
    tools = sorted(
        canonical_json([tool.name, _plain(tool.description), dict(tool.parameters)])
        for tool in task.tools
        if not _only_called(tool)
    )
    return content_hash([_plain(task.system or ""), [_plain(turn) for turn in task.turns], tools])


def _only_called(tool: ToolSpec) -> bool:
    return not tool.description and dict(tool.parameters) == dict(UNTYPED)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _score(task: Task) -> float:
    value = task.metadata.get("score")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else -1.0


__all__ = ["Distinct", "Selection", "distinct", "likeness"]
