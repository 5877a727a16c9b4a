"""The benchmark of large stores: what it makes by SQL reads as if an application had saved it, and it measures."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from cm2_agent.store import SQLStore, TraceFilter
from tests.bench.bench_scale import measure
from tests.bench.scale_store import CHECKLIST, REWARD, make


def test_stores_made_by_sql_are_like_saved_ones(store_url: str) -> None:
    make(store_url, traces=34, group=4, tasks=4)
    with SQLStore(store_url) as store:
        assert store.health()["traces"] == 34
        (trace,) = store.traces(ids=["d0000021"])
        assert (trace.task_id, trace.policy, len(trace.calls), len(trace.runs)) == ("task-00001", "policy-0001", 6, 3)
        assert all("0000021" in message.text for message in trace.messages if message.role == "user")
        score = store.score("d0000021", REWARD)
        assert score is not None
        assert {one.item for one in score.verdicts} == {item.id for item in CHECKLIST}
        assert [len(group.rollouts) for group in store.groups(policy="policy-0001")] == [4, 4, 4, 4]
        assert store.count_traces(TraceFilter(policy="policy-0002")) == 2
        store.save_run(replace(trace.runs[0], id="new", thread="new"))  # the next row is free
        assert store.health()["runs"] == 34 * 3 + 1


@pytest.mark.slow
def test_commands_are_measured(tmp_path: Path) -> None:
    given = argparse.Namespace(dialogues=32, traces=0, postgres=None, commands="report")
    found = measure(tmp_path, given)
    assert found["commands"]["report"]["cpu_s"] > 0
    assert found["commands"]["report"]["mb"] > 20
    assert found["reading"]["calls"] == 32 * 6
