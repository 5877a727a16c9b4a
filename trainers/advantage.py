"""Advantages over a group at every level of docs/method.md §5, from Scores alone, in plain arithmetic.

Notation: G rollouts, L counted turns, S steps of a turn, C items of a turn; `weights_C` sum to 1; p_itc is 1 where
rollout i was paid item c in turn t, the share that was paid where that is a fraction, and 0 for a NULL that the policy
caused. Sources: CM2 (arXiv 2602.12268) Eq. 3, 5, 7–10; `return_to_go`, `evidence` and
`lambda` are ours (docs/method.md §4–5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np

from cm2_agent.errors import TrainError
from cm2_agent.types.score import Score

from .episodes import (
    generalized_advantages,
    others_means,
    return_after,
    returns_of,
    rewards_of,
    turn_reward,
    turn_sizes,
)
from .step_level import Floats, Lengths, Norm, Table, fnorm, has_open_step, number_of, step_level

Level: TypeAlias = Literal["trajectory", "turn", "step", "return_to_go", "evidence", "lambda"]

ZERO = 1e-9
"""Advantages below this are set to 0 (docs/method.md §5): what rounding leaves of a tie must not train."""

GROUP_PENDING = "another rollout of its group is pending"
"""Why a rollout with a reward takes no part: what its group is worth beside it is not known."""


@dataclass(frozen=True, kw_only=True)
class RolloutAdvantage:
    """The advantages of one rollout's generated tokens; called with (turn, step), both 0-based, it is what rows.py
    takes as credit.

    `steps[turn][step]` holds for every token of that step. `scalar` is the one advantage of every token at `trajectory`
    level, None at the others. `left_out` says why the rollout takes no part (its tokens are not trained), None where it
    does; a group takes part as a whole or not at all. `elsewhere` is the advantage in turns that are not in `steps`;
    None where it is not known."""

    trace_id: str
    steps: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    scalar: float | None = None
    left_out: str | None = None
    elsewhere: float | None = None

    @property
    def brief(self) -> str | None:
        """`left_out`, one reason for all failures, one for all censored rollouts …: without what follows the second
        colon."""
        return None if self.left_out is None else ":".join(self.left_out.split(":")[:2]).strip()

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
    """The rollouts' advantages, in the order of the scores. A group that is all 0 at the chosen level, or left out, is
    not `informative`: its policy-loss gradient is exactly 0 and it may be left out of a batch."""

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
    lam: float = 1.0,
    values: Sequence[Sequence[float]] | None = None,
) -> GroupAdvantages:
    """The advantages of a group's rollouts from their scores, at a level of credit (docs/method.md §5).

    A rollout is worth its `Score.lower`: a verdict that is NULL by the policy's doing is unpaid, at every level, so
    that breaking the judge never pays more than failing (§4). Where the lower bound of any rollout is not known (an
    infrastructure failure left it pending), the whole group is left out.

    Args:
        scores: The group's scores under one reward version, one a rollout.
        level: `trajectory`, `turn`, `step`, the unbiased `return_to_go` and `evidence`, or `lambda` between the levels:
            GAE(λ) over turns, unbiased at λ = 1.
        norm: `std` divides by the population standard deviation (of A at `trajectory`) + 1e-6; not at unbiased levels.
        happened: Of each rollout the steps of all its turns, `[len(turn.steps) for turn in trace.turns]`. The unbiased
            levels need it where turns have no items: tokens there earn later rewards too (0 at `turn` and `step`).
        lam: λ of level `lambda`, in [0, 1].
        values: At level `lambda`, of each rollout V̂ of each of its turns that happened, in order; none may follow from
            what its rollout did in that turn or later. Default: the mean return of the other rollouts from there on.

    Raises:
        TrainError: An unknown level or norm, no scores, mixed reward versions, scores of different checklists or
            weights, `turn` or `step` with a closing block or components, a norm where there is none, a λ out of range,
            `values` of other turns than happened.

    >>> from cm2_agent import Score
    >>> from cm2_agent.trainers import advantages
    >>> scores = [Score(trace_id=str(reward), reward_version="v1", reward=reward) for reward in (1.0, 0.5)]
    >>> [rollout.scalar for rollout in advantages(scores).rollouts]
    [0.25, -0.25]
    """
    _check_arguments(scores, level, norm, happened)
    _check_lambda(level, lam, values)
    reasons = [_left_out(score) for score in scores]
    if any(reasons):
        pending = tuple(
            RolloutAdvantage(trace_id=score.trace_id, left_out=reason or GROUP_PENDING)
            for score, reason in zip(scores, reasons, strict=True)
        )
        return GroupAdvantages(level=level, norm=norm, rollouts=pending)
    if level != "trajectory" or all(score.turns and not score.components for score in scores):
        require_alike(scores)
    if level == "trajectory":
        scalars = _trajectory(scores, norm).tolist()
        found = [_scalar(score, value) for score, value in zip(scores, scalars, strict=True)]
    else:
        _check_level(scores, level)
        lengths: Lengths = happened or [None] * len(scores)
        if level == "lambda":
            tables = _lambda_level(scores, lengths, lam, values)
        else:
            tables = _LEVELS[level](scores, norm, lengths)
        found = [
            RolloutAdvantage(
                trace_id=score.trace_id,
                steps={turn: tuple(zeroed(value) for value in values) for turn, values in table.items()},
                elsewhere=0.0 if level in ("turn", "step") else None,
            )
            for score, table in zip(scores, tables, strict=True)
        ]
    return GroupAdvantages(level=level, norm=norm, rollouts=tuple(found))


def _scalar(score: Score, value: float) -> RolloutAdvantage:
    value = zeroed(value)
    steps = {turn.turn: (value,) * turn.steps for turn in score.turns if turn.turn is not None and turn.reached}
    return RolloutAdvantage(trace_id=score.trace_id, steps=steps, scalar=value)


def zeroed(value: float) -> float:
    """The advantage, 0 where it is below ZERO."""
    return 0.0 if abs(value) < ZERO else float(value)


# -- trajectory


def _trajectory(scores: Sequence[Score], norm: Norm) -> Floats:
    """Eq. 5 on the lower bounds, (G,)."""
    rewards_G = np.array([score.lower for score in scores], dtype=np.float64)
    return (rewards_G - rewards_G.mean()) / fnorm(rewards_G, norm) if rewards_G.size else rewards_G


# -- the levels with a table: each gives, per rollout, its turns' steps


def _turn_level(scores: Sequence[Score], norm: Norm, _lengths: Lengths) -> list[Table]:
    """Eq. 7: (R_it − mean_j R_jt)/Fnorm over the rollouts that reached t."""
    tables: list[Table] = [{} for _ in scores]
    for at in range(scores[0].length if scores else 0):
        reached = [index for index, score in enumerate(scores) if score.turns[at].reached]
        rewards = np.array([turn_reward(scores[index].turns[at]) for index in reached])
        for index, value in zip(
            reached, (rewards - rewards.mean()) / fnorm(rewards, norm) if reached else (), strict=True
        ):
            turn = scores[index].turns[at]
            tables[index][number_of(turn)] = [float(value)] * turn.steps
    return tables


def _return_level(scores: Sequence[Score], _norm: Norm, lengths: Lengths) -> list[Table]:
    """(1/L) Σ_{u≥t} R_iu − b, b the mean of the *other* rollouts that reached t (none: 0)."""
    return _against_others(scores, lengths, lambda score, turn, _step: return_after(score, turn - 1))


def _evidence_level(scores: Sequence[Score], _norm: Norm, lengths: Lengths) -> list[Table]:
    """(1/L)(Σ_{s'≥s} r_i,s' + Σ_{u>t} R_iu) − b, b the mean of the others' at step min(s, their last) of the turn
    (none: 0)."""
    return _against_others(
        scores, lengths, lambda score, turn, step: return_after(score, turn) + _within(score, turn, step)
    )


def _lambda_level(
    scores: Sequence[Score], lengths: Lengths, lam: float, values: Sequence[Sequence[float]] | None
) -> list[Table]:
    """GAE(λ) over the turns that happened, with the values given or the others' mean returns."""
    sizes = [turn_sizes(score, length) for score, length in zip(scores, lengths, strict=True)]
    turns = [tuple(sorted(size)) for size in sizes]
    rewards = [rewards_of(score, own) for score, own in zip(scores, turns, strict=True)]
    if values is None:
        values = [one.tolist() for one in others_means(turns, [returns_of(one) for one in rewards])]
    if [len(one) for one in values] != [len(own) for own in turns]:
        raise TrainError(
            f"`values` of {[len(one) for one in values]} turns for rollouts of {[len(own) for own in turns]}; expected"
            " one of every turn that happened, for every score"
        )
    return [
        dict(zip(own, ([one] * size[turn] for turn, one in zip(own, found, strict=True)), strict=True))
        for own, size, found in (
            (own, size, generalized_advantages(reward, np.asarray(value, dtype=np.float64), lam).tolist())
            for own, size, reward, value in zip(turns, sizes, rewards, values, strict=True)
        )
    ]


def _against_others(
    scores: Sequence[Score], lengths: Lengths, worth: Callable[[Score, int, int], float]
) -> list[Table]:
    """Each rollout's worth from (turn, step) on, less the mean worth of the others there."""
    sizes = [turn_sizes(score, length) for score, length in zip(scores, lengths, strict=True)]
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


def _within(score: Score, turn: int, step: int) -> float:
    """(1/L) Σ_{s'≥s} r_i,s' of the turn's own items, `step` 0-based; 0 for a turn without items. What a NULL may have
    hidden an earlier payment of counts as paid in the first step."""
    found = next((one for one in score.turns if one.turn == turn), None)
    if found is None:
        return 0.0
    left = (one for one in found.verdicts if (1 if has_open_step(one) else one.step or 0) > step)
    return math.fsum(one.weight * (one.pays or 0.0) for one in left) / score.length


_LEVELS: dict[str, Callable[[Sequence[Score], Norm, Lengths], list[Table]]] = {
    "turn": _turn_level,
    "step": step_level,
    "return_to_go": _return_level,
    "evidence": _evidence_level,
}


# -- what is refused and what is left out


def _left_out(score: Score) -> str | None:
    """Why a score has no lower bound: nobody knows yet, or will ever know, what the rollout was worth."""
    if score.lower is not None:
        return None
    missing = sorted({one.item for one in score.verdicts if one.pays is None and one.weight})
    if missing and score.null_reason in (None, "verdicts"):
        return f"no verdict on {', '.join(missing)}"
    return f"no reward: {score.null_reason or 'unscored'}"


def _check_arguments(scores: Sequence[Score], level: str, norm: str, happened: Sequence[Sequence[int]] | None) -> None:
    if level not in get_args(Level):
        raise TrainError(f"level is {level!r}; expected one of {', '.join(get_args(Level))}")
    if norm == "others":
        raise TrainError(
            f"norm others at level {level}, of one group; only levels lambda and auto of a whole round (GRPO, cm2"
            " train) know others: expected none"
        )
    if norm not in get_args(Norm):
        raise TrainError(f"norm is {norm!r}; expected none (Fnorm 1, the paper's final choice) or std")
    if norm == "std" and level in ("return_to_go", "evidence", "lambda"):
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


def _check_lambda(level: str, lam: float, values: Sequence[Sequence[float]] | None) -> None:
    if level != "lambda" and (lam != 1.0 or values is not None):
        raise TrainError(
            f"level {level} with {'lam' if lam != 1.0 else 'values'}; only level lambda has them: leave it out"
        )
    require_lambda(lam)


def require_lambda(lam: object) -> None:
    """Raises TrainError unless λ is a number in [0, 1]."""
    if isinstance(lam, bool) or not isinstance(lam, int | float) or not 0 <= lam <= 1:
        raise TrainError(f"lam {lam!r}; expected a number in [0, 1]: 1 is unbiased, 0 credits a turn by the next value")


def require_alike(scores: Sequence[Score]) -> None:
    """Raises TrainError unless a group's verdicts stand in one table: the same turns, items and weights for all."""
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
            " train at trajectory, return_to_go, evidence or lambda level, or give these items a turn"
        )


__all__ = ["GroupAdvantages", "Level", "Norm", "RolloutAdvantage", "advantages"]
