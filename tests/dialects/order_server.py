"""A server on loopback that speaks OpenAI's chat protocol and plays one dialogue at an order desk, whole or in a
stream, with token ids where they are asked for: every door is tried on this dialogue.

Imports nothing that an instrumentation's own environment lacks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.openai_protocol import STANDARD, VLLM, refusal

MODEL = "desk"
SYSTEM = "You are the order desk."
TURNS = ("Where is order 7?", "And orders 8 and 9?")
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_order",
            "description": "Look an order up.",
            "parameters": {"type": "object", "properties": {"order_id": {"type": "integer"}}, "required": ["order_id"]},
        },
    }
]
REPLIES = ("Order 7 comes on 2026-05-20.", "Order 8 comes on 2026-05-21; there is no order 9.")


def get_order(order_id: int) -> str:
    """Look an order up."""
    if order_id > 8:
        return f"There is no order {order_id}."
    return json.dumps({"order": order_id, "status": "shipped", "eta": f"2026-05-{order_id + 13}"})


def _call(identity: str, order: int) -> dict[str, Any]:
    return {
        "id": identity,
        "type": "function",
        "function": {"name": "get_order", "arguments": json.dumps({"order_id": order})},
    }


ANSWERS: list[dict[str, Any]] = [
    {"role": "assistant", "content": None, "tool_calls": [_call("call_1", 7)]},
    {"role": "assistant", "content": REPLIES[0]},
    {"role": "assistant", "content": None, "tool_calls": [_call("call_2", 8), _call("call_3", 9)]},
    {"role": "assistant", "content": REPLIES[1]},
]
"""By how many answers the model has seen of itself."""


def dialogue() -> list[dict[str, Any]]:
    """The whole dialogue, as a chat's messages."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    for number, answer in enumerate(ANSWERS):
        if number % 2 == 0:
            messages.append({"role": "user", "content": TURNS[number // 2]})
        messages.append(answer)
        for call in answer.get("tool_calls") or ():
            arguments = json.loads(call["function"]["arguments"])
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": get_order(**arguments)})
    return messages


class OrderServer(ThreadingHTTPServer):
    """Serves the model "desk"; `asked` are the requests. The n-th answer has the token ids n*10, n*10+1, …; as many as
    it has words."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[Any] = []
        self.failures: list[int] = []
        """Statuses of the next answers that fail."""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


def tokens_of(number: int) -> list[tuple[int, str, float]]:
    """The tokens of the n-th answer: id, text, logprob; a call's are its end alone."""
    text = ANSWERS[number]["content"] or ""
    pieces = [word if not place else f" {word}" for place, word in enumerate(text.split(" "))] if text else []
    return [(number * 100 + place, piece, -0.5) for place, piece in enumerate([*pieces, "<|im_end|>"])]


def _entries(tokens: Sequence[tuple[int, str, float]]) -> Any:
    return {
        "content": [
            {"token": piece, "logprob": value, "bytes": list(piece.encode()), "top_logprobs": []}
            for _, piece, value in tokens
        ]
    }


class _Handler(BaseHTTPRequestHandler):
    server: OrderServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        refused = refusal("POST", self.path, dict(self.headers), raw, serves=(MODEL,), known=STANDARD | VLLM)
        if refused is None and self.server.failures:
            refused = self.server.failures.pop(0), {"error": {"message": "try again later", "type": "server_error"}}
        if refused is not None:
            self._whole(*refused)
            return
        body = json.loads(raw)
        self.server.asked.append(body)
        number = sum(message["role"] == "assistant" for message in body["messages"])
        if body.get("stream"):
            self._stream(number, body)
        else:
            self._whole(200, _response(number, body))

    def _whole(self, status: int, body: Mapping[str, Any]) -> None:
        out = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    def _stream(self, number: int, body: Mapping[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for chunk in _chunks(number, body):
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True


def _usage(number: int, body: Mapping[str, Any]) -> dict[str, int]:
    read, wrote = len(body["messages"]), len(tokens_of(number))
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}


def _response(number: int, body: Mapping[str, Any]) -> dict[str, Any]:
    answer, tokens = ANSWERS[number], tokens_of(number)
    choice: dict[str, Any] = {
        "index": 0,
        "message": answer,
        "finish_reason": "tool_calls" if answer.get("tool_calls") else "stop",
        "logprobs": _entries(tokens) if body.get("logprobs") else None,
    }
    whole = {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": 1_700_000_000, "model": MODEL}
    if body.get("return_token_ids"):
        whole["prompt_token_ids"] = list(range(len(body["messages"])))
        choice["token_ids"] = [identity for identity, _, _ in tokens]
    return {**whole, "choices": [choice], "usage": _usage(number, body)}


def _chunks(number: int, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    answer, tokens = ANSWERS[number], tokens_of(number)
    whole = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": MODEL}
    with_ids = bool(body.get("return_token_ids"))

    def chunk(delta: Mapping[str, Any], own: Sequence[Any] = (), finish: str | None = None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "delta": dict(delta), "finish_reason": finish, "logprobs": None}
        if own and body.get("logprobs"):
            choice["logprobs"] = _entries(own)
        if own and with_ids:
            choice["token_ids"] = [identity for identity, _, _ in own]
        return {**whole, "choices": [choice]}

    first = chunk({"role": "assistant", "content": ""})
    yield {**first, "prompt_token_ids": list(range(len(body["messages"])))} if with_ids else first
    for token in tokens[:-1]:
        yield chunk({"content": token[1]}, [token])
    for place, call in enumerate(answer.get("tool_calls") or ()):
        arguments = call["function"]["arguments"]
        begun = {**call, "index": place, "function": {"name": call["function"]["name"], "arguments": arguments[:5]}}
        yield chunk({"tool_calls": [begun]})
        yield chunk({"tool_calls": [{"index": place, "function": {"arguments": arguments[5:]}}]})
    yield chunk({}, tokens[-1:], "tool_calls" if answer.get("tool_calls") else "stop")
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**whole, "choices": [], "usage": _usage(number, body)}


@contextmanager
def running() -> Iterator[OrderServer]:
    """A server, until the block ends."""
    server = OrderServer()
    yield server
    server.shutdown()
    server.server_close()


def loop(create: Any, turn: int, messages: list[Any], look: Callable[..., str] = get_order, **settings: Any) -> None:
    """One turn of a hand-written loop on `client.chat.completions.create`; the messages grow."""
    messages.append({"role": "user", "content": TURNS[turn]})
    while True:
        message = create(model=MODEL, messages=messages, tools=TOOLS, **settings).choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            return
        for call in message.tool_calls:
            content = look(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
