"""What leaves on the spans, what stays beside them, and that nothing stays for good."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import random
import subprocess
import sys
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, TraceIdRatioBased
from opentelemetry.trace import StatusCode

from cm2_agent.datasets import Redactor
from cm2_agent.dialects import semconv
from cm2_agent.dialects.seen_message import SeenMessage
from cm2_agent.dialects.token_text import decode_ids, decode_logprobs, encode_ids, encode_logprobs
from cm2_agent.tracing.span_attributes import error_message
from cm2_agent.tracing.span_processor import capture
from cm2_agent.tracing.span_records import Record
from cm2_agent.tracing.state_log import NodeTask
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from tests.tracing.apps import ScriptedModel, agent, calls
from tests.tracing.conftest import Watched

QUESTION: Any = {"messages": [("user", "what is 1?")]}
SCRIPT = [calls(1), AIMessage(content="it is value 1")]
VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
TOKENS = (semconv.PROMPT_IDS, semconv.COMPLETION_IDS, semconv.LOGPROBS)


def app() -> Any:
    return agent(ScriptedModel(script=SCRIPT))


def by_name(watched: Watched) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for span in sorted(watched.spans, key=lambda span: span.start_time or 0):
        out.setdefault(span.name, []).append(dict(span.attributes or {}))
    return out


def test_a_foreign_exporter_sees_the_conventions_and_no_tokens(watched: Watched) -> None:
    app().with_config(callbacks=[watched.capture(capture_content=True)]).invoke(
        QUESTION, {"configurable": {"thread_id": "T"}, "metadata": {"cm2.task.id": "t1"}}
    )
    spans = by_name(watched)
    root, (first, last), (tool,) = (
        spans["invoke_agent LangGraph"][0],
        spans["chat scripted"],
        spans["execute_tool look"],
    )
    assert root["gen_ai.operation.name"] == "invoke_agent"
    assert root["gen_ai.agent.name"] == "LangGraph"
    assert root["gen_ai.conversation.id"] == "T"
    assert root["cm2.task.id"] == "t1"
    assert root["cm2.status"] == "ok"
    assert first["gen_ai.operation.name"] == "chat"
    assert first["gen_ai.request.model"] == first["gen_ai.response.model"] == "scripted"
    assert first["gen_ai.request.temperature"] == 0.5
    assert first["gen_ai.usage.input_tokens"] == 4
    assert last["gen_ai.response.finish_reasons"] == ("stop",)
    assert tool["gen_ai.tool.name"] == "look"
    assert tool["gen_ai.tool.call.id"] == "call1"
    assert json.loads(tool["gen_ai.tool.call.arguments"]) == {"key": 1}
    assert tool["gen_ai.tool.call.result"] == "value 1"
    sent = [Message.from_json(message) for message in json.loads(last["gen_ai.input.messages"])]
    assert sent == list(watched.run.calls[1].input)
    answer = {"role": "assistant", "parts": [{"type": "text", "content": "it is value 1"}], "finish_reason": "stop"}
    assert json.loads(last["gen_ai.output.messages"]) == [answer]
    assert [tool_["name"] for tool_ in json.loads(first["gen_ai.tool.definitions"])] == ["look", "ask_human"]
    assert all(name not in span for spans_ in spans.values() for span in spans_ for name in TOKENS)
    assert {span.instrumentation_scope.schema_url for span in watched.spans if span.instrumentation_scope} == {
        semconv.SCHEMA_URL
    }
    assert watched.run.calls[0].prompt_ids == (0, 1, 2, 3)


def test_another_collector_gets_the_tokens(watched: Watched) -> None:
    app().with_config(callbacks=[watched.capture(tokens=True)]).invoke(QUESTION)
    chats = by_name(watched)["chat scripted"]
    for span, call in zip(chats, watched.run.calls, strict=True):
        assert decode_ids(span["cm2.prompt_ids"]) == call.prompt_ids
        assert decode_ids(span["cm2.completion_ids"]) == call.completion_ids
        assert decode_logprobs(span["cm2.logprobs"]) == call.logprobs


@pytest.mark.parametrize(
    ("variable", "argument", "stands_there"),
    [
        (None, None, False),
        ("", None, False),
        ("false", None, False),
        ("NO_CONTENT", None, False),
        ("EVENT_ONLY", None, False),
        ("anything else", None, False),
        ("true", None, True),
        ("SPAN_ONLY", None, True),
        (" span_and_event ", None, True),
        ("span_only", False, False),
        (None, True, True),
        ("no_content", True, True),
    ],
)
def test_content_stands_on_the_applications_spans_by_opt_in_alone(
    watched: Watched, variable: str | None, argument: bool | None, stands_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(VARIABLE, variable)
    app().with_config(callbacks=[watched.capture(capture_content=argument)]).invoke(
        QUESTION, {"metadata": {"cm2.task.id": "t1", "seat": "value 1"}}
    )
    assert ("value 1" in str([span.to_json() for span in watched.spans])) is stands_there
    assert watched.run.messages[-1].text == "it is value 1"
    spans = by_name(watched)
    first, last = spans["chat scripted"]
    assert first["gen_ai.request.temperature"] == 0.5, "what is no content stands there in any case"
    assert first["gen_ai.usage.input_tokens"] == 4
    assert last["gen_ai.response.finish_reasons"] == ("stop",)
    assert spans["execute_tool look"][0]["gen_ai.tool.name"] == "look"
    assert spans["invoke_agent LangGraph"][0]["cm2.task.id"] == "t1"


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("what", ["tool raises", "tool answers with an error", "model raises"])
def test_the_text_of_an_error_is_content(watched: Watched, content: bool, what: str) -> None:
    script = [ValueError("no key -7")] if what == "model raises" else [calls(-7), AIMessage(content="sorry")]
    graph = agent(ScriptedModel(script=script), handle_errors=what == "tool answers with an error")
    with contextlib.suppress(ValueError):
        graph.with_config(callbacks=[watched.capture(capture_content=content)]).invoke(QUESTION)
    failed = [span for span in watched.spans if span.status.status_code is StatusCode.ERROR]
    assert failed
    assert all((span.attributes or {}).get("error.type") in ("ValueError", "ToolError") for span in failed)
    assert any("key -7" in str(span.status.description) for span in failed) is content
    assert ("key -7" in str([span.to_json() for span in watched.spans])) is content
    assert "key -7" in str(watched.run)


def test_what_stands_on_the_spans_is_redacted(watched: Watched) -> None:
    redactor = Redactor(key=b"k")
    answers = [calls(1), AIMessage(content="I write to ada@x.org")]
    graph = agent(ScriptedModel(script=answers)).with_config(
        callbacks=[watched.capture(capture_content=True, redactor=redactor)]
    )
    graph.invoke({"messages": [("user", "I am ada@x.org")]}, {"metadata": {"mail": "ada@x.org"}, "tags": ["ada@x.org"]})
    spans = str([span.to_json() for span in watched.spans])
    assert "ada@x.org" not in spans
    assert redactor.redact("ada@x.org") in spans
    assert "ada@x.org" not in str(watched.run)
    assert [call.untrainable for call in watched.run.calls] == ["redacted after it was sampled"] * 2


@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=50), st.lists(st.floats(width=32, allow_nan=False), max_size=50)
)
def test_tokens_as_base64(ids: list[int], logprobs: list[float]) -> None:
    assert decode_ids(encode_ids(ids)) == tuple(ids)
    assert decode_logprobs(encode_logprobs(logprobs)) == tuple(logprobs)


def test_tokens_are_little_endian() -> None:
    assert encode_ids([1, 256]) == "AQAAAAABAAA="
    assert encode_logprobs([-1.0]) == "AACAvw=="
    with pytest.raises(ValueError, match="padding"):
        decode_ids("AQA")


def test_without_opentelemetry_in_the_application(watched: Watched) -> None:
    """A private provider, whose ids are unique even where the application seeds `random`, and whose use does not
    disturb it."""
    runs: list[Run] = []
    numbers = []
    for graph in (app(), *(app().with_config(callbacks=[capture(runs.append)]) for _ in range(2))):
        random.seed(0)
        graph.invoke(QUESTION)
        numbers.append(random.random())
    assert len(set(numbers)) == 1  # LangGraph draws from `random` itself; we don't
    assert len({run.id for run in runs}) == 2
    assert len({call.span_id for run in runs for call in run.calls}) == 4


def test_an_installed_provider_is_found_even_later() -> None:
    """In a process of its own, since OpenTelemetry allows one global provider."""
    code = """
import os
os.environ["LANGSMITH_TRACING"] = "false"
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from cm2_agent.tracing.span_records import Record
from cm2_agent.tracing.span_processor import capture
from tests.tracing.test_span_processor import QUESTION, app
runs = []
graph = app().with_config(callbacks=[capture(runs.append)])
graph.invoke(QUESTION)
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with trace.get_tracer("application").start_as_current_span("request") as request:
    graph.invoke(QUESTION)
names = [span.name for span in exporter.get_finished_spans()]
assert names == ["chat scripted", "execute_tool look", "chat scripted", "invoke_agent LangGraph", "request"], names
assert len(runs) == 2
assert runs[1].id.startswith(format(request.get_span_context().trace_id, "032x"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, TraceIdRatioBased(0.0)])
def test_what_a_sampler_drops_is_recorded_all_the_same(sampler: Any) -> None:
    seen = Watched(provider=TracerProvider(sampler=sampler))
    for _ in range(2):
        app().with_config(callbacks=[seen.handler]).invoke(QUESTION)
    assert seen.spans == ()
    assert [len(run.messages) for run in seen.runs] == [5, 5]
    assert len({run.id for run in seen.runs}) == 2
    assert len({call.span_id for run in seen.runs for call in run.calls}) == 4
    seen.check()


def test_the_sdk_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    seen = Watched(provider=TracerProvider())
    app().with_config(callbacks=[seen.handler]).invoke(QUESTION)
    assert seen.spans == ()
    assert len(seen.run.messages) == 5
    seen.check()


def test_two_handlers_on_one_provider_keep_their_runs_apart(watched: Watched) -> None:
    runs: list[Run] = []
    other = capture(runs.append, watched.provider)
    app().with_config(callbacks=[watched.handler]).invoke(QUESTION)
    app().with_config(callbacks=[other]).invoke({"messages": [("user", "other")]})
    app().with_config(callbacks=[watched.handler, other]).invoke(QUESTION)
    assert [run.messages[1].text for run in watched.runs] == ["what is 1?"] * 2
    assert [run.messages[1].text for run in runs] == ["other", "what is 1?"]


def test_a_graph_recorded_inside_a_recorded_graph(watched: Watched) -> None:
    """Each is a run of its own; the inner one doesn't join the outer's conversation, where it would stand twice."""
    from langgraph.graph import START, MessagesState, StateGraph

    inner: list[Run] = []
    outer = StateGraph(MessagesState)
    outer.add_node("worker", app().with_config(callbacks=[capture(inner.append, watched.provider)]))
    outer.add_edge(START, "worker")
    outer.compile().with_config(callbacks=[watched.handler]).invoke(QUESTION, {"configurable": {"thread_id": "T"}})
    assert watched.run.thread == "T"
    assert [run.thread for run in inner] == [None]
    assert len(watched.run.messages) == len(inner[0].messages) == 5


def test_a_failing_receiver_never_reaches_the_call(caplog: pytest.LogCaptureFixture) -> None:
    seen = Watched()

    def fail(run: Run) -> None:
        raise OSError("disk full")

    handler = capture(fail, seen.provider, incidents=seen.incidents)
    with caplog.at_level(logging.WARNING, "cm2_agent"):
        for _ in range(3):
            state = app().with_config(callbacks=[handler]).invoke(QUESTION)
            assert state["messages"][-1].content == "it is value 1"
    assert seen.incidents.counts == {"a finished run was lost: OSError": 3}
    assert len(caplog.records) == 1


async def test_context_is_as_it_was_after_a_run(watched: Watched) -> None:
    before = otel_context.get_current()
    app().with_config(callbacks=[watched.handler]).invoke(QUESTION)
    await app().with_config(callbacks=[watched.handler]).ainvoke(QUESTION)
    assert otel_context.get_current() == before


@pytest.mark.slow
async def test_nothing_is_left_behind() -> None:
    """After 1,000 runs, of which many were closed early with open children, no state of any span remains."""
    runs = 0

    def count(run: Run) -> None:
        nonlocal runs
        runs += 1

    provider = TracerProvider()
    handler: Any = capture(count, provider)
    source = handler.spans.source()
    graph = app().with_config(callbacks=[handler])

    async def some(number: int) -> None:
        for index in range(number):
            if index % 2:
                await graph.ainvoke(QUESTION)
            else:
                stream = graph.astream(QUESTION, stream_mode="messages")
                async for _ in stream:
                    break
                await stream.aclose()
            # a model call whose end never comes, in a run that ends
            graph_run, model_run = uuid4(), uuid4()
            handler.on_chain_start(None, QUESTION, run_id=graph_run, metadata={})
            handler.on_chat_model_start({}, [[HumanMessage("hi")]], run_id=model_run, parent_run_id=graph_run)
            handler.on_chain_end({}, run_id=graph_run)
            handler.on_llm_end(None, run_id=model_run)

    await some(500)
    gc.collect()
    assert runs == 1000
    assert handler.open_runs == 0
    assert source.by_key == {}
    assert [thing for thing in gc.get_objects() if isinstance(thing, Record) and thing.root.source is source] == []


def test_a_run_that_has_ended_leaves_nothing_to_the_garbage_collector() -> None:
    """Cycles would hold the application's messages until it runs, and make it run often."""
    inner = app()
    nested = StateGraph(MessagesState).add_node("inner", inner).add_edge(START, "inner").compile()
    graph: Any = nested.with_config(callbacks=[capture(lambda run: None)])
    graph.invoke(QUESTION)
    gc.collect()
    known = {id(one) for one in gc.get_objects() if isinstance(one, Record | NodeTask | SeenMessage)}
    gc.disable()
    try:
        graph.invoke(QUESTION)
        left = [one for one in gc.get_objects() if isinstance(one, Record | NodeTask | SeenMessage)]
    finally:
        gc.enable()
    assert [one for one in left if id(one) not in known] == []


def test_what_comes_after_the_end_is_not_a_new_run(watched: Watched) -> None:
    """A thread that outlives its run still reports to it: neither a run of its own nor an error."""
    handler: Any = watched.handler
    root, node, late = uuid4(), uuid4(), uuid4()
    handler.on_chain_start(None, QUESTION, run_id=root, metadata={}, name="graph")
    handler.on_chain_start(None, QUESTION, run_id=node, parent_run_id=root, metadata={}, name="node")
    handler.on_chain_end({}, run_id=root)
    handler.on_chat_model_start({}, [[HumanMessage("hi")]], run_id=late, parent_run_id=node)
    handler.on_llm_end(None, run_id=late)
    handler.on_chain_end({}, run_id=node)
    assert watched.run.name == "graph"


def test_error_messages_are_short_and_without_secrets() -> None:
    secrets = "Authorization: Bearer abcdefghijkl; postgresql://me:hunter2@db/x; token=abc123; sk-ant-REDACTED "
    message = error_message(ValueError(secrets + "x" * 1000))
    assert len(message) <= 500
    assert not any(secret in message for secret in ("abcdefghijkl", "hunter2", "abc123", "api03-zzzz"))
    assert error_message(asyncio.CancelledError()) == "CancelledError"
