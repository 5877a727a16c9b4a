"""A dialogue as chat messages: in OpenAI's format, or as chat templates read them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TypeAlias

from cm2_agent.models.reasoning_text import split_reasoning
from cm2_agent.types.dialogue_content import answers_of, system_prompt
from cm2_agent.types.json_values import JSON, canonical_json, json_text
from cm2_agent.types.messages import Blob, Message, Other, Reasoning, Text, ToolCall, ToolCallResponse, ToolSpec, Uri
from cm2_agent.types.tool_content import content_text
from cm2_agent.types.trace import Trace

Losses: TypeAlias = Counter[str]
"""What a format could not carry of the dialogues: how many of each."""
Entry: TypeAlias = dict[str, JSON]


def dialogue_messages(trace: Trace) -> tuple[Message, ...]:
    """The dialogue with the system prompt that its model calls were shown."""
    rest = list(trace.messages)
    while rest and rest[0].role == "system":
        rest.pop(0)
    system = system_prompt(trace.messages, trace.calls)
    return (*((Message.of("system", system),) if system else ()), *rest)


def tools_of(trace: Trace) -> tuple[ToolSpec, ...]:
    """The tools that the agent was offered in the dialogue, each once."""
    calls = [call for call in trace.calls if call.message is not None] or list(trace.calls)
    return tuple({tool.digest: tool for call in calls for tool in call.tools}.values())


def chat_messages(messages: Sequence[Message], losses: Losses, *, arguments_as_text: bool = True) -> list[list[Entry]]:
    """The entries of each message: an answer of a tool is one of its own.

    Args:
        messages: the dialogue.
        losses: what cannot be carried is counted in it.
        arguments_as_text: calls with their arguments as JSON text, as OpenAI's API has them; else as objects, as chat
            templates want them.
    """
    ids = _ids(messages, losses)
    written: list[list[Entry]] = []
    for at, message in enumerate(messages):
        named: Entry = {"name": message.name} if message.role == "tool" and message.name is not None else {}
        answers: list[Entry] = [
            {"role": "tool", "tool_call_id": name, **named, "content": answer_text(part)}
            for place, part in enumerate(message.responses)
            if (name := ids[at, place, "answer"])
        ]
        if message.role == "tool":
            body = [part for part in message.parts if not isinstance(part, ToolCallResponse)]
            losses["texts and files beside tools' answers"] += bool(body)
            written.append(answers)
            continue
        entry = _entry(message, losses)
        calls = [
            _call(call, ids[at, place, "call"], losses, as_text=arguments_as_text)
            for place, call in enumerate(message.tool_calls)
            if message.role == "assistant"
        ]
        if calls:
            entry["tool_calls"] = calls
            if arguments_as_text and not entry["content"]:
                entry["content"] = None
        written.append([entry, *answers])
    return written


def flat(entries: Iterable[Iterable[Entry]]) -> list[JSON]:
    """The entries of several messages as one list."""
    return list(chain.from_iterable(entries))


def _ids(messages: Sequence[Message], losses: Losses) -> dict[tuple[int, int, str], str]:
    """An id for each call, and for each answer that of its call: the recorded ones, where they tell calls apart. An
    answer of the user's own calls is left out with them."""
    found: dict[tuple[int, int, str], str] = {}
    answers = answers_of(messages)
    taken: set[str] = set()
    for at, message in enumerate(messages):
        if message.role != "assistant":
            losses["calls that the user's own tools answered"] += len(message.tool_calls)
            for place in answers.get(at, ()):
                if place is not None:
                    found[(*place, "answer")] = ""
            continue
        for number, (call, place) in enumerate(zip(message.tool_calls, answers.get(at, ()), strict=True)):
            name = call.id if call.id and call.id not in taken else _free(f"call_{at}_{number}", taken)
            taken.add(name)
            found[at, number, "call"] = name
            if place is not None:
                found[(*place, "answer")] = name
    for at, message in enumerate(messages):
        strangers = [number for number in range(len(message.responses)) if (at, number, "answer") not in found]
        losses["answers to no call"] += len(strangers)
        for number in strangers:
            name = found[at, number, "answer"] = _free(f"answer_{at}_{number}", taken)
            taken.add(name)
    return found


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def answer_text(part: ToolCallResponse) -> str:
    """A tool's answer as text: structure as JSON."""
    value = content_text(part.response)
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json_text(value)


def _call(call: ToolCall, name: str, losses: Losses, *, as_text: bool) -> Entry:
    arguments: JSON = {} if call.arguments is None else call.arguments
    if isinstance(arguments, str):
        losses["texts of arguments that are read as JSON"] += reads_as_json(arguments)
    elif as_text:
        arguments = canonical_json(arguments)
    return {"id": name, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def reads_as_json(text: str) -> bool:
    """Whether a reader takes arguments that were text for something else."""
    if not text.strip():
        return True
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def _entry(message: Message, losses: Losses) -> Entry:
    """The message without its calls and answers."""
    entry: Entry = {"role": message.role, "content": _content(message, losses)}
    if message.name is not None:
        entry["name"] = message.name
    if message.reasoning:
        entry["reasoning_content"] = "\n".join(
            part.content for part in message.parts if isinstance(part, Reasoning) and part.content
        )
    if message.role == "assistant" and message.extra.get("weight") is not None:  # of OpenAI's fine-tuning format
        entry["weight"] = message.extra["weight"]
    return entry


def _content(message: Message, losses: Losses) -> JSON:
    """Text where it is text alone, else a list of parts."""
    parts = list(_parts(message, losses))
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _parts(message: Message, losses: Losses) -> Iterator[Entry]:
    for part in message.parts:
        if isinstance(part, Text):
            if message.role == "assistant" and split_reasoning(part.content) != ("", part.content):
                losses["texts that hold tags of thinking"] += 1
            if part.content:
                yield {"type": "text", "text": part.content}
        elif isinstance(part, Blob):
            yield _blob(part)
        elif isinstance(part, Uri):
            losses["files by address that are no pictures"] += part.modality not in (None, "image")
            if part.modality in (None, "image"):
                yield {"type": "image_url", "image_url": {"url": part.uri}}
        elif isinstance(part, Other):
            losses["parts of other kinds"] += 1
            yield {**part.data, "type": part.type or "unknown"}


def _blob(part: Blob) -> Entry:
    mime = part.mime_type or {"image": "image/png", "audio": "audio/wav"}.get(part.modality or "", "")
    if part.modality in (None, "image"):
        return {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{part.content}"}}
    if part.modality == "audio":
        return {"type": "input_audio", "input_audio": {"data": part.content, "format": mime.rpartition("/")[2]}}
    return {"type": "file", "file": {"file_data": f"data:{mime};base64,{part.content}"}}


__all__ = [
    "Entry",
    "Losses",
    "answer_text",
    "chat_messages",
    "dialogue_messages",
    "flat",
    "reads_as_json",
    "tools_of",
]
