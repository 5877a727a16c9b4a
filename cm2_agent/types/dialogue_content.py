"""What a dialogue holds, whichever door it came through: the value that `Trace.content_hash` is taken of."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from cm2_agent.types.json_values import JSON, json_text
from cm2_agent.types.messages import (
    SHOWN,
    Blob,
    Message,
    Other,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolCallResponse,
    Uri,
)
from cm2_agent.types.run import ModelCall
from cm2_agent.types.tool_content import content_text
from cm2_agent.types.tool_use import pair_answers

VERSION = 1
"""Stands in the hashed value: what counts may change with it."""


def dialogue_content(messages: Sequence[Message], calls: Iterable[ModelCall] = ()) -> dict[str, JSON]:
    """What the dialogue holds as one JSON value: the system prompts (those that its model calls were shown before it
    too), and each message with its parts; under each call its name, its arguments and its answer.

    >>> from cm2_agent.types.messages import Message
    >>> dialogue_content([Message.of("system", "Be brief."), Message.of("user", "Hi")])["system"]
    'Be brief.'
    """
    rest = list(messages)
    while rest and rest[0].role == "system":
        rest.pop(0)
    return {"version": VERSION, "system": system_prompt(messages, calls), "messages": _messages(rest)}


def system_prompt(messages: Sequence[Message], calls: Iterable[ModelCall] = ()) -> str:
    """The system prompts with which the dialogue begins, and which its model calls were shown before it, each once."""
    prompts = dict.fromkeys(_prompts(messages))
    for call in calls:
        if call.message is not None:  # else a sub-agent's, with a prompt of its own
            prompts.update(dict.fromkeys(_prompts(call.input)))
    return "\n".join(prompts)


def _prompts(messages: Iterable[Message]) -> Iterator[str]:
    for message in messages:
        if message.role != "system":
            return
        if SHOWN not in message.extra:
            yield message.text


def _messages(messages: Sequence[Message]) -> list[JSON]:
    answers = answers_of(messages)
    taken = {place for found in answers.values() for place in found if place is not None}
    written: list[JSON] = []
    for at, message in enumerate(messages):
        calls: list[JSON] = []
        for call, place in zip(message.tool_calls, answers.get(at, ()), strict=False):
            answer = None if place is None else messages[place[0]].responses[place[1]]
            calls.append(_call(call, answer))
        strangers = [_result(one) for number, one in enumerate(message.responses) if (at, number) not in taken]
        thinking = "\n".join(part.content for part in message.parts if isinstance(part, Reasoning) and part.content)
        body = list(_body(message.parts))
        if message.role == "tool" and message.responses and not (strangers or body or calls or thinking):
            continue  # its answers stand at their calls
        written.append(
            {
                "role": message.role,
                **({"reasoning": thinking} if thinking else {}),
                "parts": body,
                **({"calls": calls} if calls else {}),
                **({"results": strangers} if strangers else {}),
            }
        )
    return written


def answers_of(messages: Sequence[Message]) -> dict[int, list[tuple[int, int] | None]]:
    """For each message with calls, where their answers stand: the message and the place in it. Answers belong to the
    calls before them, up to the next message of the assistant or with calls."""
    found: dict[int, list[tuple[int, int] | None]] = {}
    steps = [at for at, message in enumerate(messages) if message.role == "assistant" or message.tool_calls]
    for start, end in pairwise([*steps, len(messages)]):
        places = [(at, number) for at in range(start, end) for number in range(len(messages[at].responses))]
        answered = [messages[at].responses[number].id for at, number in places]
        asked = [call.id for call in messages[start].tool_calls]
        found[start] = [None if place is None else places[place] for place in pair_answers(asked, answered)]
    return found


def _body(parts: Iterable[Part]) -> Iterator[JSON]:
    """The parts that are no thinking, no call and no answer, in order; texts beside each other are one."""
    text: list[str] = []
    for part in parts:
        if isinstance(part, Text):
            text += [part.content] if part.content else []
        elif not isinstance(part, Reasoning | ToolCall | ToolCallResponse):
            if text:
                yield "\n".join(text)
                text = []
            yield _other(part)
    if text:
        yield "\n".join(text)


def _other(part: Blob | Uri | Other) -> JSON:
    if isinstance(part, Blob):
        return {"blob": part.content}
    if isinstance(part, Uri):
        return {"uri": part.uri}
    return {"part": _canonical({key: value for key, value in part.data.items() if key != "id"})}


def _call(call: ToolCall, answer: ToolCallResponse | None) -> dict[str, JSON]:
    arguments = {} if call.arguments is None else call.arguments
    written: dict[str, JSON] = {"name": call.name, "arguments": _canonical(arguments)}
    return written if answer is None else {**written, "result": _result(answer)}


def _result(answer: ToolCallResponse) -> JSON:
    """The answer: structure as structure, also where it was written as text; all else as text."""
    value = content_text(answer.response)
    if isinstance(value, str):
        if value.lstrip()[:1] not in ("{", "["):
            return value
        try:
            return _canonical(json.loads(value, parse_constant=_no_constant))
        except (ValueError, RecursionError):
            return value
    structured = isinstance(value, Mapping | list | tuple)
    return _canonical(value) if structured else json_text(_canonical(value))


def _no_constant(name: str) -> JSON:
    raise ValueError(f"{name} is no JSON")


def _canonical(value: JSON) -> JSON:
    """The value with one spelling for each number (1.0 is 1); what is not finite by its name."""
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return {"number": str(value)}
        return int(value) if value.is_integer() else value
    return value


__all__ = ["VERSION", "answers_of", "dialogue_content", "system_prompt"]
