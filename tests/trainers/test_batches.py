"""Batches: each pass takes every group once, whole, in even batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cm2_agent.trainers.batches import shuffled_batches
from cm2_agent.trainers.dataset import GroupRows, RolloutRows
from tests.trainers.loop import Sampler


@pytest.mark.parametrize("sizes", [[8] * 8, [8], [3, 8, 1, 5, 2], [1] * 17])
def test_each_pass_deals_every_group_once_in_even_batches(
    policy: Callable[..., Any], sample: Sampler, sizes: list[int]
) -> None:
    whole = sample(policy(1), groups=1, size=1)[0]
    groups = [GroupRows.of(whole, (RolloutRows(trace_id="t", rows=()),) * size, informative=True) for size in sizes]
    for target in (1, 4, 16, 100):
        passes = [shuffled_batches(groups, target, seed=0, epoch=epoch) for epoch in (0, 1)]
        for batches in passes:
            assert sorted(id(group) for batch in batches for group in batch) == sorted(map(id, groups))
            counts = [sum(len(group.rollouts) for group in batch) for batch in batches]
            assert max(counts) - min(counts) <= 2 * max(sizes)
        assert shuffled_batches(groups, target, seed=0, epoch=0) == passes[0]
    orders = [[list(map(id, batch)) for batch in shuffled_batches(groups, 4, seed=0, epoch=epoch)] for epoch in (0, 1)]
    assert len(sizes) < 6 or orders[0] != orders[1]
