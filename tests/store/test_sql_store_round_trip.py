"""What goes in comes out: any trace, score, task or checklist, on SQLite and on PostgreSQL."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.store import SQLStore
from cm2_agent.store.schema import contents
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.json_values import canonical_json
from cm2_agent.types.messages import Message, Other, Text, ToolCall
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View
from tests import strategies
from tests.fuzzing import examples

# One database serves all examples of a test: ids are made different, and what is known of one example must not leak
# into the next.
anything = settings(max_examples=examples(25))
numbers = itertools.count()


@pytest.fixture
def store(store_url: str) -> Iterator[SQLStore]:
    with SQLStore(store_url) as opened:
        yield opened


@anything
@given(trace=strategies.traces())
def test_any_trace_comes_back_as_it_was(store: SQLStore, trace: Trace) -> None:
    mine = strategies.renamed(trace, f"{next(numbers)}-")
    assert store.save_trace(mine) == bool(mine.runs)
    assert store.trace(mine.id) == mine
    # `==` takes 1, 1.0 and True for the same: their spelling must survive too
    read = store.trace(mine.id)
    assert read is not None
    assert canonical_json(read.to_json()) == canonical_json(mine.to_json())
    assert Trace.from_json(read.to_json()) == mine


@pytest.mark.slow
@anything
@given(trace=strategies.traces(), seed=st.integers(0, 9))
def test_runs_may_come_one_by_one_in_any_order(store_url: str, store: SQLStore, trace: Trace, seed: int) -> None:
    mine = strategies.renamed(trace, f"{next(numbers)}-")
    mine = replace(mine, outcomes={}, runs=tuple(replace(run, started=start) for start, run in enumerate(mine.runs)))
    arriving = list(mine.runs)
    random.Random(seed).shuffle(arriving)
    for run in arriving[:1]:
        store.save_run(run)
    with SQLStore(store_url) as other:  # another process knows nothing of what this one remembers
        for run in arriving[1:2]:
            other.save_run(run)
    for run in arriving[2:]:
        store.save_run(run)
    assert store.trace(mine.id) == (mine if mine.runs else None)


@anything
@given(data=st.data())
def test_any_score_comes_back_as_it_was(store: SQLStore, data: st.DataObject) -> None:
    trace_id = f"{next(numbers)}"
    store.save_run(Run(id=trace_id))
    score = data.draw(strategies.scores(st.just(trace_id)))
    store.save_score(score)
    assert store.score(trace_id, score.reward_version) == score
    read = store.score(trace_id)
    assert read is not None
    assert canonical_json(read.to_json()) == canonical_json(score.to_json())


@anything
@given(task=strategies.tasks())
def test_any_task_comes_back_as_it_was(store: SQLStore, task: Task) -> None:
    mine = task.model_copy(update={"id": f"{next(numbers)}-{task.id}"})
    store.save_task(mine)
    assert store.task(mine.id) == mine
    assert store.task(mine.id, mine.version) == mine
    assert mine in store.tasks()


@anything
@given(checklist=strategies.checklists())
def test_any_checklist_comes_back_as_it_was(store: SQLStore, checklist: Checklist) -> None:
    mine = Checklist(*checklist.items, name=f"{next(numbers)}-{checklist.name}", version=checklist.version)
    assert store.save_checklist(mine) == mine.hash
    for read in (store.checklist(mine.hash), store.checklist(mine.name), store.checklist(mine.name, mine.version)):
        assert read == mine
        assert read is not None
        assert read.hash == mine.hash


def looks_up(view: View) -> bool:
    """The order is looked up."""
    return view.called("get_order")


def test_a_checklist_of_functions_comes_back_with_names_and_can_be_bound(store: SQLStore) -> None:
    checklist = Checklist(looks_up, Item("replied", check={"replied": True}), name="desk")
    stored = store.save_checklist(checklist)
    read = store.checklist(stored)
    assert read is not None
    assert read.items[0].check == "looks_up"
    assert read.bound({"looks_up": looks_up}).hash == checklist.hash
    assert store.checklist_sources(stored) == {"looks_up": checklist.items[0].source}


def test_what_is_not_stored_is_none(store: SQLStore) -> None:
    assert store.trace("t") is None
    assert store.score("t") is None
    assert store.task("t") is None
    assert store.checklist("c") is None
    assert store.checklist("0" * 64) is None
    empty: list[list[object]] = [
        list(store.traces()),
        list(store.scores()),
        list(store.tasks()),
        list(store.reward_versions()),
    ]
    assert empty == [[], [], [], []]


def test_the_newest_version_of_a_task_and_of_a_checklist(store: SQLStore) -> None:
    old, new, other = Task(id="b", turns=("1",)), Task(id="b", version=2, turns=("2",)), Task(id="a", turns=("1",))
    for task in (old, other, new):
        store.save_task(task)
    assert store.task("b") == new
    assert store.task("b", 1) == old
    assert store.task("b", 3) is None
    assert store.tasks() == [new, other]  # in the order in which each was first stored
    first, second = (Checklist(Item("a", f"Is it {version}?"), name="c", version=version) for version in (1, 2))
    store.save_checklist(second)
    store.save_checklist(first)
    assert store.checklist("c") == second
    assert store.checklist("c", 1) == first


def test_a_message_is_stored_once_under_its_hash(store: SQLStore) -> None:
    message = Message(role="user", parts=(Text(content="é\0"),), extra={"z": 1, "a": {"y": 1.0, "b": True}})
    store.save_run(Run(id="a", messages=(message, message)))
    store.save_run(Run(id="b", messages=(message,), calls=(ModelCall(span_id="s", input=(message,), output=message),)))
    with store._db.reading() as connection:
        rows = connection.exec_driver_sql("SELECT hash, kind FROM contents").all()
    assert [(bytes(row[0]).hex(), row[1]) for row in rows] == [(message.hash, "message")]


def test_the_order_of_a_calls_arguments_survives(store: SQLStore) -> None:
    arguments = {"order_id": 7, "amount": 3}
    store.save_run(
        Run(id="a", messages=(Message.of("assistant", calls=[ToolCall(name="refund", arguments=arguments)]),))
    )
    read = store.trace("a")
    assert read is not None
    assert list(read.messages[0].tool_calls[0].arguments) == ["order_id", "amount"]


def test_infinite_logprobs_and_empty_tokens_are_not_none(store: SQLStore) -> None:
    calls = (
        ModelCall(span_id="1", prompt_ids=(), completion_ids=(), logprobs=()),
        ModelCall(span_id="2", prompt_ids=(1,), completion_ids=(2,), logprobs=(float("-inf"),)),
        ModelCall(span_id="3"),
        ModelCall(span_id="4", prompt_ids=(1, 2), completion_ids=None, logprobs=None),
    )
    store.save_run(Run(id="a", calls=calls))
    read = store.trace("a")
    assert read is not None
    assert read.calls == calls


def test_a_part_that_an_earlier_version_stored_unreadable_is_read_as_unknown(store: SQLStore, store_url: str) -> None:
    store.save_run(Run(id="a", messages=(Message.of("assistant", "here"),)))
    stored = {"role": "assistant", "parts": [{"type": "reasoning", "summary": []}, {"type": "text", "content": "yo"}]}
    with store._db.writing() as connection:
        connection.execute(sa.update(contents).values(body=canonical_json(stored)))
    with SQLStore(store_url) as other:
        read = other.trace("a")
    assert read is not None
    assert read.messages[0].text == "yo"
    assert read.messages[0].parts[0] == Other(data={"type": "unknown", "value": stored["parts"][0]})


@pytest.mark.parametrize(
    ("stored", "role", "calls"),
    [
        ({"role": "critic", "parts": [{"type": "text", "content": "yo"}]}, "system", []),
        ({"parts": [{"type": "text", "content": "yo"}, "no part"]}, "system", []),
        (
            {
                "role": "assistant",
                "parts": [{"type": "tool_call", "id": 7, "name": "f"}, {"type": "text", "content": "yo"}],
            },
            "assistant",
            ["7"],
        ),
    ],
)
def test_a_message_that_is_refused_today_is_read(
    store: SQLStore, store_url: str, stored: dict[str, object], role: str, calls: list[str]
) -> None:
    store.save_run(Run(id="a", messages=(Message.of("assistant", "here"),)))
    with store._db.writing() as connection:
        connection.execute(sa.update(contents).values(body=canonical_json(stored)))
    with SQLStore(store_url) as other:
        read = other.trace("a")
        assert read is not None
        assert (read.messages[0].role, read.messages[0].text) == (role, "yo")
        assert [call.id for call in read.messages[0].tool_calls] == calls
        assert len(list(other.traces())) == 1
        assert sorted(other.count_tools()) == ["f"] * len(calls)
