"""What a recording tells of failed tool calls, and what follows for checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.errors import TraceError
from cm2_agent.importers import Imported, Problem, read_recordings
from cm2_agent.importers.openai_messages import read_messages
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View
from tests.importers.recordings import recordings

CHECKS: list[dict[str, Any]] = [
    {"called": "get_order"},
    {"called": "get_order", "succeeded": True},
    {"no_tool_error": True},
    {"only_called": [], "among": ["get_order"]},
]


def chat(content: Any, **marks: Any) -> dict[str, Any]:
    call = {"id": "1", "function": {"name": "get_order", "arguments": '{"order_id": 7}'}}
    return {
        "messages": [
            {"role": "user", "content": "Where is order 7?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": content, **marks},
            {"role": "assistant", "content": "It was shipped."},
        ]
    }


def anthropic(content: Any, **marks: Any) -> dict[str, Any]:
    use = {"type": "tool_use", "id": "1", "name": "get_order", "input": {"order_id": 7}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": content, **marks}
    return {
        "messages": [
            {"role": "user", "content": "Where is order 7?"},
            {"role": "assistant", "content": [{"type": "text", "text": "let me see"}, use]},
            {"role": "user", "content": [result, *marks.pop("beside", [])]},
            {"role": "assistant", "content": "It was shipped."},
        ]
    }


def read(folder: Path, record: Any, format: Any = "openai", **options: Any) -> Imported:
    path = folder / "file.jsonl"
    path.write_text(json.dumps(record))
    [found] = list(read_recordings(format, path, **options))
    assert isinstance(found, Imported), found
    return found


def values(one: Trace) -> list[bool | None]:
    items = [Item(f"i{number}", check=check) for number, check in enumerate(CHECKS)]
    return [verdict.value for verdict in ChecklistScorer(Checklist(*items)).score_sync(one).verdicts]


OK = [True, True, True, False]
FAILED = [False, False, False, True]
UNKNOWN = [True, None, None, None]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (chat("shipped"), UNKNOWN),
        (chat({"status": "shipped"}), UNKNOWN),
        (chat("not found", is_error=True), FAILED),
        (chat("not found", isError=True), FAILED),
        (chat("not found", status="error"), FAILED),
        (chat("not found", error="404"), FAILED),
        (chat("not found", error=True), FAILED),
        (chat("shipped", is_error=False), OK),
        (chat("shipped", status="success"), OK),
        (chat("shipped", status=None, is_error=None), UNKNOWN),
        (chat("Error: no such order"), FAILED),
        (chat('{"error": "no such order"}'), FAILED),
        (chat({"error": "no such order"}), FAILED),
        (chat("Traceback (most recent call last):\n  …"), FAILED),
        (anthropic("shipped"), OK),
        (anthropic("not found", is_error=True), FAILED),
        (anthropic([{"type": "text", "text": "shipped"}], is_error=False), OK),
    ],
)
def test_what_a_chat_tells(tmp_path: Path, record: dict[str, Any], expected: list[bool | None]) -> None:
    found = read(tmp_path, record)
    assert values(found.trace) == expected
    assert found.unknown_failures == (expected == UNKNOWN)


@pytest.mark.parametrize(
    ("content", "pattern", "expected"),
    [
        ("shipped", "^not found", OK),
        ("not found", "^not found", FAILED),
        ({"code": 404}, r'"code":4\d\d', FAILED),
        ("Error: down", "^not found", FAILED),  # a pattern adds to what an answer says itself
    ],
)
def test_a_pattern_says_how_errors_read(
    tmp_path: Path, content: Any, pattern: str, expected: list[bool | None]
) -> None:
    found = read(tmp_path, chat(content), error_pattern=pattern)
    assert values(found.trace) == expected
    assert found.unknown_failures == 0
    assert [tool.error is not None for tool in found.trace.runs[0].tools] == [expected == FAILED]
    same = Trace.from_json(json.loads(json.dumps(found.trace.to_json())))
    assert values(same) == expected


def test_what_is_unknown_survives_the_store_format_and_changes_no_other_hash(tmp_path: Path) -> None:
    found = read(tmp_path, chat("shipped")).trace
    again = Trace.from_json(json.loads(json.dumps(found.to_json())))
    assert values(again) == UNKNOWN
    marked = read(tmp_path, chat("shipped", is_error=False)).trace
    assert "cm2.failure_unknown" not in json.dumps(marked.to_json())


def test_anthropics_results_are_answers_and_what_stands_beside_them_is_the_users(tmp_path: Path) -> None:
    beside = [{"type": "text", "text": "And order 8?"}]
    one = read(tmp_path, anthropic("shipped", beside=beside)).trace
    assert [message.role for message in one.messages] == ["user", "assistant", "tool", "user", "assistant"]
    assert [turn.user[0].text for turn in one.turns] == ["Where is order 7?", "And order 8?"]
    assert View.of(one).calls("get_order")[0].arguments == {"order_id": 7}


def test_tau_benchs_answers_all_tell(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(recordings()))
    found = [one for one in read_recordings("tau-bench", path) if isinstance(one, Imported)]
    assert found
    assert not any(one.unknown_failures for one in found)


def test_a_pattern_reads_the_dialogues_of_any_importer(tmp_path: Path) -> None:
    def own(record: Any, **options: Any) -> Any:
        if "text" not in record:
            return Trace(id="broken", runs=("no run",))  # type: ignore[arg-type]
        messages = [Message.of("user", "Hi"), *read_messages([{"role": "assistant", "content": record["text"]}])]
        return Trace.of(Run(id="r", messages=tuple(messages)))

    assert read(tmp_path, {"text": "Hello"}, own, error_pattern="x").trace.messages[1].text == "Hello"
    (tmp_path / "file.jsonl").write_text("{}")
    assert isinstance(next(iter(read_recordings(own, tmp_path / "file.jsonl", error_pattern="x"))), Problem)
    with pytest.raises(TraceError, match="error-pattern"):
        read_recordings("openai", tmp_path / "file.jsonl", error_pattern="(?=x)")


@given(
    st.dictionaries(
        st.sampled_from(["is_error", "error", "status", "isError", "name"]),
        st.none() | st.booleans() | st.sampled_from(["error", "", "ok", "x"]),
    )
)
def test_any_mark_is_read_or_left(marks: dict[str, Any]) -> None:
    if isinstance(marks.get("name"), bool):
        return
    [answer] = read_messages([{"role": "tool", "content": "shipped", **marks}], unmarked=True)[0].responses
    unknown = answer.extra.get("cm2.failure_unknown") is True
    assert not (answer.error and unknown)
    if any(marks.get(key) is True for key in ("is_error", "isError")) and marks.get("is_error") is not False:
        assert answer.error
