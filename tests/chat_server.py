"""A chat model on loopback: a real HTTP server that speaks the OpenAI chat completions protocol, counts calls and
tokens, and answers, fails or dawdles as it is told. Shared by tests and benchmarks.

    with ChatServer(lambda body: f"You said: {last_message(body)}") as server:  # a text, an object (as JSON), a Fault
        model = openai_model(server.base_url, "stub")
    with ChatServer(answerer, faults=[Fault(drop=True), Fault(status=429, headers={"Retry-After": "0"})]) as server: …
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

from tests.openai_protocol import STANDARD, refusal, request_of

MODELS = ("stub", "u")
"""What a server serves where nothing else is said: a model, and a user's."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One bad answer: an HTTP status, a dropped connection, a raw body, a text in place of the reply, a refusal or
    another finish reason. `delay` seconds come before it."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: bool = False
    body: str | None = None
    text: str | None = None
    refusal: str | None = None
    finish: str = "stop"
    delay: float = 0.0


Reply: TypeAlias = "Mapping[str, Any] | str | Fault"


def text_of(content: str | Sequence[Any]) -> str:
    """A message's content as text; pictures are left out."""
    if isinstance(content, str):
        return content
    return "\n".join(
        piece if isinstance(piece, str) else piece.get("text", "") if isinstance(piece, dict) else ""
        for piece in content
    )


def last_message(body: Mapping[str, Any]) -> str:
    """The last message of a request."""
    return text_of(body["messages"][-1]["content"])


class ChatServer:
    """The server; a context manager that runs it in a thread of its own.

    `answerer` gives the reply to each request's body; `faults` are used up first, one a request. `latency` seconds pass
    before each answer; `model` is the name returned (a callable is asked each time). A request for another model than
    those it `serves`, without a key, or with keys that it does not know is refused as a real server refuses it, and is
    no call. Counts: `calls`, `refused`, `input_tokens`, `output_tokens` (four characters a token), `most_at_once`;
    `bodies` are the requests as they came."""

    def __init__(
        self,
        answerer: Callable[[dict[str, Any]], Reply],
        *,
        faults: Iterable[Fault] = (),
        latency: float = 0.0,
        model: str | Callable[[], str] = "stub-1",
        serves: Collection[str] = MODELS,
        knows: Collection[str] = STANDARD,
        keep: bool = True,
    ) -> None:
        self.serves, self.knows = frozenset(serves), knows
        self.answerer, self.faults, self.latency, self.model, self.keep = answerer, deque(faults), latency, model, keep
        self.calls = self.refused = self.input_tokens = self.output_tokens = self.most_at_once = 0
        self.bodies: list[dict[str, Any]] = []
        self._at_once = 0
        self._loop = asyncio.new_event_loop()
        self._stopped: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._port = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(300)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._stopped is not None
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(300)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=2**24, backlog=1024)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopped.wait()
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1])) if length else b"{}"
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
                try:
                    refused = self._refusal(head, body)
                    out = refused if refused is not None else await self._answer(json.loads(body))
                finally:
                    self._at_once -= 1
                if out is None:
                    break
                writer.write(out)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the server is being stopped
        finally:
            writer.close()

    def _refusal(self, head: bytes, body: bytes) -> bytes | None:
        refused = refusal(*request_of(head), body, serves=self.serves, known=self.knows)
        if refused is None:
            return None
        self.refused += 1
        return _http(refused[0], json.dumps(refused[1]), {})

    async def _answer(self, body: dict[str, Any]) -> bytes | None:
        self.calls += 1
        self.input_tokens += sum(len(text_of(message["content"] or "")) for message in body["messages"]) // 4
        if self.keep:
            self.bodies.append(body)
        told = self.faults.popleft() if self.faults else self.answerer(body)
        fault = told if isinstance(told, Fault) else Fault(text=told if isinstance(told, str) else json.dumps(told))
        if self.latency + fault.delay:
            await asyncio.sleep(self.latency + fault.delay)
        if fault.drop:
            return None
        if fault.body is not None or fault.status != 200:
            return _http(
                fault.status, fault.body or json.dumps({"error": {"message": "as told", "type": "test"}}), fault.headers
            )
        made = (len(fault.text or "") + 3) // 4
        self.output_tokens += made
        message = {
            "role": "assistant",
            "content": None if fault.refusal else fault.text or "",
            "refusal": fault.refusal,
        }
        read = len(last_message(body)) // 4
        name = self.model if isinstance(self.model, str) else self.model()
        completion = {
            "id": "c",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": name,
            "choices": [{"index": 0, "finish_reason": fault.finish, "message": message}],
            "usage": {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made},
        }
        return _http(200, json.dumps(completion), fault.headers)


def _http(status: int, body: str, headers: Mapping[str, str]) -> bytes:
    data = body.encode()
    head = [f"HTTP/1.1 {status} As told", "Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join([*head, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode() + data
