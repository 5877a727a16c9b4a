"""The messages of one run as the callbacks show them: each converted once, and numbered so that the same message is
recognised when it appears again.

`run_builder` puts a dialogue together by these numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, RemoveMessage, convert_to_messages

from cm2_agent.langchain_messages import from_langchain
from cm2_agent.tracing.graph_values import state_messages
from cm2_agent.types.json_values import canonical_json
from cm2_agent.types.messages import Message


@dataclass(frozen=True, slots=True, eq=False)
class SeenMessage:
    """One message as a callback showed it. `key` is the same for messages with the same content; `id` is LangChain's,
    where it has one."""

    key: int
    message: Message
    id: str | None


class MessageIndex:
    """All messages that one run has shown. Two are the same if LangChain's ids agree, or role, text and tool calls
    do."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[BaseMessage, Any, Any, str | None, SeenMessage]] = {}
        self._ids: dict[str, int] = {}
        self._keys: dict[Any, int] = {}
        self._next = itertools.count()  # not the number of keys: nodes may run in several threads

    def add(self, message: BaseMessage) -> SeenMessage:
        """The entry of a message object. The same object is converted once, unless it was changed in between."""
        calls = message.tool_calls if isinstance(message, AIMessage) else None
        cached = self._seen.get(id(message))
        if cached is not None and cached[1] is message.content and cached[2] is calls and cached[3] == message.id:
            return cached[4]
        converted = from_langchain(message)
        known = self._ids.get(message.id) if message.id else None
        key = self._keys.setdefault(_signature(converted), next(self._next)) if known is None else known
        if message.id:
            self._ids[message.id] = key
        seen = SeenMessage(key, converted, message.id)
        if isinstance(message.content, str):  # a list of blocks may be changed in place
            self._seen[id(message)] = (message, message.content, calls, message.id, seen)
        return seen

    def add_all(self, messages: Iterable[BaseMessage]) -> list[SeenMessage]:
        """The entries of the messages in order, without instructions to remove some."""
        return [self.add(message) for message in messages if not isinstance(message, RemoveMessage)]

    def add_state(self, state: Any) -> list[SeenMessage] | None:
        """The messages of a graph's input or final state (`state_messages`), in any form LangChain accepts; None
        where there are none."""
        _, value = state_messages(state)
        if isinstance(value, BaseMessage):
            value = [value]
        if not isinstance(value, list | tuple) or not value:
            return None
        if not all(isinstance(message, BaseMessage) for message in value):
            try:
                value = convert_to_messages(list(value))
            except (NotImplementedError, ValueError, TypeError, KeyError):
                return None
        return self.add_all(value)


def _signature(message: Message) -> Any:
    calls = tuple((call.id, call.name, None if call.id else _text(call.arguments)) for call in message.tool_calls)
    responses = tuple((part.id, None if part.id else _text(part.response)) for part in message.responses)
    counted = len(message.tool_calls) + len(message.responses)
    others = (
        ()
        if counted + 1 >= len(message.parts)
        else tuple(str(part) for part in message.parts if part.type not in ("text", "reasoning"))
    )
    return message.role, message.text, calls, responses, others


def _text(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value)
