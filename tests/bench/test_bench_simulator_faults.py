"""What the benchmark of a failing simulator shows stands, for every kind of fault, on SQLite and PostgreSQL."""

from __future__ import annotations

from cm2_agent.store import SQLStore
from tests.bench.bench_simulator_faults import FAULTS, measure


async def test_a_failing_simulator_costs_its_own_dialogue_alone(store_url: str) -> None:
    with SQLStore(store_url) as store:
        found = await measure(1, store)
    assert found["wrong"] == 0
    assert found["ended"] == {"healthy": len(FAULTS), "ToolError": len(FAULTS)}
    assert found["stored_failures"] == len(FAULTS)
