"""What a trace was found to be worth: verdicts, turn scores and the Score they add up to; apart from the checklist,
which is the question.

A Score is self-contained: a trainer computes every advantage of method.md §5 from scores alone and never needs reward
code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from cm2_agent.types.json_values import JSON

NullCause: TypeAlias = Literal["infrastructure", "content"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on one item in one turn (or the closing block).

    `value`: satisfied at the end of the scope (for avoid items: never violated), or None where nobody could tell.
    `step` is the row (1…S) of the satisfaction matrix from which the column is true, None where it never is: with
    `TurnScore.steps` it is the column. `paid` is Eq. 2 summed over the steps (at most one), None with the value.
    `weight` is the item's share of its turn (they sum to 1); `depends_on` are indices into the turn's verdicts.
    `reason` says what decided it where the item itself was not looked at (`dependency`, `gate`, `limit`, `unreached`)
    or could not be (`check failed`, `judge failed`, `no judge`); `cause` of a NULL is `infrastructure` or `content`
    (method.md §4)."""

    item: str
    value: bool | None
    weight: float
    step: int | None = None
    paid: bool | None = None
    depends_on: tuple[int, ...] = ()
    reason: str | None = None
    cause: NullCause | None = None
    explanation: str | None = None
    evidence: tuple[Mapping[str, JSON], ...] = ()

    def to_json(self) -> dict[str, JSON]:
        return {
            **self.__dict__,
            "depends_on": list(self.depends_on),
            "evidence": [dict(quote) for quote in self.evidence],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> Verdict:
        return cls(
            **{**data, "depends_on": tuple(data.get("depends_on", ())), "evidence": tuple(data.get("evidence", ()))}
        )


@dataclass(frozen=True, kw_only=True)
class TurnScore:
    """One counted turn, or the closing block (`turn` is None). Turns without items are not here: they do not count.

    `steps` is S, the steps of the scope; 0 for a turn that was not `reached`, whose items all count as judged and
    unpaid. `reward` is R_t in [0, 1] (Eq. 6), None where a verdict is."""

    turn: int | None
    reached: bool
    steps: int
    reward: float | None
    verdicts: tuple[Verdict, ...] = ()

    def to_json(self) -> dict[str, JSON]:
        return {**self.__dict__, "verdicts": [verdict.to_json() for verdict in self.verdicts]}

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> TurnScore:
        return cls(**{**data, "verdicts": tuple(Verdict.from_json(verdict) for verdict in data.get("verdicts", ()))})


@dataclass(frozen=True, kw_only=True)
class Component:
    """What one reward said of one trace: a value in [0, 1], or None where it could not tell; `explanation` then says
    why.

    `version` names everything that could change the value. Raises ValueError for a value that is not a number in [0,
    1]."""

    name: str
    version: str
    value: float | None
    explanation: str | None = None

    def __post_init__(self) -> None:
        if self.value is not None and not (math.isfinite(self.value) and 0 <= self.value <= 1):
            raise ValueError(
                f"component {self.name!r} has the value {self.value!r}; expected a number in [0, 1], or None"
            )


@dataclass(frozen=True, kw_only=True)
class Score:
    """The reward of one trace under one reward version.

    `reward` is Eq. 4 with method.md §4's rule for NULLs, in [0, 1], or None; then `null_reason` says why (`failure: …`,
    `verdicts`, `censored`, `gate undecided`, `no turn`, `no checklist`). `turns` are the L counted turns in order, the
    closing block last. `reward_version` names everything that could change the number (checklist hash, judge, code).
    `runs` is how many runs of the trace it saw; `components` are the stack's other rewards by name. `checklist` is the
    content hash under which the store keeps the checklist. `usage` is what judging it took: `calls` (`re_asks` among
    them), items `escalated`, verdicts `cached`, `input_tokens`, `output_tokens`, and `usd`, None where a price is not
    known; empty where no judge was asked. It is no part of what the score says."""

    trace_id: str
    reward_version: str
    reward: float | None
    checklist: str | None = None
    turns: tuple[TurnScore, ...] = ()
    runs: int = 1
    null_reason: str | None = None
    components: Mapping[str, float | None] = field(default_factory=dict)
    usage: Mapping[str, JSON] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """L, the number of counted turns."""
        return len(self.turns)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return tuple(verdict for turn in self.turns for verdict in turn.verdicts)

    def to_json(self) -> dict[str, JSON]:
        turns = [turn.to_json() for turn in self.turns]
        return {**self.__dict__, "turns": turns, "components": dict(self.components), "usage": dict(self.usage)}

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> Score:
        return cls(**{**data, "turns": tuple(TurnScore.from_json(turn) for turn in data.get("turns", ()))})
