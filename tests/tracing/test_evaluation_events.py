"""Verdicts as events of OpenTelemetry: on which span, with what on them, once each, and only where somebody listens."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cm2_agent import Checklist, Item, Trace
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.tracing.evaluation_events import EvaluationEvents
from cm2_agent.tracing.span_processor import capture
from cm2_agent.types.run import Branch, Run
from cm2_agent.types.score import Score
from tests.tracing.apps import ScriptedModel, agent, calls

ITEMS = Checklist(
    Item("looks", check={"called": "look"}),
    Item("tells", check={"replied": True}),
    Item("calls_off", check={"called": "cancel"}),
    Item("right", "Is the answer right?"),
    Item("looked_at_all", check={"called": "look"}, turn="trace"),
    Item("third", check={"replied": True}, turn=2),
    name="items",
)


class Telemetry:
    """A watched conversation, its spans and its log records, all in memory."""

    def __init__(self, capture_content: bool | None = None) -> None:
        self.spans = InMemorySpanExporter()
        self.logs = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        loggers = LoggerProvider()
        loggers.add_log_record_processor(SimpleLogRecordProcessor(self.logs))
        self.runs: list[Run] = []
        model = ScriptedModel(script=[calls(1), AIMessage(content="it is value 1")], per_turn=True)
        self.graph = agent(model, checkpointer=InMemorySaver()).with_config(
            callbacks=[capture(self.runs.append, tracers)]
        )
        self.sink = EvaluationEvents(loggers, capture_content=capture_content)

    async def turn(self, checklist: Checklist = ITEMS) -> list[Any]:
        """One more turn, scored as a whole; the records that came of it."""
        self.graph.invoke({"messages": [("user", "what is 1?")]}, {"configurable": {"thread_id": "T"}})
        trace = Trace(id="T", runs=tuple(self.runs))
        self.logs.clear()
        self.sink(trace, await ChecklistScorer(checklist)(trace))
        return [record.log_record for record in self.logs.get_finished_logs()]


def names(records: list[Any]) -> list[tuple[Any, str]]:
    return [(record.attributes.get("cm2.turn"), record.attributes["gen_ai.evaluation.name"]) for record in records]


async def test_each_verdict_is_an_event_on_the_span_that_it_judges() -> None:
    telemetry = Telemetry(capture_content=True)
    records = await telemetry.turn()
    assert {record.event_name for record in records} == {"gen_ai.evaluation.result"}
    by_item = {record.attributes["gen_ai.evaluation.name"]: record for record in records}
    assert list(by_item) == ["looks", "tells", "calls_off", "right", "looked_at_all"]
    spans = sorted(telemetry.spans.get_finished_spans(), key=lambda span: span.start_time or 0)
    assert {record.trace_id for record in records} == {span.context.trace_id for span in spans if span.context}
    chats = [span.context.span_id for span in spans if span.name.startswith("chat") and span.context]
    (root,) = [span.context.span_id for span in spans if span.parent is None and span.context]
    assert len(chats) == 2
    assert by_item["looks"].span_id == chats[0]  # true from the step that called
    assert by_item["tells"].span_id == chats[1]
    assert by_item["calls_off"].span_id == chats[1]  # false at the end of the turn
    assert by_item["looked_at_all"].span_id == root
    assert by_item["looks"].attributes["gen_ai.evaluation.score.value"] == 1.0
    assert by_item["looks"].attributes["gen_ai.evaluation.score.label"] == "pass"
    assert by_item["calls_off"].attributes["gen_ai.evaluation.score.value"] == 0.0
    assert by_item["calls_off"].attributes["gen_ai.evaluation.score.label"] == "fail"
    assert by_item["looks"].attributes["gen_ai.conversation.id"] == "T"
    unknown = by_item["right"].attributes
    assert "gen_ai.evaluation.score.value" not in unknown
    assert "gen_ai.evaluation.score.label" not in unknown
    assert unknown["error.type"] == "infrastructure"
    assert "no judge was given" in unknown["gen_ai.evaluation.explanation"]


async def test_an_item_that_does_not_apply_is_neither_passed_nor_failed_nor_an_error() -> None:
    late = Item("late", check={"replied": True}, when={"user_matches": "late"})
    (record,) = await Telemetry().turn(Checklist(late))
    sent = record.attributes
    assert sent["gen_ai.evaluation.score.label"] == "not applicable"
    assert not {"gen_ai.evaluation.score.value", "error.type"} & set(sent)


async def test_a_branch_sends_nothing_of_what_it_shares() -> None:
    telemetry = Telemetry()
    await telemetry.turn()
    await telemetry.turn()
    first, second = telemetry.runs
    place = Branch(parent="T", messages=len(first.messages))
    branch = Trace(id="T~1", runs=(replace(second, trace="T~1", history=first.messages, branch=place),))
    telemetry.logs.clear()
    telemetry.sink(branch, await ChecklistScorer(ITEMS)(branch))
    records = [record.log_record for record in telemetry.logs.get_finished_logs()]
    assert names(records) == [
        *((1, name) for name in ("looks", "tells", "calls_off", "right")),
        (None, "looked_at_all"),
    ]
    assert all((record.attributes or {})["gen_ai.conversation.id"] == "T" for record in records)


async def test_a_trace_that_goes_on_sends_only_what_is_new() -> None:
    telemetry = Telemetry()
    await telemetry.turn()
    assert names(await telemetry.turn()) == [(1, "looks"), (1, "tells"), (1, "calls_off"), (1, "right")]
    assert (2, "third") in names(await telemetry.turn())


@pytest.mark.parametrize(
    ("variable", "argument", "leaves"),
    [
        (None, None, False),
        ("span_only", None, False),
        ("no_content", None, False),
        ("event_only", None, True),
        ("SPAN_AND_EVENT", None, True),
        ("true", None, True),
        ("true", False, False),
        (None, True, True),
    ],
)
async def test_explanations_leave_by_opt_in_alone(
    variable: str | None, argument: bool | None, leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", raising=False)
    if variable is not None:
        monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", variable)
    records = await Telemetry(argument).turn()
    assert any("gen_ai.evaluation.explanation" in record.attributes for record in records) is leaves


def test_traces_from_elsewhere_and_without_a_score_send_nothing() -> None:
    telemetry = Telemetry()
    imported = Trace(id="t", runs=(Run(id="airline-1"),))
    telemetry.sink(imported, None)
    telemetry.sink(imported, Score(trace_id="t", reward_version="v", reward=None))
    EvaluationEvents()(
        imported, Score(trace_id="t", reward_version="v", reward=1.0)
    )  # no provider is installed: nothing to do
    assert telemetry.logs.get_finished_logs() == ()


def test_watch_sends_them_to_the_providers_of_the_application(tmp_path: Path) -> None:
    code = f"""
import json, os
os.environ["LANGSMITH_TRACING"] = "false"
from opentelemetry import trace
from opentelemetry._logs import set_logger_provider
from tests.tracing.test_evaluation_events import *
from cm2_agent import watch
from cm2_agent.online.watch import flush
telemetry = Telemetry()
tracers = TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(telemetry.spans))
trace.set_tracer_provider(tracers)
loggers = LoggerProvider()
loggers.add_log_record_processor(SimpleLogRecordProcessor(telemetry.logs))
graph = agent(ScriptedModel(script=[calls(1), AIMessage(content="it is value 1")], per_turn=True))
looks = Checklist(Item("looks", check={{"called": "look"}}), name="looks")
graph = watch(graph, looks, store="sqlite:///{tmp_path / "cm2.db"}")
graph.invoke({{"messages": [("user", "what is 1?")]}})
flush(300)
before = len(telemetry.logs.get_finished_logs())
set_logger_provider(loggers)
graph.invoke({{"messages": [("user", "what is 1?")]}})
flush(300)
spans = {{(span.context.trace_id, span.context.span_id) for span in telemetry.spans.get_finished_spans()}}
records = [record.log_record for record in telemetry.logs.get_finished_logs()]
print(json.dumps([before, [[record.event_name, (record.trace_id, record.span_id) in spans] for record in records]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, [["gen_ai.evaluation.result", True]]]
