"""The stubs refuse what a real server of OpenAI's protocol refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.openai_protocol import PATH, STANDARD, VLLM, refusal, request_of

KEY = {"Authorization": "Bearer k"}
USER = {"role": "user", "content": "Hi"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "a", "arguments": "{}"}}],
}
GOOD: dict[str, Any] = {
    "model": "stub",
    "messages": [USER, CALL, {"role": "tool", "tool_call_id": "1", "content": "7"}],
}
REFUSED: dict[str, tuple[int, str, dict[str, Any]]] = {
    "another model": (404, "The model `other` does not exist", {"model": "other"}),
    "no model": (400, "model parameter", {"model": None}),
    "an unknown key": (400, "Unrecognized request argument supplied: top_k", {"top_k": 5}),
    "a type": (400, "Invalid type for 'seed'", {"seed": "7"}),
    "a range": (400, "Invalid 'temperature'", {"temperature": 3}),
    "no messages": (400, "empty array", {"messages": []}),
    "a role": (400, "Supported values", {"messages": [{"role": "human", "content": "Hi"}]}),
    "no content": (400, "content", {"messages": [{"role": "user"}]}),
    "an answer to nothing": (400, "must answer", {"messages": [USER, {**USER, "role": "tool", "tool_call_id": "1"}]}),
    "a call without its answer": (400, "must be followed by answers to", {"messages": [USER, CALL, USER]}),
    "stream options": (400, "stream_options", {"stream_options": {"include_usage": True}}),
    "a choice of no tools": (400, "tool_choice", {"tool_choice": "auto"}),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind: str) -> None:
    status, message, change = REFUSED[kind]
    refused = refusal("POST", PATH, KEY, json.dumps({**GOOD, **change}).encode(), serves=("stub",))
    assert refused is not None
    assert refused[0] == status
    assert message in refused[1]["error"]["message"]


def test_what_is_answered() -> None:
    body = json.dumps(GOOD).encode()
    assert refusal("POST", PATH, KEY, body, serves=("stub",)) is None
    more = json.dumps({**GOOD, "top_k": 5, "return_token_ids": True}).encode()
    assert refusal("POST", PATH, KEY, more, serves=("stub",), known=STANDARD | VLLM) is None


def test_paths_keys_and_bodies() -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nauthorization:  Bearer k\r\nHost: x\r\n\r\n"
    assert refusal(*request_of(head), json.dumps(GOOD).encode(), serves=("stub",)) is None
    wrong = (("GET", PATH, KEY, b"{}", 405), ("POST", "/v1/models", KEY, b"{}", 404), ("POST", PATH, KEY, b"{", 400))
    for method, path, headers, body, status in wrong:
        assert (refusal(method, path, headers, body, serves=()) or (0,))[0] == status
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Basic k"}):
        assert (refusal("POST", PATH, headers, b"{}", serves=()) or (0,))[0] == 401
