"""Lists of messages in the styles of several tools, told apart by their elements' keys, and read as ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cm2_agent.dialects.responses_items import is_responses, responses_to_chat
from cm2_agent.errors import TraceError
from cm2_agent.importers.ai_sdk_messages import ai_sdk_to_chat, is_ai_sdk
from cm2_agent.importers.anthropic_blocks import anthropic_to_chat, is_anthropic
from cm2_agent.importers.gemini_contents import gemini_to_chat, is_gemini
from cm2_agent.importers.langchain_dumps import is_langchain, langchain_to_chat
from cm2_agent.importers.openai_messages import ROLES, read_messages
from cm2_agent.importers.pydantic_ai_history import is_pydantic_ai, pydantic_ai_to_chat
from cm2_agent.importers.sharegpt_turns import is_sharegpt, sharegpt_to_chat
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one tool writes messages. `is_one` says of an element whether it is of this style; `to_chat` writes a list of
    them as OpenAI's chat format has it. `marks`: the style marks every failed call of a tool."""

    name: str
    is_one: Callable[[Mapping[str, JSON]], bool]
    to_chat: Callable[[Sequence[Mapping[str, JSON]]], list[JSON]]
    says: str
    marks: bool = False


def _is_genai(message: Mapping[str, JSON]) -> bool:
    parts = message.get("parts")
    typed = isinstance(parts, list) and all(isinstance(part, Mapping) and "type" in part for part in parts)
    return isinstance(message.get("role"), str) and typed


def _is_openai(message: Mapping[str, JSON]) -> bool:
    return isinstance(message.get("role"), str) and message["role"].casefold() in ROLES


STYLES: Final[tuple[Style, ...]] = (
    Style(
        name="pydantic-ai",
        is_one=is_pydantic_ai,
        to_chat=pydantic_ai_to_chat,
        says="messages with `kind` and `part_kind`",
        marks=True,
    ),
    Style(name="langchain", is_one=is_langchain, to_chat=langchain_to_chat, says="LangChain's message types"),
    Style(
        name="openai-responses",
        is_one=is_responses,
        to_chat=responses_to_chat,
        says="items of the Responses API (`function_call`, `output_text`)",
    ),
    Style(name="sharegpt", is_one=is_sharegpt, to_chat=sharegpt_to_chat, says="turns with `from` and `value`"),
    Style(name="gemini", is_one=is_gemini, to_chat=gemini_to_chat, says="contents with `parts` of Gemini's kind"),
    Style(
        name="ai-sdk",
        is_one=is_ai_sdk,
        to_chat=ai_sdk_to_chat,
        says="messages of Vercel's AI SDK (`parts`, `tool-call`)",
        marks=True,
    ),
    Style(name="genai", is_one=_is_genai, to_chat=lambda found: list(found), says="messages with typed `parts`"),
    Style(name="anthropic", is_one=is_anthropic, to_chat=anthropic_to_chat, says="Anthropic's content blocks"),
    Style(name="openai", is_one=_is_openai, to_chat=lambda found: list(found), says="chat messages with roles"),
)
"""From the most telling to the most common: a list is of the first style that one of its elements is of."""


TRANSCRIPTS: Final = (
    *("messages", "conversations", "conversation", "history", "chat", "dialogue", "transcript", "turns"),
    "contents",
)
"""The keys under which a list of messages stands in a record."""


def transcript_of(record: JSON) -> tuple[str | None, JSON]:
    """The list of messages that a record is, or holds, and its key; the list is None where there is none."""
    if isinstance(record, list):
        return None, record
    if isinstance(record, Mapping):
        return next(((key, record[key]) for key in TRANSCRIPTS if isinstance(record.get(key), list)), (None, None))
    return None, None


def style_of(messages: JSON) -> Style | None:
    """The style of a list of messages, None where it is none of them."""
    if not isinstance(messages, list) or not messages or not all(isinstance(one, Mapping) for one in messages):
        return None
    return next((style for style in STYLES if any(map(style.is_one, messages))), None)


def any_messages(messages: JSON) -> tuple[Message, ...]:
    """The messages of a list in any of the styles. Raises TraceError naming the message that is none."""
    style = style_of(messages)
    if style is None:
        return read_messages(messages, unmarked=True)  # which says what is wrong
    if style.name == "genai":
        return tuple(_genai(number, message) for number, message in enumerate(messages))
    return read_messages(style.to_chat(messages), unmarked=not style.marks)


def _genai(number: int, message: Mapping[str, JSON]) -> Message:
    role = ROLES.get(str(message.get("role")).casefold())
    try:
        return Message.from_json({**message, "role": role or message.get("role")})
    except TraceError as error:
        raise TraceError(f"message {number}: {error}") from error


__all__ = ["STYLES", "TRANSCRIPTS", "Style", "any_messages", "style_of", "transcript_of"]
