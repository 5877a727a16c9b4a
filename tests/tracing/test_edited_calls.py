"""A call that somebody changes before it runs: the dialogue has what ran, the model call what the model wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware, wrap_tool_call
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState, ToolNode, tools_condition
from langgraph.types import Command, interrupt

from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.trace import Step, Trace
from tests.tracing.apps import ScriptedModel, calls, look
from tests.tracing.conftest import Watched
from tests.tracing.dialogues import THREAD, lines, user

EDITED = "edited after it was sampled"


@tool
def find(word: str) -> str:
    """Find a word."""
    return f"found {word}"


def model(*replies: AIMessage) -> ScriptedModel:
    return ScriptedModel(script=[*replies, AIMessage(content="done")])


def loop(answer: Callable[[Any], Any], *, between: Any = None, tools: Any = None, **options: Any) -> Any:
    graph: Any = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_node("tools", tools or ToolNode([look]))
    graph.add_edge(START, "answer")
    graph.add_edge("tools", "answer")
    if between is None:
        graph.add_conditional_edges("answer", tools_condition)
    else:
        graph.add_node("between", between)
        graph.add_edge("answer", "between")
        graph.add_conditional_edges("between", tools_condition)
    return graph.compile(**options)


def answering(chat: ScriptedModel, change: Callable[[AIMessage], Any] = lambda message: None) -> Any:
    def answer(state: Any) -> dict[str, Any]:
        message = chat.invoke(state["messages"])
        change(message)
        return {"messages": [message]}

    return answer


def set_key(message: AIMessage, key: int = 5) -> None:
    for call in message.tool_calls:
        call["args"]["key"] = key


def replaced(state: Any) -> dict[str, Any]:
    last = state["messages"][-1]
    changed = [{**call, "args": {"key": 5}} for call in last.tool_calls]
    return {"messages": [AIMessage(last.content, id=last.id, tool_calls=changed)]}


def changed_by_middleware(request: Any, handler: Any) -> Any:
    return handler(request.override(tool_call={**request.tool_call, "args": {"key": 5}}))


def in_the_state(state: Any) -> dict[str, Any]:
    set_key(state["messages"][-1])
    return {}


WAYS: dict[str, Callable[[], Any]] = {
    "before it is written": lambda: loop(answering(model(calls(1)), set_key)),
    "in place by another node": lambda: loop(answering(model(calls(1))), between=in_the_state),
    "by id": lambda: loop(answering(model(calls(1))), between=replaced),
    "around the tool": lambda: loop(
        answering(model(calls(1))), tools=ToolNode([look], wrap_tool_call=changed_by_middleware)
    ),
    "middleware": lambda: create_agent(model(calls(1)), [look], middleware=[wrap_tool_call(changed_by_middleware)]),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_ran_is_in_the_dialogue(watched: Watched, way: str) -> None:
    WAYS[way]().with_config(callbacks=[watched.handler]).invoke(user("look up 1"))
    run = watched.run
    assert lines(run) == ["user: look up 1", "assistant: call1", "tool: call1", "assistant: done"]
    assert [call.arguments for call in run.messages[1].tool_calls] == [{"key": 5}]
    assert run.messages[2].responses[0].response == "value 5"
    assert [(call.message, call.untrainable) for call in run.calls] == [(1, EDITED), (3, None)]
    assert run.calls[0].output is not None
    assert run.calls[0].output.tool_calls[0].arguments == {"key": 1}


def first_step(runs: list[Run]) -> tuple[Step, ModelCall]:
    step = Trace(id="T", runs=tuple(runs)).steps[0]
    assert step.call is not None
    return step, step.call


@pytest.mark.parametrize("by", ["middleware", "update_state"])
@pytest.mark.parametrize("decision", ["approve", "edit", "another tool", "reject"])
def test_a_persons_decision(watched: Watched, by: str, decision: str) -> None:
    """It comes with a later run than the call: the trace has what ran."""
    action = {"edit": ("look", {"key": 5}), "another tool": ("find", {"word": "x"})}.get(decision)
    if by == "middleware":
        asking = HumanInTheLoopMiddleware(interrupt_on={"look": True})
        graph: Any = create_agent(model(calls(1)), [look, find], middleware=[asking], checkpointer=InMemorySaver())
    else:
        options: Any = {"checkpointer": InMemorySaver(), "interrupt_before": ["tools"]}
        graph = loop(answering(model(calls(1))), tools=ToolNode([look, find]), **options)
    graph = graph.with_config(callbacks=[watched.handler])
    graph.invoke(user("look up 1"), THREAD)
    if by == "middleware":
        answer: dict[str, Any] = {"type": "edit" if action else decision}
        if action:
            answer["edited_action"] = {"name": action[0], "args": action[1]}
        graph.invoke(Command(resume={"decisions": [answer]}), THREAD)
    else:
        last = graph.get_state(THREAD).values["messages"][-1]
        if action:
            call: Any = {"name": action[0], "args": action[1], "id": "call1", "type": "tool_call"}
            graph.update_state(THREAD, {"messages": [AIMessage("", id=last.id, tool_calls=[call])]})
        elif decision == "reject":
            refused = ToolMessage("not that one", tool_call_id="call1", status="error")
            graph.update_state(THREAD, {"messages": [refused]}, as_node="tools")
        graph.invoke(None, THREAD)
    step, written = first_step(watched.runs)
    name, arguments = action or ("look", {"key": 1})
    assert [(call.name, call.arguments) for call in step.message.tool_calls] == [(name, arguments)]
    assert written.untrainable == (EDITED if action else None)
    assert written.output is not None
    assert written.output.tool_calls[0].arguments == {"key": 1}
    assert step.responses[0].error == (decision == "reject")
    roles = [message.role for run in watched.runs for message in run.messages]
    assert roles == ["user", "assistant", "tool", "assistant"]
    assert [run.status for run in watched.runs] == ["interrupted", "ok"]


def test_a_users_message_by_update_state(watched: Watched) -> None:
    graph = loop(answering(model()), checkpointer=InMemorySaver()).with_config(callbacks=[watched.handler])
    graph.invoke(user("one"), THREAD)
    graph.update_state(THREAD, {"messages": [("user", "two")]}, as_node="__start__")
    graph.invoke(None, THREAD)
    assert [lines(run) for run in watched.runs] == [["user: one", "assistant: done"], ["user: two", "assistant: done"]]
    assert len(watched.runs[1].history) == 2


def test_an_edit_among_parallel_calls(watched: Watched) -> None:
    """Two calls of one id; only the second is changed, and the first runs as it was."""

    def change(message: AIMessage) -> None:
        if message.tool_calls:
            message.tool_calls[1]["args"]["key"] = 9

    same = AIMessage("", tool_calls=[{"name": "look", "args": {"key": key}, "id": "1"} for key in (1, 2)])
    loop(answering(model(same), change)).with_config(callbacks=[watched.handler]).invoke(user("look"))
    run = watched.run
    assert [call.arguments for call in run.messages[1].tool_calls] == [{"key": 1}, {"key": 9}]
    answers = [part.response for message in run.messages for part in message.responses]
    assert answers == ["value 1", "value 9"]
    assert run.calls[0].untrainable == EDITED


def test_what_the_application_adds_is_no_edit(watched: Watched) -> None:
    """State and ids that are injected into a tool, and its defaults."""

    @tool
    def look(
        key: int,
        call: Annotated[str, InjectedToolCallId],
        state: Annotated[dict[str, Any], InjectedState],
        limit: int = 3,
    ) -> str:
        """Look a key up."""
        return f"value {key} {limit}"

    graph: Any = create_agent(model(calls(1)), [look]).with_config(callbacks=[watched.handler])
    graph.invoke(user("look up 1"))
    assert watched.run.messages[1].tool_calls[0].arguments == {"key": 1}
    assert [call.changed for call in watched.run.calls] == [None, None]


def test_a_tool_that_asks_before_it_acts(watched: Watched) -> None:
    """An interrupted execution has not run: the arguments of the one that did are in the dialogue."""

    @tool
    def look(key: int) -> str:
        """Look a key up, if a person agrees."""
        return f"value {key}: {interrupt('may I?')}"

    graph: Any = create_agent(model(calls(1)), [look], checkpointer=InMemorySaver())
    graph = graph.with_config(callbacks=[watched.handler])
    graph.invoke(user("look up 1"), THREAD)
    graph.invoke(Command(resume="yes"), THREAD)
    step, written = first_step(watched.runs)
    assert (step.message.tool_calls[0].arguments, written.changed) == ({"key": 1}, None)
    assert step.responses[0].response == "value 1: yes"


def test_decisions_on_parallel_calls(watched: Watched) -> None:
    """One call is edited, one approved and one refused."""
    asking = HumanInTheLoopMiddleware(interrupt_on={"look": True})
    graph: Any = create_agent(model(calls(1, 2, 3)), [look], middleware=[asking], checkpointer=InMemorySaver())
    graph = graph.with_config(callbacks=[watched.handler])
    graph.invoke(user("look"), THREAD)
    edit = {"type": "edit", "edited_action": {"name": "look", "args": {"key": 9}}}
    decisions = [edit, {"type": "approve"}, {"type": "reject", "message": "not that one"}]
    assert list(graph.stream(Command(resume={"decisions": decisions}), THREAD, stream_mode="updates"))
    step, written = first_step(watched.runs)
    assert [call.arguments for call in step.message.tool_calls] == [{"key": 9}, {"key": 2}, {"key": 3}]
    assert [use.status for use in step.tool_uses] == ["ok", "ok", "not_run"]
    assert written.untrainable == EDITED
    assert sorted(str(part.id) for part in step.responses) == ["call1", "call2", "call3"]
