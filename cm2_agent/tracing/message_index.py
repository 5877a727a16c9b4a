"""The messages of one run as the callbacks show them: each converted once, and recognised when it appears again, in
this run or in a later one of its thread.

The dialogue is put together from these (`run_dialogue`)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from operator import is_
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, RemoveMessage, convert_to_messages
from langgraph.types import Command

from cm2_agent.langchain_messages import from_langchain
from cm2_agent.tracing.graph_values import state_messages
from cm2_agent.types.json_values import canonical_json
from cm2_agent.types.messages import SHOWN, Message, Text

_BITS: Final = 64
_NOTICE: Final = "lc_source"
"""LangChain's mark of a human message that the user did not type (`add_notification_metadata`)."""


class SeenMessage:
    """One message as a callback showed it. `id` is LangChain's, where it has one by now; `notice` says that LangChain
    marks it as written by the application."""

    __slots__ = ("_hash", "_key", "id", "message", "notice")

    def __init__(self, message: Message, id: str | None, notice: bool = False, key: Hashable = None) -> None:
        self.message, self.id, self.notice = message, id, notice
        self._key = key
        self._hash: int | None = None

    @property
    def key(self) -> Hashable:
        """The same for messages with the same content, and for those that had one id in one run."""
        if self._key is None:
            self._key = _signature(self.message)
        return self._key

    @property
    def hash(self) -> int:
        """Of id and content; the same in every process."""
        if self._hash is None:
            text = canonical_json([self.id, *_content(self.message)])
            self._hash = int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_BITS // 8).digest())
        return self._hash

    @property
    def shown(self) -> bool:
        """Whether the model was shown it and nobody said it."""
        return bool(self.message.extra) and SHOWN in self.message.extra

    def mark_shown(self) -> None:
        if not self.shown:
            self.message = replace(self.message, extra={**self.message.extra, SHOWN: True})

    def named(self, id: str | None) -> None:
        """A reducer has given the message its id."""
        self.id, self._hash = id, None


def state_hash(total: int) -> str:
    """The name of a state whose messages' hashes have this sum: the order does not count, ids and contents do."""
    return f"{total % (1 << _BITS):0{_BITS // 4}x}"


class Removal:
    """A RemoveMessage: its id, or REMOVE_ALL_MESSAGES."""

    __slots__ = ("id",)

    def __init__(self, id: str | None) -> None:
        self.id = id


class _Converted:
    """A LangChain message with our form of it."""

    __slots__ = ("content", "message", "seen")

    def __init__(self, message: BaseMessage, seen: SeenMessage) -> None:
        self.message, self.seen = message, seen
        content = message.content
        self.content = content if isinstance(content, str) else _copied(content)

    def holds(self, message: BaseMessage) -> bool:
        """Whether the message still says what it said: nodes may change content and arguments in place."""
        content = message.content
        if content is not self.content and content != self.content:
            return False
        if isinstance(message, AIMessage) and message.tool_calls:
            mine = self.seen.message.tool_calls
            return len(mine) >= len(message.tool_calls) and all(
                call["name"] == own.name and call["args"] == own.arguments
                for call, own in zip(message.tool_calls, mine, strict=False)
            )
        return True


class ThreadMessages:
    """The messages that the last runs of some threads ended with, so that a history that comes again, as new objects
    out of a checkpointer, is not converted again. Bounded in messages and characters; the least recent threads go
    first."""

    def __init__(self, messages: int = 50_000, characters: int = 32_000_000, longest: int = 200_000) -> None:
        self._limits = messages, characters
        self._longest = longest
        self._threads: OrderedDict[str, tuple[dict[str, _Converted], int]] = OrderedDict()
        self._count = self._characters = 0
        self._lock = threading.Lock()

    def of(self, thread: str | None) -> Mapping[str, _Converted]:
        """The converted messages of a thread by id."""
        found = self._threads.get(thread) if thread is not None else None
        return {} if found is None else found[0]

    def remember(self, thread: str | None, converted: Iterable[_Converted]) -> None:
        """Replace what is held of the thread."""
        if thread is None:
            return
        held = {}
        size = 0
        for entry in converted:
            content = entry.content
            length = len(content) if isinstance(content, str) else 200 + sum(len(str(block)) for block in content)
            if entry.seen.id is not None and length <= self._longest:
                held[entry.seen.id] = entry
                size += length
        with self._lock:
            self._forget(thread)
            if held:
                self._threads[thread] = held, size
                self._count += len(held)
                self._characters += size
            while self._threads and (self._count > self._limits[0] or self._characters > self._limits[1]):
                self._forget(next(iter(self._threads)))

    def _forget(self, thread: str) -> None:
        found = self._threads.pop(thread, None)
        if found is not None:
            self._count -= len(found[0])
            self._characters -= found[1]


class MessageIndex:
    """All messages that one run has shown. Two are the same if LangChain's ids agree, or role, text and tool calls
    do."""

    def __init__(self, earlier: Mapping[str, _Converted] | None = None) -> None:
        self.earlier = earlier or {}
        """Those of the thread's last run by id."""
        self._objects: dict[int, tuple[BaseMessage, _Converted]] = {}
        self._ids: dict[str, _Converted] = {}
        # A state that a node was shown, its entries, and how many of these are not looked at again
        self._last: tuple[Sequence[BaseMessage], list[SeenMessage], int] = ((), [], 0)
        self._settled: int | None = None

    def add(self, message: BaseMessage) -> SeenMessage:
        """The entry of a message object. The same object is converted once, unless it was changed in between."""
        known = self._objects.get(id(message))
        if known is not None and known[1].holds(message):
            seen = known[1].seen
            if seen.id != message.id:
                self._name(known[1], message.id)
            return seen
        before = None
        if message.id:
            before = self._ids.get(message.id) or self.earlier.get(message.id)
            if before is not None and before.holds(message) and before.message.__dict__ == message.__dict__:
                return self._hold(message, before)
        converted = from_langchain(message)
        notice = isinstance(message.additional_kwargs.get(_NOTICE), str)
        if before is not None and _equal(before.seen.message, converted):
            return self._hold(message, _Converted(message, before.seen))
        seen = SeenMessage(converted, message.id, notice, None if before is None else before.seen.key)
        return self._hold(message, _Converted(message, seen))

    def add_all(self, messages: Sequence[BaseMessage]) -> list[SeenMessage]:
        """The entries of the messages in order, without instructions to remove some."""
        last, entries, settled = self._last
        skip = 1 if len(messages) > 1 and last and messages[0] is not last[0] else 0  # a system message before them
        same = 0
        if last and len(messages) > skip and messages[skip] is last[0]:
            same = min(settled, len(messages) - skip)
            if not all(map(is_, last[:same], messages[skip : skip + same])):
                same = 0
        out = [self.add(message) for message in messages[:skip] if not isinstance(message, RemoveMessage)]
        out += entries[:same]
        out += [self.add(message) for message in messages[skip + same :] if not isinstance(message, RemoveMessage)]
        return out

    def add_state(self, state: Any) -> list[SeenMessage] | None:
        """The messages of a graph's input or state (`state_messages`), in any form LangChain accepts; None where there
        are none."""
        _, value = state_messages((state.update or None) if isinstance(state, Command) else state)
        found = as_messages(value) if value else None
        return None if found is None else self.add_all(found)

    def add_snapshot(self, value: Any) -> list[SeenMessage] | None:
        """The messages of the graph's state as one of its nodes is shown it. What the run found there is converted once
        and not looked at again, but for the last few, which may be its own input."""
        found = as_messages(value)
        if found is None:
            return None
        entries = self.add_all(found)
        if len(entries) == len(found):
            if self._settled is None:
                self._settled = max(0, len(found) - 8)
            self._last = found, entries, min(self._settled, len(found))
        return entries

    def add_write(self, value: Any) -> list[SeenMessage | Removal] | None:
        """What a node writes to `messages`, in order; None where it is nothing of that kind."""
        found = as_messages(value)
        if found is None:
            return None
        return [Removal(message.id) if isinstance(message, RemoveMessage) else self.add(message) for message in found]

    def converted(self) -> Sequence[_Converted]:
        """What `ThreadMessages` holds of the run: every message that has an id."""
        return list(self._ids.values())

    def _hold(self, message: BaseMessage, converted: _Converted) -> SeenMessage:
        self._objects[id(message)] = message, converted
        if message.id:
            self._ids[message.id] = converted
        return converted.seen

    def _name(self, converted: _Converted, id: str | None) -> None:
        converted.seen.named(id)
        if id:
            self._ids[id] = converted


def as_messages(value: Any) -> Sequence[BaseMessage] | None:
    """One message or a list, in any form LangChain accepts; None for what is neither."""
    if isinstance(value, BaseMessage):
        return [value]
    if not isinstance(value, list | tuple):
        return None
    if all(issubclass(kind, BaseMessage) for kind in set(map(type, value))):
        return value
    try:
        return convert_to_messages(list(value))
    except (NotImplementedError, ValueError, TypeError, KeyError):
        return None


def _equal(ours: Message, converted: Message) -> bool:
    """Whether the message is the converted one, but for our mark."""
    if ours.extra and SHOWN in ours.extra:
        ours = replace(ours, extra={key: value for key, value in ours.extra.items() if key != SHOWN})
    return ours == converted


def _copied(content: Any) -> Any:
    return [dict(block) if isinstance(block, dict) else block for block in content]


def _signature(message: Message) -> Hashable:
    calls = tuple((call.id, call.name, None if call.id else _text(call.arguments)) for call in message.tool_calls)
    responses = tuple((part.id, None if part.id else _text(part.response)) for part in message.responses)
    counted = len(message.tool_calls) + len(message.responses)
    others = (
        ()
        if counted + 1 >= len(message.parts)
        else tuple(str(part) for part in message.parts if part.type not in ("text", "reasoning"))
    )
    return message.role, message.text, calls, responses, others


def _content(message: Message) -> list[Any]:
    """What of a message counts in the hash of a state: not how the model stopped, nor our marks."""
    if all(type(part) is Text for part in message.parts):
        return [message.role, message.text]
    return [message.role, *(part for part in message.to_json()["parts"])]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value)
