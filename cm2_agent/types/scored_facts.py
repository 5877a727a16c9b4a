"""What is counted of a scored trace: its verdicts in short, its reward and whose it is, without its dialogue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import Verdict


class VerdictFact(NamedTuple):
    """A verdict in short. `quoted` is the (turn, step) that the judge quoted for it, both from 0; None where it quoted
    none, or the item did not fail."""

    item: str
    value: bool | None
    reason: str | None
    cause: str | None
    quoted: tuple[int, int] | None = None

    @classmethod
    def of(cls, verdict: Verdict) -> VerdictFact:
        quoted = quoted_step(verdict.evidence) if verdict.value is False else None
        return cls(verdict.item, verdict.value, verdict.reason, verdict.cause, quoted)


class BlockFact(NamedTuple):
    """A counted turn, or the closing block, as `TurnScore` has it."""

    turn: int | None
    reached: bool
    steps: int
    verdicts: Sequence[VerdictFact]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredFacts:
    """A scored trace in short.

    Args:
        trace: Its id.
        task: The task's id.
        policy: The one policy version that wrote every step (`Trace.policy`).
        started: When its first run began, in nanoseconds since the epoch; 0 where no run says.
        checklist: The hash of the checklist.
        reward: As in `Score`, like the next four.
        null_reason: Why the reward is None.
        lower: The reward at least.
        upper: The reward at most.
        usage: What judging it took.
        blocks: Its turns in order, the closing block last.
    """

    trace: str
    task: str | None
    policy: str | None
    started: int
    checklist: str | None
    reward: float | None
    null_reason: str | None
    lower: float | None
    upper: float | None
    usage: Mapping[str, JSON] = field(default_factory=dict)
    blocks: Sequence[BlockFact] = ()


def quoted_step(evidence: Iterable[Mapping[str, JSON]]) -> tuple[int, int] | None:
    """The first place that a judge quoted, as (turn, step) from 0.

    >>> quoted_step([{"votes": 3}, {"turn": 1, "step": 0, "snippet": "On Monday."}])
    (1, 0)
    """
    for quote in evidence:
        turn, step = quote.get("turn"), quote.get("step")
        if isinstance(step, int) and isinstance(turn, int) and "snippet" in quote:
            return turn, step
    return None


__all__ = ["BlockFact", "ScoredFacts", "VerdictFact", "quoted_step"]
