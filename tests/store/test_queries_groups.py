"""What GRPO gets: groups of one reward version, in an order that no clock decides, with everything a trainer needs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from cm2_agent.errors import StoreError
from cm2_agent.store import SQLStore
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.group import group_key
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Branch, ModelCall, Run
from cm2_agent.types.run_attributes import GATE, GROUP, ROLLOUT, TASK_ID, TASK_VERSION, TOOL_BACKENDS
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace
from tests.fuzzing import examples

numbers = itertools.count()


@pytest.fixture
def store(store_url: str) -> Iterator[SQLStore]:
    with SQLStore(store_url) as opened:
        yield opened


def dialogue(
    name: str, rollout: int, task: str = "t", started: int = 0, policy: str = "p", turns: int = 1, **more: object
) -> list[Run]:
    attributes = {TASK_ID: task, TASK_VERSION: 1, ROLLOUT: rollout, **more}
    said = (Message.of("user", "hi"), Message.of("assistant", "hello"))
    call = ModelCall(
        span_id="s", model_version=policy, input=said[:1], output=said[1], message=1, sampling={"temperature": 1.0}
    )
    return [
        Run(
            id=f"{name}-{turn}",
            thread=name,
            messages=said,
            calls=(call,),
            attributes=attributes,
            started=started + turn,
        )
        for turn in range(turns)
    ]


def scored(name: str, reward: float | None = 0.5, version: str = "v1", checklist: str | None = None) -> Score:
    return Score(trace_id=name, reward_version=version, reward=reward, checklist=checklist)


def shape(groups: list) -> list[tuple[str, list[str]]]:  # type: ignore[type-arg]
    return [(group.task_id, [rollout.trace.id for rollout in group.rollouts]) for group in groups]


def test_groups_come_in_the_order_of_tasks_and_rollouts(store: SQLStore) -> None:
    for task in ("z", "a"):
        store.save_task(Task(id=task, turns=("hi",)))
    for started, (task, rollout) in enumerate(
        [("unknown", 0), ("a", 10), ("z", 1), ("a", 2), ("z", 0), ("unknown", 1), ("other", 0)]
    ):
        name = f"{task}{rollout}"
        store.save_dialogue(dialogue(name, rollout, task, started=started), scored(name, None if name == "z1" else 0.5))
    groups = store.groups()
    # "z" was stored before "a"; 2 comes before 10; "other" is alone
    assert shape(groups) == [("z", ["z0", "z1"]), ("a", ["a2", "a10"]), ("unknown", ["unknown0", "unknown1"])]
    assert [rollout.score for rollout in groups[0].rollouts] == [scored("z0"), scored("z1", None)]
    assert groups[0].rollouts[0].trace == store.trace("z0")
    assert shape(store.groups(task="a")) == [("a", ["a2", "a10"])]
    assert ("other", ["other0"]) in shape(store.groups(min_size=1))
    assert store.groups(min_size=3) == []
    assert store.groups(task="gone") == []


@pytest.mark.parametrize(
    "other",
    [
        {"policy": "p2"},
        {"task": "t2"},
        {TASK_VERSION: 2},
        {GROUP: "again"},
        {GATE: "hash"},
        {TOOL_BACKENDS: '{"refund":"simulate"}'},
    ],
)
def test_what_differs_is_another_group(store: SQLStore, other: dict[str, str]) -> None:
    for rollout in range(2):
        store.save_dialogue(dialogue(f"a{rollout}", rollout), scored(f"a{rollout}"))
        store.save_dialogue(dialogue(f"b{rollout}", rollout, started=9, **other), scored(f"b{rollout}"))  # type: ignore[arg-type]
    assert [members for _, members in shape(store.groups())] == [["a0", "a1"], ["b0", "b1"]]
    assert [members for _, members in shape(store.groups(policy="p2"))] == (
        [["b0", "b1"]] if other == {"policy": "p2"} else []
    )


def test_reward_versions_are_never_mixed(store: SQLStore) -> None:
    for rollout in range(4):
        store.save_dialogue(dialogue(f"a{rollout}", rollout), scored(f"a{rollout}", 0.25))
    for rollout in (1, 3):
        store.save_score(scored(f"a{rollout}", 1.0, "v2"))
    newest, named = store.groups(), store.groups(reward="v1")
    assert shape(newest) == [("t", ["a1", "a3"])]
    assert [rollout.score.reward for rollout in newest[0].rollouts] == [1.0, 1.0]
    assert [group.key["reward"] for group in (*newest, *named)] == ["v2", "v1"]
    assert [rollout.score.reward for rollout in named[0].rollouts] == [0.25] * 4


def test_a_checklist_names_its_newest_reward_version(store: SQLStore) -> None:
    mine, other = Checklist(Item("a", "Is it?"), name="support"), Checklist(Item("a", "Is it?"), name="other")
    for rollout in range(2):
        store.save_dialogue(dialogue(f"a{rollout}", rollout), scored(f"a{rollout}", 0.1, "mine-1", mine.hash))
        store.save_score(scored(f"a{rollout}", 0.2, "mine-2", mine.hash))
        store.save_score(scored(f"a{rollout}", 0.3, "other", other.hash))
    store.register_reward("mine-3", mine.hash)  # and nothing scored under it yet
    assert store.groups(checklist=mine)[0].key["reward"] == "mine-2"
    assert store.groups(checklist=mine, reward="mine-1")[0].key["reward"] == "mine-1"
    assert store.groups()[0].key["reward"] == "other"
    with pytest.raises(StoreError, match="under reward version 'other'"):
        store.groups(checklist=mine, reward="other")


def test_one_reward_version_with_a_checklist_a_task(store: SQLStore) -> None:
    """Tasks that bring their own checklists: the version is one, and every group is whole."""
    for task in ("a", "b"):
        for rollout in range(2):
            store.save_dialogue(
                dialogue(f"{task}{rollout}", rollout, task), scored(f"{task}{rollout}", 0.5, "gold", f"hash-{task}")
            )
    assert shape(store.groups()) == [("a", ["a0", "a1"]), ("b", ["b0", "b1"])]


def test_an_empty_store_says_what_to_type(store: SQLStore) -> None:
    checklist = Checklist(Item("a", "Is it?"), name="support", version=3)
    with pytest.raises(
        StoreError,
        match=r"holds no score; it has no scores at all\. Score its traces first: cm2 score CHECKLIST.yaml --store",
    ):
        store.groups()
    store.save_dialogue(dialogue("a", 0), scored("a", version="v7"))
    store.save_checklist(checklist)
    with pytest.raises(
        StoreError,
        match=r"no score of checklist 'support' version 3 .*scores under v7\. .*cm2 score support.yaml --store",
    ):
        store.groups(checklist=checklist)
    with pytest.raises(StoreError, match="no score under reward version 'v8'"):
        store.groups(reward="v8")


def test_traces_without_a_task_or_with_mixed_settings_have_no_group(store: SQLStore) -> None:
    for rollout in range(2):
        lone = [replace(run, attributes={}) for run in dialogue(f"lone{rollout}", rollout)]
        first, second = dialogue(f"mixed{rollout}", rollout, turns=2)
        second = replace(second, calls=(replace(second.calls[0], sampling={"temperature": 0.5}),))
        store.save_dialogue(lone, scored(f"lone{rollout}"))
        store.save_dialogue([first, second], scored(f"mixed{rollout}"))
    assert store.groups(min_size=1) == []


def test_a_later_run_can_end_a_trace_s_membership(store: SQLStore) -> None:
    """A dialogue that goes on under another policy belongs to no group any more, whoever stores the second run."""
    for rollout in range(3):
        store.save_dialogue(dialogue(f"a{rollout}", rollout), scored(f"a{rollout}"))
    assert shape(store.groups()) == [("t", ["a0", "a1", "a2"])]
    late = replace(dialogue("a1", 1, policy="p2")[0], id="late", started=9)
    store.save_run(late)
    assert shape(store.groups()) == [("t", ["a0", "a2"])]
    assert [trace.id for trace in store.traces(policy="p")] == ["a0", "a2"]


@settings(max_examples=examples(25))
@given(data=st.data())
def test_groups_are_those_of_the_group_key(store: SQLStore, data: st.DataObject) -> None:
    """Whatever the runs say and in whatever order they come, the groups are what `group_key` makes of the whole
    traces."""
    version = f"v{next(numbers)}"  # examples share a database
    choices = [{}, {GROUP: 1}, {GROUP: "1"}, {GATE: "g"}, {TASK_VERSION: 2}]
    whole: dict[str, Trace] = {}
    arriving: list[Run] = []
    for number in range(data.draw(st.integers(2, 6))):
        name = f"{version}-{number}"
        more = data.draw(st.sampled_from(choices))
        runs = dialogue(
            name, number, data.draw(st.sampled_from("tu")), policy=data.draw(st.sampled_from("pq")), turns=2, **more
        )  # type: ignore[arg-type]
        whole[name] = Trace(id=name, runs=tuple(runs))
        arriving += runs
    for run in data.draw(st.permutations(arriving)):
        store.save_run(run)
    store.save_scores([scored(name, version=version) for name in whole])
    expected: dict[str, list[str]] = {}
    for name, trace in whole.items():
        expected.setdefault(repr(group_key(trace, version)), []).append(name)
    groups = store.groups(reward=version)
    got = {repr(dict(group.key)): [rollout.trace.id for rollout in group.rollouts] for group in groups}
    assert got == {key: names for key, names in expected.items() if len(names) >= 2}
    assert all(rollout.trace == whole[rollout.trace.id] for group in groups for rollout in group.rollouts)


def test_the_fetch_reads_traces_from_their_index_alone(tmp_path: object) -> None:
    """SQLite's own plan: the traces of a group come from the covering index, their scores by key; no table is
    walked."""
    with SQLStore(f"sqlite:///{tmp_path}/cm2.db") as store:
        store.save_dialogue(dialogue("a", 0), scored("a"))
        query = (
            "EXPLAIN QUERY PLAN SELECT g.seq, t.seq, s.seq, t.started FROM group_keys g JOIN traces t ON t.group_key ="
            " g.seq JOIN scores s ON s.trace = t.seq AND s.reward = 1 WHERE g.policy = 'p' ORDER BY t.rollout IS NULL,"
            " t.rollout, t.started, t.id"
        )
        with store._db.reading() as connection:
            plan = " / ".join(row[3] for row in connection.execute(text(query)))
    assert "COVERING INDEX ix_traces_fetch" in plan
    assert "INDEX uq_scores_trace_reward" in plan or "sqlite_autoindex_scores" in plan
    assert "SCAN" not in plan


def test_only_sampled_branches_from_one_state_are_compared(store: SQLStore) -> None:
    """A branch that a person made is no sample."""
    store.save_task(Task(id="t", turns=("hi",)))
    places = [
        ("main", None),
        ("a", Branch(parent="main", messages=2, reason="sampled")),
        ("b", Branch(parent="main", messages=2, reason="sampled")),
        ("c", Branch(parent="main", messages=4, reason="sampled")),
        ("d", Branch(parent="main", messages=2, reason="person")),
    ]
    for rollout, (name, branch) in enumerate(places):
        (run,) = dialogue(name, rollout)
        store.save_run(replace(run, branch=branch))
        store.save_score(scored(name))
    assert sorted(names for _, names in shape(list(store.groups(reward="v1", min_size=1)))) == [
        ["a", "b"],
        ["c"],
        ["main"],
    ]
    trace = store.trace("d")
    assert trace is not None
    assert group_key(trace, "v1") is None
