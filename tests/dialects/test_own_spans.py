"""What our own exporter writes on spans, read back: the run is the one that was captured."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from cm2_agent.dialects.sdk_spans import span_record
from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.dialects.span_runs import SpanRuns, runs_of
from cm2_agent.dialects.token_text import encode_ids, encode_logprobs
from cm2_agent.types.run import Run
from tests.tracing.apps import ScriptedModel, agent, asks, calls
from tests.tracing.conftest import Watched

QUESTION: Any = {"messages": [("user", "what is 1?")]}


@pytest.fixture
def watched() -> Watched:
    return Watched()


def records(watched: Watched) -> list[SpanRecord]:
    found = [span_record(span) for span in watched.spans]
    return [span for span in found if span is not None]


def invoke(watched: Watched, graph: Any, given: Any = QUESTION, thread: str | None = None, **metadata: Any) -> None:
    handler = watched.capture(tokens=True, capture_content=True)
    config: dict[str, Any] = {"callbacks": [handler], "metadata": metadata}
    if thread is not None:
        config["configurable"] = {"thread_id": thread}
    graph.invoke(given, config)


def read_back(found: SpanRuns) -> Run:
    assert not found.unread
    (run,) = found.runs
    return run


def as_on_spans(run: Run) -> Run:
    """What spans have no place for: the states, and what the application passes around."""
    return replace(run, states=(), input=None, output=None)


def test_an_agents_run_is_the_captured_one(watched: Watched) -> None:
    invoke(
        watched,
        agent(ScriptedModel(script=[calls(1), calls(2, 3), AIMessage("done")])),
        thread="t",
        user_id=7,
        plan="gold",
    )
    spans = records(watched)
    random.Random(0).shuffle(spans)
    run = read_back(runs_of([*spans, *spans[:3]]))
    captured = as_on_spans(watched.run)
    assert run.messages == captured.messages
    assert [call.to_json() for call in run.calls] == [call.to_json() for call in captured.calls]
    assert [tool.to_json() for tool in run.tools] == [tool.to_json() for tool in captured.tools]
    assert run == captured


def test_a_failed_tool_is_an_answer_that_failed(watched: Watched) -> None:
    invoke(watched, agent(ScriptedModel(script=[calls(-1), AIMessage("no such key")])))
    run = read_back(runs_of(records(watched)))
    assert run == as_on_spans(watched.run)
    assert [part.error for message in run.messages for part in message.responses] == [True]
    assert run.tools[0].error is not None
    assert run.tools[0].result is None


def test_a_crash_is_the_models_or_the_tools(watched: Watched) -> None:
    for graph in (
        agent(ScriptedModel(script=[calls(1), RuntimeError("the model is away")])),
        agent(ScriptedModel(script=[calls(-1)]), handle_errors=False),
    ):
        with pytest.raises((RuntimeError, ValueError)):
            invoke(watched, graph)
    for read, captured in zip(runs_of(records(watched)).runs, watched.runs, strict=True):
        assert captured.failure is not None
        assert read.failure is not None
        assert (read.status, read.failure.kind, read.failure.message) == (
            "error",
            captured.failure.kind,
            captured.failure.message,
        )
        assert read.messages == captured.messages
        assert [call.error for call in read.calls] == [call.error for call in captured.calls]
        assert [tool.error for tool in read.tools] == [tool.error for tool in captured.tools]


def test_each_turn_of_a_thread_adds_what_it_added(watched: Watched) -> None:
    graph = agent(ScriptedModel(script=[calls(1), AIMessage("it is 1")], per_turn=True), checkpointer=InMemorySaver())
    for text in ("what is 1?", "and again?", "and now?"):
        invoke(watched, graph, {"messages": [("user", text)]}, thread="t")
    runs = runs_of(records(watched)).runs
    assert [run.messages for run in runs] == [run.messages for run in watched.runs]
    assert {run.thread for run in runs} == {"t"}


def test_an_agent_inside_a_tool_is_off_the_main_line(watched: Watched) -> None:
    inner = agent(ScriptedModel(script=[calls(5), AIMessage("inner says 5")], model_name="inner"))

    @tool
    def ask_expert(question: str) -> str:
        """Ask the expert."""
        return str(inner.invoke({"messages": [("user", question)]})["messages"][-1].content)

    asked: Any = [{"name": "ask_expert", "args": {"question": "5?"}, "id": "e1", "type": "tool_call"}]
    outer = ScriptedModel(script=[AIMessage("", tool_calls=asked), AIMessage("the expert says 5")], model_name="outer")
    invoke(watched, agent(outer, tools=[ask_expert]))
    run = read_back(runs_of(records(watched)))
    captured = as_on_spans(watched.run)
    assert run.messages == captured.messages
    assert [(call.message, call.model) for call in run.calls] == [(call.message, call.model) for call in captured.calls]
    assert [tool.name for tool in run.tools] == [tool.name for tool in captured.tools]


def test_an_interrupted_run_and_the_one_that_goes_on(watched: Watched) -> None:
    graph = agent(ScriptedModel(script=[asks("name?"), AIMessage("hello Ada")]), checkpointer=InMemorySaver())
    invoke(watched, graph, thread="t")
    invoke(watched, graph, Command(resume="Ada"), thread="t")
    runs = runs_of(records(watched)).runs
    assert [run.status for run in runs] == [run.status for run in watched.runs] == ["interrupted", "ok"]
    assert [run.messages for run in runs] == [run.messages for run in watched.runs]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("cm2.prompt_ids", "no base64!", "not base64"),
        ("cm2.completion_ids", encode_ids([-1, 2]), "below 0"),
        ("cm2.logprobs", encode_logprobs([0.5, -1.0]), "above 0 or not finite"),
        ("cm2.logprobs", encode_logprobs([float("nan"), -1.0]), "above 0 or not finite"),
        ("cm2.logprobs", encode_logprobs([-1.0]), "differ in number"),
        ("cm2.logprobs", [-1.0, -2.0], "not base64"),
    ],
)
def test_tokens_that_cannot_be_a_models_make_the_call_text_only(
    watched: Watched, name: str, text: Any, reason: str
) -> None:
    invoke(watched, agent(ScriptedModel(script=[AIMessage("done")])))
    spans = [
        replace(span, attributes={**span.attributes, name: text}) if "cm2.logprobs" in span.attributes else span
        for span in records(watched)
    ]
    (call,) = read_back(runs_of(spans)).calls
    assert call.prompt_ids is call.completion_ids is call.logprobs is None
    assert call.untrainable is not None
    assert reason in call.untrainable
    assert call.output == watched.run.calls[0].output


def test_without_content_nothing_is_dropped_in_silence(watched: Watched) -> None:
    agent(ScriptedModel(script=[calls(1), AIMessage("done")])).invoke(
        QUESTION, {"callbacks": [watched.capture(capture_content=False)]}
    )
    found = runs_of(records(watched))
    assert found.runs == ()
    assert found.unread == {"no message content (is its capture switched off?)": 4}
