"""`Feedback`: one verdict or reward on its way back to the tool that a dialogue was imported from, and `feedback_of`,
which makes them of a scored trace."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cm2_agent.types.json_values import JSON
from cm2_agent.types.run import Run
from cm2_agent.types.run_attributes import SOURCE
from cm2_agent.types.score import Score, Verdict
from cm2_agent.types.text import shorten
from cm2_agent.types.trace import Trace

REWARD = "reward"
"""The name under which a trace's reward is sent."""
COMMENT = 2_000
"""The most characters of a comment."""
_IDS = uuid.UUID("1b1ab83b-4f4c-5a45-9c1e-2d1a4a2d3f60")
"""Fixed for ever: the namespace of the ids, by which a second sending replaces the first."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run lies in the tool that kept it: its trace, the topmost span of it, and the project where that is
    known."""

    trace: str
    span: str
    project: str | None = None


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """What is sent of one verdict, or of a trace's reward.

    Args:
        id: A UUID that follows from the trace, the name, the turn and the checklist, and not from the verdict.
        name: The item's id, or `reward`.
        value: In [0, 1]; of a verdict 1.0 (passed) or 0.0 (failed).
        passed: Of a verdict whether it passed, None for a reward.
        place: Where the tool has it.
        comment: Why: the judge's words and quotes, or what decided it.
        judge: The model that judged, None where no model did.
        at: When the run ended, nanoseconds since the epoch; 0 where nobody knows.
        metadata: Reward version, checklist, turn (0-based), the step in which it passed.
    """

    id: str
    name: str
    value: float
    place: Place
    passed: bool | None = None
    comment: str | None = None
    judge: str | None = None
    at: int = 0
    metadata: Mapping[str, JSON] = field(default_factory=dict)

    @property
    def label(self) -> str | None:
        """The verdict in a word; None for a reward."""
        return None if self.passed is None else "passed" if self.passed else "failed"

    def to_json(self) -> dict[str, JSON]:
        return {**self.__dict__, "place": dict(self.place.__dict__), "metadata": dict(self.metadata)}


class Receiver(Protocol):
    """A tool that takes feedback: `tool` is its importer's name, `url` its address."""

    tool: str
    url: str

    def send(self, feedback: list[Feedback]) -> dict[str, str]:
        """Send them, and return by id why some were not taken. Raises SendError where none can be."""
        ...


def feedback_of(
    trace: Trace,
    score: Score,
    tool: str,
    *,
    checklist: str | None = None,
    prefix: str = "",
    redact: Callable[[str], str] | None = None,
) -> tuple[list[Feedback], Counter[str]]:
    """What can be sent of a scored trace, and how many verdicts and rewards cannot be, by the reason: `null` (nobody
    could tell) or `elsewhere` (that part of the dialogue did not come from this tool)."""
    places = [_place(run, tool) for run in trace.runs]
    out: list[Feedback] = []
    left = Counter[str]()

    def add(name: str, value: float | None, turn: int | None, verdict: Verdict | None = None) -> None:
        at = _run_of(trace, turn)
        place = places[at]
        if value is None or place is None:
            left["null" if value is None else "elsewhere"] += 1
            return
        metadata: dict[str, JSON] = {"reward_version": score.reward_version, "checklist": checklist, "turn": turn}
        if verdict is not None:
            metadata |= {"step": verdict.step, "weight": verdict.weight, "paid": verdict.paid}
        kind = "reward" if verdict is None else "verdict"
        key = (tool, place.trace, place.span, trace.id, checklist or "", str(turn), kind, prefix + name)
        out.append(
            Feedback(
                id=str(uuid.uuid5(_IDS, "\x1f".join(key))),
                name=prefix + name,
                value=value,
                place=place,
                passed=None if verdict is None else bool(value),
                comment=None if verdict is None else comment_of(verdict, redact),
                judge=None if verdict is None else _judge(verdict),
                at=trace.runs[at].ended,
                metadata={name: value for name, value in metadata.items() if value is not None},
            )
        )

    for turn in score.turns:
        for verdict in turn.verdicts:
            if verdict.applies and verdict.reason != "when":  # those are no criteria of the dialogue
                add(verdict.item, None if verdict.value is None else float(verdict.value), turn.turn, verdict)
    add(REWARD, score.reward, None)
    return out, left


def shown(url: str) -> str:
    """An address as it may be shown: without a slash at its end, and without what stands before an @."""
    scheme, rest = url.rstrip("/").split("://", 1) if "://" in url else ("", url.rstrip("/"))
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}" if scheme else rest


def comment_of(verdict: Verdict, redact: Callable[[str], str] | None = None) -> str | None:
    """Why a verdict is what it is: the reason, the judge's words, and what it quoted; redacted before it is cut."""
    lines = [": ".join(text for text in (verdict.reason, verdict.explanation) if text), *_quotes(verdict)]
    words = "\n".join(line for line in lines if line)
    return shorten(words if redact is None else redact(words), COMMENT) or None


def _quotes(verdict: Verdict) -> Iterator[str]:
    for quote in verdict.evidence:
        if quote.get("snippet"):
            yield f"“{quote['snippet']}” ({quote.get('from', 'dialogue')})"


def _judge(verdict: Verdict) -> str | None:
    return next((str(quote["judge"]) for quote in verdict.evidence if quote.get("judge")), None)


def _place(run: Run, tool: str) -> Place | None:
    """Where the run lies in the tool; None where it came from elsewhere."""
    source = run.attributes.get(SOURCE)
    if not isinstance(source, Mapping) or source.get("tool") != tool:
        return None
    project = source.get("project")
    return Place(
        trace=str(source["trace"]), span=str(source["span"]), project=None if project is None else str(project)
    )


def _run_of(trace: Trace, turn: int | None) -> int:
    """The run in which a turn began; the last one for the dialogue as a whole, and for a turn that never came."""
    if turn is not None:
        for number, end in enumerate(trace.run_ends):
            if end.turn >= turn:
                return number
    return len(trace.runs) - 1


__all__ = ["COMMENT", "REWARD", "Feedback", "Place", "Receiver", "comment_of", "feedback_of", "shown"]
