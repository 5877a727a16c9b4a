"""Chats in OpenAI's format: a list of messages, or an object with `messages` and what is known about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cm2_agent.errors import TraceError
from cm2_agent.importers.chat import OFFICIAL, Chat, Chats, mapping_of, number_of, sampling_of, text_of, texts_of
from cm2_agent.importers.message_styles import any_messages, transcript_of
from cm2_agent.importers.openai_messages import read_tools
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message
from cm2_agent.types.text import first_problem

_INSTRUCTIONS = ("systemInstruction", "system_instruction")


class _Record(BaseModel):
    """What is read of a record; other keys may be there."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    messages: list[Any] = Field(min_length=1)
    tools: Any = None
    functions: Any = None
    system: Any = None
    task_id: str | int | None = None
    task_version: int = Field(default=1, ge=1)
    rollout: int | None = Field(default=None, ge=0)
    trial: int | None = Field(default=None, ge=0)
    reward: Any = None
    model: str | None = None
    id: str | int | None = None


def read_openai_chat(record: JSON) -> Chat:
    """One record → its dialogue. Raises TraceError. The format knows no gold actions, so there is never a checklist."""
    if isinstance(record, list):
        record = {"messages": record}
    if not isinstance(record, Mapping):
        raise TraceError(f"is {type(record).__name__}; expected a list of messages, or an object with messages")
    if "messages" not in record:
        key, messages = transcript_of(record)
        record = record if key is None else {**record, "messages": messages}
    if isinstance(record.get("messages"), str):
        raise TraceError("has as messages a text that is no JSON; expected a list of messages (json.dumps writes one)")
    try:
        chat = _Record.model_validate(record)
    except ValidationError as error:
        raise TraceError(first_problem(error, shown=60)) from error
    messages = any_messages(chat.messages)
    if isinstance(chat.system, str | list) and chat.system and messages[0].role != "system":  # Anthropic's requests
        messages = (*any_messages([{"role": "system", "content": chat.system}]), *messages)
    messages = (*gemini_instruction(record), *messages)
    tools = read_tools(chat.functions if chat.tools is None else chat.tools)
    sampling = sampling_of(record)
    rollout = chat.rollout if chat.rollout is not None else chat.trial
    reward = number_of(chat.reward, "reward")
    known = [chat.id, chat.task_id, chat.task_version, rollout, chat.model, sampling]
    return Chat(
        messages=_answered(messages, record),
        key=[*known, chat.messages, chat.tools],
        tools=tools,
        model=chat.model,
        sampling=sampling,
        task=None if chat.task_id is None else str(chat.task_id),
        task_version=chat.task_version,
        rollout=rollout,
        outcomes={} if reward is None else {OFFICIAL: reward},
        metadata=mapping_of(record.get("metadata")),
        user=text_of(record.get("user")) or text_of(record.get("user_id")),
        session=text_of(record.get("session_id")),
        tags=texts_of(record.get("tags")),
    )


def gemini_instruction(record: Mapping[str, JSON]) -> tuple[Message, ...]:
    """The system prompt of Gemini's requests: text, a part, parts, or a content. Raises TraceError."""
    asked = next((record[key] for key in _INSTRUCTIONS if record.get(key)), None)
    parts = asked.get("parts", asked) if isinstance(asked, Mapping) else asked
    listed = [{"text": one} if isinstance(one, str) else one for one in (parts if isinstance(parts, list) else [parts])]
    return any_messages([{"role": "system", "parts": listed}]) if asked else ()


def _answered(messages: tuple[Message, ...], record: Mapping[str, JSON]) -> tuple[Message, ...]:
    """The messages, and the answer that stands beside them where the record is a request with its response."""
    choices = record.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) and choices[0].get("message"):
        return (*messages, *any_messages([choices[0]["message"]]))
    return messages


class OpenAIChats(Chats):
    """The importer of one file of chats."""

    def __init__(self) -> None:
        super().__init__(read_openai_chat)


__all__ = ["OFFICIAL", "OpenAIChats", "gemini_instruction", "read_openai_chat"]
