"""Linting a checklist: what it pays for silence, refusals, failed calls and phrases; which items say nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import CheckFunction, Item
from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import Score, Verdict
from cm2_agent.types.task import Task
from cm2_agent.types.text import shorten
from cm2_agent.types.trace import Trace

from ..scoring.scorer import ChecklistScorer
from .finding import Finding, written_findings
from .probe import ABOUT, CALLS, FAILED, SILENCE, asks_for_action, parsed_checks, probes
from .stored import ItemCounts, best, counterfeits

MAX_REWARD = 0.1
"""What a counterfeit may earn at most."""
MAX_CALLS = 0.5
"""What calling everything once may earn at most: an honest agent's calls are among them."""
_MOST_TRACES = 50
"""Of how many stored traces, those paid best, counterfeits are made."""


@dataclass(frozen=True, kw_only=True)
class Paid:
    """What one kind of counterfeit earns: the most of any of its dialogues.

    `reward` counts a question about something done as answered no and one about a violation as answered no too, which
    is what an honest judge says of such a dialogue; `at_most` has them all answered in the agent's favour. Both are in
    [0, 1]. `items` were paid for `reward`, and `example` is the dialogue's text."""

    kind: str
    about: str
    reward: float
    at_most: float
    items: tuple[str, ...]
    example: str

    def to_json(self) -> dict[str, JSON]:
        return {**self.__dict__, "items": list(self.items)}


@dataclass(frozen=True, kw_only=True)
class LintReport:
    """What `lint` found: what counterfeits are paid, and the findings, errors first."""

    paid: tuple[Paid, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether there is no error."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> dict[str, JSON]:
        return {
            "passed": self.passed,
            "paid": [one.to_json() for one in self.paid],
            "findings": [one.to_json() for one in self.findings],
        }


async def lint(
    checklist: Checklist,
    *,
    functions: Mapping[str, CheckFunction] | None = None,
    tasks: Sequence[Task] = (),
    tools: Sequence[str] | None = None,
    traces: Iterable[tuple[Trace, Score | None]] = (),
    max_reward: float = MAX_REWARD,
) -> LintReport:
    """Try a checklist on counterfeits, and on stored traces where there are some. Nobody is asked: a question counts
    as an honest judge would answer it of a dialogue in which nothing was done.

    Args:
        checklist: The checklist.
        functions: The check functions that it names.
        tasks: Tasks whose scripted user messages the counterfeits answer (none: one stock message a turn).
        tools: The names of all tools that there are; None where they are not known.
        traces: Stored traces with their scores by this checklist (None: not scored, for counterfeits alone).
        max_reward: What a counterfeit may earn, in [0, 1]; more is an error; of calling everything once
            more than 0.5, a warning.

    Raises:
        ChecklistError: A check cannot be resolved.

    >>> import asyncio
    >>> from cm2_agent import Checklist, Item
    >>> from cm2_agent.rewards import lint
    >>> careless = Checklist(Item("calls_little", check={"at_most": 3}), name="careless")
    >>> report = asyncio.run(lint(careless))
    >>> report.passed, report.findings[0].code, report.paid[0].reward
    (False, 'silence', 1.0)
    """
    honest = ChecklistScorer(checklist, judge=_Reading(kind=False), functions=functions)
    kindly = ChecklistScorer(checklist, judge=_Reading(kind=True), functions=functions)
    parsed = parsed_checks(checklist)
    paid: dict[str, Paid] = {}
    satisfied: dict[str, set[str]] = {}
    for probe in probes(checklist, tasks, tools or ()):
        score = await honest(probe.trace, probe.task)
        most = await kindly(probe.trace, probe.task)
        _keep_most(paid, probe.kind, ABOUT[probe.kind], probe.trace, score, most)
        satisfied.setdefault(probe.kind, set()).update(one.item for one in score.verdicts if one.paid)
    counts, scores, dialogues = ItemCounts(), [], {}
    for trace, stored in traces:
        dialogues[trace.id] = trace
        if stored is not None:
            counts.add(stored)
            scores.append(stored)
    chosen = best(scores, _MOST_TRACES) or list(dialogues)[:_MOST_TRACES]
    for kind, trace in counterfeits(dialogues[id] for id in chosen if id in dialogues):
        _keep_most(paid, kind, f"a stored dialogue: {kind}", trace, await honest(trace), await kindly(trace))
    findings = [
        *_paid_findings(checklist, paid.values(), max_reward),
        *written_findings(checklist, parsed, tools),
        *_failed_call_findings(satisfied),
        *counts.findings(),
    ]
    rank = {"error": 0, "warning": 1, "note": 2}
    return LintReport(paid=tuple(paid.values()), findings=tuple(sorted(findings, key=lambda one: rank[one.severity])))


class _Reading:
    """Stands for a judge of counterfeits: of what was not done it says that it was not done, and that nothing was
    violated; the kind one answers every question in the agent's favour."""

    def __init__(self, *, kind: bool) -> None:
        self.version = "lint:kind" if kind else "lint:honest"
        self._kind = kind

    async def __call__(self, trace: Trace, turn: int | None, items: Sequence[Item]) -> list[Verdict]:
        return [Verdict(item=item.id, value=self._kind or item.kind == "avoid", weight=0) for item in items]


def _keep_most(paid: dict[str, Paid], kind: str, about: str, trace: Trace, score: Score, most: Score) -> None:
    found = Paid(
        kind=kind,
        about=about,
        reward=score.lower or 0.0,
        at_most=max(most.lower or 0.0, score.lower or 0.0),
        items=tuple(dict.fromkeys(one.item for one in score.verdicts if one.paid and one.weight)),
        example=shorten(" / ".join(reply.text for reply in trace.scope(None).replies) or "(nothing is said)", 200),
    )
    known = paid.get(kind)
    if known is None or (found.reward, found.at_most) > (known.reward, known.at_most):
        paid[kind] = found


def _paid_findings(checklist: Checklist, paid: Iterable[Paid], max_reward: float) -> Iterable[Finding]:
    only_rules = not any(map(asks_for_action, checklist))
    for one in paid:
        limit = max(max_reward, MAX_CALLS) if one.kind == CALLS else max_reward
        if one.reward <= limit + 1e-9:
            continue
        names = ", ".join(one.items)
        if only_rules and one.kind != SILENCE:
            message = (
                f"{one.about}: {one.reward:.2f} is paid, since it has only rules that forbid something; use it beside"
                " items that pay for what was done"
            )
            yield Finding(severity="note", code=one.kind, message=message)
        elif one.kind == CALLS:  # an honest agent makes these calls too
            message = (
                f"{one.about}: {one.reward:.2f} is paid ({names}); expected at most {limit:g}: ask also for what must"
                " be told or left undone"
            )
            yield Finding(severity="warning", code=one.kind, message=message)
        else:
            message = (
                f"{one.about}: {one.reward:.2f} is paid ({names}); expected at most {limit:g}: let these items"
                " depend on what must be done first, or give them a `when`"
            )
            yield Finding(severity="error", code=one.kind, message=message)


def _failed_call_findings(satisfied: Mapping[str, set[str]]) -> Iterable[Finding]:
    """Items that are paid where all calls failed, and in no dialogue without calls."""
    elsewhere = {item for kind, items in satisfied.items() if kind not in (FAILED, CALLS) for item in items}
    for item in sorted(satisfied.get(FAILED, set()) - elsewhere):
        message = "a call that fails satisfies it; ask for its result (`called` counts calls that did not fail)"
        yield Finding(severity="error", code="failed call", item=item, message=message)


__all__ = ["MAX_CALLS", "MAX_REWARD", "LintReport", "Paid", "lint"]
