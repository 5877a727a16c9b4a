"""Spans recorded by really running each instrumentation (`make spans`): one dialogue, and one hash of what it holds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver

from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.dialects.span_runs import runs_of
from cm2_agent.importers.openai_messages import read_messages
from cm2_agent.types.run import Run
from cm2_agent.types.trace import Trace
from tests.dialects.order_server import MODEL, SYSTEM, TURNS, dialogue, get_order, running
from tests.dialects.record import RECORDERS
from tests.tracing.conftest import Watched

RECORDED = Path(__file__).with_name("recorded")
DIALECT = {
    "openai-v2": "genai",
    "openai-v2-details": "genai",
    "openai-v2-events": "genai",
    "openinference-langchain": "openinference",
    "openinference-openai": "openinference",
    "traceloop-openai": "genai",
    "traceloop-openai-indexed": "traceloop",
    "vercel": "vercel",
}
EXPECTED = read_messages(dialogue())


def recorded(name: str) -> list[SpanRecord]:
    return [SpanRecord.from_json(span) for span in json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def watched_hash() -> str:
    """The hash of the dialogue through `watch`'s own capture."""
    watched = Watched()
    with running() as server:
        model: Any = ChatOpenAI(model=MODEL, base_url=server.base_url, api_key="none")  # type: ignore[arg-type]
        graph: Any = create_agent(model, [tool(get_order)], system_prompt=SYSTEM, checkpointer=InMemorySaver())
        for turn in TURNS:
            config: Any = {"configurable": {"thread_id": "t"}, "callbacks": [watched.handler]}
            graph.invoke({"messages": [("user", turn)]}, config)
    return Trace(id="t", runs=tuple(watched.runs)).content_hash


def test_every_recorder_has_its_recording() -> None:
    assert set(DIALECT) == set(RECORDERS) == {file.stem for file in RECORDED.glob("*.json")}


@pytest.mark.parametrize("name", DIALECT)
def test_the_dialogue_is_the_one_that_was_held(name: str, watched_hash: str) -> None:
    spans = recorded(name)
    random.Random(0).shuffle(spans)
    found = runs_of(spans)
    assert found.unread == {}
    assert found.dialects == {DIALECT[name]: len(spans)}
    (trace,) = found.traces
    assert [message.role for message in trace.messages] == [message.role for message in EXPECTED]
    assert [message.text for message in trace.messages] == [message.text for message in EXPECTED]
    assert trace.content_hash == watched_hash
    assert [turn.user[0].text for turn in trace.turns] == list(TURNS)
    assert [call.model for call in trace.calls] == [MODEL] * 4
    assert [call.message is not None for call in trace.calls] == [True] * 4
    usage = trace.calls[0].usage
    assert (usage["input_tokens"], usage["output_tokens"]) == (2, 1)


@pytest.mark.parametrize("name", DIALECT)
def test_each_call_wrote_the_message_it_says(name: str) -> None:
    for run in runs_of(recorded(name)).runs:
        for call in run.calls:
            assert call.message is not None
            written = run.messages[call.message]
            assert call.output is not None
            assert (written.text, written.tool_calls) == (call.output.text, call.output.tool_calls)


@pytest.mark.parametrize("name", ["openinference-langchain", "vercel"])
def test_tools_that_have_spans_are_executions(name: str) -> None:
    (trace,) = runs_of(recorded(name)).traces
    ran = sorted(((one.call_id, one.name, one.arguments) for run in trace.runs for one in run.tools), key=str)
    assert ran == [(f"call_{number}", "get_order", {"order_id": 6 + number}) for number in (1, 2, 3)]
    assert {str(one.result) for run in trace.runs for one in run.tools} == {get_order(number) for number in (7, 8, 9)}


def test_whose_dialogue_it_is() -> None:
    first: Run = runs_of(recorded("openinference-openai")).runs[0]
    assert (first.thread, first.session, first.user, first.tags) == ("session-1", "session-1", "ada", ("desk",))
    assert first.metadata == {"plan": "gold"}
    first = runs_of(recorded("vercel")).runs[0]
    assert (first.name, first.thread, first.user, first.metadata["plan"]) == ("order_desk", "session-1", "ada", "gold")
    first = runs_of(recorded("openinference-langchain")).runs[0]
    assert (first.thread, first.metadata) == ("thread-1", {})


@pytest.mark.parametrize("name", DIALECT)
def test_the_tools_that_were_offered_are_known_where_the_dialect_writes_them(name: str) -> None:
    (trace,) = runs_of(recorded(name)).traces
    offered = {tool.name for call in trace.calls for tool in call.tools}
    assert offered == (set() if name.startswith("openai-v2") else {"get_order"})


@pytest.mark.parametrize("name", DIALECT)
@pytest.mark.parametrize("batch", [1, 3])
def test_spans_that_come_in_pieces_are_still_accounted_for(name: str, batch: int) -> None:
    """Whatever part of a trace is there, each span is in a run or counted with its reason; nothing raises."""
    spans = recorded(name)
    for at in range(0, len(spans), batch):
        part = spans[at : at + batch]
        found = runs_of(part)
        assert sum(found.dialects.values()) + sum(found.unread.values()) >= len(part)
        assert all(run.messages for run in found.runs)


def test_recordings_name_no_machine() -> None:
    for file in RECORDED.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert "127.0.0.1:" not in text.replace("127.0.0.1:8000", "")
        assert "stacktrace" not in text
