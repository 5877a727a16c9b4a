"""The benchmark of training from stored rollouts, in small: what its arms multiply and clip, that it goes through the
store, goes on where it stopped, and says what its cells say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm2_agent.store.sql_store import SQLStore
from cm2_agent.trainers.batches import SampleBatches
from cm2_agent.trainers.dataset import build_dataset
from cm2_agent.trainers.grpo import GRPO
from tests.bench.bench_offline import (
    STARTS,
    Bench,
    Size,
    arms,
    arms_from,
    check,
    forgets,
    forgotten,
    summary,
    table,
    tuning_table,
)
from tests.compare.small_policies import hasty_policy

SIZE = Size(tasks=4, group=4, rollouts_per_step=8, steps=2, evaluated=4, learning_rates=(1e-3,))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    out = tmp_path_factory.mktemp("offline")
    hasty_policy(out / "policies" / "0")
    return Bench(size=SIZE, out=out)


def test_rollouts_come_out_of_the_store_as_they_went_in(bench: Bench) -> None:
    groups = bench.groups(0)
    assert [len(group.rollouts) for group in groups] == [SIZE.group] * SIZE.tasks
    with SQLStore(f"sqlite:///{bench.out / 'stores' / '0-0.db'}", create=False) as store:
        assert len(list(store.traces())) == SIZE.tasks * SIZE.group
    assert all(call.logprobs for group in groups for rollout in group.rollouts for call in rollout.trace.calls)
    assert bench.groups(0) == groups  # as they were, and not sampled again


@pytest.mark.parametrize("arm", list(arms(SIZE)))
def test_what_each_arm_multiplies_and_where_it_clips(bench: Bench, arm: str) -> None:
    how = arms(SIZE)[arm]
    groups = bench.groups(0)
    stored = build_dataset(groups, level="trajectory").groups
    mu = {row.trace_id: row.mu for group in stored for row in group.rows}
    given = build_dataset([forgotten(one) for one in groups] if forgets(how) else groups, level="trajectory").groups
    rows = [row for group in given for row in group.rows]
    start = {id(row): mu[row.trace_id] + 0.5 for row in rows}  # another policy than the one that sampled
    later = {id(row): mu[row.trace_id] - 0.25 for row in rows}
    grpo = GRPO("policy", "out", rollouts_per_step=SIZE.rollouts_per_step, ratio_band=None, **how)
    batches = SampleBatches(given, grpo, start=start, now=lambda rows: later, reference=None)
    loads: list[Any] = []
    for _ in range(4):  # two passes
        loads.append(next(batches))
    for number, batch in enumerate(loads):
        renewed = number >= {"renewed": 2, "ratio_1": 1, "ratio_1_same_rate": 1}.get(arm, 9)
        for sample in batch:
            recorded = mu[sample.row.trace_id]
            prox = (later if renewed else start)[id(sample.row)]
            weight = np.exp(np.minimum(prox - recorded, np.log(2))) if arm in ("decoupled", "renewed") else 1.0
            assert sample.old is not None
            assert sample.advantages is not None
            np.testing.assert_allclose(sample.old, recorded if arm == "direct" else prox)
            np.testing.assert_allclose(sample.advantages, weight * sample.row.token_advantages)


@pytest.mark.slow
def test_cells_are_carried_out_once_and_summed_up(bench: Bench) -> None:
    found = {}
    for kind in STARTS:
        cells = {arm: [bench.cell(kind, arm, 0, 1e-3)] for arm in arms_from(kind, SIZE)}
        found[kind] = summary(cells)
        for (cell,) in cells.values():
            assert cell["cpu_seconds"] > 0
            assert cell["before"] == bench.before(kind, 0)
    before = {path: path.stat().st_mtime_ns for path in bench.out.rglob("*") if path.is_file()}
    for kind in STARTS:
        for arm in arms_from(kind, SIZE):
            bench.cell(kind, arm, 0, 1e-3)
    assert {path: path.stat().st_mtime_ns for path in bench.out.rglob("*") if path.is_file()} == before
    assert found["own"]["kl_per_rollout"] == 0.0 < found["noisy"]["kl_per_rollout"]
    assert "recomputed" not in found["own"]["arms"]
    assert len(table(found).splitlines()) == 2 + 3 + sum(len(start["arms"]) for start in found.values())


def test_intervals_are_of_pairs_of_a_seed() -> None:
    def cell(before: float, after: float) -> dict[str, Any]:
        stale = {"kl_per_rollout": 1.0, "ratio_min": 0.5, "ratio_max": 2.0}
        found: dict[str, Any] = {"learning_rate": 1e-3, "cpu_seconds": 1.0, "off_policy": stale}
        figures = {name: {"reward": value, "success": 0.0} for name, value in (("before", before), ("after", after))}
        return found | figures | {"off_policy_after": stale}

    found = summary({"decoupled": [cell(0.1, 0.5), cell(0.3, 0.7)], "ratio_1": [cell(0.1, 0.4), cell(0.3, 0.6)]})[
        "arms"
    ]
    assert found["ratio_1"]["reward_over_decoupled"] == pytest.approx([-0.1, -0.1, -0.1])
    assert found["ratio_1"]["reward_gain"] == pytest.approx([0.3, 0.3, 0.3])
    assert found["ratio_1"]["worse_than_start"] == 0


def test_the_table_of_learning_rates() -> None:
    found = tuning_table({"decoupled": {1e-4: 0.5, 8e-4: 0.75}, "ratio_1": {1e-4: 0.5, 8e-4: 0.25}})
    assert found.splitlines() == [
        "| arm | 0.0001 | 0.0008 |",
        "|---|---|---|",
        "| decoupled | 0.50 | 0.75 |",
        "| ratio_1 | 0.50 | 0.25 |",
    ]


def test_a_folder_of_another_size_is_not_gone_on_with(tmp_path: Path) -> None:
    check(tmp_path, SIZE)
    check(tmp_path, SIZE)
    assert json.loads((tmp_path / "size.json").read_text())["steps"] == 2
    with pytest.raises(SystemExit, match="another size"):
        check(tmp_path, Size())
