"""A proxied call when it is over: its messages, and what was reported of its tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cm2_agent.models.endpoint_sampling import TOKEN_ID_KEYS
from cm2_agent.models.endpoint_tokens import ReportedTokens
from cm2_agent.models.reasoning_text import split_reasoning
from cm2_agent.server.chat_answer import DONE
from cm2_agent.server.chat_request import Asked
from cm2_agent.server.event_stream import data_of, split_events
from cm2_agent.server.wire_json import loads

__all__ = ["UNREADABLE", "Choice", "ProxiedCall", "normal"]

UNREADABLE = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What reading a call raises whose request or answer is of no kind that the chat API has."""
_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One completion of a call: the assistant's message in OpenAI's form, and the facts of it under the names of a
    local model's response metadata."""

    index: int
    message: Mapping[str, Any]
    finish_reason: str | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ProxiedCall:
    """A call that went through the proxy. `raw` is the answer as the server sent it, which is read when somebody asks:
    not while the answer is on its way. `failure` says why the answer is not whole."""

    asked: Asked
    raw: bytes
    stream: bool
    started: int
    ended: int
    project: str = "default"
    thread: str | None = None
    failure: str | None = None
    mark: str | None = None

    @cached_property
    def parts(self) -> Sequence[Mapping[str, Any]]:
        """The response, or the chunks of the stream."""
        if not self.stream:
            return _objects([self.raw])
        return _objects([data for event in split_events(self.raw) if (data := data_of(event)) is not None])

    @cached_property
    def error(self) -> str | None:
        """Why there is no whole answer, None where there is one."""
        if self.failure is not None:
            return self.failure
        if any(part.get("error") for part in self.parts):
            return "the server behind the proxy: an error within its answer"
        return None if self.parts else "the server behind the proxy: no answer that can be read"

    @property
    def messages(self) -> list[Any]:
        found = self.asked.given.get("messages")
        return found if isinstance(found, list) else []

    @property
    def usage(self) -> Mapping[str, Any]:
        return next((part["usage"] for part in reversed(self.parts) if isinstance(part.get("usage"), dict)), {})

    @property
    def model(self) -> str | None:
        named = next((part["model"] for part in self.parts if isinstance(part.get("model"), str)), None)
        asked = self.asked.given.get("model")
        return named or (asked if isinstance(asked, str) else None)

    def choices(self) -> list[Choice]:
        """The completions, in their order."""
        by_index: dict[int, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
        for part, choice in self._choices():
            by_index.setdefault(int(choice.get("index") or 0), []).append((part, choice))
        return [self._choice(index, pieces, len(by_index)) for index, pieces in sorted(by_index.items())]

    def _choices(self) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        for part in self.parts:
            for choice in part.get("choices") or ():
                if isinstance(choice, dict):
                    yield part, choice

    def _choice(self, index: int, pieces: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], total: int) -> Choice:
        at_end = self.asked.upstream.server == "sglang"
        reported = ReportedTokens(streamed=self.stream, ids_at_end=at_end, choices=total)
        for part, choice in pieces:
            if total == 1 and len(part["choices"]) == 1:
                reported.add(part)
            else:
                reported.add({**part, "choices": [{**choice, "index": 0} if self.stream else choice]})
        if self.stream:  # the usage comes by itself, and SGLang's ids too
            for part in self.parts:
                if not part.get("choices"):
                    reported.add(part)
        message = _joined([choice.get("delta") or {} for _, choice in pieces]) if self.stream else _whole(pieces[0][1])
        name = reported.model or self.model or "model"
        metadata: dict[str, Any] = {
            "model_name": name,
            "model_version": self.asked.upstream.model_version or name,
            "sampling": self.asked.sampling,
            **(reported.metadata() if self.asked.upstream.server in TOKEN_ID_KEYS else {}),
        }
        if self.error is not None:
            for field in ("prompt_ids", "completion_ids", "logprobs"):
                metadata.pop(field, None)
        finish = next((choice["finish_reason"] for _, choice in reversed(pieces) if choice.get("finish_reason")), None)
        return Choice(index=index, message=message, finish_reason=finish, metadata=metadata)


def _objects(texts: Sequence[bytes]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for text in texts:
        if text == DONE:
            continue
        try:
            value = loads(text)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _whole(choice: Mapping[str, Any]) -> dict[str, Any]:
    return _read(dict(choice.get("message") or {}))


def _joined(deltas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The message that a stream's deltas add up to."""
    texts: dict[str, list[str]] = {"content": []}
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        for name in _TEXTS:
            if isinstance(text := delta.get(name), str):
                texts.setdefault(name, []).append(text)
        for piece in delta.get("tool_calls") or ():
            call = calls.setdefault(int(piece.get("index") or 0), {"type": "function", "id": None})
            call["id"] = piece.get("id") or call["id"]
            function = call.setdefault("function", {"name": "", "arguments": ""})
            for name in ("name", "arguments"):
                function[name] += (piece.get("function") or {}).get(name) or ""
    message: dict[str, Any] = {"role": "assistant", **{name: "".join(pieces) for name, pieces in texts.items()}}
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return _read(message)


def _read(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the thinking in its text as reasoning, as our own model of an endpoint has it."""
    message = {"role": "assistant", **{key: value for key, value in message.items() if key != "role"}}
    content = message.get("content")
    if isinstance(content, str):
        thinking, said = split_reasoning(content)
        if thinking:
            reported = message.get("reasoning_content") or message.get("reasoning")
            message |= {"content": said, "reasoning_content": "\n".join(filter(None, (reported, thinking)))}
    return message


def normal(message: Any) -> Any:
    """What a client sends back of a message, however it writes it: role, text, and calls with their ids."""
    if not isinstance(message, Mapping):
        return None
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    calls = []
    for call in message.get("tool_calls") or ():
        function = (call.get("function") or {}) if isinstance(call, Mapping) else {}
        arguments = function.get("arguments")
        try:
            arguments = json.dumps(json.loads(str(arguments)), sort_keys=True)
        except (TypeError, ValueError):
            arguments = str(arguments)
        calls.append([call.get("id"), function.get("name"), arguments] if isinstance(call, Mapping) else None)
    return [message.get("role"), content or "", calls]
