"""A server on loopback that answers as vLLM does: whole or in a stream, with token ids."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cm2_agent.models import openai_compatible
from tests.openai_protocol import STANDARD, VLLM, refusal

PROMPT = [1, 2, 3]
TOKENS: list[tuple[int, str, float]] = [(7, "Hello", -0.5), (8, " there", -0.25), (9, "<|im_end|>", -1.0)]
USAGE = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}


def entries(tokens: Any = TOKENS) -> Any:
    return {
        "content": [
            {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
            for _, text, value in tokens
        ]
    }


def response(text: str | None = "Hello there", tokens: Any = TOKENS, **changes: Any) -> dict[str, Any]:
    """A whole response with token ids; `message`, `usage` and `choice` change parts of it."""
    message = {"role": "assistant", "content": text} | changes.pop("message", {})
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": message,
        "logprobs": entries(tokens),
        "token_ids": [number for number, _, _ in tokens],
        **changes.pop("choice", {}),
    }
    usage = {**USAGE, "completion_tokens": len(tokens)}
    base = {"id": "c", "created": 0, "model": "served", "object": "chat.completion", "prompt_token_ids": PROMPT}
    return {**base, "choices": [choice], "usage": usage, **changes}


def piece(delta: Mapping[str, Any] | None = None, tokens: Any = None, finish: str | None = None, **more: Any) -> Any:
    """A chunk of a stream; without `tokens` it holds no ids."""
    choice: dict[str, Any] = {"index": 0, "delta": dict(delta or {}), "finish_reason": finish, "logprobs": None}
    if tokens is not None:
        choice |= {"token_ids": [number for number, _, _ in tokens], "logprobs": entries(tokens)}
    return {"id": "c", "created": 0, "model": "served", "object": "chat.completion.chunk", "choices": [choice], **more}


def counted(**usage: int) -> Any:
    return piece() | {"choices": [], "usage": {**USAGE, **usage}}


def said(text: str, tokens: Any) -> Any:
    return piece({"content": text}, tokens)


FIRST = piece({"role": "assistant", "content": ""}, prompt_token_ids=PROMPT)
CHUNKS = [FIRST, said("Hello", TOKENS[:1]), said(" there", TOKENS[1:2]), piece({}, TOKENS[2:], "stop"), counted()]


class Server(ThreadingHTTPServer):
    """Serves the model "m"; `body` is its next response and `chunks` its next stream."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[Any] = []
        self.keys: list[str | None] = []
        self.body: Any = response()
        self.chunks: list[Any] = CHUNKS
        self.knows = STANDARD | VLLM
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, body: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        """The response to a request, and the chunks of it as a stream."""
        return self.body, self.chunks

    def model(self, **settings: Any) -> Any:
        return openai_compatible(self.address, "m", **{"token_ids": True, "max_retries": 0, **settings})


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        refused = refusal("POST", self.path, dict(self.headers), raw, serves=("m",), known=self.server.knows)
        body = json.loads(raw)
        self.server.asked.append(body)
        self.server.keys.append(self.headers.get("Authorization"))
        whole, chunks = (None, []) if refused is not None else self.server.answer(body)
        if refused is not None or not body.get("stream"):
            out = json.dumps(whole if refused is None else refused[1]).encode()
            self.send_response(200 if refused is None else refused[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(out)))
            self.end_headers()
            self.wfile.write(out)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for chunk in chunks:
            if chunk["choices"] or (body.get("stream_options") or {}).get("include_usage"):
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


@contextmanager
def running(server: Server | None = None) -> Iterator[Server]:
    """A server, until the block ends."""
    server = server or Server()
    yield server
    server.shutdown()
    server.server_close()


def streamed(model: Any) -> Any:
    whole: Any = None
    for chunk in model.stream("Hi"):
        whole = chunk if whole is None else whole + chunk
    return whole
