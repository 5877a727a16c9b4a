"""Whose step each call and each tool's execution is: handoffs, supervisors, sub-agents in tools, one agent alone."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState, create_react_agent
from langgraph.types import Command

from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View
from tests.tracing.apps import ScriptedModel, agent, calls, look, says
from tests.tracing.conftest import Watched
from tests.tracing.test_run_dialogue import lines

pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
HI: Any = {"messages": [("user", "hi")]}


def asks(name: str, **args: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": f"{name}-1"}])


def who(watched: Watched) -> list[tuple[str, str | None]]:
    """What each call said, and whose it is."""
    return [(("" if call.output is None else call.output.text) or "calls", call.agent) for call in watched.run.calls]


def team(name: str | None = None, supervisor: Any = None) -> Any:
    """A supervisor that asks alice, who has a tool, and then bob."""
    first = ScriptedModel(script=[calls(1), AIMessage("alice is done")])
    graph: Any = StateGraph(MessagesState)
    graph.add_node("supervisor", supervisor or _next)
    graph.add_node("alice", create_agent(first, [look], name="alice"))
    graph.add_node("bob", create_react_agent(says("bob is done"), [], name="bob"))
    graph.add_edge(START, "supervisor")
    graph.add_edge("alice", "supervisor")
    graph.add_edge("bob", "supervisor")
    return graph.compile(name=name)


def _next(state: MessagesState) -> Command[Any]:
    said = {message.name for message in state["messages"]}
    return Command(goto="alice" if "alice" not in said else "bob" if "bob" not in said else END)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_a_supervisor_and_its_agents(watched: Watched, asynchronous: bool) -> None:
    graph = team().with_config(callbacks=[watched.handler])
    await graph.ainvoke(HI) if asynchronous else graph.invoke(HI)
    assert who(watched) == [("calls", "alice"), ("alice is done", "alice"), ("bob is done", "bob")]
    assert [(run.name, run.agent) for run in watched.run.tools] == [("look", "alice")]
    assert [step.agent for step in Trace.of(watched.run).steps] == ["alice", "alice", "bob"]


@pytest.mark.parametrize("name", [None, "team"])
def test_a_supervisor_that_asks_a_model_goes_by_its_node(watched: Watched, name: str | None) -> None:
    def supervisor(state: MessagesState) -> Command[Any]:
        says("who is next?").invoke(state["messages"])
        return _next(state)

    team(name, supervisor).with_config(callbacks=[watched.handler]).invoke(HI)
    assert {agent for text, agent in who(watched) if text == "who is next?"} == {"supervisor"}


@pytest.mark.parametrize("make", [create_agent, create_react_agent])
def test_a_sub_agent_inside_a_tool(watched: Watched, make: Any) -> None:
    inner = make(ScriptedModel(script=[calls(1), AIMessage("42")]), [look], name="alice")

    @tool
    def ask_alice(question: str) -> str:
        """Ask alice."""
        return str(inner.invoke({"messages": [("user", question)]})["messages"][-1].content)

    outer = ScriptedModel(script=[asks("ask_alice", question="what?"), AIMessage("It is 42.")])
    make(outer, [ask_alice], name="boss").with_config(callbacks=[watched.handler]).invoke(HI)
    assert who(watched) == [("calls", "boss"), ("calls", "alice"), ("42", "alice"), ("It is 42.", "boss")]
    assert [(run.name, run.agent) for run in watched.run.tools] == [("ask_alice", "boss"), ("look", "alice")]
    assert [step.agent for step in Trace.of(watched.run).steps] == ["boss", "boss"]


def test_a_sub_agent_without_a_name_goes_by_its_tool_or_its_node(watched: Watched) -> None:
    inner = agent(says("42"))

    @tool
    def research(question: str) -> str:
        """Research."""
        return str(inner.invoke({"messages": [("user", question)]})["messages"][-1].content)

    outer = agent(ScriptedModel(script=[asks("research", question="what?"), AIMessage("It is 42.")]), [research])
    graph: Any = StateGraph(MessagesState)
    graph.add_node("desk", outer)
    graph.add_edge(START, "desk")
    graph.compile().with_config(callbacks=[watched.handler]).invoke(HI)
    assert who(watched) == [("calls", "desk"), ("42", "research"), ("It is 42.", "desk")]


def test_a_handoff_to_the_parents_graph(watched: Watched) -> None:
    @tool
    def to_sales() -> Command[Any]:
        """Hand over."""
        return Command(goto="sales", graph=Command.PARENT)

    graph: Any = StateGraph(MessagesState)
    graph.add_node("triage", create_agent(ScriptedModel(script=[asks("to_sales")]), [to_sales], name="triage"))
    graph.add_node("sales", create_agent(says("buy"), [], name="sales"))
    graph.add_edge(START, "triage")
    graph.compile().with_config(callbacks=[watched.handler]).invoke(HI)
    assert who(watched) == [("calls", "triage"), ("buy", "sales")]
    assert [(run.name, run.agent) for run in watched.run.tools] == [("to_sales", "triage")]


def test_agents_that_are_nodes(watched: Watched) -> None:
    graph: Any = StateGraph(MessagesState)
    graph.add_node("writer", lambda state: {"messages": [says("a draft").invoke(state["messages"])]})
    graph.add_node("critic", lambda state: {"messages": [says("well done").invoke(state["messages"])]})
    graph.add_edge(START, "writer")
    graph.add_edge("writer", "critic")
    graph.compile().with_config(callbacks=[watched.handler]).invoke(HI)
    assert who(watched) == [("a draft", "writer"), ("well done", "critic")]


def test_agents_in_tasks_of_the_functional_api(watched: Watched) -> None:
    alice = create_agent(says("alice is done"), [], name="alice")

    @task
    def research(messages: Any) -> Any:
        return alice.invoke({"messages": messages})["messages"][-1]

    @task
    def reply(messages: Any) -> Any:
        return says("the answer").invoke(messages)

    @entrypoint()
    def desk(messages: Any) -> Any:
        found = research(messages).result()
        return [*messages, found, reply([*messages, found]).result()]

    desk.with_config(callbacks=[watched.handler]).invoke(HI["messages"])
    assert who(watched) == [("alice is done", "alice"), ("the answer", "reply")]


def test_one_agent_has_a_name_only_where_it_was_given_one(watched: Watched) -> None:
    graph: Any
    for graph in (
        agent(ScriptedModel(script=[calls(1), AIMessage("done")])),
        create_react_agent(says("hi"), [], name="desk"),
        create_agent(says("hi"), [], name="desk"),
    ):
        graph.with_config(callbacks=[watched.handler]).invoke(HI)
    says("hi").invoke("hi", {"callbacks": [watched.handler]})
    assert [{call.agent for call in run.calls} for run in watched.runs] == [{None}, {None}, {"desk"}, {None}]
    assert [run.agent for run in watched.runs[0].tools] == [None]


def test_a_router_at_the_start_is_no_node_that_sees_the_state(watched: Watched) -> None:
    """A graph of agents begins at the active one: the conditional edge is shown the input alone, and the second turn
    adds nothing of the first."""
    graph: Any = StateGraph(MessagesState)
    graph.add_node("alice", create_agent(says("hello", "again"), [], name="alice"))
    graph.add_conditional_edges(START, lambda state: says("alice").invoke("who?").text, ["alice"])
    app = graph.compile(checkpointer=InMemorySaver()).with_config(callbacks=[watched.handler])
    for text in ("hi", "more"):
        app.invoke({"messages": [("user", text)]}, {"configurable": {"thread_id": "t"}})
    assert [lines(run) for run in watched.runs] == [
        ["user: hi", "assistant: hello"],
        ["user: more", "assistant: hello"],
    ]
    assert [[call.message for call in run.calls] for run in watched.runs] == [[None, 1], [None, 1]]
    assert [message.text for message in watched.runs[1].history] == ["hi", "hello"]


@pytest.mark.parametrize("update", ["nothing", "the answer", "all"])
def test_a_handoff_is_in_the_dialogue_whatever_the_graph_keeps(watched: Watched, update: str) -> None:
    @tool
    def to_bob(
        state: Annotated[dict[str, Any], InjectedState], call: Annotated[str, InjectedToolCallId]
    ) -> Command[Any]:
        """Hand over."""
        answer = ToolMessage("bob takes over", tool_call_id=call)
        messages = {"nothing": [], "the answer": [answer], "all": [*state["messages"], answer]}[update]
        return Command(goto="bob", graph=Command.PARENT, update={"messages": messages, "active": "bob"})

    class Active(MessagesState):
        active: str

    graph: Any = StateGraph(Active)
    graph.add_node("alice", create_agent(ScriptedModel(script=[asks("to_bob")]), [to_bob], name="alice"))
    graph.add_node("bob", create_agent(says("bob here"), [], name="bob"))
    graph.add_conditional_edges(START, lambda state: state.get("active") or "alice", ["alice", "bob"])
    app = graph.compile(checkpointer=InMemorySaver()).with_config(callbacks=[watched.handler])
    for text in ("hi", "more"):
        app.invoke({"messages": [("user", text)]}, {"configurable": {"thread_id": "t"}})
    assert [lines(run) for run in watched.runs] == [
        ["user: hi", "assistant: to_bob-1", "tool: to_bob-1", "assistant: bob here"],
        ["user: more", "assistant: bob here"],
    ]
    first, second = watched.runs
    assert [(call.message, call.agent) for call in first.calls] == [(1, "alice"), (3, "bob")]
    assert first.states[-1].messages == 4
    assert second.states[0].hash == first.states[-1].hash
    trace = Trace(id="t", runs=(first, second))
    assert [step.agent for step in trace.steps] == ["alice", "bob", "bob"]
    assert View.of(trace, 0, agent="alice").calls("to_bob")[0].status == "ok"
