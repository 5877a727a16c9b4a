"""Claims: one process has a piece of work until it hands it in, gives it back, or ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from sqlalchemy import update

from cm2_agent.errors import ClaimLost
from cm2_agent.store import SQLStore
from cm2_agent.store import claims as module
from cm2_agent.store.claims import Claims, is_dead
from cm2_agent.store.work_tables import claims
from cm2_agent.types.run import Run


@pytest.fixture
def store(store_url: str) -> Iterator[SQLStore]:
    with SQLStore(store_url) as made:
        yield made


def pair(store: SQLStore) -> tuple[Claims, Claims]:
    return Claims(store), Claims(store)


def owner_that_ended(claims_of: Claims) -> str:
    """The owner that a process of this machine was, which has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = module._began(process.pid)
    assert began
    owner = "/".join((claims_of.owner.split("/")[0], str(process.pid), began, "x"))
    assert not is_dead(owner)
    process.communicate()
    assert is_dead(owner)
    return owner


def test_a_claim_has_one_owner_until_it_is_given_back(store: SQLStore) -> None:
    one, other = pair(store)
    assert one.take(["a", "b"]) == {"a": False, "b": False}
    assert one.take(["a"]) == {"a": False}  # again
    assert other.take(["b", "c"]) == {"c": False}
    assert other.busy(["a", "b", "c", "d"]) == {"a", "b"}
    one.release(["b"])
    assert other.take(["a", "b"]) == {"b": False}
    assert Claims(store.in_project("else")).take(["a"]) == {"a": False}
    one.close()
    assert other.busy(["a"]) == set()
    other.close()


def test_what_a_process_left_that_ended_is_anybodys(store: SQLStore) -> None:
    one, other = pair(store)
    one.take(["dead", "late", "held"])
    with store.database.writing() as connection:
        connection.execute(update(claims).where(claims.c.name == "dead").values(owner=owner_that_ended(one)))
        connection.execute(update(claims).where(claims.c.name == "late").values(until=1))
    assert other.busy(["dead", "late", "held"]) == {"held"}
    assert other.take(["dead", "late", "held"]) == {"dead": True, "late": True}
    one.close()
    other.close()


def test_a_dialogue_is_stored_with_its_claim_or_not_at_all(store: SQLStore) -> None:
    one, other = pair(store)
    one.take(["t1", "t2"])
    run = Run(id="r1", thread="t1")
    store.save_dialogue([run], claim=one.claim("t1"))
    assert other.take(["t1"]) == {"t1": False}
    with store.database.writing() as connection:
        connection.execute(update(claims).where(claims.c.name == "t2").values(until=1))
    assert other.take(["t2"]) == {"t2": True}
    with pytest.raises(ClaimLost, match="another process has taken 't2' over"):
        store.save_dialogue([Run(id="r2", thread="t2")], claim=one.claim("t2"))
    assert store.stored(["t1", "t2"]) == {"t1"}
    store.save_dialogue([Run(id="r3", thread="t2")], claim=other.claim("t2"))
    assert [trace.id for trace in store.traces()] == ["t1", "t2"]
    one.close()
    other.close()


@pytest.mark.parametrize("owner", ["elsewhere/1/1/x", "//no/x"])
def test_nobody_is_dead_that_cannot_be_seen(owner: str) -> None:
    assert not is_dead(owner)
