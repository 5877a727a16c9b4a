"""Advantages over a group at every level of docs/method.md §5, from Scores alone, in plain arithmetic.

Notation: G rollouts, L counted turns, S steps of a turn, C items of a turn; `weights_C` sum to 1; p_itc is 1 where
rollout i was paid item c in turn t. Sources: CM2 (arXiv 2602.12268) Eq. 3, 5, 7–10; per-item centring, `return_to_go`
and `evidence` are ours (docs/method.md §4–5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from cm2_agent.errors import TrainError
from cm2_agent.types.score import Score, TurnScore

Level: TypeAlias = Literal["trajectory", "turn", "step", "return_to_go", "evidence"]
Norm: TypeAlias = Literal["none", "std"]
Floats: TypeAlias = npt.NDArray[np.float64]
Table: TypeAlias = dict[int, list[float]]
"""By dialogue turn, the advantage of each of its steps."""

ZERO = 1e-9
"""Advantages below this are set to 0 (docs/method.md §5): what rounding leaves of a tie must not train."""
_EPSILON = 1e-6
_NEVER = np.inf


@dataclass(frozen=True, kw_only=True)
class RolloutAdvantage:
    """The advantages of one rollout's generated tokens; called with (turn, step), both 0-based, it is what rows.py
    takes as credit.

    `steps[turn][step]` holds for every token of that step. `scalar` is the one advantage of every token at `trajectory`
    level, None at the others. `left_out` says why the rollout takes no part (its tokens are not trained), None where it
    does. `elsewhere` is the advantage in turns that are not in `steps`; None where it is not known."""

    trace_id: str
    steps: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    scalar: float | None = None
    left_out: str | None = None
    elsewhere: float | None = None

    def __call__(self, turn: int, step: int) -> float:
        """Raises TrainError for a rollout that was left out, and for a step that is not known."""
        if self.left_out is not None:
            raise TrainError(f"trace {self.trace_id!r} has no advantage: {self.left_out}; leave its rows out")
        if self.scalar is not None:
            return self.scalar
        if turn not in self.steps:
            if self.elsewhere is None:
                raise TrainError(
                    f"trace {self.trace_id!r}: turn {turn} has no items and its advantage is not known; expected"
                    " `happened`, the number of steps of every turn that happened: give it to advantages()"
                )
            return self.elsewhere
        if not 0 <= step < len(self.steps[turn]):
            raise TrainError(
                f"trace {self.trace_id!r}: step {step} of turn {turn} was never scored ({len(self.steps[turn])} were);"
                " score it again"
            )
        return self.steps[turn][step]


@dataclass(frozen=True, kw_only=True)
class GroupAdvantages:
    """The rollouts' advantages, in the order of the scores. A group that is all 0 at the chosen level is not
    `informative`: its policy-loss gradient is exactly 0 and it may be left out of a batch."""

    level: Level
    norm: Norm
    rollouts: tuple[RolloutAdvantage, ...]

    @property
    def informative(self) -> bool:
        return any(
            one.scalar or any(value for values in one.steps.values() for value in values) for one in self.rollouts
        )


def advantages(
    scores: Sequence[Score],
    *,
    level: Level = "trajectory",
    norm: Norm = "none",
    happened: Sequence[Sequence[int]] | None = None,
) -> GroupAdvantages:
    """The advantages of a group's rollouts from their scores, at a level of credit (docs/method.md §5).

    `trajectory` centres per item (§4): `A_i = (1/L) Σ_t Σ_c w_tc (p_itc − mean over rollouts that judged c)`; with
    components, or scores without turns, it is `R_i − mean R`. Left out, and not counted in G, are rollouts without a
    reward (other than for a NULL verdict, at `trajectory`) and, at other levels, with any NULL verdict.

    Args:
        scores: The group's scores under one reward version, one a rollout.
        level: `trajectory`, `turn`, `step`, or the unbiased `return_to_go` and `evidence`.
        norm: `std` divides by the population standard deviation (of A at `trajectory`) + 1e-6; not at unbiased levels.
        happened: Of each rollout the steps of all its turns, `[len(turn.steps) for turn in trace.turns]`. The unbiased
            levels need it where turns have no items: tokens there earn later rewards too (0 at `turn` and `step`).

    Raises:
        TrainError: An unknown level or norm, no scores, mixed reward versions, scores of different checklists or
            weights, `turn` or `step` with a closing block or components, a norm where there is none.

    >>> from cm2_agent import Score
    >>> from cm2_agent.trainers import advantages
    >>> scores = [Score(trace_id=str(reward), reward_version="v1", reward=reward) for reward in (1.0, 0.5)]
    >>> [rollout.scalar for rollout in advantages(scores).rollouts]
    [0.25, -0.25]
    """
    _check_arguments(scores, level, norm, happened)
    by_reward = level == "trajectory" and any(score.components or not score.turns for score in scores if _usable(score))
    reasons = [_left_out(score, level, by_reward=by_reward) for score in scores]
    selected = [index for index, reason in enumerate(reasons) if reason is None]
    taking_part = [scores[index] for index in selected]
    if not by_reward:
        _check_alike(taking_part)
    if level == "trajectory":
        scalars = _by_reward(taking_part, norm) if by_reward else _by_item(taking_part, norm)
        found = {index: _scalar(scores[index], value) for index, value in zip(selected, scalars.tolist(), strict=True)}
    else:
        _check_level(taking_part, level)
        lengths = [None if happened is None else happened[index] for index in selected]
        tables = _LEVELS[level](taking_part, norm, lengths)
        found = {
            index: RolloutAdvantage(
                trace_id=scores[index].trace_id,
                steps={turn: tuple(_zeroed(value) for value in values) for turn, values in table.items()},
                elsewhere=0.0 if level in ("turn", "step") else None,
            )
            for index, table in zip(selected, tables, strict=True)
        }
    rollouts = tuple(
        found[index] if reason is None else RolloutAdvantage(trace_id=score.trace_id, left_out=reason)
        for index, (score, reason) in enumerate(zip(scores, reasons, strict=True))
    )
    return GroupAdvantages(level=level, norm=norm, rollouts=rollouts)


def _scalar(score: Score, value: float) -> RolloutAdvantage:
    value = _zeroed(value)
    steps = {turn.turn: (value,) * turn.steps for turn in score.turns if turn.turn is not None and turn.reached}
    return RolloutAdvantage(trace_id=score.trace_id, steps=steps, scalar=value)


def _zeroed(value: float) -> float:
    return 0.0 if abs(value) < ZERO else float(value)


def _fnorm(values: Floats, norm: Norm) -> float:
    """Fnorm of §5: 1, or the population standard deviation + 1e-6."""
    return 1.0 if norm == "none" or not values.size else float(values.std()) + _EPSILON


# -- trajectory


def _by_reward(scores: Sequence[Score], norm: Norm) -> Floats:
    """Eq. 5 on the rewards themselves, (G,)."""
    rewards = np.array([score.reward for score in scores], dtype=np.float64)
    return (rewards - rewards.mean()) / _fnorm(rewards, norm) if rewards.size else rewards


def _by_item(scores: Sequence[Score], norm: Norm) -> Floats:
    """Eq. 5 centred per item, NULLs contributing 0, (G,)."""
    if not scores:
        return np.zeros(0)
    centred = np.zeros(len(scores))
    enough = max(2, math.ceil(len(scores) / 2))
    for at in range(scores[0].length):
        turns = [score.turns[at] for score in scores]
        paid_GC = np.array(
            [[np.nan if one.paid is None else float(one.paid) for one in turn.verdicts] for turn in turns]
        )
        judged_GC = ~np.isnan(paid_GC)
        number_C = judged_GC.sum(axis=0)
        mean_C = np.where(judged_GC, paid_GC, 0.0).sum(axis=0) / np.maximum(number_C, 1)
        counts_GC = judged_GC & (number_C >= enough)
        centred += np.where(counts_GC, paid_GC - mean_C, 0.0) @ _weights(turns[0])
    centred /= scores[0].length
    return centred / _fnorm(centred, norm)


# -- the levels with a table: each gives, per rollout, its turns' steps

Lengths: TypeAlias = Sequence[Sequence[int] | None]


def _turn_level(scores: Sequence[Score], norm: Norm, _lengths: Lengths) -> list[Table]:
    """Eq. 7: (R_it − mean_j R_jt)/Fnorm over the rollouts that reached t."""
    tables: list[Table] = [{} for _ in scores]
    for at in range(scores[0].length if scores else 0):
        reached = [index for index, score in enumerate(scores) if score.turns[at].reached]
        rewards = np.array([_reward(scores[index].turns[at]) for index in reached])
        for index, value in zip(
            reached, (rewards - rewards.mean()) / _fnorm(rewards, norm) if reached else (), strict=True
        ):
            turn = scores[index].turns[at]
            tables[index][_number(turn)] = [float(value)] * turn.steps
    return tables


def _step_level(scores: Sequence[Score], norm: Norm, _lengths: Lengths) -> list[Table]:
    """Eq. 8–10 with Eq. 3's backfill: over the items that could still be earned at the step."""
    tables: list[Table] = [{} for _ in scores]
    for at in range(scores[0].length if scores else 0):
        reached = [index for index, score in enumerate(scores) if score.turns[at].reached]
        if not reached:
            continue
        paid_GC = np.array([[float(bool(one.paid)) for one in scores[index].turns[at].verdicts] for index in reached])
        mean_C, norm_C = paid_GC.mean(axis=0), np.array([_fnorm(column, norm) for column in paid_GC.T])
        for index in reached:
            turn = scores[index].turns[at]
            weights_C = _weights(turn)
            eligible_SC, filled_SC = _eligible(turn)
            share_S = eligible_SC @ weights_C
            sums_S = np.where(eligible_SC, (filled_SC - mean_C) / norm_C, 0.0) @ weights_C
            tables[index][_number(turn)] = np.divide(
                sums_S, share_S, out=np.zeros_like(sums_S), where=share_S > 0
            ).tolist()
    return tables


def _eligible(turn: TurnScore) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """(S, C) eligible: dependencies true and itself false before the step; and Eq. 3's rb among these: it turns true at
    some time."""
    flips_C = _flips(turn)
    before_S = np.arange(turn.steps)[:, None]  # the row before step s, counted from 1, is s − 1
    ready_SC = np.ones((turn.steps, len(flips_C)), dtype=bool)
    for item, verdict in enumerate(turn.verdicts):
        for parent in verdict.depends_on:
            ready_SC[:, item] &= flips_C[parent] <= before_S[:, 0]
    eligible_SC = ready_SC & (flips_C[None, :] > before_S)
    return eligible_SC, eligible_SC & np.isfinite(flips_C)[None, :]


def _return_level(scores: Sequence[Score], _norm: Norm, lengths: Lengths) -> list[Table]:
    """(1/L) Σ_{u≥t} R_iu − b, b the mean of the *other* rollouts that reached t (none: 0)."""
    return _against_others(scores, lengths, lambda score, turn, _step: _returns(score, turn - 1))


def _evidence_level(scores: Sequence[Score], _norm: Norm, lengths: Lengths) -> list[Table]:
    """(1/L)(Σ_{s'≥s} r_i,s' + Σ_{u>t} R_iu) − b, b the mean of the others' at step min(s, their last) of the turn
    (none: 0)."""
    return _against_others(
        scores, lengths, lambda score, turn, step: _returns(score, turn) + _within(score, turn, step)
    )


def _against_others(
    scores: Sequence[Score], lengths: Lengths, worth: Callable[[Score, int, int], float]
) -> list[Table]:
    """Each rollout's worth from (turn, step) on, less the mean worth of the others there."""
    sizes = [_sizes(score, length) for score, length in zip(scores, lengths, strict=True)]
    tables: list[Table] = [{} for _ in scores]
    for turn in sorted({turn for size in sizes for turn in size}):
        reached = [index for index, size in enumerate(sizes) if turn in size]
        longest = max(sizes[index][turn] for index in reached)
        worth_GS = np.array(
            [[worth(scores[i], turn, min(step, sizes[i][turn] - 1)) for step in range(longest)] for i in reached]
        )
        others = len(reached) - 1
        baseline_GS = (worth_GS.sum(axis=0) - worth_GS) / others if others else np.zeros_like(worth_GS)
        for row, index in enumerate(reached):
            tables[index][turn] = (worth_GS - baseline_GS)[row, : sizes[index][turn]].tolist()
    return tables


def _sizes(score: Score, happened: Sequence[int] | None) -> dict[int, int]:
    """The steps of each turn that happened: those counted and reached, and the others where the caller gave them."""
    sizes = {turn.turn: turn.steps for turn in score.turns if turn.turn is not None and turn.reached}
    for turn, steps in enumerate(happened or ()):
        if sizes.setdefault(turn, steps) != steps:
            raise TrainError(
                f"trace {score.trace_id!r}: turn {turn} has {steps} steps and was scored with {sizes[turn]}; "
                "the trace has grown since: score it again"
            )
    return sizes


def _returns(score: Score, after: int) -> float:
    """(1/L) Σ R_iu over the counted turns after the given one, the closing block always among them."""
    return math.fsum(_reward(turn) for turn in score.turns if turn.turn is None or turn.turn > after) / score.length


def _within(score: Score, turn: int, step: int) -> float:
    """(1/L) Σ_{s'≥s} r_i,s' of the turn's own items, `step` 0-based; 0 for a turn without items."""
    found = next((one for one in score.turns if one.turn == turn), None)
    if found is None:
        return 0.0
    return math.fsum(one.weight for one in found.verdicts if one.paid and (one.step or 0) > step) / score.length


_LEVELS: dict[str, Callable[[Sequence[Score], Norm, Lengths], list[Table]]] = {
    "turn": _turn_level,
    "step": _step_level,
    "return_to_go": _return_level,
    "evidence": _evidence_level,
}


# -- what a score says of a turn


def _weights(turn: TurnScore) -> Floats:
    return np.array([one.weight for one in turn.verdicts], dtype=np.float64)


def _flips(turn: TurnScore) -> Floats:
    """(C,) the row from which each column is true, infinity where it never is."""
    return np.array([_NEVER if one.step is None else one.step for one in turn.verdicts], dtype=np.float64)


def _reward(turn: TurnScore) -> float:
    """R_t (Eq. 6), from the verdicts: complete wherever this is asked."""
    return math.fsum(one.weight for one in turn.verdicts if one.paid)


def _number(turn: TurnScore) -> int:
    assert turn.turn is not None, "a closing block was refused before"
    return turn.turn


# -- what is refused and what is left out


def _usable(score: Score) -> bool:
    return score.reward is not None or score.null_reason == "verdicts"


def _left_out(score: Score, level: Level, *, by_reward: bool) -> str | None:
    if not _usable(score):
        return f"no reward: {score.null_reason or 'unscored'}"
    if level == "trajectory":
        return "no reward: verdicts" if by_reward and score.reward is None else None
    missing = sorted({one.item for one in score.verdicts if one.paid is None})
    return f"no verdict on {', '.join(missing)}" if missing else None


def _check_arguments(scores: Sequence[Score], level: str, norm: str, happened: Sequence[Sequence[int]] | None) -> None:
    if level not in get_args(Level):
        raise TrainError(f"level is {level!r}; expected one of {', '.join(get_args(Level))}")
    if norm not in get_args(Norm):
        raise TrainError(f"norm is {norm!r}; expected none (Fnorm 1, the paper's final choice) or std")
    if norm == "std" and level in ("return_to_go", "evidence"):
        raise TrainError(
            f"level {level} with norm std; this level uses no Fnorm (a random divisor would bias it): leave norm at"
            " none"
        )
    if not scores:
        raise TrainError("a group without scores; expected the scores of at least one rollout: score the traces first")
    versions = sorted({score.reward_version for score in scores})
    if len(versions) > 1:
        mixed = f"a group mixes the reward versions {', '.join(versions)}"
        raise TrainError(
            f"{mixed}; score all its traces under one of them (cm2 score --again, or score_traces with one scorer)"
        )
    if happened is not None and len(happened) != len(scores):
        raise TrainError(
            f"`happened` has {len(happened)} rollouts for {len(scores)} scores; expected one entry a score"
        )


def _check_alike(scores: Sequence[Score]) -> None:
    """The verdicts of a group stand in one table: the same turns, items and weights for all."""
    shapes = [
        [(turn.turn, [(one.item, round(one.weight, 9)) for one in turn.verdicts]) for turn in score.turns]
        for score in scores
    ]
    for score, shape in zip(scores, shapes, strict=True):
        if shape != shapes[0]:
            raise TrainError(
                f"traces {scores[0].trace_id!r} and {score.trace_id!r} were scored on different turns or items"
                f" ({scores[0].length} and {score.length} turns); a group has one task and one checklist: score them"
                " again under the same"
            )


def _check_level(scores: Sequence[Score], level: Level) -> None:
    if any(score.components for score in scores):
        raise TrainError(
            f"level {level} with the components of a stack; only the checklist has turns: train at trajectory"
        )
    if any(not score.turns for score in scores):
        raise TrainError(
            f"level {level} with scores that have no turns; expected a checklist's scores: train at level trajectory"
        )
    block = next((turn for score in scores for turn in score.turns if turn.turn is None), None)
    if level in ("turn", "step") and block is not None:
        names = ", ".join(one.item for one in block.verdicts)
        raise TrainError(
            f"level {level} with a closing block ({names}); the block has no tokens of its own to carry its advantage:"
            " train at trajectory, return_to_go or evidence level, or give these items a turn"
        )


__all__ = ["GroupAdvantages", "Level", "Norm", "RolloutAdvantage", "advantages"]
