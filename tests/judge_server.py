"""A judge on loopback: the chat server, read as a careful judge reads a prompt. Shared by tests and benchmarks; the
same answers serve an in-process model (`function_model`).

    with JudgeServer() as server:                       # answers yes with an honest quote, where there is one
        judge = LLMJudge(openai_judge_model(server.base_url, "stub"), price=FREE)
    with JudgeServer(lambda asked: reply({"id": "a", …}), faults=[Fault(status=429, headers={"Retry-After": "0"})]) as
    server: …
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from cm2_agent.llm.prices import Price
from tests.chat_server import MODELS, ChatServer, Fault, Reply, last_message, text_of

FREE = Price(input=0.0, output=0.0)
_END = re.compile(r"^END OF TRANSCRIPT ([0-9a-f]{32})$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a judge was shown, read as a careful judge would: the transcript is everything before the line that carries
    the nonce."""

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


Answerer = Callable[[Asked], Reply]


def reply(*items: Mapping[str, Any]) -> dict[str, Any]:
    """A reply of these answers."""
    return {"items": [dict(item) for item in items]}


def answer(
    id: str, verdict: str = "yes", step: int | None = None, part: str = "assistant.reply", quote: str = ""
) -> dict[str, Any]:
    """One answer; a `step` brings evidence with it."""
    evidence = None if step is None else {"step": step, "part": part, "quote": quote}
    return {"id": id, "analysis": "As the test wants it.", "evidence": evidence, "verdict": verdict}


def honest(asked: Asked) -> dict[str, Any]:
    """Yes to every item, with the first quotable part of the judged steps as its evidence (as the item's `quote_from`
    says); no where there is none. A function of what is shown alone."""
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


def function_model(
    answerer: Answerer = honest, *, name: str = "in-process", asked: list[Asked] | None = None
) -> FunctionModel:
    """The same judge without a network, as pydantic-ai's scripted model; keeps what it was asked in `asked`."""

    def function(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        request = messages[-1]
        assert isinstance(request, ModelRequest)
        seen = Asked.of(text_of(next(part.content for part in request.parts if isinstance(part, UserPromptPart))))
        if asked is not None:
            asked.append(seen)
        told = answerer(seen)
        assert not isinstance(told, Fault), "an in-process model has no connection to fail"
        return ModelResponse(
            parts=[TextPart(content=told if isinstance(told, str) else json.dumps(told))], model_name=name
        )

    return FunctionModel(function, model_name=name)


class JudgeServer(ChatServer):
    """The server. `answerer` gives the reply to each prompt; `asked` are the prompts read. The rest is ChatServer's."""

    def __init__(
        self,
        answerer: Answerer = honest,
        *,
        faults: Iterable[Fault] = (),
        latency: float = 0.0,
        model: str | Callable[[], str] = "stub-judge-1",
        serves: Collection[str] = MODELS,
        keep: bool = True,
    ) -> None:
        super().__init__(self._judged, faults=faults, latency=latency, model=model, serves=serves, keep=keep)
        self.judge = answerer
        self.asked: list[Asked] = []

    def _judged(self, body: dict[str, Any]) -> Reply:
        asked = Asked.of(last_message(body))
        if self.keep:
            self.asked.append(asked)
        return self.judge(asked)


__all__ = ["FREE", "Asked", "Fault", "JudgeServer", "answer", "function_model", "honest", "reply"]
