"""Credits of the arms, and which rollouts an arm trains on."""

import pytest

from cm2_agent.compare.arms import ARMS, Arm
from cm2_agent.compare.credits import positive, shuffled
from cm2_agent.compare.training import used_rollouts
from cm2_agent.trainers.dataset import Credits, by_level
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.trace import Trace


def group_of(rewards: list[tuple[int, ...]], name: str = "t") -> Group:
    """A rollout for each tuple of rewards, a turn each; a turn is one step."""
    rollouts = []
    for number, turns in enumerate(rewards):
        said = [(f"ask {turn}", f"{number} {turn}") for turn in range(len(turns))]
        messages = [
            message for ask, answer in said for message in (Message.of("user", ask), Message.of("assistant", answer))
        ]
        scores = tuple(
            TurnScore(
                turn=turn,
                reached=True,
                steps=1,
                reward=float(paid),
                verdicts=(Verdict(item="x", value=bool(paid), weight=1.0, step=1 if paid else None, paid=bool(paid)),),
            )
            for turn, paid in enumerate(turns)
        )
        score = Score(trace_id=f"{name}{number}", reward_version="r", reward=sum(turns) / len(turns), turns=scores)
        trace = Trace.of(Run(id=f"{name}{number}", messages=tuple(messages)))
        rollouts.append(Rollout(trace=trace, score=score))
    return Group(key={"task": name, "reward": "r"}, rollouts=tuple(rollouts))


def table(credits: Credits, group: Group) -> list[list[float]]:
    found = []
    for credit, rollout in zip(credits(group), group.rollouts, strict=True):
        assert not isinstance(credit, str)
        found.append([credit(turn.index, 0) for turn in rollout.trace.turns])
    return found


GROUP = group_of([(1, 0), (0, 0), (1, 1), (0, 0)])


def test_advantages_below_zero_count_as_zero() -> None:
    plain = table(by_level("turn", "none"), GROUP)
    assert table(positive("turn"), GROUP) == [[max(0.0, value) for value in row] for row in plain]
    assert min(value for row in plain for value in row) < 0


@pytest.mark.parametrize("level", ["trajectory", "turn", "return_to_go"])
def test_shuffled_advantages_are_the_same_ones_at_other_rollouts(level: str) -> None:
    plain = table(by_level(level, "none"), GROUP)
    mixed = [table(shuffled(level, seed), GROUP) for seed in range(8)]
    assert all(sorted(rows) == sorted(plain) for rows in mixed)
    assert any(rows != plain for rows in mixed)
    assert table(shuffled(level, 3), GROUP) == mixed[3]


def ids(arm: Arm, *groups: Group) -> list[str]:
    return [rollout.trace.id for rollout in used_rollouts(arm, groups)]


def test_sft_uses_the_best_of_a_group_and_by_turn_the_best_of_each_turn() -> None:
    apart = group_of([(1, 0), (0, 1), (0, 0)])
    assert ids(ARMS["sft-trajectory"], GROUP) == ["t2"]
    assert ids(ARMS["sft-turn"], apart) == ["t0", "t1"]
    assert ids(ARMS["sft-trajectory"], group_of([(0, 0), (0, 0)])) == []


def test_grpo_uses_groups_that_differ_at_its_level() -> None:
    same_sum = group_of([(1, 0), (0, 1)], "u")
    assert ids(ARMS["grpo-trajectory"], GROUP, same_sum) == ["t0", "t1", "t2", "t3"]
    assert ids(ARMS["grpo-turn"], same_sum) == ["u0", "u1"]
    assert ids(ARMS["grpo-turn"], group_of([(1, 1), (1, 1)])) == []


def test_dpo_uses_both_sides_of_its_pairs() -> None:
    assert ids(ARMS["dpo"], group_of([(1, 1), (0, 0)])) == ["t0", "t1"]
    assert ids(ARMS["dpo"], group_of([(1, 1), (1, 1)])) == []
