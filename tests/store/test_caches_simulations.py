"""The cache of simulated answers: what comes back, what stays, several writers at once; in memory and in SQL."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.errors import ToolError
from cm2_agent.graphs.backends.simulation_cache import MemorySimulations, SimulationCache
from cm2_agent.store import SQLStore
from tests.fuzzing import examples


@pytest.fixture
def store(store_url: str) -> Iterator[SQLStore]:
    with SQLStore(store_url) as opened:
        yield opened


@pytest.mark.parametrize("kind", ["memory", "sql"])
def test_the_first_answer_stays(store: SQLStore, kind: str) -> None:
    cache: SimulationCache = MemorySimulations() if kind == "memory" else store.simulation_cache()
    assert cache.get("k") is None
    cache.put("k", "get_order", '{"result": "May 3 \0 \ud800", "error": null}')
    cache.put("k", "get_order", '{"result": "May 4", "error": null}')
    cache.put("other", "get_order", "{}")
    assert cache.get("k") == '{"result": "May 3 \0 \ud800", "error": null}'
    assert cache.get("other") == "{}"


def test_another_process_reads_it(store_url: str) -> None:
    with SQLStore(store_url) as first:
        first.simulation_cache().put("k", "get_order", "{}")
    with SQLStore(store_url) as second:
        assert second.simulation_cache().get("k") == "{}"


def test_writers_at_once_leave_one_answer(store: SQLStore) -> None:
    cache = store.simulation_cache()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: cache.put(f"k{number % 5}", "t", f"{number}"), range(100)))
    assert len(cache) == 5
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: cache.get(f"k{number % 5}"), range(100)))
    assert all(body is not None and int(body) % 5 == number % 5 for number, body in enumerate(found))
    assert len(set(found)) == 5


@settings(max_examples=examples(60))
@given(st.dictionaries(st.text(min_size=1), st.tuples(st.text(), st.text()), max_size=20))
def test_every_answer_comes_back_as_it_was(kept: dict[str, tuple[str, str]]) -> None:
    with SQLStore("sqlite://") as store:
        cache = store.simulation_cache()
        for key, (tool, body) in kept.items():
            cache.put(key, tool, body)
        assert {key: cache.get(key) for key in kept} == {key: body for key, (_, body) in kept.items()}


def test_memory_forgets_the_oldest() -> None:
    cache = MemorySimulations(2)
    for key in ("a", "b"):
        cache.put(key, "t", key)
    assert cache.get("a") == "a"
    cache.put("c", "t", "c")
    assert (cache.get("a"), cache.get("b"), cache.get("c"), len(cache)) == ("a", None, "c", 2)
    with pytest.raises(ToolError, match="expected 1 or more"):
        MemorySimulations(0)
