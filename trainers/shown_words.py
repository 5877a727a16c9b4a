"""What a model was shown before each of its answers: the words of users and tools, which its prompt should hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from cm2_agent.types.messages import Message, Text, ToolCallResponse
from cm2_agent.types.trace import Trace

from .rows import Row

Said: TypeAlias = tuple[str, str]
"""Of which role a text is, and the text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What was said before one span of a row, in order. `goes_on`: since the span before it alone. `recorded`: the call
    says what it was shown, which a graph may have summarised; else it is the dialogue so far.
    """

    span_id: str
    said: tuple[Said, ...]
    goes_on: bool
    recorded: bool


def shown_words(trace: Trace, rows: Sequence[Row]) -> tuple[Shown, ...]:
    """What was said before each span of a trace's rows, row by row."""
    messages = trace.messages
    places = (place for place, message in enumerate(messages) if message.role == "assistant")
    steps = {(step.turn, step.index): (step.call, place) for step, place in zip(trace.steps, places, strict=True)}
    texts: dict[int, tuple[Said, ...]] = {}
    found = []
    for row in rows:
        known: Sequence[Message] | None = None
        for span in row.spans:
            call, place = steps[span.turn, span.step]
            assert call is not None
            seen = call.input or messages[:place]
            goes_on = known is not None and _begins(seen, known)
            said: list[Said] = []
            for message in seen[len(known) if goes_on and known is not None else 0 :]:
                if message.role in ("user", "tool"):
                    if id(message) not in texts:
                        texts[id(message)] = tuple(texts_of(message))
                    said += texts[id(message)]
            found.append(Shown(span_id=call.span_id, said=tuple(said), goes_on=goes_on, recorded=bool(call.input)))
            known = seen
    return tuple(found)


def _begins(messages: Sequence[Message], known: Sequence[Message]) -> bool:
    return len(messages) > len(known) and messages[: len(known)] == known


def texts_of(message: Message) -> Iterator[Said]:
    """What a message of a user or a tool says, text by text."""
    for part in message.parts:
        if isinstance(part, Text):
            yield message.role, part.content
        elif isinstance(part, ToolCallResponse):
            for text in _texts(part.response):
                yield message.role, text


def _texts(response: Any) -> list[str]:
    """The texts of a tool's answer; how a template writes other values is its own affair."""
    if isinstance(response, str):
        return [response]
    blocks = response if isinstance(response, list) else ()
    return [block["text"] for block in blocks if isinstance(block, dict) and isinstance(block.get("text"), str)]
