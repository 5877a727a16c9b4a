"""Scores: verdicts on items, turn scores, reward components and the Score of a trace that they add up to.

A Score is self-contained: a trainer computes every advantage (docs/method.md, "Advantages over a group") from scores
alone and never needs reward code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from cm2_agent.types.json_values import JSON
from cm2_agent.types.not_applicable import REASON as NOT_APPLICABLE
from cm2_agent.types.score_bounds import UNKNOWN, Bounds, bounds_of

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
        payment: The share of its weight that was paid, in (0, 1), where a soft dependency makes it a fraction; None
            where it is all or nothing. `pays` is the share in any case.
        depends_on: Indices into the turn's verdicts.
        soft: For each of `depends_on` its λ, in [0, 1): what is paid where the prerequisite was not (0: nothing, a hard
            dependency); empty where all are hard.
        reason: What decided it where the item itself was not looked at (`dependency`, `gate`, `limit`, `failure`,
            `unreached`, `not applicable`) or could not be (`check failed`, `check timed out`, `check disabled`, `check
            changed its view`, `judge failed`, `no judge`). `when`: the verdict says whether another item applies.
            `any_of`: another of the items that this one is any of is NULL by the policy's doing, and may have satisfied
            it earlier.
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
    payment: float | None = None
    soft: tuple[float, ...] = ()

    @property
    def applies(self) -> bool:
        """Whether the item applies to what happened; a verdict of None on one that does not is no NULL."""
        return self.reason != NOT_APPLICABLE

    @property
    def failed(self) -> bool:
        """Whether the item counts as not satisfied, or as violated where it is an avoid item, whatever decided it. A
        verdict that only says whether another item applies fails nothing."""
        return self.value is False and self.reason != "when"

    @property
    def pays(self) -> float | None:
        """The share of the weight that is paid, in [0, 1]; None where nobody could tell."""
        return self.payment if self.payment is not None else None if self.paid is None else float(self.paid)

    def to_json(self) -> dict[str, JSON]:
        out: dict[str, JSON] = {
            **self.__dict__,
            "depends_on": list(self.depends_on),
            "evidence": [dict(quote) for quote in self.evidence],
            "soft": list(self.soft),
        }
        for name in ("payment", "soft"):  # as it was written before soft dependencies existed
            if out[name] in (None, []):
                del out[name]
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> Verdict:
        return cls(**{**data, **{name: tuple(data.get(name, ())) for name in ("depends_on", "evidence", "soft")}})


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

    Args:
        name: Under which the value is stored.
        version: Names everything that could change the value.
        value: In [0, 1], or None.
        explanation: Why the value is what it is.
        cause: Of a value of None: `content` where the trace kept it from telling (the policy's doing: nothing is paid
            for it), `infrastructure` where something else did, so that the score is pending.
        lower: The least that the value can be where part of it could not be told, in [0, 1]; with `upper`.
        upper: The most that it can be.

    Raises:
        ValueError: A number that is not in [0, 1], or one bound without the other.
    """

    name: str
    version: str
    value: float | None
    explanation: str | None = None
    cause: NullCause | None = None
    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        for what, number in (("value", self.value), ("lower", self.lower), ("upper", self.upper)):
            if number is not None and not (math.isfinite(number) and 0 <= number <= 1):
                raise ValueError(
                    f"component {self.name!r} has the {what} {number!r}; expected a number in [0, 1], or None"
                )
        if (self.lower is None) != (self.upper is None):
            raise ValueError(
                f"component {self.name!r} has the bounds {self.lower!r} and {self.upper!r}; expected both, or neither"
            )

    @property
    def bounds(self) -> Bounds | None:
        """What the value is at least and at most; None where it is pending."""
        if self.lower is not None and self.upper is not None:
            return Bounds(lower=self.lower, upper=self.upper)
        if self.value is not None:
            return Bounds(lower=self.value, upper=self.value)
        return UNKNOWN if self.cause == "content" else None


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
        lower: The reward with every policy-caused NULL unpaid, in [0, 1]: what training and selection use. None where
            the score is pending (a verdict is missing that the policy did not cause) or means nothing (`no turn`); of a
            `censored` one what was reached, the rest unpaid. Taken from the verdicts where it is not given.
        upper: The reward with every policy-caused NULL paid, in [0, 1]; None with `lower`.
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
    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        # without a NULL the bounds are the reward: others are left from before dataclasses.replace gave another one
        open_ = (self.null_reason or "").startswith(("gate undecided", "component"))  # no reward, but known bounds
        stale = self.lower == self.upper != self.reward and not open_
        if stale or (self.lower is None and self.upper is None):
            found = bounds_of(self.reward, self.null_reason, self.turns, components=bool(self.components))
            object.__setattr__(self, "lower", None if found is None else found.lower)
            object.__setattr__(self, "upper", None if found is None else found.upper)

    @property
    def bounds(self) -> Bounds | None:
        """`lower` and `upper`; None where there are none."""
        return None if self.lower is None or self.upper is None else Bounds(lower=self.lower, upper=self.upper)

    @property
    def pending(self) -> bool:
        """Whether a verdict is missing that the policy did not cause, or the dialogue died of such a failure: the score
        is to be taken again, and until then its group is not trained on."""
        if self.lower is not None:
            return False
        failed = self.null_reason is not None and self.null_reason.startswith(("failure", "gate undecided"))
        return failed or any(verdict.pays is None and verdict.weight for verdict in self.verdicts)

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
