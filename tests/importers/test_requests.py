"""Requests with and without their answers: Gemini's batches, system prompts beside messages, files that hold no
answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cm2_agent.errors import TraceError
from cm2_agent.importers import Imported, Problem, read_recordings, recording_format
from tests.importers.foreign_files import only, read, written


def heard(found: Imported) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in found.trace.messages]


CONTENTS = [{"role": "user", "parts": [{"text": "q"}]}]
MESSAGES = [{"role": "user", "content": "q"}]
ITEMS = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]}]


def gemini(*texts: str, **more: Any) -> dict[str, Any]:
    candidates = [{"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP"} for text in texts]
    return {"candidates": candidates, "modelVersion": "gemini-2.5", **more}


def test_a_batch_of_gemini_s(tmp_path: Path) -> None:
    request = {"systemInstruction": {"parts": [{"text": "s"}]}, "contents": CONTENTS}
    found = only(tmp_path, {"key": "k", "request": request, "response": gemini("a")})
    assert heard(found) == [("system", "s"), ("user", "q"), ("assistant", "a")]
    assert found.trace.calls[0].model == "gemini-2.5"
    assert found.trace.runs[0].attributes["key"] == "k"
    calls = [{"functionCall": {"name": "f", "args": {"a": 1}}}]
    called = {"candidates": [{"content": {"role": "model", "parts": calls}}]}
    found = only(tmp_path, {"request": {"contents": CONTENTS}, "response": called, "status": ""})
    assert [call.name for call in found.trace.messages[-1].tool_calls] == ["f"]


def test_every_candidate_is_a_dialogue(tmp_path: Path) -> None:
    found = read(written(tmp_path, {"request": {"contents": CONTENTS}, "response": gemini("a", "a", "b")}))
    assert [heard(one)[-1] for one in found] == [("assistant", text) for text in "aab"]
    assert len({one.trace.id for one in found}) == 3


def test_answers_of_gemini_s_batch_alone(tmp_path: Path) -> None:
    path = written(tmp_path, {"key": "k", "response": gemini("a")}, {"key": "l", "error": {"message": "busy"}})
    assert recording_format(path).name == "openai-batch"
    found, problem = read_recordings(None, path)
    assert isinstance(found, Imported)
    assert heard(found) == [("assistant", "a")]
    assert isinstance(problem, Problem)
    assert "the request failed: {'message': 'busy'}" in problem.reason


def test_a_request_of_gemini_s_that_failed(tmp_path: Path) -> None:
    good = {"request": {"contents": CONTENTS}, "response": gemini("a"), "status": ""}
    found, problem = read_recordings(None, written(tmp_path, good, {**good, "response": {}, "status": "Bad request"}))
    assert isinstance(found, Imported)
    assert isinstance(problem, Problem)
    assert "the request failed: Bad request" in problem.reason


@pytest.mark.parametrize(
    "request_",
    [
        {"system": "s", "messages": MESSAGES},
        {"system": [{"type": "text", "text": "s"}], "messages": MESSAGES},
        {"instructions": "s", "input": "q"},
        {"system_instruction": "s", "contents": CONTENTS},
        {"system": "another", "messages": [{"role": "system", "content": "s"}, *MESSAGES]},
    ],
)
def test_a_system_prompt_beside_the_messages_of_a_request(tmp_path: Path, request_: Any) -> None:
    answer = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "a"}]}
    found = only(tmp_path, {"request": request_, "response": answer})
    assert heard(found) == [("system", "s"), ("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("record", "advice"),
    [
        ({"custom_id": "1", "method": "POST", "url": "/v1/responses", "body": {"input": "q"}}, "batch's output file"),
        ({"custom_id": "1", "params": {"messages": MESSAGES}}, "batch's output file"),
        ({"requests": [{"custom_id": "1", "params": {"messages": MESSAGES}}]}, "batch's output file"),
        ({"key": "k", "request": {"contents": CONTENTS}}, "batch's output file"),
        ({"request": {"contents": CONTENTS}}, "batch's output file"),
        ({"input": ITEMS}, "no answer to it is in it"),
        ({"input": MESSAGES, "model": "m", "tools": []}, "no answer to it is in it"),
    ],
)
def test_requests_without_answers_are_refused_with_what_to_import(tmp_path: Path, record: Any, advice: str) -> None:
    with pytest.raises(TraceError, match=advice):
        recording_format(written(tmp_path, record))


def test_a_batch_s_input_read_as_its_output_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, {"custom_id": "1", "method": "POST", "url": "/v1/responses", "body": {"input": "q"}})
    (problem,) = read_recordings("openai-batch", path)
    assert isinstance(problem, Problem)
    assert "import the batch's output file" in problem.reason
