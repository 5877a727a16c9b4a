"""Learning rates are chosen on the tuning seeds alone, pairs are compared by start, and what is left is found again."""

from typing import Any

import pytest

from cm2_agent.compare.arms import ARMS, ARMS_OF_TURNS
from cm2_agent.compare.experiment import Cell, Experiment
from cm2_agent.compare.results import best_of, chosen_rates, pending, summary, table
from cm2_agent.errors import TrainError

SMALL = Experiment(
    arms=("sft-trajectory", "sft-turn", "grpo-turn", "grpo-trajectory", "outcome"),
    tuning=(901, 902),
    cold_starts=(0, 1, 2),
    samplings=(0, 1),
    learning_rates=2,
)


def result(cell: Cell, success: float, reward: float = 0.5) -> dict[str, Any]:
    collected = {"full": 0.25, "best_turns": 0.5, "sampled_tokens": 10}
    trained = {"steps": 1, "rows": 1, "tokens": 7, "skipped": None}
    return {
        "cell": vars(cell),
        "before": {"success": 0.1, "reward": 0.2},
        "rounds": [{"collected": collected, "trained": trained}],
        "after": {"success": success, "reward": reward},
        "sampled_tokens": 10,
        "trained_tokens": 7,
        "cpu_seconds": 3.0,
    }


def tuned(best: dict[str, int]) -> dict[str, dict[str, Any]]:
    """All tuning cells: an arm's learning rate number `best[arm]` does better."""
    return {
        cell.key: result(cell, 0.5 if SMALL.grid(cell.arm).index(cell.learning_rate) == best.get(cell.arm, 0) else 0.4)
        for cell in SMALL.tuning_cells()
    }


def test_the_rate_with_the_most_success_on_the_tuning_seeds_is_taken() -> None:
    rates = chosen_rates(SMALL, tuned({"grpo-turn": 1}))
    assert rates == {arm: SMALL.grid(arm)[int(arm == "grpo-turn")] for arm in SMALL.arms}


def test_between_equals_the_reward_decides_and_then_the_lower_rate() -> None:
    results = {cell.key: result(cell, 0.5) for cell in SMALL.tuning_cells()}
    assert chosen_rates(SMALL, results)["grpo-turn"] == SMALL.grid("grpo-turn")[0]
    for cell in SMALL.tuning_cells():
        if cell.arm == "grpo-turn" and cell.learning_rate == SMALL.grid("grpo-turn")[1]:
            results[cell.key] = result(cell, 0.5, reward=0.6)
    assert chosen_rates(SMALL, results)["grpo-turn"] == SMALL.grid("grpo-turn")[1]


def test_an_arm_without_all_its_tuning_cells_has_no_rate_and_nothing_is_tested_before() -> None:
    results = tuned({})
    missing = next(cell for cell in SMALL.tuning_cells() if cell.arm == "outcome")
    del results[missing.key]
    assert "outcome" not in chosen_rates(SMALL, results)
    assert pending(SMALL, results) == [missing]


def test_what_is_left_is_the_test_pair_by_pair() -> None:
    results = tuned({})
    left = pending(SMALL, results)
    assert len(left) == len(SMALL.arms) * 6
    assert {(cell.cold_start, cell.sampling) for cell in left[: len(SMALL.arms)]} == {(0, 0)}
    assert not {cell.cold_start for cell in left} & set(SMALL.tuning)
    results[left[0].key] = result(left[0], 0.3)
    assert pending(SMALL, results) == left[1:]


def test_rivals_are_the_best_of_their_families_on_the_tuning_seeds() -> None:
    results = tuned({})
    for cell in SMALL.tuning_cells():
        if cell.arm in ("sft-turn", "outcome"):
            results[cell.key] = result(cell, 0.9)
    assert best_of("sft", SMALL, results) == "sft-turn"
    assert best_of("grpo", SMALL, results) == "grpo-turn"  # outcome is GRPO too, on another reward: no rival


def test_the_difference_is_of_pairs_and_its_interval_over_starts() -> None:
    results = tuned({"sft-turn": 1})
    for cell in SMALL.tuning_cells():
        if cell.arm == "sft-turn":
            results[cell.key] = result(cell, 0.45)
    rates = chosen_rates(SMALL, results)
    level = {0: 0.2, 1: 0.5, 2: 0.8}  # of a start, which every arm shares
    for cell in SMALL.test_cells(rates):
        gain = {"grpo-turn": 0.1 + 0.02 * cell.cold_start, "sft-trajectory": 0.0}.get(cell.arm, 0.05)
        results[cell.key] = result(cell, level[cell.cold_start] + gain)
    found = summary(SMALL, results)
    over = found["grpo_over_sft"]
    assert (over["against"], over["pairs"]) == ("sft-trajectory", 6)
    assert over["success"] == pytest.approx(0.12)
    assert 0.1 <= over["interval"][0] < 0.12 < over["interval"][1] <= 0.14
    row = found["arms"]["grpo-turn"]
    wide, narrow = row["success_interval"], row["over_sft"]["interval"]
    assert wide[1] - wide[0] > 5 * (narrow[1] - narrow[0])  # what starts differ by cancels in the pairs
    assert [pair[:2] for pair in over["by_pair"]] == [[start, sampling] for start in range(3) for sampling in range(2)]
    assert found["arms"]["sft-trajectory"]["over_sft"] is None
    assert found["starts"] == {"success": 0.1, "reward": 0.2, "full": 0.25, "best_turns": 0.5}
    rows = table(found)
    assert len(rows) == 1 + len(SMALL.arms)
    assert {len(row) for row in rows} == {len(rows[0])}


def test_a_summary_of_nothing_is_a_table_without_figures() -> None:
    found = summary(SMALL, {})
    assert found["grpo_over_sft"] is None
    assert found["starts"] is None
    assert [row[2] for row in table(found)[1:]] == ["0"] * len(SMALL.arms)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"group": 1}, "group 1"),
        ({"arms": ()}, "at least one arm"),
        ({"arms": ("ppo",)}, "no arm 'ppo'"),
        ({"tuning": (0,)}, "both tuned on and tested on"),
    ],
)
def test_an_experiment_that_cannot_be_meant_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(TrainError, match=problem):
        Experiment(**settings)


@pytest.mark.parametrize(
    "changed",
    [{"stage": "../test"}, {"arm": "a/b"}, {"cold_start": "../0"}, {"sampling": -1}, {"learning_rate": "1"}],
)
def test_what_names_no_cell_is_refused(changed: dict[str, Any]) -> None:
    named: dict[str, Any] = {"stage": "test", "arm": "dpo", "learning_rate": 1e-4, "cold_start": 0, "sampling": 0}
    assert Cell(**named).key == "test-dpo-0.0001-0-0"
    with pytest.raises(TrainError, match="expected the stage tune or test"):
        Cell(**{**named, **changed})


def test_an_experiment_is_read_as_it_was_written_unless_an_arm_was_declared_otherwise() -> None:
    written = SMALL.to_json()
    assert Experiment.from_json(written) == SMALL
    written["arms"]["grpo-turn"]["level"] = "trajectory"
    with pytest.raises(TrainError, match="the arm 'grpo-turn' was another one"):
        Experiment.from_json(written)


def test_fewer_arms_where_dialogues_are_longer() -> None:
    assert Experiment.of_turns(3).arms == tuple(ARMS)
    assert len(Experiment.of_turns(6).arms) == 5
    assert len(Experiment.of_turns(10).arms) == len(Experiment.of_turns(12).arms) == 3
    assert all(name in ARMS for arms in ARMS_OF_TURNS.values() for name in arms)
    assert all(len(Experiment().grid(name)) >= 4 for name in ARMS)
    keys = [cell.key for cell in Experiment().tuning_cells()]
    assert len(keys) == len(set(keys)) == len(ARMS) * 4 * 2
