"""Checkpoints in the store: any graph goes on from them, only the newest stays, and nothing in the table builds what is
not listed."""

from __future__ import annotations

import operator
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import ormsgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, Send, interrupt
from sqlalchemy import create_engine, text

from cm2_agent.errors import StoreError
from cm2_agent.store import SQLStore
from tests.fuzzing import examples
from tests.tracing import apps

CONFIG: RunnableConfig = {"configurable": {"thread_id": "a"}}


@pytest.fixture
def store(store_url: str) -> Iterator[SQLStore]:
    with SQLStore(store_url) as opened:
        yield opened


def agent(saver: Any) -> Any:
    script = [apps.calls(1), AIMessage(content="one"), apps.calls(2), AIMessage(content="two")]
    return apps.agent(apps.ScriptedModel(script=script), checkpointer=saver)


def rows(url: str, table: str) -> list[Any]:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = list(connection.execute(text(f"SELECT * FROM {table}")))
    engine.dispose()
    return found


@pytest.mark.parametrize("steps_only", [False, True])
async def test_a_graph_remembers_its_thread_in_another_process(store_url: str, steps_only: bool) -> None:
    for turn, words in enumerate(("look 1 up", "and 2")):
        with SQLStore(store_url) as store:
            saver = store.checkpointer(steps_only=steps_only)
            assert saver.pending() == ((), ("a",))[turn]
            state = await agent(saver).ainvoke({"messages": [HumanMessage(words)]}, CONFIG)
    assert [message.text for message in state["messages"] if message.type == "human"] == ["look 1 up", "and 2"]
    assert state["messages"][-1].text == "two"
    assert state["messages"][1].response_metadata["completion_ids"] == [0, 7]
    assert len(rows(store_url, "checkpoints")) == 1
    assert len(rows(store_url, "checkpoint_writes")) == 0


def test_it_keeps_what_langgraphs_own_keeps_of_the_newest(store: SQLStore) -> None:
    """Sync and async, on any state: the newest checkpoint is that of an in-memory saver."""
    ours, theirs = store.checkpointer(), InMemorySaver()
    for saver in (ours, theirs):
        agent(saver).invoke({"messages": [HumanMessage("look 1 up", id="h")]}, CONFIG)
    mine, other = ours.get_tuple(CONFIG), theirs.get_tuple(CONFIG)
    assert mine is not None
    assert other is not None
    assert {message.type: message.content for message in mine.checkpoint["channel_values"]["messages"]} == {
        message.type: message.content for message in other.checkpoint["channel_values"]["messages"]
    }
    assert [mine.metadata.get(name) for name in ("step", "source")] == [
        other.metadata.get(name) for name in ("step", "source")
    ]
    assert mine.pending_writes == other.pending_writes == []


class Numbers(TypedDict):
    numbers: Annotated[list[int], operator.add]


@pytest.mark.parametrize("steps_only", [False, True])
async def test_what_a_finished_task_returned_is_kept_while_its_sibling_waits(store_url: str, steps_only: bool) -> None:
    """Of three parallel tasks one waits for a human, in another process; the others do not run again, unless only steps
    are kept."""
    ran: list[int] = []

    async def one(state: dict[str, int]) -> dict[str, Any]:
        ran.append(state["n"])
        return {"numbers": [int(interrupt("which?")) if state["n"] == 1 else state["n"]]}

    async def first(state: Numbers) -> dict[str, Any]:
        return {"numbers": []}

    plan: Any = StateGraph(Numbers)
    plan.add_node("first", first).add_node("one", one).add_edge(START, "first")
    plan.add_conditional_edges("first", lambda state: [Send("one", {"n": n}) for n in range(3)], ["one"])
    with SQLStore(store_url) as store:
        state = await plan.compile(checkpointer=store.checkpointer(steps_only=steps_only)).ainvoke(
            {"numbers": []}, CONFIG
        )
        assert [asked.value for asked in state["__interrupt__"]] == ["which?"]
    with SQLStore(store_url) as store:
        state = await plan.compile(checkpointer=store.checkpointer(steps_only=steps_only)).ainvoke(
            Command(resume="7"), CONFIG
        )
    assert state["numbers"] == [0, 7, 2]
    assert sorted(ran) == ([0, 0, 1, 1, 2, 2] if steps_only else [0, 1, 1, 2])


async def test_threads_are_apart_listed_and_deleted(store: SQLStore) -> None:
    saver = store.checkpointer()
    odd = "n\0o \ud800"
    for thread in ("a", "b", odd):
        await agent(saver).ainvoke({"messages": [HumanMessage("look 1 up")]}, {"configurable": {"thread_id": thread}})
    assert set(saver.pending()) == {"a", "b", odd}
    assert len(saver) == 3
    listed = [found.config.get("configurable", {})["thread_id"] for found in saver.list(None)]
    assert listed == [odd, "b", "a"]  # newest first
    assert [found async for found in saver.alist(CONFIG)] == [saver.get_tuple(CONFIG)]
    assert len(list(saver.list(None, limit=2))) == 2
    assert list(saver.list(None, filter={"step": -7})) == []
    assert len(list(saver.list(None, before=next(saver.list(None)).config))) == 2
    found = saver.get_tuple(CONFIG)
    assert found is not None
    old: RunnableConfig = {"configurable": {**found.config.get("configurable", {}), "checkpoint_id": "0"}}
    assert saver.get_tuple(old) is None
    await saver.adelete_thread(odd)
    saver.delete_thread("nobody")
    assert saver.pending() == ("a", "b")
    assert await saver.aget_tuple({"configurable": {"thread_id": odd}}) is None


@dataclass
class Booking:
    seat: int


class Flight(TypedDict):
    booking: Booking


@pytest.mark.parametrize("allowed", [False, True])
def test_a_graphs_own_classes_come_back_where_they_are_allowed(store: SQLStore, allowed: bool) -> None:
    plan: Any = StateGraph(Flight).add_node("book", lambda state: {"booking": Booking(seat=12)}).add_edge(START, "book")
    plan.compile(checkpointer=store.checkpointer()).invoke({"booking": Booking(seat=1)}, CONFIG)
    saver = store.checkpointer(allow=[Booking] if allowed else ())
    found = saver.get_tuple(CONFIG)
    assert found is not None
    assert found.checkpoint["channel_values"]["booking"] == (Booking(seat=12) if allowed else {"seat": 12})


built: list[str] = []


class Trap:
    """What a hostile blob would like to have built."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        built.append("init")

    @staticmethod
    def spring(*args: Any) -> None:
        built.append("method")

    def __reduce__(self) -> Any:
        return Trap.spring, ("pickled",)


def blobs() -> Iterator[tuple[str, bytes]]:
    """For each way in which langgraph's msgpack names a class or a method, one that names ours; and pickles, and JSON
    constructors."""
    here = (Trap.__module__, "Trap")
    for code, payload in [
        (0, (*here, "x")),
        (1, (*here, ["x"])),
        (2, (*here, {"x": 1})),
        (3, (*here, "x", "spring")),
        (4, (*here, {"x": 1}, "y")),
        (5, (*here, {"x": 1}, "y")),
        (0, ("builtins", "eval", "1/0")),
        (0, ("os", "system", "exit 1")),
        (1, ("subprocess", "Popen", [["false"]])),
    ]:
        yield "msgpack", ormsgpack.packb({"channel_values": {"x": ormsgpack.Ext(code, ormsgpack.packb(payload))}})
    yield "pickle", pickle.dumps(Trap.__new__(Trap))
    yield "json", b'{"lc": 2, "type": "constructor", "id": ["%s", "Trap"], "args": ["x"]}' % Trap.__module__.encode()
    yield "msgpack", b"\xc1 not msgpack"


def unreadable(saver: Any) -> bool:
    try:
        saver.get_tuple(CONFIG)
    except StoreError as error:
        return "a checkpoint " in str(error)
    return False


@pytest.mark.parametrize("column", ["body", "metadata", "write"])
def test_nothing_in_the_tables_builds_what_is_not_listed(store_url: str, column: str) -> None:
    sprung = ormsgpack.packb(ormsgpack.Ext(0, ormsgpack.packb((Trap.__module__, "Trap", "x"))))
    built.clear()
    JsonPlusSerializer(allowed_msgpack_modules=True).loads_typed(("msgpack", sprung))
    assert built == ["init"]  # the trap works
    built.clear()
    engine = create_engine(store_url)
    refused = 0
    for kind, blob in blobs():
        with SQLStore(store_url) as store:
            saver = store.checkpointer()
            saver.delete_thread("a")
            agent(saver).invoke({"messages": [HumanMessage("look 1 up")]}, CONFIG)
            found = saver.get_tuple(CONFIG)
            assert found is not None
            if column == "write":
                saver.put_writes(found.config, [("messages", "x")], "task")
        sets = {
            "body": "UPDATE checkpoints SET kind = :kind, body = :blob",
            "metadata": "UPDATE checkpoints SET metadata = :blob",
            "write": "UPDATE checkpoint_writes SET kind = :kind, body = :blob",
        }
        with engine.begin() as connection:
            connection.execute(text(sets[column]), {"blob": blob, **({} if column == "metadata" else {"kind": kind})})
        with SQLStore(store_url) as store:
            refused += unreadable(store.checkpointer())
    engine.dispose()
    assert built == []
    assert refused == (1 if column == "metadata" else 3)  # the kind of metadata cannot be set


async def test_a_state_whose_history_is_not_kept_is_refused(store: SQLStore) -> None:
    saver = store.checkpointer()
    metadata: Any = {"step": 1, "counters_since_delta_snapshot": {"x": (1, 1)}}
    agent(saver).invoke({"messages": [HumanMessage("look 1 up")]}, CONFIG)
    found = saver.get_tuple(CONFIG)
    assert found is not None
    with pytest.raises(StoreError, match="DeltaChannel"):
        saver.put(found.config, found.checkpoint, metadata, {})


@settings(max_examples=examples(40))
@given(
    st.lists(
        st.builds(HumanMessage, st.text())
        | st.builds(
            lambda told, n: AIMessage(told, tool_calls=[{"name": "f", "args": {"n": n}, "id": "1"}]),
            st.text(),
            st.floats(),
        )
        | st.builds(lambda told: ToolMessage(told, tool_call_id="1", status="error"), st.text()),
        min_size=1,
    )
)
def test_messages_come_back_as_they_were(said: list[Any]) -> None:
    with SQLStore("sqlite://") as store:
        saver = store.checkpointer()
        plain: Any = StateGraph(MessagesState).add_node("none", lambda state: {"messages": []}).add_edge(START, "none")
        given = plain.compile(checkpointer=saver).invoke({"messages": said}, CONFIG)["messages"]
        found = saver.get_tuple(CONFIG)
        assert found is not None
        assert repr(found.checkpoint["channel_values"]["messages"]) == repr(given)  # NaN is not equal to itself
