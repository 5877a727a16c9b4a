"""Groups that stream: the same ones as a list has, a portion at a time, as often as they are gone through."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from cm2_agent.errors import StoreError
from cm2_agent.store import SQLStore
from cm2_agent.store.groups import StoredGroups
from cm2_agent.trainers.dataset import build_dataset
from cm2_agent.trainers.rows import rows_of
from cm2_agent.types.group import Group
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.run_attributes import ROLLOUT, TASK_ID
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace

SAMPLING = {"temperature": 1.0, "logprobs": "processed"}


@pytest.fixture
def store(store_url: str) -> Iterator[SQLStore]:
    with SQLStore(store_url) as opened:
        for task, size in enumerate((3, 2, 5, 2)):
            for rollout in range(size):
                save(opened, f"{task}-{rollout}", task, rollout)
        yield opened


def save(store: SQLStore, name: str, task: int, rollout: int) -> None:
    said = (Message.of("user", "hi"), Message.of("assistant", "hello"))
    call = ModelCall(
        span_id="s", message=1, prompt_ids=(1, task), completion_ids=(rollout,), logprobs=(-0.5,), sampling=SAMPLING
    )
    attributes = {TASK_ID: f"task-{task}", ROLLOUT: rollout}
    run = Run(id=name, thread=name, messages=said, calls=(call,), attributes=attributes, started=task + 1)
    store.save_dialogue([run], Score(trace_id=name, reward_version="v1", reward=0.5))


def names(groups: Any) -> list[list[str]]:
    return [[one.trace.id for one in group.rollouts] for group in groups]


def test_they_are_the_groups_of_the_list_each_time(store: SQLStore) -> None:
    streamed, listed = store.stream_groups(), store.groups()
    assert list(streamed) == list(streamed) == listed
    assert (len(streamed), streamed.rollouts) == (4, 12)
    assert [dict(key) for key in streamed.keys] == [dict(group.key) for group in listed]
    assert streamed[1] == listed[1]
    assert streamed[-1] == listed[-1]
    assert list(streamed[1:3]) == listed[1:3]
    assert names(reversed(streamed)) == names(reversed(listed))
    with pytest.raises(IndexError):
        streamed[4]
    assert repr(streamed) == "<4 stored groups of 12 rollouts>"


def test_the_conditions_are_those_of_the_list(store: SQLStore) -> None:
    cases: list[dict[str, Any]] = [{"task": "task-2"}, {"min_size": 3}, {"task": "gone"}, {"policy": "p"}]
    cases += [{"backends": ["real"]}]
    for wanted in cases:
        assert list(store.stream_groups(**wanted)) == store.groups(**wanted)
    with pytest.raises(StoreError, match="no score under reward version 'v2'"):
        store.stream_groups(reward="v2")


@pytest.mark.parametrize(
    ("portion", "expected"),
    [(1, [1, 1, 1, 1]), (4, [1, 1, 1, 1]), (5, [2, 1, 1]), (7, [2, 2]), (12, [4])],
)
def test_a_portion_holds_whole_groups(store: SQLStore, portion: int, expected: list[int]) -> None:
    """As many as fit, and at least one, however large."""
    read: list[int] = []

    class Counted(StoredGroups):
        def _read(self, selected: Any) -> list[Group]:
            read.append(len(selected))
            return super()._read(selected)

    streamed = store.stream_groups()
    counted = Counted(store._db, streamed._selected, portion)
    assert names(counted) == names(streamed)
    assert read == expected


def test_what_is_stored_meanwhile_is_not_among_them(store: SQLStore) -> None:
    streamed = store.stream_groups()
    before = names(streamed)
    going = iter(streamed)
    next(going)
    for rollout in range(2):
        save(store, f"new-{rollout}", 9, rollout)
    save(store, "late", 0, 9)
    assert before[0] == names(streamed)[0]
    assert names(streamed) == before
    assert len(names(going)) == 3
    assert len(store.stream_groups()) == 5


def test_what_was_erased_meanwhile_is_said(store: SQLStore) -> None:
    streamed = store.stream_groups()
    store.erase(thread="2-1")
    assert names(streamed[:2]) == [["0-0", "0-1", "0-2"], ["1-0", "1-1"]]
    with pytest.raises(StoreError, match=r"1 of 12 rollouts were erased since .* ask the store for its groups again"):
        list(streamed)
    assert names(store.stream_groups())[2] == ["2-0", "2-2", "2-3", "2-4"]


def test_the_store_must_be_open(tmp_path: Any) -> None:
    with SQLStore(f"sqlite:///{tmp_path}/cm2.db") as store:
        for rollout in range(2):
            save(store, f"{rollout}", 0, rollout)
        streamed = store.stream_groups()
    with pytest.raises(StoreError, match="was closed"):
        names(streamed)


def test_a_dataset_of_streamed_groups_lets_go_of_the_traces(store: SQLStore) -> None:
    """Rows, and what their prompts should hold, are all that stays."""
    gc.collect()
    before = sum(isinstance(one, Trace) for one in gc.get_objects())
    dataset = build_dataset(store.stream_groups(), credits=lambda group: [lambda turn, step: 1.0] * len(group.rollouts))
    gc.collect()
    assert sum(isinstance(one, Trace) for one in gc.get_objects()) == before
    assert [[one.trace_id for one in group.rollouts] for group in dataset.groups] == names(store.groups())
    assert [row for group in dataset.groups for row in group.rows] == [
        row for group in store.groups() for one in group.rollouts for row in rows_of(one.trace, lambda turn, step: 1.0)
    ]


def test_the_calls_of_a_dialogue_share_the_memory_of_their_tokens(tmp_path: Any) -> None:
    """What is held grows with what was said, however many calls read it: also where each turn drops earlier thinking,
    so that each prompt forks from the one before."""
    for thinks in (False, True):
        prompt, runs = [1, 2, 3], []
        for turn in range(30):
            thought, answer = [7] * 5 if thinks else [], [10 + turn] * 5
            call = ModelCall(
                span_id=f"{turn}",
                message=1,
                prompt_ids=tuple(prompt),
                completion_ids=(*thought, *answer),
                logprobs=(-0.5,) * (len(thought) + 5),
                sampling=SAMPLING,
            )
            said = (Message.of("user", "u"), Message.of("assistant", "a"))
            runs.append(Run(id=f"{thinks}-{turn}", thread=f"{thinks}", messages=said, calls=(call,), started=turn + 1))
            prompt += [*answer, 4, 5, 6]
        with SQLStore(f"sqlite:///{tmp_path}/{thinks}.db") as opened:
            opened.save_runs(runs)
            trace = opened.trace(f"{thinks}")
        assert trace is not None
        assert trace.runs == tuple(runs)
        rows = rows_of(trace)
        assert len(rows) == (30 if thinks else 1)
        sequences: list[Any] = [one for call in trace.calls for one in (call.prompt_ids, call.completion_ids)]
        sequences += [row.ids for row in rows]
        buffers = {id(stretch.buffer): stretch.buffer for one in sequences for stretch in one._stretches}
        assert sum(len(buffer) for buffer in buffers.values()) <= 30 * (5 + 5 + 5 + 3) + 3
