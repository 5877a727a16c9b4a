"""Scored rollouts as episodes of turns: what each turn that happened earned, and what was known before it."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cm2_agent.errors import TrainError
from cm2_agent.types.score import Score, TurnScore
from cm2_agent.types.trace import Trace

Floats: TypeAlias = npt.NDArray[np.float64]

HISTORY = ("place", "earned", "earned_last", "errors", "errors_last", "uses", "steps")
"""Columns of `Episode.history_TF`, all of the turns before: how far the dialogue is, what it and its last turn earned,
calls that failed or could not be read there, all calls, and steps."""
BEHAVIOUR = ("earned", "unearned", "errors", "uses", "steps", "characters")
"""Columns of `Episode.behaviour_TF`, all of the turn itself: what it earned, what was satisfied and not paid, calls
that failed or could not be read, all calls, steps, and characters that the model wrote (these four as logarithms)."""

WORDS = 32
"""Columns of `Episode.words_TW`: the words of a turn's answers and calls fall into so many by their hash."""


@dataclass(frozen=True, kw_only=True)
class Episode:
    """The T turns of a rollout that happened, in order, those without items among them.

    `rewards_T` is what each earned of the reward, R_t/L; what is paid at the end (a closing block) is in the last.
    `items` names the columns of `verdicts_TC`, which says of each item whether it was satisfied when it was last asked
    for before the turn, and of `own_TC`, which says so of the turn itself: 1 yes, −1 no, 0 not asked for yet.
    `words_TW` has 1 where a word of that hash stands in what the model wrote in the turn."""

    trace_id: str
    turns: tuple[int, ...]
    steps: tuple[int, ...]
    rewards_T: Floats
    history_TF: Floats
    behaviour_TF: Floats
    items: tuple[str, ...]
    verdicts_TC: npt.NDArray[np.int8]
    own_TC: npt.NDArray[np.int8]
    words_TW: npt.NDArray[np.int8]

    @property
    def returns_T(self) -> Floats:
        """What is earned from each turn on."""
        return returns_of(self.rewards_T)

    @classmethod
    def of(cls, score: Score, trace: Trace) -> Episode:
        """Raises TrainError where the trace has grown since it was scored."""
        sizes = turn_sizes(score, [len(turn.steps) for turn in trace.turns])
        turns = tuple(sorted(sizes))
        rewards = rewards_of(score, turns)
        scored = {turn.turn: turn for turn in score.turns}
        items = tuple(dict.fromkeys(one.item for turn in score.turns if turn.turn is not None for one in turn.verdicts))
        column = {item: at for at, item in enumerate(items)}
        own = np.zeros((len(turns), len(items)), np.int8)
        before = np.zeros_like(own)
        counts = np.zeros((len(turns), 4))  # errors, uses, steps, characters
        unearned = np.zeros(len(turns))
        for at, number in enumerate(turns):
            counted = scored.get(number)
            for one in () if counted is None else counted.verdicts:
                own[at, column[one.item]] = 1 if one.value else -1
                unearned[at] += one.weight * bool(one.value) * (1 - (one.pays or 0.0))
            counts[at] = _counts(trace, number)
            if at:
                before[at] = np.where(own[at - 1] != 0, own[at - 1], before[at - 1])
        earned = np.concatenate([[0.0], rewards[:-1]])
        so_far = np.concatenate([np.zeros((1, 4)), np.cumsum(counts, axis=0)[:-1]])
        last = np.concatenate([[0.0], counts[:-1, 0]])
        history = (np.array(turns), np.cumsum(earned), earned, so_far[:, 0], last, so_far[:, 1], so_far[:, 2])
        own_earned = np.array([0.0 if number not in scored else turn_reward(scored[number]) for number in turns])
        return cls(
            trace_id=score.trace_id,
            turns=turns,
            steps=tuple(sizes[number] for number in turns),
            rewards_T=rewards,
            history_TF=np.stack([np.log1p(one) if at > 2 else one for at, one in enumerate(history)], axis=1),
            behaviour_TF=np.column_stack([own_earned, unearned, np.log1p(counts)]),
            items=items,
            verdicts_TC=before,
            own_TC=own,
            words_TW=np.array([_words(trace, number) for number in turns], np.int8).reshape(len(turns), WORDS),
        )


def _counts(trace: Trace, number: int) -> tuple[int, int, int, int]:
    """Errors, calls, steps and characters of a turn; nothing where the trace does not have it."""
    if number >= len(trace.turns):
        return 0, 0, 0, 0
    turn = trace.turns[number]
    uses = [use for step in turn.steps for use in step.tool_uses]
    errors = sum(use.status in ("invalid", "failed") for use in uses)
    return errors, len(uses), len(turn.steps), sum(len(step.message.text) for step in turn.steps)


def _words(trace: Trace, number: int) -> list[int]:
    found = [0] * WORDS
    for step in trace.turns[number].steps if number < len(trace.turns) else ():
        calls = (f"{call.name} {call.arguments}" for call in step.message.tool_calls)
        for word in re.findall(r"\w+", " ".join((step.message.text, *calls)).lower()):
            found[zlib.crc32(word.encode()) % WORDS] = 1
    return found


def turn_sizes(score: Score, happened: Sequence[int] | None) -> dict[int, int]:
    """The steps of each turn that happened: those counted and reached, and the others where the caller gave them."""
    sizes = {turn.turn: turn.steps for turn in score.turns if turn.turn is not None and turn.reached}
    for turn, steps in enumerate(happened or ()):
        if sizes.setdefault(turn, steps) != steps:
            raise TrainError(
                f"trace {score.trace_id!r}: turn {turn} has {steps} steps and was scored with {sizes[turn]}; "
                "the trace has grown since: score it again"
            )
    return sizes


def rewards_of(score: Score, turns: Sequence[int]) -> Floats:
    """(T,) what each of these turns earned, R_t/L; what is paid after them, a closing block's, is in the last."""
    returns = np.array([return_after(score, turn - 1) for turn in turns])
    return returns - np.append(returns[1:], 0.0) if len(turns) else returns


def return_after(score: Score, after: int) -> float:
    """(1/L) Σ R_u over the counted turns after the given one, the closing block always among them."""
    return math.fsum(turn_reward(turn) for turn in score.turns if turn.turn is None or turn.turn > after) / score.length


def turn_reward(turn: TurnScore) -> float:
    """R_t (Eq. 6) from what its verdicts pay; a NULL pays nothing."""
    return min(1.0, math.fsum(one.weight * (one.pays or 0.0) for one in turn.verdicts))


def returns_of(rewards_T: Floats) -> Floats:
    """(T,) what is earned from each turn on."""
    return np.cumsum(rewards_T[::-1])[::-1]


def others_means(turns: Sequence[Sequence[int]], returns: Sequence[Floats]) -> list[Floats]:
    """For each rollout of a group (T,): the mean return from each of its turns on of the *other* rollouts that reached
    it; 0 where none did."""
    total: dict[int, float] = {}
    count: Counter[int] = Counter()
    for own, values in zip(turns, returns, strict=True):
        for turn, value in zip(own, values.tolist(), strict=True):
            total[turn] = total.get(turn, 0.0) + value
            count[turn] += 1
    return [
        np.array(
            [
                (total[turn] - value) / (count[turn] - 1) if count[turn] > 1 else 0.0
                for turn, value in zip(own, values.tolist(), strict=True)
            ]
        )
        for own, values in zip(turns, returns, strict=True)
    ]


def generalized_advantages(rewards_T: Floats, values_T: Floats, lam: float) -> Floats:
    """(T,) GAE(λ) without discount (Schulman et al., arXiv 1506.02438): δ_t = r_t + V_{t+1} − V_t and
    A_t = Σ_k λ^k δ_{t+k}; V after the last turn is 0."""
    deltas = rewards_T + np.append(values_T[1:], 0.0) - values_T
    found, ahead = np.zeros_like(deltas), 0.0
    for at in reversed(range(len(deltas))):
        ahead = deltas[at] + lam * ahead
        found[at] = ahead
    return found
