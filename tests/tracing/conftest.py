"""The spans that left and the runs that were recorded, as every test of capture looks at them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cm2_agent.incidents import Incidents
from cm2_agent.tracing.span_processor import capture
from cm2_agent.types.run import Run

os.environ["LANGSMITH_TRACING"] = "false"
os.environ["LANGGRAPH_STRICT_MSGPACK"] = "true"


@dataclass
class Watched:
    """A provider with an exporter that is not ours, and a handler that records beside it."""

    provider: TracerProvider = field(default_factory=TracerProvider)
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    runs: list[Run] = field(default_factory=list)
    incidents: Incidents = field(default_factory=Incidents)
    handler: Any = None

    def __post_init__(self) -> None:
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.handler = self.capture()

    def capture(self, **options: Any) -> BaseCallbackHandler:
        return capture(self.runs.append, self.provider, incidents=self.incidents, **options)

    @property
    def run(self) -> Run:
        """The only run there is."""
        assert len(self.runs) == 1, [run.name for run in self.runs]
        return self.runs[0]

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def tree(self) -> list[Any]:
        """The spans by name, as nested lists: [name, child, child, …] in the order of their starts; one entry a
        root."""
        known = {span.context.span_id for span in self.spans if span.context is not None}
        ordered = sorted(self.spans, key=lambda span: span.start_time or 0)

        def below(span: ReadableSpan) -> list[Any]:
            assert span.context is not None
            children = [
                child for child in ordered if child.parent is not None and child.parent.span_id == span.context.span_id
            ]
            assert all(
                child.context is not None and child.context.trace_id == span.context.trace_id for child in children
            )
            return [span.name, *(below(child) for child in children)]

        return [below(span) for span in ordered if span.parent is None or span.parent.span_id not in known]

    def check(self) -> None:
        """Nothing failed on the way, and nothing is left behind."""
        assert self.incidents.counts == {}
        assert self.handler.open_runs == 0


@pytest.fixture
def watched() -> Iterator[Watched]:
    seen = Watched()
    yield seen
    seen.check()
