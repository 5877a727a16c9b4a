"""Thinking behind an endpoint: in the text or apart from it, whole or in a stream, it is not said and calls nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler

pytest.importorskip("langchain_openai", reason='needs the extra: pip install "cm2-agent[openai]"')

from tests.models.vllm_server import FIRST, Server, counted, piece, response, running, said, streamed


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as one:
        yield one


class Heard(BaseCallbackHandler):
    """Keeps the words that callbacks hear while they come."""

    def __init__(self) -> None:
        self.words = ""

    def on_llm_new_token(self, token: Any, **_: Any) -> None:
        self.words += token


DRAFT = {"index": 0, "id": "1", "type": "function", "function": {"name": "refund", "arguments": "{}"}}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("text", "thinking", "reply"),
    [
        ("<think>\nhm\n</think>\n\nYes, <b>.", "hm", "Yes, <b>."),
        ("<think>hm", "hm", ""),
        ("One. [THINK]hm[/THINK]Two.", "hm", "One. Two."),
        ("1 < 2", "", "1 < 2"),
    ],
)
def test_thinking_in_the_text_is_not_said(
    server: Server, text: str, thinking: str, reply: str, streaming: bool
) -> None:
    server.body = response(text)
    server.chunks = [FIRST, *(said(letter, []) for letter in text), piece({}, [], "stop"), counted(completion_tokens=0)]
    heard = Heard()
    message: Any = server.model(streaming=streaming).invoke("Hi", {"callbacks": [heard]})
    assert (message.content, message.additional_kwargs.get("reasoning_content", "").strip()) == (reply, thinking)
    assert heard.words == (reply if streaming else "")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_servers_own_parser_of_thinking(server: Server, streaming: bool) -> None:
    for name in ("reasoning_content", "reasoning"):
        server.body = response("Yes.", message={name: "hm"})
        server.chunks = [FIRST, piece({name: "h"}, []), piece({name: "m"}, []), said("Yes.", []), piece({}, [], "stop")]
        message: Any = server.model(streaming=streaming).invoke("Hi")
        assert (message.content, message.additional_kwargs["reasoning_content"]) == ("Yes.", "hm")


def test_a_call_that_a_server_took_out_of_the_thinking(server: Server) -> None:
    server.body = response("<think>Shall I ", message={"tool_calls": [DRAFT]})
    message: Any = server.model().invoke("Hi")
    assert message.tool_calls == []
    assert [(call["name"], call["id"]) for call in message.invalid_tool_calls] == [("refund", "1")]
    assert "drafted in thinking" in message.invalid_tool_calls[0]["error"]
    server.body = response("<think>I shall</think>", message={"tool_calls": [DRAFT]})
    message = server.model().invoke("Hi")
    assert [call["name"] for call in message.tool_calls] == ["refund"]
    chunks = [FIRST, said("<think>Shall I ", []), piece({"tool_calls": [DRAFT]}, []), said("?</think>No.", [])]
    server.chunks = [*chunks, piece({}, [], "stop"), counted(completion_tokens=0)]
    message = streamed(server.model())
    assert (message.content, message.tool_calls, message.invalid_tool_calls) == ("No.", [], [])
    assert "refund" in message.additional_kwargs["reasoning_content"]
    server.chunks = [
        FIRST,
        said("<think>a</think>", []),
        piece({"tool_calls": [DRAFT]}, []),
        piece({}, [], "tool_calls"),
    ]
    assert [call["name"] for call in streamed(server.model()).tool_calls] == ["refund"]


def test_a_refusal_comes_with_the_message(server: Server) -> None:
    server.chunks = [FIRST, piece({"refusal": "I can"}, []), piece({"refusal": "not."}, []), piece({}, [], "stop")]
    message = streamed(server.model())
    assert (message.content, message.additional_kwargs["refusal"]) == ("", "I cannot.")
