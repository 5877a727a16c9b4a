"""When a trace is complete, whatever comes while it is built."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.incidents import Incidents
from cm2_agent.server import otlp_protobuf
from cm2_agent.server.assembly import Assembly, Complete
from cm2_agent.server.intake import Received
from cm2_agent.server.run_store import RunStore
from cm2_agent.server.settings import Settings
from cm2_agent.server.span_pack import pack_spans
from cm2_agent.store import SQLStore
from cm2_agent.store.received import Arrived, ReceivedSpans
from tests.server.exported import dialogue, protobuf

TRACE = "ab" * 16


def test_a_span_that_comes_while_its_trace_is_built_joins_it(tmp_path: Path) -> None:
    root = SpanRecord(trace_id=TRACE, span_id="01" * 8, name="root")
    child = SpanRecord(trace_id=TRACE, span_id="02" * 8, parent_id=root.span_id, name="child")
    built: list[list[str]] = []
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as store:
        received = ReceivedSpans(store)

        def arrive(span: SpanRecord, batch: int) -> None:
            rooted = span.parent_id is None
            received.add([Arrived("default", TRACE, pack_spans([span], rooted=rooted))], batch)
            one = Received(project="default", trace=TRACE, batch=batch, spans=[span], rooted=rooted, size=1)
            assembly.add([one])

        def build(complete: Sequence[Complete]) -> list[tuple[str, str]]:
            built.append([span.name for span in complete[0].spans])
            if len(built) == 1:
                arrive(child, 2)
            return [(one.project, one.trace) for one in complete]

        assembly = Assembly(received, build, Incidents(), Settings(quiet=0.0))
        arrive(root, 1)
        assert assembly.close(60)
        assert received.counts() == {"waiting": 0, "kept": 2}
    assert [sorted(names) for names in built] == [["root"], ["child", "root"]]


def test_no_crash_comes_between_a_run_and_its_spans(tmp_path: Path) -> None:
    """What stores the run settles its spans: were they still waiting after a crash, a span that comes later would make
    another run beside it."""
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as store:
        received = ReceivedSpans(store)
        spans = otlp_protobuf.decode(protobuf(dialogue("d", calls=2))).spans
        received.add([Arrived("default", spans[0].trace_id, pack_spans(spans, rooted=True))], 1)
        runs = RunStore(store, received, Incidents())
        complete = Complete(project="default", trace=spans[0].trace_id, batch=1, spans=spans)
        assert runs.build([complete]) == [("default", spans[0].trace_id)]
        assert (runs.saved, received.counts()) == (1, {"waiting": 0, "kept": 1})
