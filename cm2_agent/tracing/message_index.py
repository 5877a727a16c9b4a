"""The messages of one run as the callbacks show them: converted once each, and numbered so that the same message is
known again.

Apart from `langchain_messages` (which converts and forgets) since a dialogue is put together by recognising what was
said before."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, RemoveMessage, convert_to_messages

from cm2_agent.langchain_messages import from_langchain
from cm2_agent.types.json_values import canonical_json
from cm2_agent.types.messages import Message


@dataclass(frozen=True, slots=True, eq=False)
class Saying:
    """One message as it was seen. `key` is the same for what says the same; `id` is LangChain's, where it has one."""

    key: int
    message: Message
    id: str | None


class Sayings:
    """The cache of one run. Two messages are the same if LangChain's id says so, or role, text and tool calls do."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[BaseMessage, Any, Any, str | None, Saying]] = {}
        self._ids: dict[str, int] = {}
        self._keys: dict[Any, int] = {}
        self._next = itertools.count()  # not the number of keys: nodes may run in several threads

    def one(self, message: BaseMessage) -> Saying:
        """The saying of a message object. The same object is converted once, unless it was changed in between."""
        calls = message.tool_calls if isinstance(message, AIMessage) else None
        known = self._seen.get(id(message))
        if known is not None and known[1] is message.content and known[2] is calls and known[3] == message.id:
            return known[4]
        said = from_langchain(message)
        mine = self._ids.get(message.id) if message.id else None
        key = self._keys.setdefault(_signature(said), next(self._next)) if mine is None else mine
        if message.id:
            self._ids[message.id] = key
        saying = Saying(key, said, message.id)
        if isinstance(message.content, str):  # a list of blocks may be changed in place
            self._seen[id(message)] = (message, message.content, calls, message.id, saying)
        return saying

    def of(self, messages: Iterable[BaseMessage]) -> list[Saying]:
        return [self.one(message) for message in messages if not isinstance(message, RemoveMessage)]

    def of_state(self, state: Any) -> list[Saying] | None:
        """The `messages` of a graph's input or final state, in any form LangChain accepts; None where there are
        none."""
        value = state.get("messages") if isinstance(state, Mapping) else getattr(state, "messages", state)
        if isinstance(value, BaseMessage):
            value = [value]
        if not isinstance(value, list | tuple) or not value:
            return None
        if not all(isinstance(message, BaseMessage) for message in value):
            try:
                value = convert_to_messages(list(value))
            except (NotImplementedError, ValueError, TypeError, KeyError):
                return None
        return self.of(value)


def _signature(message: Message) -> Any:
    calls = tuple((call.id, call.name, None if call.id else _text(call.arguments)) for call in message.tool_calls)
    answers = tuple((part.id, None if part.id else _text(part.response)) for part in message.responses)
    known = len(message.tool_calls) + len(message.responses)
    others = (
        ()
        if known + 1 >= len(message.parts)
        else tuple(str(part) for part in message.parts if part.type not in ("text", "reasoning"))
    )
    return message.role, message.text, calls, answers, others


def _text(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value)
