"""What an application writes into the state for the model to read, and what it takes out, do not change what was
said."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import MessagesState
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Command, Overwrite, interrupt

from cm2_agent.tracing.span_processor import capture
from cm2_agent.types.messages import SHOWN
from tests.tracing.apps import ScriptedModel, calls, look, says
from tests.tracing.conftest import Watched
from tests.tracing.dialogues import THREAD, chain, history, lines, speaker, user

SUMMARY = "Summary: they spoke of orders."
CLEAR = RemoveMessage(id=REMOVE_ALL_MESSAGES)


class Question(MessagesState):
    question: str


def shown(run: Any) -> list[str]:
    """What the run's model calls were shown that nobody said."""
    return [message.text for call in run.calls for message in call.input if message.extra.get(SHOWN)]


def removals(state: Any, keep: int) -> list[Any]:
    return [RemoveMessage(id=message.id) for message in state["messages"][:-keep]]


WAYS: dict[str, Any] = {
    "human": lambda s: [CLEAR, HumanMessage(SUMMARY), *s["messages"][-1:]],
    "human, by id": lambda s: [*removals(s, 1), HumanMessage(SUMMARY)],
    "system": lambda s: [CLEAR, SystemMessage(SUMMARY), *s["messages"][-1:]],
    "assistant": lambda s: [CLEAR, AIMessage(SUMMARY), *s["messages"][-1:]],
    "overwrite": lambda s: Overwrite([HumanMessage(SUMMARY), *s["messages"][-1:]]),
    "appended system": lambda s: [SystemMessage(SUMMARY)],
    "appended human": lambda s: [HumanMessage(SUMMARY)],
    "in place of the first": lambda s: [*removals(s, 1)[1:], HumanMessage(SUMMARY, id=s["messages"][0].id)],
    "with the summary within the question": lambda s: [
        *removals(s, 1),
        HumanMessage(f"{SUMMARY} Now: {s['messages'][-1].text}", id=s["messages"][-1].id),
    ],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("by_model", [True, False])
def test_a_summary_before_the_model(watched: Watched, way: str, by_model: bool) -> None:
    def shorten(state: Any) -> dict[str, Any]:
        if by_model and len(state["messages"]) > 2:
            assert says(SUMMARY).invoke([HumanMessage("Summarise it.")]).text == SUMMARY
        return {"messages": WAYS[way](state) if len(state["messages"]) > 2 else []}

    graph = chain(watched, shorten, speaker("First.", "Second.", "Third."), checkpointer=InMemorySaver())
    for text in ("one", "two", "three"):
        graph.invoke(user(text), THREAD)
    assert [lines(run) for run in watched.runs] == [
        ["user: one", "assistant: First."],
        ["user: two", "assistant: Second."],
        ["user: three", "assistant: Third."],
    ]
    for run in watched.runs[1:]:
        assert any(SUMMARY in message.text for message in run.calls[-1].input)
        assert [line for line in history(run) if SUMMARY in line] == []
        if way != "with the summary within the question":
            assert shown(run)[0] == SUMMARY
        assert [call.message for call in run.calls] == ([None, 1] if by_model else [1])


@pytest.mark.parametrize("way", ["human", "system", "nothing"])
def test_a_state_that_is_cleared_after_the_turn(watched: Watched, way: str) -> None:
    kinds: dict[str, list[Any]] = {"human": [HumanMessage(SUMMARY)], "system": [SystemMessage(SUMMARY)], "nothing": []}

    def clear(state: Any) -> dict[str, Any]:
        return {"messages": [CLEAR, *[message.model_copy() for message in kinds[way]]]}

    graph = chain(watched, speaker("First.", "Second."), clear, checkpointer=InMemorySaver())
    graph.invoke(user("one"), THREAD)
    graph.invoke(user("two"), THREAD)
    assert [lines(run) for run in watched.runs] == [
        ["user: one", "assistant: First."],
        ["user: two", "assistant: Second."],
    ]
    assert history(watched.runs[1]) == []
    assert shown(watched.runs[1]) == ([] if way == "nothing" else [SUMMARY])


def test_a_trimmed_state_keeps_its_tool_steps(watched: Watched) -> None:
    """Steps of the running turn are taken out while it goes on."""

    def trim(state: Any) -> dict[str, Any]:
        return {"messages": removals(state, 2)}

    graph = chain(
        watched,
        lambda state: {"messages": [ScriptedModel(script=[calls(1)]).invoke(state["messages"])]},
        lambda state: {"messages": [ToolMessage("value 1", tool_call_id="call1")]},
        trim,
        speaker("done"),
        trim,
    )
    graph.invoke(user("one"))
    assert lines(watched.run) == ["user: one", "assistant: call1", "tool: call1", "assistant: done"]
    assert [call.message for call in watched.run.calls] == [1, 3]
    assert [message.role for message in watched.run.calls[1].input] == ["assistant", "tool"]


def test_old_answers_of_tools_are_cleared(watched: Watched) -> None:
    """By id, after the model has read them."""

    def clear(state: Any) -> dict[str, Any]:
        old = [message for message in state["messages"] if message.type == "tool"]
        return {"messages": [ToolMessage("[cleared]", tool_call_id=one.tool_call_id, id=one.id) for one in old]}

    def redact(state: Any) -> dict[str, Any]:
        last = state["messages"][-1]
        return {"messages": [ToolMessage("value *", tool_call_id=last.tool_call_id, id=last.id)]}

    graph = chain(
        watched,
        lambda state: {"messages": [ScriptedModel(script=[calls(1)]).invoke(state["messages"])]},
        lambda state: {"messages": [ToolMessage("value 1", tool_call_id="call1")]},
        redact,  # before the model reads it: this is what the agent got
        speaker("done"),
        clear,
    )
    graph.invoke(user("one"))
    assert [part.response for message in watched.run.messages for part in message.responses] == ["value *"]


def test_langchains_summarization(watched: Watched) -> None:
    middleware = SummarizationMiddleware(says("they spoke"), trigger=("messages", 5), keep=("messages", 2))
    model = ScriptedModel(script=[calls(1), AIMessage("First.")], per_turn=True)
    graph: Any = create_agent(model, [look], middleware=[middleware], checkpointer=InMemorySaver())
    graph = graph.with_config(callbacks=[watched.handler])
    for text in ("one", "two", "three"):
        graph.invoke(user(text), THREAD)
    turn = ["assistant: call1", "tool: call1", "assistant: First."]
    assert [lines(run) for run in watched.runs] == [[f"user: {text}", *turn] for text in ("one", "two", "three")]
    assert all(text.startswith("Here is a summary") for text in shown(watched.runs[2]))
    assert shown(watched.runs[2])
    assert [call.message for call in watched.runs[1].calls if call.message is not None] == [1, 3]

    fresh: list[Any] = []  # a process that knows nothing of what came before
    graph.with_config(callbacks=[capture(fresh.append)]).invoke(user("four"), THREAD)
    assert not any("summary" in line for run in fresh for line in (*history(run), *lines(run)))


@pytest.mark.parametrize("same_id", [True, False])
def test_personal_data_that_the_application_takes_out_of_the_users_message(watched: Watched, same_id: bool) -> None:
    def redact(state: Any) -> dict[str, Any]:
        last = state["messages"][-1]
        if same_id:
            return {"messages": [HumanMessage("my mail is ***", id=last.id)]}
        return {"messages": [RemoveMessage(id=last.id), HumanMessage("my mail is ***")]}

    chain(watched, redact, speaker("ok")).invoke(user("my mail is a@b.example"))
    assert lines(watched.run) == ["user: my mail is ***", "assistant: ok"]


@pytest.mark.parametrize("same_id", [True, False])
def test_a_long_question_that_is_summarised(watched: Watched, same_id: bool) -> None:
    def shorten(state: Any) -> dict[str, Any]:
        last, text = state["messages"][-1], says("The user asks for the capital.").invoke("Summarise").text
        short = HumanMessage(f"Here is a summary: {text}", id=last.id if same_id else None)
        return {"messages": [short] if same_id else [RemoveMessage(id=last.id), short]}

    chain(watched, shorten, speaker("Paris")).invoke(user("a very long question"))
    assert lines(watched.run) == ["user: a very long question", "assistant: Paris"]
    assert [message.text[:9] for message in watched.run.calls[-1].input] == ["Here is a"]


@pytest.mark.parametrize("put", ["around", "instead"])
def test_a_users_message_that_the_application_puts_otherwise(watched: Watched, put: str) -> None:
    """By the same id: with what it found for it, or as a model would ask."""

    def change(state: Any) -> dict[str, Any]:
        last = state["messages"][-1]
        text = f"Context: maps. Question: {last.text}" if put == "around" else says("capital France").invoke("?").text
        return {"messages": [HumanMessage(text, id=last.id)]}

    chain(watched, change, speaker("Paris")).invoke(user("what is its capital?"))
    assert lines(watched.run) == ["user: what is its capital?", "assistant: Paris"]


def test_reminders_within_a_turn(watched: Watched) -> None:
    graph = chain(
        watched,
        lambda state: {"messages": [ScriptedModel(script=[calls(1)]).invoke(state["messages"])]},
        lambda state: {"messages": [ToolMessage("value 1", tool_call_id="call1")]},
        lambda state: {"messages": [HumanMessage("Answer in JSON."), SystemMessage("One step is left.")]},
        speaker("{}"),
    )
    graph.invoke(user("one"))
    assert lines(watched.run) == ["user: one", "assistant: call1", "tool: call1", "assistant: {}"]
    assert shown(watched.run) == ["Answer in JSON.", "One step is left."]


def test_a_node_that_asks_the_user(watched: Watched) -> None:
    """What a person answers to an interrupt is theirs, though a node writes it, and trims the state at once."""

    def ask(state: Any) -> dict[str, Any]:
        answer = interrupt("more?")
        return {"messages": [*removals(state, 1), HumanMessage(answer["text"])]}

    graph = chain(watched, speaker("Hello."), ask, speaker("Bye."), checkpointer=InMemorySaver())
    graph.invoke(user("hi"), THREAD)
    graph.invoke(Command(resume={"text": "no, thanks"}), THREAD)
    assert [lines(run) for run in watched.runs] == [
        ["user: hi", "assistant: Hello."],
        ["user: no, thanks", "assistant: Bye."],
    ]


def test_a_simulated_user_within_the_graph(watched: Watched) -> None:
    """A node speaks for the user, by a model of its own; the last word may be the user's."""

    def simulated(text: str) -> Any:
        return lambda state: {"messages": [HumanMessage(says(text).invoke("You are a customer.").text)]}

    chain(watched, speaker("Hello."), simulated("order 7?"), speaker("Shipped."), simulated("bye")).invoke(user("hi"))
    assert lines(watched.run) == [
        "user: hi",
        "assistant: Hello.",
        "user: order 7?",
        "assistant: Shipped.",
        "user: bye",
    ]


def test_a_prompt_that_the_application_makes_of_its_input(watched: Watched) -> None:
    graph = chain(
        watched,
        lambda state: {"messages": [SystemMessage("You help."), HumanMessage(f"Q: {state['question']}")]},
        speaker("Paris"),
        state=Question,
    )
    graph.invoke({"question": "capital of France?"})
    assert lines(watched.run) == ["system: You help.", "user: Q: capital of France?", "assistant: Paris"]
