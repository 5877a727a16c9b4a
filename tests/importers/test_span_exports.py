"""Exports of observability tools: one recorded agent has the hash of its chat, whichever of them kept it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.errors import TraceError
from cm2_agent.importers import OFFICIAL, Imported, Problem, read_recordings, recording_format
from cm2_agent.types.trace import Trace
from tests.importers.foreign_files import ARGUMENTS, REPLY, RESULT, only, openai, read, written

CHAT = openai()["messages"]
TOOLS = openai()["tools"]
Rows = list[dict[str, Any]]


def langfuse() -> Rows:
    def row(identity: str, kind: str, second: int, asked: Any, answered: Any, **more: Any) -> dict[str, Any]:
        return {
            "id": identity,
            "traceId": "t",
            "type": kind,
            "name": more.pop("name", "chat"),
            "startTime": f"2026-01-01T00:00:0{second}.000Z",
            "endTime": f"2026-01-01T00:00:0{second}.500Z",
            "input": asked,
            "output": answered,
            "parentObservationId": None,
            "level": "DEFAULT",
            **more,
        }

    return [
        row("1", "GENERATION", 1, {"messages": CHAT[:2], "tools": TOOLS}, CHAT[2], model="m"),
        row("2", "TOOL", 2, ARGUMENTS, RESULT, name="get_order"),
        row("3", "GENERATION", 3, CHAT[:4], CHAT[4], model="m"),
    ]


def langfuse_trace() -> Rows:
    rows = [{key: value for key, value in row.items() if key != "traceId"} for row in langfuse()]
    return [
        {
            "id": "t",
            "name": "orders",
            "userId": "ann",
            "sessionId": "s",
            "tags": ["beta"],
            "input": None,
            "observations": rows,
            "scores": [{"name": "correctness", "value": 0.5}, {"name": "kind", "value": "good"}],
        }
    ]


def langfuse_download() -> Rows:
    """What the interface writes as trace-ID.json."""
    (trace,) = langfuse_trace()
    return [{"trace": trace, "observations": trace.pop("observations")}]


def langsmith() -> Rows:
    def run(identity: str, kind: str, second: int, asked: Any, answered: Any, **more: Any) -> dict[str, Any]:
        return {
            "id": identity,
            "trace_id": "root",
            "parent_run_id": None if identity == "root" else "root",
            "run_type": kind,
            "name": more.pop("name", kind),
            "start_time": f"2026-01-01T00:00:0{second}",
            "end_time": f"2026-01-01T00:00:0{second + 1}",
            "inputs": asked,
            "outputs": answered,
            "error": None,
            **more,
        }

    def message(kind: str, content: str, **more: Any) -> dict[str, Any]:
        return {
            "lc": 1,
            "type": "constructor",
            "id": ["langchain", "schema", "messages", kind],
            "kwargs": {"content": content, **more},
        }

    calls = [{"name": "get_order", "args": ARGUMENTS, "id": "c", "type": "tool_call"}]
    asked = [message("SystemMessage", CHAT[0]["content"]), message("HumanMessage", CHAT[1]["content"])]
    called = message("AIMessage", "", tool_calls=calls)
    answered = message("ToolMessage", RESULT, tool_call_id="c", status="success")
    reply = message("AIMessage", REPLY)
    return [
        run("root", "chain", 0, {"messages": asked}, {"messages": [*asked, called, answered, reply]}, name="agent"),
        run("1", "llm", 1, {"messages": [asked]}, {"generations": [[{"text": "", "message": called}]]}),
        run("2", "tool", 3, {"input": str(ARGUMENTS)}, {"output": answered}, name="get_order"),
        run("3", "llm", 5, {"messages": [[*asked, called, answered]]}, {"generations": [[{"message": reply}]]}),
    ]


def mlflow() -> Rows:
    def span(identity: str, kind: str, second: int, asked: Any, answered: Any, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "context": {"span_id": identity, "trace_id": "0x1"},
            "parent_id": None,
            "start_time": second * 1_000_000_000 + 1_700_000_000_000_000_000,
            "end_time": second * 1_000_000_000 + 1_700_000_000_500_000_000,
            "status_code": "OK",
            "attributes": {
                "mlflow.spanType": json.dumps(kind),
                "mlflow.spanInputs": json.dumps(asked),
                "mlflow.spanOutputs": json.dumps(answered),
            },
        }

    def chat(identity: str, second: int, asked: int) -> dict[str, Any]:
        answered = {"choices": [{"message": CHAT[asked]}]}
        return span(identity, "CHAT_MODEL", second, {"messages": CHAT[:asked], "model": "m"}, answered, "Completions")

    spans = [chat("1", 1, 2), span("2", "TOOL", 2, ARGUMENTS, RESULT, "get_order"), chat("3", 3, 4)]
    assessments = [
        {"assessment_name": "ok", "feedback": {"value": True}},
        {"assessment_name": "w", "feedback": {"value": "x"}},
    ]
    info = {"trace_id": "tr-1", "state": "OK", "tags": {"a": "b"}, "assessments": assessments}
    return [{"info": info, "data": {"spans": spans}}]


def otel() -> Rows:
    def part(role: str, **more: Any) -> dict[str, Any]:
        return {"role": role, "parts": [more]}

    asked = [part(one["role"], type="text", content=one["content"]) for one in CHAT[:2]]
    called = part("assistant", type="tool_call", id="c", name="get_order", arguments=ARGUMENTS)
    answered = part("tool", type="tool_call_response", id="c", response=RESULT)
    reply = part("assistant", type="text", content=REPLY)

    def span(identity: str, second: int, name: str, **attributes: Any) -> dict[str, Any]:
        return {
            "name": name,
            "context": {"trace_id": "0x" + "a" * 32, "span_id": "0x" + identity * 16},
            "parent_id": None,
            "kind": "SpanKind.CLIENT",
            "start_time": f"2026-01-01T00:00:0{second}.000000Z",
            "end_time": f"2026-01-01T00:00:0{second}.500000Z",
            "status": {"status_code": "UNSET"},
            "attributes": {key.replace("__", "."): value for key, value in attributes.items()},
        }

    chat = {"gen_ai__operation__name": "chat"}
    return [
        span(
            "1",
            1,
            "chat m",
            **chat,
            gen_ai__input__messages=json.dumps(asked),
            gen_ai__output__messages=json.dumps([called]),
        ),
        span(
            "2",
            2,
            "execute_tool get_order",
            gen_ai__operation__name="execute_tool",
            gen_ai__tool__name="get_order",
            gen_ai__tool__call__id="c",
        ),
        span(
            "3",
            3,
            "chat m",
            **chat,
            gen_ai__input__messages=json.dumps([*asked, called, answered]),
            gen_ai__output__messages=json.dumps([reply]),
        ),
    ]


def phoenix(*, spread: bool = False) -> Rows:
    """Phoenix's rows: attributes as columns, messages as lists of dotted names or spread over numbered ones."""

    def message(chat: dict[str, Any]) -> dict[str, Any]:
        found = {f"message.{key}": chat[key] for key in ("role", "content", "tool_call_id") if chat.get(key)}
        if chat.get("tool_calls"):
            (call,) = chat["tool_calls"]
            function = {f"tool_call.function.{key}": value for key, value in call["function"].items()}
            found["message.tool_calls"] = [{"tool_call.id": call["id"], **function}]
        return found

    def span(identity: str, second: int, kind: str, **attributes: Any) -> dict[str, Any]:
        head = {"name": kind.lower(), "span_kind": kind, "parent_id": None, "status_code": "OK"}
        ids = {"context.trace_id": "t", "context.span_id": identity}
        times = {"start_time": f"2026-01-01T00:00:0{second}+00:00", "end_time": f"2026-01-01T00:00:0{second}+00:00"}
        found: dict[str, Any] = {}
        for key, value in attributes.items():
            name = f"attributes.{key.replace('__', '.')}"
            if spread and isinstance(value, list):
                found |= {f"{name}.{n}.{k}": v for n, one in enumerate(value) for k, v in one.items()}
            else:
                found[name] = value
        return head | ids | times | found

    def chat(identity: str, second: int, asked: int) -> dict[str, Any]:
        said = {"llm__input_messages": [*map(message, CHAT[:asked])], "llm__output_messages": [message(CHAT[asked])]}
        return span(identity, second, "LLM", **said, llm__model_name="m")

    tool = span("2", 2, "TOOL", tool__name="get_order", input__value=json.dumps(ARGUMENTS), output__value=RESULT)
    return [chat("1", 1, 2), tool, chat("3", 3, 4)]


def otlp() -> Rows:
    """The same in OTLP's JSON, as the collector's file exporter writes it."""

    def value(one: Any) -> dict[str, Any]:
        return {"stringValue": one}

    def nanoseconds(time: str) -> str:
        return str(1_767_225_600_000_000_000 + int(time[18]) * 1_000_000_000)

    spans = [
        {
            "traceId": "a" * 32,
            "spanId": row["context"]["span_id"][2:],
            "name": row["name"],
            "startTimeUnixNano": nanoseconds(row["start_time"]),
            "endTimeUnixNano": nanoseconds(row["start_time"]),
            "attributes": [{"key": key, "value": value(one)} for key, one in row["attributes"].items()],
            "status": {},
        }
        for row in otel()
    ]
    resource = {"attributes": [{"key": "service.name", "value": value("shop")}]}
    return [{"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {"name": "x"}, "spans": spans}]}]}]


SHAPES: dict[str, Callable[[], Rows]] = {
    "langfuse": langfuse,
    "langfuse (trace)": langfuse_trace,
    "langfuse (downloaded)": langfuse_download,
    "langsmith": langsmith,
    "mlflow": mlflow,
    "phoenix": phoenix,
    "phoenix (spread)": lambda: phoenix(spread=True),
    "otel": otel,
    "otel (OTLP)": otlp,
}


@pytest.mark.parametrize("name", SHAPES)
def test_one_agent_has_one_hash_whichever_tool_kept_it(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, *SHAPES[name]())
    assert recording_format(path).name == name.split(" ")[0]
    (found,) = read(path)
    assert found.trace.content_hash == only(tmp_path, openai()).trace.content_hash


@pytest.mark.parametrize("name", ["langfuse", "langsmith", "otel"])
def test_rows_of_several_traces_lie_anywhere_in_the_file(tmp_path: Path, name: str) -> None:
    rows = SHAPES[name]()
    text = json.dumps(rows)
    names = {"langfuse": '"t"', "langsmith": '"root"', "otel": "a" * 32}
    old = names[name]
    others = [json.loads(text.replace(old, old.replace("a", "b") if name == "otel" else f'"x{n}"')) for n in range(2)]
    every = [row for one in (rows, *others[: 1 if name == "otel" else 2]) for row in one]
    random.Random(7).shuffle(every)
    found = read(written(tmp_path, *every))
    assert len(found) == (2 if name == "otel" else 3)
    assert {one.trace.content_hash for one in found} == {only(tmp_path, openai()).trace.content_hash}


def test_scores_become_outcomes(tmp_path: Path) -> None:
    for rows in (langfuse_trace(), langfuse_download()):
        (found,) = read(written(tmp_path, *rows))
        assert found.trace.outcomes == {"correctness": 0.5, OFFICIAL: 0.5}
        (run,) = found.trace.runs
        assert (run.user, run.session, run.tags) == ("ann", "s", ("beta",))
    (other,) = read(written(tmp_path, *mlflow()))
    assert other.trace.outcomes == {"ok": 1.0, OFFICIAL: 1.0}


def test_an_example_of_a_dataset(tmp_path: Path) -> None:
    example = {"id": "e", "inputs": {"messages": CHAT[:4]}, "outputs": {"messages": CHAT[4:]}, "metadata": {"a": 1}}
    path = written(tmp_path, example, {"id": "f", "inputs": {"question": "Hi"}, "outputs": {"answer": "Hello"}})
    assert recording_format(path).name == "langsmith-dataset"
    first, second = read(path)
    assert first.trace.content_hash == only(tmp_path, openai()).trace.content_hash
    assert [message.text for message in second.trace.messages] == ["Hi", "Hello"]


def test_a_trace_without_a_dialogue_says_what_it_held(tmp_path: Path) -> None:
    row = {"traceId": "t", "id": "1", "type": "EVENT", "name": "click", "input": None}
    good = langfuse()
    problem, found = read_recordings(None, written(tmp_path, row | {"traceId": "u"}, *good))
    assert isinstance(found, Imported)
    assert isinstance(problem, Problem)
    assert "trace u: its spans hold no dialogue" in problem.reason
    with pytest.raises(TraceError, match="of no format"):
        recording_format(written(tmp_path, {"a": 1}))


@pytest.mark.parametrize("name", ["langfuse", "langsmith", "mlflow", "phoenix", "otel"])
def test_calls_that_are_a_trace_each_are_one_dialogue_newest_first_or_last(tmp_path: Path, name: str) -> None:
    rows = SHAPES[name]()
    if name == "mlflow":
        (first, _, last) = rows[0]["data"]["spans"]
        calls: Rows = [
            {"info": {"trace_id": f"tr-{n}"}, "data": {"spans": [one]}} for n, one in enumerate((first, last))
        ]
    else:
        calls = [row for row in rows if str(row.get("name", "")).startswith(("chat", "llm"))]
        for number, row in enumerate(calls):
            row |= {"traceId": f"t{number}", "trace_id": f"t{number}", "parent_run_id": None, "parent_id": None}
            row |= {"context.trace_id": f"t{number}"} if name == "phoenix" else {}
            if name == "otel":
                context: Any = row["context"]
                context["trace_id"] = f"0x{number:032x}"
    assert len(calls) == 2
    for order in (calls, calls[::-1]):
        found = read(written(tmp_path, *order))
        assert len({one.trace.id for one in found}) == 1
        whole = Trace(id="t", runs=tuple(run for one in found for run in one.trace.runs))
        assert whole.content_hash == only(tmp_path, openai()).trace.content_hash


def test_definitions_of_tools_behind_a_prompt_are_no_answers(tmp_path: Path) -> None:
    rows = langfuse()
    for row in (rows[0], rows[2]):
        asked = row["input"]["messages"] if isinstance(row["input"], dict) else row["input"]
        row["input"] = [*asked, *({"role": "tool", "content": json.dumps(one)} for one in TOOLS * 2)]
    (found,) = read(written(tmp_path, *rows))
    assert found.trace.content_hash == only(tmp_path, openai()).trace.content_hash
    assert [tool.name for tool in found.trace.calls[0].tools] == ["get_order"] * 2


def test_what_two_users_said_alike_is_not_one_dialogue(tmp_path: Path) -> None:
    first, _, last = langfuse()
    rows: Rows = []
    for second, user in enumerate(("ann", "bob")):
        for number, row in enumerate((first, last)):
            own = {"id": f"{user}{number}", "traceId": f"{user}{number}", "userId": user}
            rows.append({**row, **own, "startTime": f"2026-01-01T00:0{number}:0{second}.000Z"})
    found = read(written(tmp_path, *rows))
    by_trace: dict[str, set[str | None]] = {}
    for one in found:
        by_trace.setdefault(one.trace.id, set()).update(run.user for run in one.trace.runs)
    assert sorted(by_trace.values(), key=str) == [{"ann"}, {"bob"}]


@pytest.mark.parametrize(("status", "error"), [("success", False), ("error", True)])
@pytest.mark.parametrize("name", ["langfuse", "mlflow"])
def test_an_execution_that_gave_a_marked_message_tells_whether_it_failed(
    tmp_path: Path, name: str, status: str, error: bool
) -> None:
    rows = SHAPES[name]()
    answer = {"type": "tool", "content": RESULT, "tool_call_id": "call_1", "name": "get_order", "status": status}
    if name == "langfuse":
        rows[1]["output"] = answer
    else:
        rows[0]["data"]["spans"][1]["attributes"]["mlflow.spanOutputs"] = json.dumps(answer)
    (found,) = read(written(tmp_path, *rows))
    assert found.unknown_failures == 0
    ((use,),) = [turn.dialogue_scope.calls for turn in found.trace.turns]
    assert (use.response is not None and use.response.error, found.trace.runs[0].tools[0].error is not None) == (
        error,
        error,
    )
