"""A judge on loopback: a real HTTP server that speaks the OpenAI chat completions protocol, counts calls and tokens, and answers, fails or
dawdles as it is told. Shared by tests and benchmarks; the same answers serve an in-process model (`function_model`).

    with JudgeServer() as server:                       # answers yes with an honest quote, where there is one
        judge = LLMJudge(openai_judge_model(server.base_url, "stub"), price=FREE)
    with JudgeServer(lambda asked: reply({"id": "a", …}), faults=[Fault(status=429, headers={"Retry-After": "0"})]) as server: …
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from cm2_agent.llm.prices import Price

FREE = Price(input=0.0, output=0.0)
_END = re.compile(r"^END OF TRANSCRIPT ([0-9a-f]{32})$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a judge was shown, read as a careful judge would: the transcript is everything before the line that carries the nonce."""

    text: str
    nonce: str
    lines: list[dict[str, Any]]
    first: int
    last: int
    items: list[dict[str, Any]]
    tail: str

    @classmethod
    def of(cls, text: str) -> Asked:
        ends = list(_END.finditer(text))
        assert len(ends) == 1, "exactly one line ends the transcript"
        transcript, tail = text[: ends[0].start()], text[ends[0].end() :]
        nonce = ends[0][1]
        found = re.search(r"^Judged: steps? (\d+)(?: to (\d+))?,", tail, re.MULTILINE)
        assert found is not None
        items = tail.split(f"ITEMS {nonce}\n", 1)[1].split(f"\nEND OF ITEMS {nonce}", 1)[0]
        return cls(
            text=text,
            nonce=nonce,
            lines=[json.loads(line) for line in transcript.split("\n") if line.startswith("{")],
            first=int(found[1]),
            last=int(found[2] or found[1]),
            items=[json.loads(line) for line in items.split("\n")],
            tail=tail,
        )

    def parts(self, step: int) -> list[tuple[str, str]]:
        """(part, content) of a step, by its dialogue-wide number."""
        return [(line["part"], line["content"]) for line in self.lines if line.get("step") == step]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One bad answer: an HTTP status, a dropped connection, a raw body, a text in place of the reply, a refusal or another finish reason.
    `delay` seconds come before it."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: bool = False
    body: str | None = None
    text: str | None = None
    refusal: str | None = None
    finish: str = "stop"
    delay: float = 0.0


Answerer = Callable[[Asked], "Mapping[str, Any] | str | Fault"]


def reply(*items: Mapping[str, Any]) -> dict[str, Any]:
    """A reply of these answers."""
    return {"items": [dict(item) for item in items]}


def answer(id: str, verdict: str = "yes", step: int | None = None, part: str = "assistant.reply", quote: str = "") -> dict[str, Any]:
    """One answer; a `step` brings evidence with it."""
    evidence = None if step is None else {"step": step, "part": part, "quote": quote}
    return {"id": id, "analysis": "As the test wants it.", "evidence": evidence, "verdict": verdict}


def honest(asked: Asked) -> dict[str, Any]:
    """Yes to every item, with the first quotable part of the judged steps as its evidence (as the item's `quote_from` says); no where there
    is none. A function of what is shown alone."""
    out = []
    for item in asked.items:
        wanted = item.get("quote_from")
        found = next(
            (
                (step, part, content)
                for step in range(asked.first, asked.last + 1)
                for part, content in asked.parts(step)
                if content.strip() and (wanted is None or part == wanted)
            ),
            None,
        )
        out.append(answer(item["id"], "no") if found is None else answer(item["id"], "yes", *found))
    return reply(*out)


def function_model(answerer: Answerer = honest, *, name: str = "in-process", asked: list[Asked] | None = None) -> FunctionModel:
    """The same judge without a network, as pydantic-ai's scripted model; keeps what it was asked in `asked`."""

    def function(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        request = messages[-1]
        assert isinstance(request, ModelRequest)
        seen = Asked.of(_text(next(part.content for part in request.parts if isinstance(part, UserPromptPart))))
        if asked is not None:
            asked.append(seen)
        said = answerer(seen)
        assert not isinstance(said, Fault), "an in-process model has no connection to fail"
        return ModelResponse(parts=[TextPart(content=said if isinstance(said, str) else json.dumps(said))], model_name=name)

    return FunctionModel(function, model_name=name)


def _text(content: str | Sequence[Any]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(piece if isinstance(piece, str) else piece.get("text", "") if isinstance(piece, dict) else "" for piece in content)


class JudgeServer:
    """The server; a context manager that runs it in a thread of its own.

    `answerer` gives each reply; `faults` are used up first, one a request. `latency` seconds pass before each answer; `model` is the name
    returned (a callable is asked each time). Counts: `calls`, `input_tokens`, `output_tokens` (four characters a token), `most_at_once`;
    `bodies` are the requests as they came, `asked` the prompts read.
    """

    def __init__(
        self,
        answerer: Answerer = honest,
        *,
        faults: Iterable[Fault] = (),
        latency: float = 0.0,
        model: str | Callable[[], str] = "stub-judge-1",
        keep: bool = True,
    ) -> None:
        self.answerer, self.faults, self.latency, self.model, self.keep = answerer, deque(faults), latency, model, keep
        self.calls = self.input_tokens = self.output_tokens = self.most_at_once = 0
        self.bodies: list[dict[str, Any]] = []
        self.asked: list[Asked] = []
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
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._stopped is not None
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

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
                    out = await self._answer(json.loads(body))
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

    async def _answer(self, body: dict[str, Any]) -> bytes | None:
        self.calls += 1
        text = _text(body["messages"][-1]["content"])
        self.input_tokens += sum(len(_text(message["content"])) for message in body["messages"]) // 4
        said: Mapping[str, Any] | str | Fault
        if self.faults:
            said = self.faults.popleft()
            if self.keep:
                self.bodies.append(body)
        else:
            asked = Asked.of(text)
            if self.keep:
                self.bodies.append(body)
                self.asked.append(asked)
            said = self.answerer(asked)
        fault = said if isinstance(said, Fault) else Fault(text=said if isinstance(said, str) else json.dumps(said))
        if self.latency + fault.delay:
            await asyncio.sleep(self.latency + fault.delay)
        if fault.drop:
            return None
        if fault.body is not None or fault.status != 200:
            return _http(fault.status, fault.body or json.dumps({"error": {"message": "as told", "type": "test"}}), fault.headers)
        made = (len(fault.text or "") + 3) // 4
        self.output_tokens += made
        message = {"role": "assistant", "content": None if fault.refusal else fault.text or "", "refusal": fault.refusal}
        read = len(text) // 4
        name = self.model if isinstance(self.model, str) else self.model()
        completion = {
            "id": "c", "object": "chat.completion", "created": 1_700_000_000, "model": name,
            "choices": [{"index": 0, "finish_reason": fault.finish, "message": message}],
            "usage": {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made},
        }  # fmt: skip
        return _http(200, json.dumps(completion), fault.headers)


def _http(status: int, body: str, headers: Mapping[str, str]) -> bytes:
    data = body.encode()
    head = [f"HTTP/1.1 {status} As told", "Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join([*head, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode() + data
