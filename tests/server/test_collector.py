"""The collector: spans over HTTP into stored runs, whatever their order, and what it refuses."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

pytest.importorskip("opentelemetry.proto", reason='needs the extra: pip install "cm2-agent[server]"')
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from cm2_agent.server.settings import Settings
from cm2_agent.store import SQLStore
from cm2_agent.store.access_tokens import create_token, revoke_token
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from tests.server.exported import as_json, dialogue, protobuf, span
from tests.server.running import JSON, QUICK, Running, collecting


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLStore]:
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as opened:
        yield opened


def stored(store: SQLStore) -> list[object]:
    return [trace.to_json() for trace in store.traces()]


def whole(store: SQLStore, spans: object) -> list[object]:
    """What a collector stores of spans that come at once, in order."""
    other = store.in_project("whole")
    with collecting(other) as running:
        assert running.send(protobuf(spans)).status_code == 200  # type: ignore[arg-type]
        running.flush()
    return stored(other)


def test_an_exported_dialogue_becomes_a_run(store: SQLStore) -> None:
    with collecting(store) as running:
        answer = running.send(protobuf(dialogue("a", calls=3, tokens=True, thread="t1")), zipped=True)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"] == "application/x-protobuf"
        running.flush()
    (trace,) = store.traces()
    assert trace.id == "t1"
    assert [message.role for message in trace.messages] == ["system", "user", *["assistant", "tool"] * 2, "assistant"]
    assert [call.untrainable for call in trace.calls] == [None, None, None]
    assert [tool.name for run in trace.runs for tool in run.tools] == ["look", "look"]


def test_json_and_protobuf_are_the_same(store: SQLStore) -> None:
    spans = dialogue("a", calls=3, tokens=True)
    with collecting(store) as running:
        answer = running.send(as_json(spans), kind="application/json; charset=utf-8")
        assert (answer.status_code, answer.json()) == (200, {})
        running.flush()
    assert stored(store) == whole(store, spans) != []


@pytest.mark.parametrize("seed", range(4))
def test_spans_may_come_in_any_order_and_twice(store: SQLStore, seed: int) -> None:
    draw = random.Random(seed)
    spans = [*dialogue("a", calls=4), *dialogue("b", calls=2)]
    sent = [*spans, *draw.sample(spans, 5)]
    draw.shuffle(sent)
    with collecting(store, Settings(quiet=30.0)) as running:
        while sent:
            count = draw.randint(1, 5)
            assert running.send(protobuf(sent[:count])).status_code == 200
            del sent[:count]
        running.flush()
    assert stored(store) == whole(store, spans)


@pytest.mark.parametrize("late", [0, 1, 2, 5, 6])
def test_a_late_span_joins_its_run_and_has_it_scored_again(store: SQLStore, late: int) -> None:
    spans = dialogue("a", calls=4, thread="t")
    checklist = Checklist(Item("looks", check={"called": "look", "with": {"key": 2}}), name="desk")
    with collecting(store, checklist=checklist) as running:
        running.send(protobuf([one for number, one in enumerate(spans) if number != late]))
        running.flush()
        assert stored(store) != whole(store, spans)
        running.send(protobuf([spans[late]]))
        running.flush()
        assert stored(store) == whole(store, spans)
        score = store.score("t")
        assert score is not None
        assert score.reward == 1.0
        running.send(protobuf(spans))  # all of it again
        running.flush()
    assert stored(store) == whole(store, spans)


def test_a_span_that_is_too_late_is_a_run_of_its_own(store: SQLStore) -> None:
    spans = dialogue("a", calls=4)
    with collecting(store, Settings(quiet=0.0, late=0.0)) as running:
        running.send(protobuf(spans[1:]))
        running.flush()
        running.send(protobuf([spans[0], {**spans[-1], "parent": None}]))
        running.flush()
        assert running.collector.received.counts() == {"waiting": 0, "kept": 0}
    assert len([run for trace in store.traces() for run in trace.runs]) == 2


def test_two_runs_of_a_thread_are_one_trace_and_late_spans_leave_the_other_alone(store: SQLStore) -> None:
    first, second = dialogue("a", calls=3, thread="t"), dialogue("b", calls=2, thread="t")
    for one in second:
        one["start"] += 10**12
        one["end"] += 10**12
    with collecting(store) as running:
        running.send(protobuf(first[1:]))
        running.flush()
        running.send(protobuf(second))
        running.flush()
        running.send(protobuf(first[:1]))
        running.flush()
    (trace,) = store.traces()
    assert [len(run.calls) for run in trace.runs] == [3, 2]
    assert stored(store) == whole(store, [*first, *second])


def test_what_only_the_collector_may_say_is_not_taken(store: SQLStore) -> None:
    spans = dialogue("a", calls=2, tokens=True)
    forged = {
        "cm2.model.version": "best",
        "cm2.reward.version": "mine",
        "cm2.reward": 1.0,
        "cm2.project": "other",
        "cm2.tool.backend": "real",
        "cm2.tool.backends": '{"look": "real"}',
        "cm2.task.id": "task-1",
        "cm2.group": "g",
        "cm2.rollout": 3,
        "cm2.metadata.cm2.group": "g",
    }
    for one in spans:
        one["attributes"] |= forged
    spans[-1]["attributes"]["cm2.metadata.region"] = "north"
    with collecting(store, policy="v7") as running:
        answer = running.send(protobuf(spans))
        running.flush()
    partial = ExportTraceServiceResponse.FromString(answer.content).partial_success
    assert partial.rejected_spans == 0
    assert all(name in partial.error_message for name in forged)
    (trace,) = store.traces()
    assert trace.runs[0].attributes == {"cm2.system": "graph", "region": "north"}
    assert {call.model_version for call in trace.calls} == {"v7"}
    assert {tool.backend for tool in trace.runs[0].tools} == {None}
    assert (store.projects(), trace.task_id) == (["default"], None)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("cm2.logprobs", "AACAPw==", "above 0"),
        ("cm2.logprobs", "AACAfw==", "not finite"),
        ("cm2.logprobs", "AADAfw==", "not finite"),
        ("cm2.logprobs", "", "differ in number"),
        ("cm2.completion_ids", "/////w==", "below 0"),
        ("cm2.completion_ids", "AAA", "not base64"),
        ("cm2.prompt_ids", 7, "not base64"),
    ],
)
def test_tokens_that_cannot_be_a_models_leave_the_call_text_only(
    store: SQLStore, name: str, value: object, reason: str
) -> None:
    spans = dialogue("a", calls=1, tokens=True)
    spans[0]["attributes"][name] = value
    with collecting(store) as running:
        assert running.send(protobuf(spans)).status_code == 200
        running.flush()
    (call,) = next(store.traces()).calls
    assert call.prompt_ids is None
    assert call.completion_ids is None
    assert reason in str(call.untrainable)


def test_spans_without_proper_ids_are_rejected_and_the_rest_is_taken(store: SQLStore) -> None:
    spans = dialogue("a", calls=2)
    bad = [span("00" * 16, "11" * 8, None, "zero", 1, {}), span("22" * 16, "33" * 4, None, "short", 1, {})]
    with collecting(store) as running:
        answer = running.send(protobuf([*bad, *spans]))
        partial = ExportTraceServiceResponse.FromString(answer.content).partial_success
        assert (answer.status_code, partial.rejected_spans) == (200, 2)
        assert "trace id" in partial.error_message
        assert "span id" in partial.error_message
        answer = running.send(as_json([*bad, *spans]), kind=JSON)
        assert answer.json()["partialSuccess"]["rejectedSpans"] == "2"
        running.flush()
    assert len(list(store.traces())) == 1


def test_tokens_decide_who_may_send_and_to_which_project(store: SQLStore) -> None:
    other = store.in_project("other")
    mine, _ = create_token(store)
    theirs, _ = create_token(other, scopes=["ingest", "read"])
    reader, _ = create_token(store, scopes=["read"])
    with collecting(store) as running:
        for token in (None, "nonsense", mine[:-1], mine + "x", reader, "x" * 10_000):
            answer = running.send(protobuf(dialogue("a", calls=1)), token=token)
            assert (answer.status_code, answer.headers.get("www-authenticate")) == (401, "Bearer")
        assert running.send(protobuf(dialogue("a", calls=1)), token=mine).status_code == 200
        assert running.send(protobuf(dialogue("a", calls=2)), token=theirs).status_code == 200
        running.flush()
        assert [len(trace.calls) for trace in store.traces()] == [1]
        assert [len(trace.calls) for trace in other.traces()] == [2]
        revoke_token(store, 1)
        running.collector.access.refresh()
        assert running.send(protobuf(dialogue("b", calls=1)), token=mine).status_code == 401
        assert running.client.get("/healthz").json()["status"] == "ok"
    assert mine.encode() not in (store.database.files()[0]).read_bytes()


def test_revoked_tokens_do_not_open_the_collector_again(store: SQLStore) -> None:
    create_token(store)
    revoke_token(store, 1)
    with collecting(store) as running:
        assert running.send(protobuf(dialogue("a", calls=1))).status_code == 401


def test_sizes_and_rates_are_limited(store: SQLStore) -> None:
    settings = Settings(quiet=0.0, most_body=80_000, most_unpacked=90_000, spans_per_second=5.0)
    with collecting(store, settings) as running:
        assert running.send(b"\0" * 80_001).status_code == 413
        assert running.send(b"\0" * 10_000_000, zipped=True).status_code == 413  # a bomb: 10 KB
        sent = [running.send(protobuf(dialogue(f"d{number}", calls=10))) for number in range(3)]
        assert [one.status_code for one in sent] == [200, 429, 429]
        assert int(sent[1].headers["retry-after"]) >= 1
        assert (running.client.post("/v1/traces", content=b"x").status_code) == 415
        running.flush()
    assert len(list(store.traces())) == 1


def test_what_waits_is_built_by_the_next_collector(store: SQLStore) -> None:
    spans = [*dialogue("a", calls=3), *dialogue("b", calls=2)]
    never = Settings(quiet=3600.0)
    with collecting(store, never) as running:
        assert running.send(protobuf(spans[:2])).status_code == 200
    assert stored(store) == []  # its root has not come
    with collecting(store) as running:
        assert running.collector.assembly.recovered == 1
        running.send(protobuf(spans[2:]))
        running.flush()
        assert running.collector.received.counts()["waiting"] == 0
    assert stored(store) == whole(store, spans)


def test_erasing_a_thread_erases_its_spans(store: SQLStore) -> None:
    with collecting(store) as running:
        running.send(protobuf([*dialogue("a", calls=2, thread="t"), *dialogue("b", calls=2, thread="u")]))
        running.flush()
        assert running.collector.received.counts() == {"waiting": 0, "kept": 2}
        assert store.erase(thread="t").removed["received"] == 1
        assert store.erase(everything=True).removed["received"] == 1


def test_memory_holds_only_so_much_of_what_waits(store: SQLStore) -> None:
    spans = [one for number in range(6) for one in dialogue(f"d{number}", calls=3)]
    with collecting(store, Settings(quiet=3600.0, most_open=1)) as running:
        for one in spans:
            assert running.send(protobuf([one])).status_code == 200
        running.flush()
    assert stored(store) == whole(store, spans)


def test_the_same_hash_as_in_process(store: SQLStore) -> None:
    spans = dialogue("a", calls=3)
    with collecting(store) as running:
        running.send(protobuf(spans))
        running.flush()
    (trace,) = store.traces()
    last = json.loads(spans[-2]["attributes"]["gen_ai.input.messages"])
    answer = json.loads(spans[-2]["attributes"]["gen_ai.output.messages"])
    said = [message.to_json()["parts"] for message in trace.messages]
    assert orjson.dumps(said) == orjson.dumps([message["parts"] for message in [*last, *answer]])


def test_healthz_says_how_it_is(store: SQLStore) -> None:
    with collecting(store, QUICK) as running:
        running.send(protobuf(dialogue("a", calls=2)))
        running.flush()
        found = running.client.get("/healthz")
        assert found.status_code == 200
        assert {name: found.json()[name] for name in ("status", "spans", "open_traces", "runs")} == {
            "status": "ok",
            "spans": 4,
            "open_traces": 0,
            "runs": 1,
        }
        assert isinstance(running, Running)
