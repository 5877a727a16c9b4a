"""Steps beside the checklist items that they earned: what of a rollout's reward, against its group's mean, is whose."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.trace import Trace

from .rows import Credit


@dataclass(frozen=True, kw_only=True)
class ItemShare:
    """An item of the score, at the step that satisfied it, or at the end of its turn where none did (`satisfied` False,
    or None where nobody could tell).

    `pays` is the share of its weight that is paid, `mean` the same of the group, and `share` what the difference adds
    to the rollout's reward against the group's mean: weight × (pays − mean) / L.
    """

    item: str
    weight: float
    satisfied: bool | None
    pays: float
    mean: float
    share: float
    reason: str | None = None

    def to_json(self) -> dict[str, JSON]:
        return dict(self.__dict__)


@dataclass(frozen=True, kw_only=True)
class ExplainedStep:
    """A step with its advantage (None where the rollout has none) and the items that it earned or, as the last step of
    its turn, that were not earned. `turn` is None for the closing block; `step` is None there and for turns that were
    not reached."""

    turn: int | None
    step: int | None
    advantage: float | None
    items: tuple[ItemShare, ...]

    def to_json(self) -> dict[str, JSON]:
        return {**self.__dict__, "items": [item.to_json() for item in self.items]}


def explained_steps(
    trace: Trace, score: Score | None, group: Sequence[Score], credit: Credit | None
) -> Iterator[ExplainedStep]:
    """The steps of a trace in order, then the turns that were not reached, and the closing block."""
    scored = {} if score is None else {turn.turn: turn for turn in score.turns}
    for turn in trace.turns:
        counted = scored.get(turn.index)
        for step in turn.steps:
            last = counted is not None and step.index == min(len(turn.steps), counted.steps) - 1
            yield ExplainedStep(
                turn=turn.index,
                step=step.index,
                advantage=None if credit is None else credit(turn.index, step.index),
                items=tuple(_shares(score, counted, group, step.index + 1, last=last)),
            )
    happened = {turn.index for turn in trace.turns}
    for counted in () if score is None else score.turns:
        if counted.turn is None or counted.turn not in happened:
            items = tuple(_share(score, counted, verdict, group) for verdict in counted.verdicts if verdict.weight)
            yield ExplainedStep(turn=counted.turn, step=None, advantage=None, items=items)


def _shares(
    score: Score | None, turn: TurnScore | None, group: Sequence[Score], step: int, *, last: bool
) -> Iterator[ItemShare]:
    if score is None or turn is None:
        return
    for verdict in turn.verdicts:
        here = verdict.step == step or (last and (verdict.step is None or verdict.step > step))
        if here and verdict.weight:
            yield _share(score, turn, verdict, group)


def _share(score: Score | None, turn: TurnScore, verdict: Verdict, group: Sequence[Score]) -> ItemShare:
    pays = verdict.pays or 0.0
    others = [_pays(one, turn.turn, verdict.item) for one in group if one.lower is not None]
    mean = math.fsum(others) / len(others) if others else pays
    length = 1 if score is None else score.length
    return ItemShare(
        item=verdict.item,
        weight=verdict.weight,
        satisfied=verdict.value,
        pays=pays,
        mean=mean,
        share=verdict.weight * (pays - mean) / length,
        reason=verdict.reason,
    )


def _pays(score: Score, turn: int | None, item: str) -> float:
    found = (one for block in score.turns if block.turn == turn for one in block.verdicts if one.item == item)
    return next((one.pays or 0.0 for one in found), 0.0)
