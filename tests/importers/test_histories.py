"""Histories of the Responses API and of LangGraph: calls that the provider ran, messages that remove others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cm2_agent.importers import Problem, read_recordings
from tests.importers.foreign_files import only, written
from tests.importers.test_foreign_details import outcomes_of_calls


@pytest.mark.parametrize(
    ("kind", "more", "result"),
    [
        ("web_search_call", {"action": {"type": "search", "query": "q"}}, '{"status":"completed"}'),
        ("web_search_call", {"action": {"type": "search", "query": "q", "sources": [{"url": "u"}]}}, [{"url": "u"}]),
        ("file_search_call", {"queries": ["q"], "results": None}, '{"status":"completed"}'),
        ("file_search_call", {"queries": ["q"], "results": [{"file": "f", "text": "t"}]}, '[{"file":"f","text":"t"}]'),
        ("code_interpreter_call", {"code": "1", "outputs": None}, '{"status":"completed"}'),
        ("code_interpreter_call", {"code": "1", "outputs": [{"type": "logs", "logs": "1"}]}, [{"logs": "1"}]),
        ("image_generation_call", {"result": "aGk="}, "aGk="),
        ("mcp_call", {"name": "f", "arguments": "{}", "output": "4", "error": None}, "4"),
    ],
)
@pytest.mark.parametrize("status", ["completed", "failed", "in_progress", "incomplete"])
def test_calls_that_the_provider_ran(tmp_path: Path, kind: str, more: Any, result: Any, status: str) -> None:
    call = {"type": kind, "id": "c", "status": status, **more}
    items = [{"role": "user", "content": "q"}, call, {"type": "message", "role": "assistant", "content": "a"}]
    found = only(tmp_path, items)
    ((_, answer, became),) = outcomes_of_calls(found)
    told = result != '{"status":"completed"}'
    expected = {"completed": "ok", "failed": "failed"}.get(status, "answered" if told else "not_run")
    assert became == expected
    if status == "completed" or told:
        assert ("logs" in str(answer)) if "logs" in str(result) else answer == result, answer
    assert [message.text for message in found.trace.messages if message.role == "assistant"][-1] == "a"


def test_a_call_that_the_caller_has_not_run(tmp_path: Path) -> None:
    """Its status says that the model wrote it to its end."""
    for kind in ("function_call", "computer_call", "shell_call"):
        call: dict[str, Any] = {
            "type": kind,
            "call_id": "c",
            "name": "f",
            "arguments": "{}",
            "action": {},
            "status": "completed",
        }
        ((_, _, became),) = outcomes_of_calls(only(tmp_path, [{"role": "user", "content": "q"}, call]))
        assert became == "not_run"


def _dumped(kind: str, form: str, **fields: Any) -> dict[str, Any]:
    names = {"human": "HumanMessage", "ai": "AIMessage", "remove": "RemoveMessage"}
    if form == "dumpd":
        return {"lc": 1, "type": "constructor", "id": ["langchain", names[kind]], "kwargs": fields}
    return {"type": kind, "data": fields} if form == "to_dict" else {"type": kind, **fields}


@pytest.mark.parametrize("form", ["dumpd", "to_dict", "model_dump"])
@pytest.mark.parametrize(("removed", "left"), [("1", ["b", "c"]), ("2", ["a", "c"]), ("__remove_all__", ["c"])])
def test_messages_that_remove_others(tmp_path: Path, form: str, removed: str, left: list[str]) -> None:
    messages = [
        _dumped("human", form, content="a", id="1"),
        _dumped("ai", form, content="b", id="2"),
        _dumped("remove", form, content="", id=removed),
        _dumped("human", form, content="c", id="3"),
    ]
    assert [one.text for one in only(tmp_path, {"messages": messages}).trace.messages] == left


@pytest.mark.parametrize("form", ["dumpd", "to_dict", "model_dump"])
@pytest.mark.parametrize("removed", ["9", "3", None])
def test_a_message_that_removes_none_is_named(tmp_path: Path, form: str, removed: str | None) -> None:
    messages = [
        _dumped("human", form, content="a"),
        _dumped("remove", form, content="", id=removed),
        _dumped("ai", form, content="c", id="3"),
    ]
    (problem,) = read_recordings(None, written(tmp_path, {"messages": messages}))
    assert isinstance(problem, Problem)
    assert f"message 1: removes the message of id {removed!r}" in problem.reason
