"""Policies in the store, on both databases: lineage, one promoted policy a name, and the way back."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from sqlalchemy import create_engine, text

from cm2_agent import Policy, SQLStore
from cm2_agent.errors import ConflictError, StoreError

START = Policy(name="desk", version="v0", folder="policies/start")
NEXT = Policy(
    name="desk",
    version="v1+\x00\ud800",
    folder="policies/1",
    parent="v0",
    reward="desk@1",
    certificate="2026-11-27T12:00:00+00:00",
    data={"runs": ["round-1"], "rollouts": 8},
    settings={"level": "turn", "steps": 4},
    metrics={"gain": 0.25},
)


def states(store: SQLStore, name: str = "desk") -> dict[str, str]:
    return {one.version: one.state for one in store.policies(name)}


def test_a_policy_reads_as_it_was_registered(store_url: str) -> None:
    with SQLStore(store_url) as store:
        for one in (START, NEXT):
            store.save_policy(one)
        found = store.policy("desk", NEXT.version)
        assert found is not None
        assert found.stored > 0
        assert replace(found, stored=0) == NEXT
        assert store.policy("desk", "v9") is None
        assert store.promoted("desk") is None


def test_registering_again_keeps_the_state_and_replaces_the_rest(store_url: str) -> None:
    with SQLStore(store_url) as store:
        store.save_policy(NEXT)
        store.promote("desk", NEXT.version)
        before = store.policy("desk", NEXT.version)
        store.save_policy(replace(NEXT, metrics={"gain": 0.5}))
        assert before is not None
        assert store.policies() == [replace(before, metrics={"gain": 0.5})]


def test_one_policy_of_a_name_is_promoted_and_a_rollback_returns_to_the_one_before(store_url: str) -> None:
    with SQLStore(store_url) as store:
        for version in ("v0", "v1", "v2"):
            store.save_policy(replace(START, version=version))
            store.promote("desk", version, reason={"p": 0.01})
            store.promote("desk", version)  # again: no second promotion
        assert states(store) == {"v0": "replaced", "v1": "replaced", "v2": "promoted"}
        gone, back = store.rollback("desk")
        assert (gone.version, gone.state, back.version, back.state) == ("v2", "rolled_back", "v1", "promoted")
        store.save_policy(replace(START, version="v3"))
        store.promote("desk", "v3")
        assert [store.rollback("desk")[1].version for _ in range(2)] == ["v1", "v0"]
        assert states(store) == {"v0": "promoted", "v1": "rolled_back", "v2": "rolled_back", "v3": "rolled_back"}
        with pytest.raises(StoreError, match="its only promotion"):
            store.rollback("desk")
        assert [(one.version, one.undone is None) for one in store.promotions("desk")] == [
            ("v0", True),
            ("v1", False),
            ("v2", False),
            ("v3", False),
        ]
        assert store.promotions("desk")[0].reason == {"p": 0.01}


def test_a_policy_that_was_rolled_back_may_be_promoted_again(store_url: str) -> None:
    with SQLStore(store_url) as store:
        for version in ("v0", "v1"):
            store.save_policy(replace(START, version=version))
            store.promote("desk", version)
        store.rollback("desk")
        store.promote("desk", "v1", instead_of="v0")
        assert states(store) == {"v0": "replaced", "v1": "promoted"}
        assert store.rollback("desk")[1].version == "v0"


def test_a_promotion_that_expects_another_policy_changes_nothing(store_url: str) -> None:
    with SQLStore(store_url) as store:
        for version in ("v0", "v1", "v2"):
            store.save_policy(replace(START, version=version))
        with pytest.raises(ConflictError, match="none is promoted now"):
            store.promote("desk", "v1", instead_of="v0")
        store.promote("desk", "v2")
        with pytest.raises(ConflictError, match="v2 is promoted now"):
            store.promote("desk", "v1", instead_of="v0")
        assert states(store) == {"v0": "candidate", "v1": "candidate", "v2": "promoted"}
        with pytest.raises(StoreError, match="no policy 'v7'"):
            store.promote("desk", "v7")


def test_a_rejected_candidate_says_so_and_a_promoted_policy_is_not_rejected(store_url: str) -> None:
    with SQLStore(store_url) as store:
        for version in ("v0", "v1"):
            store.save_policy(replace(START, version=version))
        store.promote("desk", "v0")
        for version in ("v0", "v1"):
            store.reject("desk", version)
        assert states(store) == {"v0": "promoted", "v1": "rejected"}


def test_names_and_projects_have_policies_of_their_own(store_url: str) -> None:
    with SQLStore(store_url) as mine, SQLStore(store_url, project="other") as other:
        for store, name in ((mine, "desk"), (mine, "shop"), (other, "desk")):
            store.save_policy(replace(START, name=name))
            store.promote(name, "v0")
        assert [one.name for one in mine.policies()] == ["desk", "shop"]
        assert states(other) == {"v0": "promoted"}
        mine.reject("shop", "v0")
        assert other.promotions("shop") == []


def test_promotions_at_the_same_time_leave_one_promoted(store_url: str) -> None:
    names = [f"v{number}" for number in range(6)]
    with SQLStore(store_url) as store:
        for version in names:
            store.save_policy(replace(START, version=version))
        threads = [threading.Thread(target=store.promote, args=("desk", version)) for version in names]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert sorted(states(store).values()) == ["promoted", *["replaced"] * 5]
        last = store.promotions("desk")[-1].version
        promoted = store.promoted("desk")
        assert promoted is not None
        assert promoted.version == last


def test_the_database_itself_refuses_a_second_promoted_policy(store_url: str) -> None:
    with SQLStore(store_url) as store:
        for version in ("v0", "v1"):
            store.save_policy(replace(START, version=version))
        store.promote("desk", "v0")
    engine = create_engine(store_url)
    with pytest.raises(Exception, match=r"(?i)unique"), engine.begin() as connection:
        connection.execute(text("UPDATE policies SET state = 'promoted'"))
    engine.dispose()


def test_a_policy_is_registered_as_a_candidate(store_url: str) -> None:
    with SQLStore(store_url) as store, pytest.raises(StoreError, match="then promote it"):
        store.save_policy(replace(START, state="promoted"))
