"""`capture`: spans that other instrumentations put on a provider, in this process, stored and scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Tracer, set_span_in_context
from pydantic_ai import Agent
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cm2_agent import Checklist, Item, Redactor, SpanCapture, SQLStore, Trace, capture, flush, watch
from tests.dialects.order_server import MODEL, REPLIES, SYSTEM, TURNS, get_order, running


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'cm2.db'}"


@pytest.fixture
def provider() -> TracerProvider:
    return TracerProvider(shutdown_on_exit=False)


def stored(url: str) -> list[Trace]:
    assert flush(60)
    return list(SQLStore(url).traces())


def said(prompt: list[tuple[str, str]], answer: str) -> dict[str, str]:
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": json.dumps([{"role": role, "content": text} for role, text in prompt]),
        "gen_ai.output.messages": json.dumps([{"role": "assistant", "content": answer}]),
    }


def chat(tracer: Tracer, prompt: list[tuple[str, str]], answer: str) -> None:
    tracer.start_span("chat", attributes=said(prompt, answer)).end()


def test_an_instrumented_agents_runs_are_stored_and_scored(url: str, provider: TracerProvider) -> None:
    checklist = Checklist(Item("looks", check={"called": "get_order"}, turn=0), name="desk")
    captured = capture(provider, checklist, store=url)
    with running() as server:
        model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=server.base_url, api_key="none"))
        agent = Agent(model, system_prompt=SYSTEM, name="desk")
        agent.instrument = InstrumentationSettings(tracer_provider=provider, version=6)
        agent.tool_plain(get_order)
        with provider.get_tracer("http").start_as_current_span("request"):  # an agent's run does not wait for it
            assert agent.run_sync(TURNS[0]).output == REPLIES[0]
            (trace,) = stored(url)
    assert [message.role for message in trace.messages] == ["system", "user", "assistant", "tool", "assistant"]
    score = SQLStore(url).score(trace.id)
    assert score is not None
    assert score.reward == 1.0
    assert captured.dialects["genai"] == 4
    assert captured.unread == {"no attribute of a known dialect (scope http)": 1}


def test_calls_without_an_agent_go_on_with_what_they_were_shown(url: str, provider: TracerProvider) -> None:
    capture(provider, store=url)
    tracer = provider.get_tracer("client")
    for name in ("a", "b"):
        chat(tracer, [("user", "hi")], f"hello from {name}")
    for name in ("b", "a"):
        chat(tracer, [("user", "hi"), ("assistant", f"hello from {name}"), ("user", "bye")], f"bye from {name}")
    assert sorted([message.text for message in trace.messages] for trace in stored(url)) == [
        ["hi", "hello from a", "bye", "bye from a"],
        ["hi", "hello from b", "bye", "bye from b"],
    ]


def test_calls_that_overlap_in_one_trace_are_read_when_the_last_has_ended(url: str, provider: TracerProvider) -> None:
    capture(provider, store=url)
    tracer = provider.get_tracer("client")
    root = tracer.start_span("job")
    around = set_span_in_context(root)
    open_ = [tracer.start_span("chat", around, attributes=said([("user", f"q{n}")], f"a{n}")) for n in range(3)]
    root.end()
    assert stored(url) == []
    for span in reversed(open_):
        span.end()
    assert sorted(trace.messages[0].text for trace in stored(url)) == ["q0", "q1", "q2"]


def test_messages_on_log_records_count(url: str, provider: TracerProvider) -> None:
    logs = LoggerProvider(shutdown_on_exit=False)
    capture(provider, store=url, logger_provider=logs)
    logger = logs.get_logger("client")
    with provider.get_tracer("client").start_as_current_span("chat", attributes={"gen_ai.operation.name": "chat"}):
        logger.emit(event_name="gen_ai.user.message", body={"content": "hi"})
        logger.emit(event_name="gen_ai.choice", body={"index": 0, "message": {"role": "assistant", "content": "hello"}})
    (trace,) = stored(url)
    assert [message.text for message in trace.messages] == ["hi", "hello"]


def test_what_is_not_understood_is_counted_by_its_reason(url: str, provider: TracerProvider) -> None:
    captured = capture(provider, store=url)
    tracer = provider.get_tracer("client")
    tracer.start_span("chat", attributes={"gen_ai.operation.name": "chat"}).end()
    tracer.start_span("embed", attributes={"gen_ai.operation.name": "embeddings"}).end()
    tracer.start_span("chat", attributes={**said([], "x"), "gen_ai.input.messages": '[{"role": "parrot"}]'}).end()
    assert stored(url) == []
    assert len(captured.unread) == 3
    assert sum(captured.unread.values()) == 3


def test_personal_data_is_replaced_before_anything_is_stored(url: str, provider: TracerProvider) -> None:
    capture(provider, store=url, redact=Redactor(key=b"k"))
    chat(provider.get_tracer("client"), [("user", "I am ada@example.com")], "hello")
    (trace,) = stored(url)
    assert "ada@example.com" not in trace.messages[0].text


def test_runs_of_watch_on_the_same_provider_are_stored_once(url: str, provider: TracerProvider) -> None:
    capture(provider, store=url)
    from cm2_agent.tracing.span_processor import capture as handler_of

    runs: list[Any] = []
    model = FakeListChatModel(responses=["hello"])
    model.invoke("hi", {"callbacks": [handler_of(runs.append, provider, capture_content=True)]})
    assert len(runs) == 1
    assert stored(url) == []


def test_a_capture_that_is_stopped_or_disabled_takes_nothing(url: str, provider: TracerProvider) -> None:
    captured = capture(provider, store=url)
    tracer = provider.get_tracer("client")
    with tracer.start_as_current_span("job"):
        chat(tracer, [("user", "before")], "x")
        captured.stop()
        chat(tracer, [("user", "after")], "x")
    assert [trace.messages[0].text for trace in stored(url)] == ["before"]
    other = TracerProvider(shutdown_on_exit=False)
    disabled = capture(other, store=url, enabled=False)
    chat(other.get_tracer("client"), [("user", "disabled")], "x")
    assert isinstance(disabled, SpanCapture)
    assert disabled.dialects == disabled.unread == {}
    assert len(stored(url)) == 1


def test_a_provider_that_records_nothing_is_refused(url: str) -> None:
    with pytest.raises(TypeError, match=r"expected the TracerProvider of opentelemetry\.sdk"):
        capture(object(), store=url)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sample"):
        capture(TracerProvider(shutdown_on_exit=False), store=url, sample=2.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'thread'"):
        capture(TracerProvider(shutdown_on_exit=False), store=url, thread="t")


def test_watch_is_as_it_was(url: str) -> None:
    watch(FakeListChatModel(responses=["hello"]), store=url).invoke("hi")
    (trace,) = stored(url)
    assert [message.text for message in trace.messages] == ["hi", "hello"]
