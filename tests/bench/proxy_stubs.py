"""Two stubs of a model's server for bench_proxy, each in a process of its own and bound by its CPU.

`server` is what the process of vLLM's API server does for a chunk, less the engine and the tokenizer: FastAPI's
StreamingResponse on uvicorn with uvloop and httptools, and pydantic's models of a chunk made and dumped for each token.
`lean` is written by hand on asyncio, about the least that Python can do. Either can be made to work `busy` more
microseconds a chunk, as one that parses tools or gives twenty logprobs a token does.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict

CHUNKS = 64
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
HEAD: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "vllm"}]}


def work(microseconds: int) -> None:
    """Use so much of the CPU."""
    end = time.thread_time_ns() + 1000 * microseconds
    while microseconds and time.thread_time_ns() < end:
        pass


# As vLLM's server


class _Model(BaseModel):
    model_config = ConfigDict(extra="allow")


class Delta(_Model):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] = []


class LogProb(_Model):
    token: str
    logprob: float = -9999.0
    bytes: list[int] | None = None
    top_logprobs: list[dict[str, Any]] = []


class LogProbs(_Model):
    content: list[LogProb] | None = None


class Choice(_Model):
    index: int
    delta: Delta
    logprobs: LogProbs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class Chunk(_Model):
    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: dict[str, int] | None = None
    prompt_token_ids: list[int] | None = None


class Asked(_Model):
    model: str
    messages: list[dict[str, Any]]
    stream: bool = False
    max_tokens: int | None = None
    logprobs: bool | None = False
    return_token_ids: bool | None = None
    stream_options: dict[str, Any] | None = None


class Engine:
    """Gives every running request a token at each step, as a batch that is decoded together."""

    def __init__(self) -> None:
        self.running: dict[asyncio.Queue[int], tuple[int, int]] = {}
        self.came = asyncio.Event()

    def add(self, count: int) -> asyncio.Queue[int]:
        queue: asyncio.Queue[int] = asyncio.Queue()
        self.running[queue] = 0, count
        self.came.set()
        return queue

    async def run(self) -> None:
        while True:
            while not self.running:
                self.came.clear()
                await self.came.wait()
            for queue, (done, count) in list(self.running.items()):
                queue.put_nowait(done)
                if done + 1 < count:
                    self.running[queue] = done + 1, count
                else:
                    del self.running[queue]
            await asyncio.sleep(0)


def server(listener: socket.socket, busy: int) -> None:
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse, Response, StreamingResponse

    engines: list[Engine] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engines.append(Engine())
        task = asyncio.create_task(engines[0].run())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    async def stream(asked: Asked) -> AsyncIterator[str]:
        count = asked.max_tokens or CHUNKS
        queue = engines[0].add(count)
        for number in range(count):
            token = await queue.get()
            work(busy)
            text = f"word{token} "
            entry = LogProb(token=text, logprob=-0.5, bytes=list(text.encode()), top_logprobs=[])
            known = LogProbs(content=[entry])
            choice = Choice(
                index=0,
                delta=Delta(content=text) if number else Delta(role="assistant", content=text),
                logprobs=known if asked.logprobs else None,
                finish_reason="stop" if number == count - 1 else None,
                token_ids=[token] if asked.return_token_ids else None,
            )
            chunk = Chunk(**HEAD, choices=[choice])
            if number == 0 and asked.return_token_ids:
                chunk.prompt_token_ids = [1, 2, 3]
            yield f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"
        if (asked.stream_options or {}).get("include_usage"):
            yield f"data: {Chunk(**HEAD, choices=[], usage=_usage(count)).model_dump_json(exclude_unset=True)}\n\n"
        yield "data: [DONE]\n\n"

    async def whole(asked: Asked) -> dict[str, Any]:
        count = asked.max_tokens or CHUNKS
        queue, texts, entries = engines[0].add(count), [], []
        for _ in range(count):
            texts.append(f"word{await queue.get()} ")
            work(busy)
            entries.append({"token": texts[-1], "logprob": -0.5, "bytes": list(texts[-1].encode()), "top_logprobs": []})
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        choice |= {"message": {"role": "assistant", "content": "".join(texts)}, "logprobs": {"content": entries}}
        ids = {"token_ids": list(range(count))} if asked.return_token_ids else {}
        prompt = {"prompt_token_ids": [1, 2, 3]} if asked.return_token_ids else {}
        return {**HEAD, "object": "chat.completion", **prompt, "choices": [choice | ids], "usage": _usage(count)}

    @app.post("/v1/chat/completions")
    async def chat(asked: Asked) -> Response:
        if not asked.stream:
            return JSONResponse(await whole(asked))
        return StreamingResponse(stream(asked), media_type="text/event-stream")

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse(MODELS)

    config = uvicorn.Config(app, log_level="warning", access_log=False, loop="uvloop", http="httptools")
    uvicorn.Server(config).run(sockets=[listener])


def _usage(count: int) -> dict[str, int]:
    return {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}


# By hand


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, busy: int) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            body = json.loads(await reader.readexactly(int(length[1])) if length else b"{}")
            if b"/models" in head.partition(b"\r\n")[0]:
                data = json.dumps(MODELS).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ")
                writer.write(str(len(data)).encode() + b"\r\n\r\n" + data)
                continue
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            count = int(body.get("max_tokens") or CHUNKS)
            for number in range(count):
                work(busy)
                _write(writer, _chunk(number, count, body))
                await writer.drain()
                await asyncio.sleep(0)
            if (body.get("stream_options") or {}).get("include_usage"):
                _write(writer, {"id": "c", "created": 1, "model": "m", "choices": [], "usage": _usage(count)})
            writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def _chunk(number: int, count: int, body: dict[str, Any]) -> dict[str, Any]:
    last = number == count - 1
    delta = {"role": "assistant", "content": f"word{number} "}
    choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": "stop" if last else None, "logprobs": None}
    chunk: dict[str, Any] = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    if body.get("logprobs"):
        entry = {"token": delta["content"], "logprob": -0.5, "bytes": list(delta["content"].encode())}
        choice["logprobs"] = {"content": [{**entry, "top_logprobs": []}]}
    if body.get("return_token_ids"):
        choice["token_ids"] = [number]
        if number == 0:
            chunk["prompt_token_ids"] = [1, 2, 3]
    return {**chunk, "choices": [choice]}


def _write(writer: asyncio.StreamWriter, chunk: dict[str, Any]) -> None:
    data = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


async def lean(listener: socket.socket, busy: int) -> None:
    found = await asyncio.start_server(lambda reader, writer: _answer(reader, writer, busy), sock=listener)
    await found.serve_forever()


def main(kind: str, busy: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(listener.getsockname()[1], flush=True)
    if kind == "server":
        server(listener, busy)
    else:
        asyncio.run(lean(listener, busy))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
