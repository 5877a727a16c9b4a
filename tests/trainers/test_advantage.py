"""Advantages: what is left out and refused, the laws of §5, and that the unbiased levels are (an exactly enumerated
tree with a gate)."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.errors import TrainError
from cm2_agent.trainers.advantage import GROUP_PENDING, GroupAdvantages, advantages
from cm2_agent.types.score import Score
from tests.trainers.turns import score, turn

LEVELS = ("trajectory", "turn", "step", "return_to_go", "evidence")


def scalars(group: GroupAdvantages) -> list[float | None]:
    return [one.scalar for one in group.rollouts]


GOOD, BAD = score(turn(0, 2, 1, 2), id="good"), score(turn(0, 3, None, 2), id="bad")


# -- by hand


def test_trajectory_is_centred_and_on_every_token() -> None:
    got = advantages([GOOD, BAD])
    assert scalars(got) == [0.25, -0.25]
    assert got.rollouts[0](0, 1) == got.rollouts[0](5, 9) == 0.25, "turns without items, too"
    assert got.informative
    assert scalars(advantages([GOOD, BAD], norm="std")) == [
        pytest.approx(0.25 / (0.25 + 1e-6)),
        pytest.approx(-0.25 / (0.25 + 1e-6)),
    ]


def test_components_are_centred_on_the_reward() -> None:
    stack = [
        replace(GOOD, reward=0.9, components={"length": 0.9}),
        replace(BAD, reward=0.1, components={"length": 0.1}),
    ]
    assert scalars(advantages(stack)) == [pytest.approx(0.4), pytest.approx(-0.4)]
    unknown = replace(stack[0], reward=None, null_reason="component: length", lower=None, upper=None)
    missing = [*stack, unknown]
    assert [one.left_out for one in advantages(missing).rollouts] == [
        GROUP_PENDING,
        GROUP_PENDING,
        "no reward: component: length",
    ]


def test_a_reward_without_turns_is_enough_at_trajectory_level() -> None:
    outcomes = [Score(trace_id=str(n), reward_version="outcome", reward=float(n)) for n in (0, 1)]
    assert scalars(advantages(outcomes)) == [-0.5, 0.5]
    with pytest.raises(TrainError, match="have no turns"):
        advantages(outcomes, level="return_to_go")


@pytest.mark.parametrize("reason", ["failure: ToolError", "gate undecided", "no turn"])
def test_a_group_with_a_pending_rollout_is_left_out_whole(reason: str) -> None:
    dead = score(turn(0, 2, None, None), id="dead", reward=None, null_reason=reason)
    unjudged = score(turn(0, 2, "!", 1), id="unjudged", null_reason="verdicts")
    for level in LEVELS:
        got = advantages([GOOD, dead, unjudged], level=level)  # type: ignore[arg-type]
        assert [one.left_out for one in got.rollouts] == [GROUP_PENDING, f"no reward: {reason}", "no verdict on C0"]
        assert not got.informative
        with pytest.raises(TrainError, match=r"'good' has no advantage: another rollout of its group is pending"):
            got.rollouts[0](0, 0)


def test_ties_are_exactly_zero_and_uninformative() -> None:
    thirds = [
        score(turn(0, 2, 1, 2, None, weights=(0.1, 0.2, 0.7))),
        score(turn(0, 2, 2, 1, None, weights=(0.1, 0.2, 0.7))),
    ]
    for level in ("trajectory", "turn"):
        got = advantages(thirds, level=level)
        assert not got.informative
        assert got.rollouts[0](0, 1) == 0.0
    assert advantages(thirds, level="evidence").informative, "the same reward, earned in other steps"
    dead = score(turn(0, 1, None), reward=None, null_reason="failure: x")
    assert not advantages([dead, dead]).informative


def test_the_baseline_of_the_unbiased_levels_is_the_others() -> None:
    group = [
        score(turn(0, 1, 1), turn(1, 1, 1)),
        score(turn(0, 1, 1), turn(1, 1, None)),
        score(turn(0, 1, None), turn(1, 0, None)),
    ]
    got = advantages(group, level="return_to_go")
    assert [dict(one.steps) for one in got.rollouts] == [
        {0: (0.75,), 1: (0.5,)},  # 1 − (0.5 + 0)/2, 0.5 − 0
        {0: (0.0,), 1: (-0.5,)},
        {0: (-0.75,)},
    ]
    alone = advantages([group[0], group[2]], level="return_to_go").rollouts[0]
    assert alone.steps[1] == (0.5,), "nobody else reached the turn: the baseline is 0"


def test_evidence_compares_a_longer_turn_with_the_others_last_step() -> None:
    group = [score(turn(0, 3, 3)), score(turn(0, 1, 1))]
    assert advantages(group, level="evidence").rollouts[0].steps == {0: (0.0, 0.0, 0.0)}
    group = [score(turn(0, 3, 2)), score(turn(0, 1, 1))]
    assert advantages(group, level="evidence").rollouts[0].steps == {0: (0.0, 0.0, -1.0)}, (
        "after its flip nothing more is to be earned"
    )


def test_the_block_is_the_last_term_of_every_return() -> None:
    group = [score(turn(0, 2, 1), turn(None, 2, 2)), score(turn(0, 2, 1), turn(None, 2, None))]
    for level in ("return_to_go", "evidence"):
        got = advantages(group, level=level)
        assert got.rollouts[0].steps == {0: (0.5, 0.5)}
    with pytest.raises(TrainError, match=r"closing block \(C0\).*no tokens of its own"):
        advantages(group, level="turn")
    with pytest.raises(TrainError, match="closing block"):
        advantages(group, level="step")


def test_tokens_in_turns_without_items_earn_later_rewards() -> None:
    block = [score(turn(None, 3, 1)), score(turn(None, 2, None))]
    got = advantages(block, level="return_to_go", happened=[[2, 1], [2]])
    assert [dict(one.steps) for one in got.rollouts] == [{0: (1.0, 1.0), 1: (1.0,)}, {0: (-1.0, -1.0)}]
    with pytest.raises(TrainError, match="turn 0 has no items"):
        advantages(block, level="evidence").rollouts[0](0, 0)
    counted = [score(turn(1, 1, 1)), score(turn(1, 1, None))]
    assert advantages(counted, level="turn").rollouts[0](0, 0) == 0.0, (
        "this level credits a turn by its own reward alone"
    )
    assert advantages(counted, level="evidence", happened=[[2, 1], [1, 1]]).rollouts[0](0, 1) == 1.0


# -- refused


@pytest.mark.parametrize(
    ("scores", "keys", "words"),
    [
        ([], {}, "without scores"),
        ([GOOD], {"level": "token"}, "level is 'token'; expected one of trajectory"),
        ([GOOD], {"norm": "minmax"}, "norm is 'minmax'"),
        ([GOOD], {"level": "evidence", "norm": "std"}, "uses no Fnorm"),
        ([GOOD, replace(BAD, reward_version="v2")], {}, "mixes the reward versions v1, v2"),
        ([GOOD, score(turn(0, 1, 1))], {}, "different turns or items"),
        ([GOOD, score(turn(0, 1, 1, 1), turn(1, 1, 1))], {}, "different turns or items"),
        ([GOOD, score(turn(0, 1, 1, 1, weights=(0.9, 0.1)))], {}, "different turns or items"),
        ([GOOD, BAD], {"happened": [[2]]}, "1 rollouts for 2 scores"),
        ([GOOD, BAD], {"level": "evidence", "happened": [[2], [9]]}, "has 9 steps and was scored with 3"),
        ([replace(GOOD, components={"x": 1.0})], {"level": "turn"}, "components of a stack"),
    ],
)
def test_refused(scores: list[Score], keys: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainError, match=words):
        advantages(scores, **keys)


def test_a_step_that_was_never_scored_is_refused() -> None:
    with pytest.raises(TrainError, match="step 2 of turn 0 was never scored"):
        advantages([GOOD, BAD], level="evidence").rollouts[0](0, 2)


# -- laws


@st.composite
def groups(draw: st.DrawFn) -> list[Score]:
    """2–5 rollouts of 1–3 turns; later turns may not be reached; complete verdicts."""
    shape = [draw(st.integers(1, 3)) for _ in range(draw(st.integers(1, 3)))]
    weights = [
        [one / sum(ws) for one in ws] for ws in ([draw(st.integers(1, 9)) for _ in range(items)] for items in shape)
    ]
    out = []
    for number in range(draw(st.integers(2, 5))):
        reached = draw(st.integers(1, len(shape)))
        turns = []
        for at, items in enumerate(shape):
            steps = draw(st.integers(1, 4)) if at < reached else 0
            flips = [draw(st.none() | st.integers(1, steps)) if steps else None for _ in range(items)]
            turns.append(turn(at, steps, *flips, weights=weights[at]))
        out.append(score(*turns, id=str(number)))
    return out


@given(groups(), st.sampled_from(LEVELS), st.randoms(use_true_random=False))
def test_the_order_of_rollouts_does_not_matter(group: list[Score], level: Any, random: Any) -> None:
    order = list(range(len(group)))
    random.shuffle(order)
    straight, moved = advantages(group, level=level), advantages([group[at] for at in order], level=level)
    for new, old in enumerate(order):
        assert moved.rollouts[new].steps.keys() == straight.rollouts[old].steps.keys()
        for number, values in straight.rollouts[old].steps.items():
            assert moved.rollouts[new].steps[number] == pytest.approx(values, abs=1e-9)


@given(groups())
def test_complete_verdicts_give_eq_5(group: list[Score]) -> None:
    rewards = np.array([one.reward for one in group], dtype=float)
    assert scalars(advantages(group)) == pytest.approx(list(rewards - rewards.mean()), abs=1e-9)
    spread = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    assert scalars(advantages(group, norm="std")) == pytest.approx(list(spread), abs=1e-6)


@given(groups(), st.sampled_from(["trajectory", "return_to_go", "evidence"]))
def test_an_extra_zero_reward_turn_with_the_same_length_changes_nothing(group: list[Score], level: Any) -> None:
    happened = [[one.steps for one in each.turns if one.reached] for each in group]
    before = advantages(group, level=level, happened=happened)
    longer = [
        [*own, 2] if len(own) == group[0].length else own for own in happened
    ]  # a turn without items does not count
    after = advantages(group, level=level, happened=longer)
    for old, new in zip(before.rollouts, after.rollouts, strict=True):
        assert all(
            new(number, step) == value for number, values in old.steps.items() for step, value in enumerate(values)
        )
        assert level == "trajectory" or all(value == 0 for value in new.steps.get(group[0].length, ()))


# -- unbiasedness, exactly


LOGITS = {"start": (0.3, -0.2, 0.1), "again": (0.5, -0.4), "second": (-0.1, 0.6), "slow": (0.2, 0.0)}
"""The policy: a softmax in each of four states."""


def probabilities(state: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    exp = np.exp(np.array(LOGITS[state]))
    return np.asarray(exp / exp.sum(), dtype=np.float64)


def tree(uncounted: bool = False) -> list[tuple[float, list[tuple[str, int, int, int]], Score, list[int]]]:
    """Every dialogue: its probability, its decisions (state, action, turn, step), its score, and the steps of its
    turns.

    Turn 0: `start` gives up (0), acts at once (1) or dawdles (2) and then decides in `again`. What it did right opens
    the gate to turn 1, where `second` decides in one step, or goes the `slow` way of two. L is 2, with unequal weights
    and an item that needs another first. `uncounted`: turn 1 has no items and turn 2 does, so that L counts turn 0 and
    turn 2 alone."""
    out = []
    last = 2 if uncounted else 1
    for first in range(3):
        for again in range(2) if first == 2 else (None,):
            path = [("start", first, 0, 0)] + ([] if again is None else [("again", again, 0, 1)])
            steps = 1 if again is None else 2
            flips: tuple[int | None, ...] = (None, None)
            if first == 1:
                flips = (1, 1)  # the second item comes with its prerequisite: unpaid
            elif first == 2:
                flips = (1, 2 if again else None)
            opening = turn(0, steps, *flips, weights=(0.3, 0.7), deps=((), (0,)))
            if flips[0] is None:
                out.append((path, score(opening, turn(last, 0, None, None, weights=(0.5, 0.5))), [steps]))
                continue
            middle = [1] if uncounted else []
            for choice in range(2):
                here = [*path, ("second", choice, last, 0)]
                if choice == 0:
                    closing = turn(last, 1, 1, None, weights=(0.5, 0.5))
                    out.append((here, score(opening, closing), [steps, *middle, 1]))
                    continue
                for slow in range(2):
                    closing = turn(last, 2, 2 if slow else None, 1, weights=(0.5, 0.5))
                    out.append(([*here, ("slow", slow, last, 1)], score(opening, closing), [steps, *middle, 2]))
    return [
        (float(np.prod([probabilities(state)[action] for state, action, _, _ in path])), path, worth, sizes)
        for path, worth, sizes in out
    ]


def grad_log(state: str, action: int) -> dict[str, Any]:
    """∇ log π of one decision, by state: one-hot less the probabilities."""
    one_hot = np.zeros(len(LOGITS[state]))
    one_hot[action] = 1
    return {state: one_hot - probabilities(state)}


def added(total: dict[str, Any], part: dict[str, Any], factor: float) -> None:
    for state, vector in part.items():
        total[state] = total[state] + factor * vector


@pytest.mark.parametrize("uncounted", [False, True])
@pytest.mark.parametrize(("level", "scale"), [("trajectory", 2 / 3), ("return_to_go", 1.0), ("evidence", 1.0)])
def test_the_expected_update_is_the_true_gradient(level: Any, scale: float, uncounted: bool) -> None:
    """E[(1/G) Σ_i Σ_tokens A ∇log π] over every group of G = 3 equals ∇E[R].

    At trajectory level the mean holds the rollout itself, which shrinks the expectation by (G − 1)/G and turns it
    nowhere."""
    dialogues = tree(uncounted)
    assert sum(weight for weight, *_ in dialogues) == pytest.approx(1)
    true: dict[str, Any] = {state: np.zeros(len(logits)) for state, logits in LOGITS.items()}
    for weight, path, worth, _ in dialogues:
        for state, action, _, _ in path:
            added(true, grad_log(state, action), weight * float(worth.reward or 0.0))
    found: dict[str, Any] = {state: np.zeros(len(logits)) for state, logits in LOGITS.items()}
    for group in itertools.product(dialogues, repeat=3):
        chance = math.prod(weight for weight, *_ in group)
        got = advantages([worth for _, _, worth, _ in group], level=level, happened=[sizes for *_, sizes in group])
        for (_, path, _, _), rollout in zip(group, got.rollouts, strict=True):
            for state, action, number, step in path:
                added(found, grad_log(state, action), chance * rollout(number, step) / 3)
    for state, vector in true.items():
        np.testing.assert_allclose(found[state], scale * vector, atol=1e-9)
    assert max(float(np.abs(vector).max()) for vector in true.values()) > 0.01, "a gradient of 0 would prove nothing"


def test_the_turn_level_has_the_wrong_sign_where_the_gate_matters() -> None:
    """The note of §5: it ignores survival. `short` earns more in turn 0 and closes the gate, `open` earns less there
    and all of turn 1."""
    short = score(turn(0, 1, 1, None, weights=(0.6, 0.4)), turn(1, 0, None), id="short")
    opens = score(turn(0, 1, None, 1, weights=(0.6, 0.4)), turn(1, 1, 1), id="open")
    assert (short.reward, opens.reward) == (0.3, 0.7)
    assert advantages([short, opens], level="turn").rollouts[0](0, 0) == pytest.approx(0.1)
    for level in ("trajectory", "return_to_go", "evidence"):
        assert advantages([short, opens], level=level).rollouts[0](0, 0) < 0, level
