"""The cache of verdicts in SQL: what comes back, what is not kept, and several writers at once; and the usage of
scores."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from cm2_agent.rewards.judges.cache import MemoryCache, NamespacedCache, VerdictCache
from cm2_agent.store import SQLStore, migrate, upgrade
from cm2_agent.store.engine import Database
from cm2_agent.types.run import Run
from cm2_agent.types.score import Score, Verdict
from tests.fuzzing import examples
from tests.strategies import verdicts


@pytest.fixture
def store(store_url: str) -> Iterator[SQLStore]:
    with SQLStore(store_url) as opened:
        yield opened


def yes(item: str = "a") -> Verdict:
    return Verdict(
        item=item,
        value=True,
        weight=0.0,
        step=2,
        explanation="as told",
        evidence=({"step": 1, "quote": "May 3 \0 \ud800"},),
    )


@pytest.mark.parametrize("kind", ["memory", "sql", "salted"])
def test_what_is_put_is_got(store: SQLStore, kind: str) -> None:
    sql = store.verdict_cache()
    kinds: dict[str, VerdictCache] = {"memory": MemoryCache(), "sql": sql, "salted": NamespacedCache(sql, "again=1")}
    cache = kinds[kind]
    unclear = Verdict(item="d", value=None, weight=0.0, reason="judge failed", cause="content", explanation="refused")
    given = {"k1": yes(), "k2": Verdict(item="b", value=False, weight=0.5), "k4": unclear, "\0": yes("\udc80")}
    lost = {
        "k3": Verdict(item="c", value=None, weight=0.0, cause="infrastructure"),
        "k5": Verdict(item="e", value=None, weight=0.0),
    }
    cache.put({**given, **lost})
    assert cache.get([*given, *lost, "k9"]) == given
    assert cache.get([]) == {}
    cache.put({"k1": Verdict(item="a", value=False, weight=0.0)})
    assert cache.get(["k1"]) == {"k1": yes()}  # the first answer stays


@pytest.mark.slow
@settings(max_examples=examples(60))
@given(st.dictionaries(st.text(min_size=1), verdicts(), max_size=20))
def test_every_verdict_comes_back_as_it_was(found: dict[str, Verdict]) -> None:
    with SQLStore("sqlite://") as store:
        cache = store.verdict_cache()
        cache.put(found)
        kept = {key: one for key, one in found.items() if one.value is not None or one.cause == "content"}
        assert cache.get(list(found)) == kept
        assert len(cache) == len(kept)


def test_many_keys_at_once(store: SQLStore) -> None:
    cache = store.verdict_cache()
    many = {str(number): Verdict(item=str(number), value=number % 2 == 0, weight=0.0) for number in range(1301)}
    cache.put(many)
    assert cache.get([*many, *many, "none"]) == many


def test_a_salt_hides_what_was_judged_without_it(store: SQLStore) -> None:
    cache = store.verdict_cache()
    cache.put({"k": yes()})
    assert NamespacedCache(cache, "again=1").get(["k"]) == {}
    NamespacedCache(cache, "again=1").put({"k": Verdict(item="a", value=False, weight=0.0)})
    assert NamespacedCache(cache, "again=1").get(["k"])["k"].value is False
    assert NamespacedCache(cache, "again=2").get(["k"]) == {}
    assert cache.get(["k"]) == {"k": yes()}


def test_writers_in_any_order_do_not_hinder_each_other(store_url: str) -> None:
    """Eight threads of two stores put the same keys, each in an order of its own: one verdict a key, the same for
    everybody."""
    keys = [str(number) for number in range(40)]
    ready = threading.Barrier(8)
    with SQLStore(store_url) as first, SQLStore(store_url) as second, ThreadPoolExecutor(8) as pool:

        def work(worker: int) -> dict[str, bool | None]:
            cache = (first, second)[worker % 2].verdict_cache()
            mine = keys[worker * 5 :] + keys[: worker * 5]
            ready.wait()
            cache.put({key: Verdict(item=f"w{worker}", value=worker % 3 == 0, weight=0.0) for key in mine})
            return {key: verdict.value for key, verdict in sorted(cache.get(mine).items())}

        told = list(pool.map(work, range(8)))
    assert all(one == told[0] for one in told)
    assert len(told[0]) == 40


def test_memory_is_bounded() -> None:
    cache = MemoryCache(3)
    for number in range(5):
        cache.put({str(number): Verdict(item="a", value=True, weight=0.0)})
        cache.get(["0"])  # kept by being used
    assert sorted(cache.get([str(number) for number in range(5)])) == ["0", "3", "4"]
    assert len(cache) == 3
    with pytest.raises(ValueError, match="expected 1 or more"):
        MemoryCache(0)


def test_scores_of_an_older_schema_have_no_usage(store_url: str) -> None:
    """The second schema's scores are read as they were after the upgrade, and can be replaced by scores with usage."""
    database = Database(store_url)
    with database.writing() as connection:
        migrate.migrate(connection, database, "0002")
        connection.execute(text("INSERT INTO traces (seq, id, started, runs) VALUES (1, 'a', 0, 0)"))
        connection.execute(text("INSERT INTO reward_versions (seq, version) VALUES (1, 'v')"))
        row = "INSERT INTO scores (trace, reward, value, runs, turns, components) VALUES (1, 1, 0.5, 1, '[]', '{}')"
        connection.execute(text(row))
    database.close()
    upgrade(store_url)
    with SQLStore(store_url) as store:
        assert store.score("a") == Score(trace_id="a", reward_version="v", reward=0.5)
        assert store.judging() == {}
        assert store.usage("v", ["a", "b"]) == store.usage("none", ["a"]) == {}
        store.save_score(Score(trace_id="a", reward_version="v", reward=1.0, usage={"calls": 2}))
        assert store.usage("v", ["a", "b"]) == {"a": {"calls": 2}}


def test_usage_is_kept_and_summed(store: SQLStore) -> None:
    store.save_runs([Run(id=str(number)) for number in range(4)])
    usage = {
        "calls": 3,
        "re_asks": 1,
        "escalated": 0,
        "input_tokens": 4000,
        "output_tokens": 210,
        "usd": 0.00125,
        "note": "b64: \0",
    }
    unpriced = {**usage, "usd": None}
    scores = [
        Score(trace_id="0", reward_version="v1", reward=1.0, usage=usage),
        Score(trace_id="1", reward_version="v1", reward=None, null_reason="verdicts", usage=usage),
        Score(trace_id="2", reward_version="v1", reward=0.5),
        Score(trace_id="3", reward_version="v2", reward=0.5, usage=unpriced),
        Score(trace_id="2", reward_version="v2", reward=0.5, usage=usage),
    ]
    store.save_scores(scores)
    assert list(store.scores(reward="v1")) == scores[:3]
    assert store.score("3") == scores[3]
    totals = store.judging()
    assert totals["v1"] == {
        "traces": 2,
        "calls": 6,
        "re_asks": 2,
        "escalated": 0,
        "input_tokens": 8000,
        "output_tokens": 420,
        "usd": 0.0025,
    }
    assert totals["v2"]["usd"] is None
    assert totals["v2"]["calls"] == 6
    store.save_score(Score(trace_id="0", reward_version="v1", reward=1.0))  # replaced: this time nothing was asked
    assert store.judging()["v1"]["calls"] == 3
    health = store.health()
    assert health["judging"] == store.judging()
    assert health["known_verdicts"] == 0
