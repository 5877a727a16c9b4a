"""Scores: verdicts on items, turn scores, reward components and the Score of a trace that they add up to.

A Score is self-contained: a trainer computes every advantage (docs/method.md, "Advantages over a group") from scores
alone and never needs reward code."""

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

    Args:
        item: The item's id.
        value: Satisfied at the end of the scope (for avoid items: never violated), or None where nobody could tell.
        weight: The item's share of its turn; the shares of a turn sum to 1.
        step: The first step (1…S) at which the item is satisfied, None where it never is. With `TurnScore.steps` it is
            the item's column of the satisfaction matrix.
        paid: Whether a step was paid for it (Eq. 2 summed over the steps), None with the value.
        depends_on: Indices into the turn's verdicts.
        reason: What decided it where the item itself was not looked at (`dependency`, `gate`, `limit`, `failure`,
            `unreached`) or could not be (`check failed`, `check timed out`, `check disabled`, `check changed its
            view`, `judge failed`, `no judge`).
        cause: Of a value of None: `infrastructure` or `content` (docs/method.md, "Causes").
        explanation: The judge's.
        evidence: The judge's quotes, and how a panel voted.
    """

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
    unpaid. `reward` is R_t in [0, 1] (Eq. 6), None where the value of a verdict is."""

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
    """One reward's value for one trace, in [0, 1], or None where it could not tell; `explanation` then says why.

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

    Args:
        trace_id: The trace.
        reward_version: Names everything that could change the number (checklist hash, judge, code).
        reward: Eq. 4 with the rule for NULLs (docs/method.md, "The stored reward"), in [0, 1], or None.
        checklist: The content hash under which the store holds the checklist.
        turns: The L counted turns in order, the closing block last.
        runs: How many runs of the trace it saw.
        null_reason: Why the reward is None: `failure: …`, `verdicts`, `censored`, `gate undecided`, `no turn` or
            `no checklist`.
        components: A stack's other rewards by name.
        usage: What judging it took: `calls` (`re_asks` among them), items `escalated`, verdicts `cached`,
            `input_tokens`, `output_tokens`, and `usd`, None where a price is not known; empty where no judge was
            asked. It does not change what the score means.

    >>> from cm2_agent import Score
    >>> verdict = {"item": "looks_up_first", "value": True, "weight": 1.0, "step": 1, "paid": True}
    >>> turn = {"turn": 0, "reached": True, "steps": 2, "reward": 1.0, "verdicts": [verdict]}
    >>> score = Score.from_json({"trace_id": "run", "reward_version": "v1", "reward": 1.0, "turns": [turn]})
    >>> score.length, [verdict.value for verdict in score.verdicts]
    (1, [True])
    """

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
