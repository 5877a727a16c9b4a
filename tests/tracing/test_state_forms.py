"""Graphs whose state takes other forms, and nodes that write in other ways: the dialogue is the same."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES, add_messages
from langgraph.prebuilt import InjectedState
from langgraph.types import Command, RetryPolicy, Send
from pydantic import BaseModel

from tests.tracing.apps import ScriptedModel, calls, look, says
from tests.tracing.conftest import Watched
from tests.tracing.dialogues import THREAD, chain, history, lines, speaker, user, written

TURN = ["user: hi", "assistant: hello"]


@dataclass
class AsDataclass:
    messages: Annotated[list[AnyMessage], add_messages] = field(default_factory=list)


class AsModel(BaseModel):
    messages: Annotated[list[AnyMessage], add_messages] = []


class Added(TypedDict):
    messages: Annotated[list[Any], operator.add]


class Chat(TypedDict):
    chat: Annotated[list[Any], operator.add]
    notes: list[Any]


class Output(TypedDict):
    answer: str


class Both(MessagesState):
    answer: str


@pytest.mark.parametrize("state", [AsDataclass, AsModel, Added])
@pytest.mark.parametrize("given", ["objects", "pairs", "dicts"])
def test_forms_of_states(watched: Watched, state: Any, given: str) -> None:
    graph = chain(
        watched,
        lambda s: {"messages": [says("hello").invoke(s["messages"] if state is Added else s.messages)]},
        state=state,
        checkpointer=InMemorySaver(),
    )
    for _ in range(2):
        message: Any = {
            "objects": HumanMessage("hi"),
            "pairs": ("user", "hi"),
            "dicts": {"role": "user", "content": "hi"},
        }
        graph.invoke({"messages": [message[given]]}, THREAD)
    assert [lines(run) for run in watched.runs] == [TURN, TURN]
    assert history(watched.runs[1]) == TURN
    assert [written(run) for run in watched.runs] == [["hello"], ["hello"]]
    assert watched.runs[1].states[0].hash == watched.runs[0].states[-1].hash


def test_messages_under_another_key(watched: Watched) -> None:
    graph = chain(
        watched,
        lambda s: {"chat": [says("hello").invoke(s["chat"])], "notes": [HumanMessage("a note")]},
        state=Chat,
        checkpointer=InMemorySaver(),
    )
    for _ in range(2):
        graph.invoke({"chat": [HumanMessage("hi")]}, THREAD)
    assert [lines(run) for run in watched.runs] == [TURN, TURN]


def test_a_state_that_is_a_list(watched: Watched) -> None:
    graph: Any = StateGraph(Annotated[list[AnyMessage], add_messages])  # type: ignore[arg-type]
    graph.add_node("speak", lambda state: says("hello").invoke(state))
    graph.add_edge(START, "speak")
    graph.compile().with_config(callbacks=[watched.handler]).invoke([HumanMessage("hi")])
    assert lines(watched.run) == TURN
    assert written(watched.run) == ["hello"]


def test_a_clients_own_messages(watched: Watched) -> None:
    """A provider's client in the node: it writes plain dicts, and no model call is seen."""
    graph = chain(
        watched,
        lambda s: {"messages": [{"role": "assistant", "content": f"answer {len(s['messages'])}"}]},
        checkpointer=InMemorySaver(),
    )
    graph.invoke(user("hi"), THREAD)
    graph.invoke(user("hi"), THREAD)
    assert [lines(run) for run in watched.runs] == [["user: hi", f"assistant: answer {n}"] for n in (1, 3)]


def test_an_output_without_the_messages(watched: Watched) -> None:
    graph: Any = StateGraph(Both, output_schema=Output)
    graph.add_node("speak", speaker("hello", "hello"))
    graph.add_node("close", lambda s: {"messages": [AIMessage("Bye.")], "answer": "hello"})
    graph.add_edge(START, "speak")
    graph.add_edge("speak", "close")
    compiled = graph.compile(checkpointer=InMemorySaver()).with_config(callbacks=[watched.handler])
    compiled.invoke(user("hi"), THREAD)
    compiled.invoke(user("hi"), THREAD)
    assert [lines(run) for run in watched.runs] == [[*TURN, "assistant: Bye."]] * 2
    assert watched.runs[1].states[0].hash == watched.runs[0].states[-1].hash


@pytest.mark.parametrize("how", ["command", "pairs", "commands"])
def test_commands(watched: Watched, how: str) -> None:
    def speak(state: Any) -> Any:
        answer = says("hello").invoke(state["messages"])
        if how == "commands":
            return [Command(update={"messages": [answer]}), {"messages": [AIMessage("More?")]}]
        update: Any = [("messages", [answer])] if how == "pairs" else {"messages": [answer]}
        return Command(update=update)

    chain(watched, speak).invoke(user("hi"))
    assert lines(watched.run) == [*TURN, *(["assistant: More?"] if how == "commands" else [])]
    assert written(watched.run) == ["hello"]


def test_map_and_reduce(watched: Watched) -> None:
    """What is sent to the workers are prompts of their own, and no state."""

    def spread(state: Any) -> list[Send]:
        return [Send("work", {"messages": [HumanMessage(f"part {number}")]}) for number in (1, 2)]

    def work(state: Any) -> dict[str, Any]:
        part = state["messages"][-1].text
        return {"messages": [AIMessage(f"did {part}: {says('a thought').invoke(state['messages']).text}")]}

    graph: Any = StateGraph(MessagesState)
    graph.add_node("work", work)
    graph.add_node("close", speaker("done"))
    graph.add_conditional_edges(START, spread, ["work"])
    graph.add_edge("work", "close")
    graph.compile().with_config(callbacks=[watched.handler]).invoke(user("hi"))
    assert lines(watched.run) == [
        "user: hi",
        "assistant: did part 1: a thought",
        "assistant: did part 2: a thought",
        "assistant: done",
    ]


def test_a_handoff_between_agents(watched: Watched) -> None:
    """A tool sends the whole graph to another agent, with all that was said."""

    @tool
    def transfer(state: Annotated[dict[str, Any], InjectedState], call: Annotated[str, InjectedToolCallId]) -> Any:
        """Hand over to billing."""
        answer = ToolMessage("transferred", tool_call_id=call)
        return Command(goto="billing", graph=Command.PARENT, update={"messages": [*state["messages"], answer]})

    asked = AIMessage("", tool_calls=[{"name": "transfer", "args": {}, "id": "t"}])
    graph: Any = StateGraph(MessagesState)
    graph.add_node("front", create_agent(ScriptedModel(script=[asked]), [transfer]))
    graph.add_node("billing", create_agent(ScriptedModel(script=[None, calls(1), AIMessage("7 euros")]), [look]))
    graph.add_edge(START, "front")
    compiled = graph.compile(checkpointer=InMemorySaver()).with_config(callbacks=[watched.handler])
    compiled.invoke(user("my bill?"), THREAD)
    assert lines(watched.run) == [
        "user: my bill?",
        "assistant: t",
        "tool: t",
        "assistant: call1",
        "tool: call1",
        "assistant: 7 euros",
    ]
    assert [call.message for call in watched.run.calls] == [1, 3, 5]


def test_a_middleware_that_rewrites_the_answer(watched: Watched) -> None:
    @wrap_model_call
    def moderate(request: Any, handler: Any) -> Any:
        handler(request)
        return AIMessage("I cannot say that.")

    graph: Any = create_agent(says("The SECRET is 42."), [look], middleware=[moderate])
    graph.with_config(callbacks=[watched.handler]).invoke(user("tell me"))
    assert lines(watched.run) == ["user: tell me", "assistant: I cannot say that."]
    assert [(call.message, call.changed) for call in watched.run.calls] == [(1, "rewritten")]


def test_a_middleware_that_asks_again(watched: Watched) -> None:
    """Only the answer that was taken is in the dialogue; nobody read the other."""

    @wrap_model_call
    def twice(request: Any, handler: Any) -> Any:
        handler(request)
        return handler(request)

    graph: Any = create_agent(says("hello"), [look], middleware=[twice]).with_config(callbacks=[watched.handler])
    graph.invoke(user("hi"))
    assert lines(watched.run) == TURN
    assert [(call.message, call.changed) for call in watched.run.calls] == [(None, None), (1, None)]


def test_a_node_that_is_tried_again(watched: Watched) -> None:
    tries: list[int] = []

    def speak(state: Any) -> dict[str, Any]:
        answer = says("hello").invoke(state["messages"])
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("down")
        return {"messages": [answer]}

    graph: Any = StateGraph(MessagesState)
    graph.add_node("speak", speak, retry_policy=RetryPolicy(initial_interval=0.0, jitter=False))
    graph.add_edge(START, "speak")
    graph.compile().with_config(callbacks=[watched.handler]).invoke(user("hi"))
    assert lines(watched.run) == TURN
    assert [call.message for call in watched.run.calls] == [None, None, 1]


def test_a_reducer_that_keeps_the_last_messages(watched: Watched) -> None:
    def last(left: Any, right: Any) -> Any:
        return add_messages(left, right)[-3:]  # type: ignore[index]

    Last = TypedDict("Last", {"messages": Annotated[list[Any], last]})  # noqa: UP013 (the reducer is a local name)
    graph = chain(watched, speaker(*"abcd"), state=Last, checkpointer=InMemorySaver())
    for number in range(4):
        graph.invoke(user(str(number)), THREAD)
    assert [lines(run) for run in watched.runs] == [[f"user: {n}", f"assistant: {'abcd'[n]}"] for n in range(4)]


def test_a_call_that_was_broken_off_is_answered_in_the_next_turn(watched: Watched) -> None:
    """A node puts an answer behind the call that has none: it belongs to that call's step."""

    def mend(state: Any) -> dict[str, Any]:
        messages = list(state["messages"])
        open_calls = [one for one in messages if one.type == "ai" and one.tool_calls]
        if not open_calls or any(one.type == "tool" for one in messages):
            return {}
        place = messages.index(open_calls[0]) + 1
        messages.insert(place, ToolMessage("cancelled", tool_call_id="call1"))
        return {"messages": [RemoveMessage(id=REMOVE_ALL_MESSAGES), *messages]}

    script = iter([calls(1), AIMessage("Hello.")])
    graph = chain(
        watched,
        mend,
        lambda s: {"messages": [ScriptedModel(script=[next(script)] * 9).invoke(s["messages"])]},
        checkpointer=InMemorySaver(),
    )
    graph.invoke(user("look"), THREAD)
    graph.invoke(user("never mind"), THREAD)
    assert [lines(run) for run in watched.runs] == [
        ["user: look", "assistant: call1"],
        ["tool: call1", "user: never mind", "assistant: Hello."],
    ]


def test_an_inner_agent_that_crashes(watched: Watched) -> None:
    """It is asked the user's question in a conversation of its own: the call that crashed is in the dialogue."""
    inner: Any = create_agent(ScriptedModel(script=[calls(-1)]), [look])

    def ask(state: Any) -> dict[str, Any]:
        return {"messages": [inner.invoke(user(state["messages"][-1].text))["messages"][-1]]}

    with pytest.raises(ValueError, match="no key"):
        chain(watched, ask).invoke(user("hi"))
    assert lines(watched.run) == ["user: hi", "assistant: call-1"]
    assert [call.message for call in watched.run.calls] == [1]
