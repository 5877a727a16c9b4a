"""What a trace would have been paid (`Score.lower`), had people answered in the judge's place."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from cm2_agent.types.human_labels import LabelKey
from cm2_agent.types.score import Score, TurnScore, Verdict

UNDECIDED = frozenset({"dependency", "gate", "limit", "unreached", "failure", "not applicable"})
"""Reasons of verdicts that nobody was asked for."""


def people_reward(
    score: Score,
    labels: Mapping[LabelKey, bool],
    judged: Collection[str] | None = None,
    any_of: Mapping[str, Collection[str]] | None = None,
) -> float | None:
    """`Score.lower` with people's answers for the verdicts that they labelled; None where they labelled nothing of it,
    or not all that a judge decided, or the score is pending or no checklist's (a stack's, say).

    `judged` names the items that a judge decides, by default all; `any_of` those on which an item rests. An item that
    people call satisfied is paid where its prerequisites are satisfied, whenever that was; one that was not asked,
    since a prerequisite was not satisfied, stays unpaid unless people labelled it too."""
    if score.lower is None or not score.turns:
        return None
    paid = [[verdict.pays for verdict in turn.verdicts] for turn in score.turns]
    least = _mean([_earned(turn.verdicts, pays) for turn, pays in zip(score.turns, paid, strict=True)])
    if not math.isclose(least, score.lower, abs_tol=1e-9):
        return None
    known = _mean([_earned_of_known(turn.verdicts, pays) for turn, pays in zip(score.turns, paid, strict=True)])
    if score.reward is not None and not math.isclose(known, score.reward, abs_tol=1e-9):
        return None
    several: dict[str, int] = {}
    for verdict in score.verdicts:
        several[verdict.item] = several.get(verdict.item, 0) + 1
    rewards, used = [], False
    for turn in score.turns:
        answers: list[bool | None] = []
        for verdict in turn.verdicts:
            label = labels.get((score.trace_id, turn.turn, verdict.item))
            if label is None and several[verdict.item] == 1:
                label = labels.get((score.trace_id, None, verdict.item))
            asked = turn.reached and verdict.weight and verdict.reason not in UNDECIDED
            if label is None and asked and (judged is None or verdict.item in judged):
                return None
            answers.append(label)
            used |= label is not None
        rewards.append(_earned(turn.verdicts, _relabelled(turn, answers, any_of or {})))
    return _mean(rewards) if used else None


def _relabelled(
    turn: TurnScore, answers: list[bool | None], any_of: Mapping[str, Collection[str]]
) -> list[float | None]:
    """What each verdict pays with people's answers (Eq. 2, whole scope as one row; GEAR's product where a dependency is
    soft; of `any_of` the largest payment). Where neither an item nor what it depends on was changed it pays what it
    paid."""
    places = {verdict.item: place for place, verdict in enumerate(turn.verdicts)}
    done: dict[int, tuple[bool | None, float | None, bool]] = {}

    def of(place: int) -> tuple[bool | None, float | None, bool]:
        """The value, the payment and whether people changed any of what it rests on."""
        if place not in done:
            verdict, label = turn.verdicts[place], answers[place]
            parents = [of(parent) for parent in verdict.depends_on]
            members = [of(places[name]) for name in any_of.get(verdict.item, ()) if name in places]
            value, share = verdict.value if label is None else label, 1.0
            if label is None and any(member[2] for member in members):
                value = True in [member[0] for member in members]
                share = max(member[1] or 0.0 for member in members)
            changed = value is not verdict.value or any(one[2] for one in (*parents, *members))
            if not changed:
                done[place] = value, verdict.pays, False
            elif value is None:
                done[place] = None, None, True
            else:
                factor = share
                for number, (satisfied, pays, _) in enumerate(parents):
                    soft = verdict.soft[number] if verdict.soft else 0.0
                    earned = pays or 0.0
                    factor *= earned + (1 - earned) * soft if soft else float(satisfied is True)
                done[place] = value and factor > 0, factor if value else 0.0, True
        return done[place]

    return [of(place)[1] for place in range(len(turn.verdicts))]


def _earned(verdicts: Collection[Verdict], pays: Collection[float | None]) -> float:
    """R_t where nothing is paid for what is not known."""
    return math.fsum(verdict.weight * (one or 0.0) for verdict, one in zip(verdicts, pays, strict=True))


def _earned_of_known(verdicts: Collection[Verdict], pays: Collection[float | None]) -> float:
    """R_t over what is known; a turn of which all is known weighs 1."""
    pairs = [(verdict.weight, one) for verdict, one in zip(verdicts, pays, strict=True)]
    known = [(weight, one) for weight, one in pairs if one is not None]
    weighed = 1.0 if len(known) == len(pairs) else math.fsum(weight for weight, _ in known)
    return math.fsum(weight * one for weight, one in known) / weighed if weighed > 0 else 0.0


def _mean(rewards: list[float]) -> float:
    return min(1.0, math.fsum(rewards) / len(rewards))


__all__ = ["UNDECIDED", "people_reward"]
