"""What a run adds to its dialogue: history, checkpointers, trimmed and rewritten prompts, side questions, parallel
calls."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command

from cm2_agent.types.run import Run
from cm2_agent.types.trace import Trace
from tests.tracing.apps import ScriptedModel, agent, calls, says
from tests.tracing.conftest import Watched


def lines(run: Run) -> list[str]:
    """`role: text` of every message, tool calls and answers by their ids."""
    out = []
    for message in run.messages:
        ids = [call.id for call in message.tool_calls] + [response.id for response in message.responses]
        out.append(f"{message.role}: " + (message.text or ",".join(map(str, ids))))
    return out


def written(run: Run) -> list[str | None]:
    """What the dialogue holds where each call says it wrote."""
    return [None if call.message is None else run.messages[call.message].text for call in run.calls]


def chain(watched: Watched, *nodes: Any, state: Any = MessagesState) -> Any:
    graph: Any = StateGraph(state)
    for number, node in enumerate(nodes):
        graph.add_node(f"node{number}", node)
        graph.add_edge(START if number == 0 else f"node{number - 1}", f"node{number}")
    return graph.compile().with_config(callbacks=[watched.handler])


@pytest.mark.parametrize("keeps", ["checkpointer", "caller"])
def test_later_turns_add_only_what_is_new(watched: Watched, keeps: str) -> None:
    model = ScriptedModel(script=[calls(1), AIMessage(content="yes")], per_turn=True)
    graph = agent(model, checkpointer=InMemorySaver() if keeps == "checkpointer" else None).with_config(
        callbacks=[watched.handler]
    )
    config = {"configurable": {"thread_id": "T"}}
    history: list[Any] = []
    for _ in range(3):  # the user says the same each time, and so does the model
        new = HumanMessage("again")
        state = graph.invoke({"messages": [new] if keeps == "checkpointer" else [*history, new]}, config)
        history = state["messages"]
    turn = ["user: again", "assistant: call1", "tool: call1", "assistant: yes"]
    assert lines(watched.runs[0]) == ["system: You look things up.", *turn]
    assert lines(watched.runs[1]) == lines(watched.runs[2]) == turn
    trace = Trace(id="T", runs=tuple(watched.runs))
    assert [len(each.steps) for each in trace.turns] == [2, 2, 2]
    assert all(step.call is not None for step in trace.steps)


def test_history_as_plain_dicts(watched: Watched) -> None:
    history = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "hi"},
    ]
    graph = agent(says("hello")).with_config(callbacks=[watched.handler])
    graph.invoke({"messages": history})
    assert lines(watched.run) == ["user: hi", "assistant: hello"]


def test_answers_of_a_run_that_ended_with_its_tools_stand_in_the_dialogue_once(watched: Watched) -> None:
    """The first run stops after the tools (a limit); the next begins with a new user message."""
    bound = ScriptedModel(script=[calls(1), AIMessage(content="well")]).bind_tools([])

    def speak(state: MessagesState) -> dict[str, Any]:
        return {"messages": [bound.invoke(state["messages"])]}

    from tests.tracing.apps import look

    first: Any = StateGraph(MessagesState)
    first.add_node("agent", speak)
    first.add_node("tools", ToolNode([look]))
    first.add_edge(START, "agent")
    first.add_edge("agent", "tools")
    state = first.compile().with_config(callbacks=[watched.handler]).invoke({"messages": [("user", "one")]})
    chain(watched, speak).invoke({"messages": [*state["messages"], HumanMessage("two")]})
    assert lines(watched.runs[0]) == ["user: one", "assistant: call1", "tool: call1"]
    assert lines(watched.runs[1]) == ["user: two", "assistant: well"]


def test_a_model_that_gives_the_same_ids_again(watched: Watched) -> None:
    """Every call has the id `1`; the run dies before the last answer is shown to anybody."""
    script = [AIMessage(content="", tool_calls=[{"name": "look", "args": {"key": key}, "id": "1"}]) for key in range(9)]
    graph = agent(ScriptedModel(script=script)).with_config(callbacks=[watched.handler])
    with pytest.raises(GraphRecursionError):
        graph.invoke({"messages": [("user", "hi")]}, {"recursion_limit": 6})
    answers = [response.response for message in watched.run.messages for response in message.responses]
    assert answers == ["value 0", "value 1", "value 2"]
    assert [message.role for message in watched.run.messages] == ["system", "user", *["assistant", "tool"] * 3]


def test_a_trimmed_history(watched: Watched) -> None:
    """The node shows the model only the last two messages, and another system prompt each time."""
    model = ScriptedModel(script=[calls(1), calls(2), AIMessage(content="done")])
    answers = iter(model.script)

    def speak(state: MessagesState) -> dict[str, Any]:
        prompt = [SystemMessage(f"prompt {len(state['messages'])}"), *state["messages"][-2:]]
        model.script = [next(answers)] * 3
        return {"messages": [model.invoke(prompt)]}

    from tests.tracing.apps import look

    graph: Any = StateGraph(MessagesState)
    graph.add_node("agent", speak)
    graph.add_node("tools", ToolNode([look]))
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", lambda state: "tools" if state["messages"][-1].tool_calls else "__end__")
    graph.add_edge("tools", "agent")
    graph.compile().with_config(callbacks=[watched.handler]).invoke({"messages": [("user", "one")]})
    assert lines(watched.run) == [
        "system: prompt 1",
        "user: one",
        "assistant: call1",
        "tool: call1",
        "assistant: call2",
        "tool: call2",
        "assistant: done",
    ]
    assert [call.message for call in watched.run.calls] == [2, 4, 6]
    assert [message.text for message in watched.run.calls[2].input][:1] == ["prompt 5"]


def test_a_rewritten_prompt(watched: Watched) -> None:
    """The user's message is the state's; the prompt that the model read is in the call."""

    def speak(state: MessagesState) -> dict[str, Any]:
        return {
            "messages": [
                says("Paris").invoke([HumanMessage(f"Context: maps. Question: {state['messages'][-1].content}")])
            ]
        }

    chain(watched, speak).invoke({"messages": [("user", "capital of France?")]})
    assert lines(watched.run) == ["user: capital of France?", "assistant: Paris"]
    assert watched.run.calls[0].input[0].text == "Context: maps. Question: capital of France?"
    assert watched.run.calls[0].message == 1


def test_a_side_question(watched: Watched) -> None:
    """A grader's call is recorded, and is no part of the dialogue."""

    def speak(state: MessagesState) -> dict[str, Any]:
        return {"messages": [says("Paris").invoke(state["messages"])]}

    def grade(state: MessagesState) -> dict[str, Any]:
        says("good").invoke(
            [SystemMessage("You grade."), HumanMessage(f"Is this right? {state['messages'][-1].content}")]
        )
        return {}

    chain(watched, speak, grade).invoke({"messages": [("user", "capital of France?")]})
    assert lines(watched.run) == ["user: capital of France?", "assistant: Paris"]
    assert written(watched.run) == ["Paris", None]


def test_an_answer_that_a_node_rewrites(watched: Watched) -> None:
    def speak(state: MessagesState) -> dict[str, Any]:
        answer = says("<think>maps</think>Paris").invoke(state["messages"])
        return {"messages": [AIMessage(content=answer.text.split("</think>")[1])]}

    chain(watched, speak).invoke({"messages": [("user", "capital of France?")]})
    assert lines(watched.run) == ["user: capital of France?", "assistant: Paris"]
    assert written(watched.run) == ["Paris"]
    assert watched.run.calls[0].output is not None
    assert (watched.run.calls[0].output.reasoning, watched.run.calls[0].changed) == ("maps", None)


def test_messages_that_no_model_wrote(watched: Watched) -> None:
    def greet(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(content="One moment.")]}

    def speak(state: MessagesState) -> dict[str, Any]:
        return {"messages": [says("Paris").invoke(state["messages"])]}

    def close(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(content="Anything else?")]}

    chain(watched, greet, speak, close).invoke({"messages": [("user", "capital of France?")]})
    assert lines(watched.run) == [
        "user: capital of France?",
        "assistant: One moment.",
        "assistant: Paris",
        "assistant: Anything else?",
    ]
    assert written(watched.run) == ["Paris"]


def test_a_graph_without_a_model(watched: Watched) -> None:
    chain(watched, lambda state: {"messages": [AIMessage(content="no")]}).invoke({"messages": [("user", "hi")]})
    assert lines(watched.run) == ["user: hi", "assistant: no"]
    assert watched.run.calls == ()


def test_parallel_branches(watched: Watched) -> None:
    graph: Any = StateGraph(MessagesState)
    for name in ("left", "right"):
        graph.add_node(name, lambda state, name=name: {"messages": [says(name).invoke(state["messages"])]})
        graph.add_edge(START, name)
    graph.compile().with_config(callbacks=[watched.handler]).invoke({"messages": [("user", "hi")]})
    assert sorted(lines(watched.run)) == ["assistant: left", "assistant: right", "user: hi"]
    assert lines(watched.run)[0] == "user: hi"
    assert sorted(str(text) for text in written(watched.run)) == ["left", "right"]
    assert [call.output.text for call in watched.run.calls if call.output is not None] == written(watched.run)


def test_many_user_turns_in_one_run(watched: Watched) -> None:
    """A graph that conducts the dialogue gives its trace at once."""
    model = says("yes")

    def converse(state: MessagesState) -> dict[str, Any]:
        messages: list[Any] = list(state["messages"])
        for number in range(3):
            messages.append(HumanMessage(f"turn {number}"))
            messages.append(model.invoke(messages))
        return {"messages": messages[len(state["messages"]) :]}

    chain(watched, converse).invoke({"messages": []})
    assert lines(watched.run) == [line for number in range(3) for line in (f"user: turn {number}", "assistant: yes")]
    assert [call.message for call in watched.run.calls] == [1, 3, 5]
    assert len(Trace.of(watched.run).turns) == 3


def test_a_tool_that_updates_the_state(watched: Watched) -> None:
    @tool
    def look(key: int) -> Command[Any]:
        """Look a key up."""
        return Command(update={"messages": [ToolMessage(content=f"value {key}", tool_call_id=f"call{key}")]})

    graph = agent(ScriptedModel(script=[calls(1), AIMessage(content="done")]), tools=[look]).with_config(
        callbacks=[watched.handler]
    )
    graph.invoke({"messages": [("user", "one")]})
    assert [(run.call_id, run.result) for run in watched.run.tools] == [("call1", "value 1")]
    assert lines(watched.run)[3:] == ["tool: call1", "assistant: done"]


def test_a_handoff_is_no_error(watched: Watched) -> None:
    """A subgraph's node that sends its parent elsewhere raises ParentCommand inside LangGraph."""
    inner: Any = StateGraph(MessagesState)
    update = {"messages": [AIMessage(content="over to you")]}
    inner.add_node("leave", lambda state: Command(goto="other", graph=Command.PARENT, update=update))
    inner.add_edge(START, "leave")
    outer: Any = StateGraph(MessagesState)
    outer.add_node("inner", inner.compile())
    outer.add_node("other", lambda state: {"messages": [says("here I am").invoke(state["messages"])]})
    outer.add_edge(START, "inner")
    outer.compile().with_config(callbacks=[watched.handler]).invoke({"messages": [("user", "hi")]})
    assert (watched.run.status, watched.run.failure) == ("ok", None)
    assert lines(watched.run)[0] == "user: hi"
    assert lines(watched.run)[-1] == "assistant: here I am"
    assert all(span.status.is_ok or span.status.is_unset for span in watched.spans)
