"""What has changed since one looked: each new or replaced run and score once, those of the project alone."""

from __future__ import annotations

from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from cm2_agent.types.score import Score


def run(id: str, text: str = "Hi", thread: str | None = None, started: int = 0) -> Run:
    return Run(id=id, thread=thread, messages=(Message.of("user", text),), started=started)


def test_each_change_is_told_once(store_url: str) -> None:
    with SQLStore(store_url) as store, SQLStore(store_url) as other:
        store.save_runs([run("a1", thread="a"), run("b")])
        changes, shop = store.changes(), store.in_project("shop").changes()
        assert (changes.next(), shop.next()) == ([], [])
        other.save_run(run("c"))
        other.save_run(run("a2", "And now?", thread="a", started=1))
        assert changes.next() == ["c", "a"]
        store.save_run(run("c"))
        assert changes.next() == [], "what is stored already changes nothing"
        other.replace_run(run("c", "Hello"))
        assert changes.next() == ["c"]
        for reward in (None, 1.0):
            other.save_score(Score(trace_id="b", reward_version="v", reward=reward))
            assert (changes.next(), changes.next()) == (["b"], [])
        other.in_project("shop").save_run(run("b"))
        assert (changes.next(), shop.next()) == ([], ["b"])


def test_a_row_that_is_committed_late_is_not_lost(store_url: str) -> None:
    """A transaction takes its number before it commits: a later number may be seen first."""
    with SQLStore(store_url) as store:
        store.save_runs([run(f"r{number}") for number in range(3)])
        with store.database.writing() as connection:
            connection.exec_driver_sql("UPDATE runs SET seq = seq + 10 WHERE id = 'r2'")
        changes = store.changes()
        with store.database.writing() as connection:
            connection.exec_driver_sql("UPDATE runs SET seq = seq + 3 WHERE id = 'r1'")
        assert changes.next() == ["r1"]
