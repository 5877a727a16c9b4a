"""The messages of one run as the callbacks show them: each converted once, and recognised when it appears again, in
this run or in a later one of its thread.

The dialogue is put together from these (`run_dialogue`)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from operator import is_
from typing import Any, Final

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)
from langgraph.types import Command

from cm2_agent.dialects.seen_message import Removal, SeenMessage
from cm2_agent.langchain_messages import from_langchain
from cm2_agent.tracing.graph_values import state_messages
from cm2_agent.types.messages import SHOWN, Message

_RECENT: Final = 8
"""So many of a state's last messages are looked at again, since nodes may change them in place."""
_KINDS: Final = frozenset({AIMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage})
_NOTICE: Final = "lc_source"
"""LangChain's mark of a human message that the user did not type (`add_notification_metadata`)."""


class _Converted:
    """A LangChain message with our form of it."""

    __slots__ = ("content", "message", "seen")

    def __init__(self, message: BaseMessage, seen: SeenMessage) -> None:
        self.message, self.seen = message, seen
        content = message.content
        self.content = content if isinstance(content, str) else _copied(content)

    @property
    def length(self) -> int:
        """In characters, about."""
        if isinstance(self.content, str):
            return len(self.content)
        return 200 + sum(len(str(block)) for block in self.content)

    def holds(self, message: BaseMessage) -> bool:
        """Whether the message still says what it said: nodes may change content and arguments in place."""
        content = message.content
        if content is not self.content and content != self.content:
            return False
        asked = message.__dict__.get("tool_calls")  # of an assistant's message
        if asked:
            mine = self.seen.message.tool_calls
            if len(mine) < len(asked):
                return False
            for call, own in zip(asked, mine, strict=False):
                if call["name"] != own.name or call["args"] != own.arguments:
                    return False
        return True


class _Thread:
    """What is held of a thread: its messages by id, and the last state's in order, as what LangChain's objects held
    (`_fields`) with our form of them. The objects are those that no node can reach any more, or that were looked at
    when their run ended."""

    __slots__ = ("fields", "ids", "prompted", "seen", "size")

    def __init__(self, prompted: bool = False) -> None:
        self.prompted = prompted
        """Whether a run has the prompt of the dialogue."""
        self.ids: dict[str, _Converted] = {}
        self.fields: list[list[Any]] = [[] for _ in _FIELDS]
        self.seen: list[SeenMessage] = []
        self.size = 0


class ThreadMessages:
    """The messages of some threads, so that a history that comes again, as new objects out of a checkpointer, is not
    converted again. Bounded in messages and characters; the least recent threads go first."""

    def __init__(self, messages: int = 50_000, characters: int = 32_000_000, longest: int = 200_000) -> None:
        self._limits = messages, characters
        self._longest = longest
        self._threads: OrderedDict[str, _Thread] = OrderedDict()
        self._count = self._characters = 0
        self._lock = threading.Lock()

    def of(self, thread: str | None) -> _Thread | None:
        """What is held of a thread."""
        return self._threads.get(thread) if thread is not None else None

    def remember(self, thread: str | None, index: MessageIndex) -> None:
        """Hold what a run of the thread has shown."""
        if thread is None:
            return
        with self._lock:
            held = self._threads.pop(thread, None) or index.thread
            self._count -= len(held.ids)
            self._characters -= held.size
            new = index.new()
            raw, seen, same = index.last_state()
            if len(held.ids) > 2 * len(raw) + 100:  # most of them have been removed
                left = {entry.id for entry in seen}
                new = {id: found for id, found in [*held.ids.items(), *new.items()] if id in left}
                held = _Thread(held.prompted)
            for id, converted in new.items():
                length = converted.length
                if length <= self._longest and id not in held.ids:
                    held.size += length
                if length <= self._longest:
                    held.ids[id] = converted
            if same > len(held.seen):
                same = 0
            whole = all(entry.id is None or entry.id in held.ids for entry in seen[same:])
            held.size += sum(len(entry.message.text) for entry in seen[same:] if entry.id is None)
            held.fields = (
                [own[:same] + more for own, more in zip(held.fields, _fields(raw[same:]), strict=True)]
                if whole
                else [[] for _ in _FIELDS]
            )
            held.seen = list(seen) if whole else []
            self._threads[thread] = held
            self._count += len(held.ids)
            self._characters += held.size
            while self._threads and (self._count > self._limits[0] or self._characters > self._limits[1]):
                _, dropped = self._threads.popitem(last=False)
                self._count -= len(dropped.ids)
                self._characters -= dropped.size


class MessageIndex:
    """All messages that one run has shown. Two are the same if LangChain's ids agree, or role, text and tool calls
    do."""

    def __init__(self, thread: _Thread | None = None) -> None:
        self.thread = thread or _Thread()
        self._objects: dict[int, tuple[BaseMessage, _Converted]] = {}
        self._ids: dict[str, _Converted] = {}
        # A state that a node was shown, its entries, and how many of these are not looked at again
        self._last: tuple[Sequence[BaseMessage], list[SeenMessage], int] = ((), [], 0)
        self._begun = False
        self._same = 0  # so many of the state's first messages are those that are held of the thread
        self.outside: list[SeenMessage] = []
        """What the first state that was shown holds behind the state that the thread's last run here ended in."""
        self.repeated: set[str] = set()
        """Ids at the end of the first state that an earlier run of the thread has shown."""
        self._state: tuple[Sequence[BaseMessage], list[SeenMessage]] = ((), [])
        # The last state with what was written since: the next one, where a node only adds
        self._expected: tuple[list[BaseMessage], list[SeenMessage]] = [], []
        self._shared: list[SeenMessage] = []  # a copy of its entries, for as long as it is the same

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
            before = self._ids.get(message.id) or self.thread.ids.get(message.id)
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
        if (expected := self._as_expected(messages)) is not None:
            return expected
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
        if found is None:
            return None
        self._expected, self._shared = ([], []), []
        entries = self.add_all(found)
        if self._begun and len(entries) == len(found):
            self._state = found, entries
        return entries

    def add_snapshot(self, value: Any) -> list[SeenMessage] | None:
        """The messages of the graph's state as one of its nodes is shown it. Only the last ones are looked at again:
        what stands before them is what it was when it was converted."""
        if self._begun and type(value) is list and len(value) == len(self._expected[0]):
            entries = self._as_expected(value)
            if entries is not None:  # and so what it holds is known to be messages
                self._state = value, entries
                self._last = value, entries, max(self._last[2], len(value) - _RECENT)
                return entries
        found = as_messages(value)
        if found is None:
            return None
        if not self._begun:
            self._same = self._count_same(found)
            entries = self.thread.seen[: self._same] + self.add_all(found[self._same :])
            self.repeated = {
                seen.id for seen in entries[-_RECENT:] if seen.id is not None and seen.id in self.thread.ids
            }
            if self._same and self._same == len(self.thread.seen):
                self.outside = [seen for seen in entries[self._same :] if seen.id not in self.thread.ids]
            settled = max(self._same, len(found) - _RECENT)
            self._begun = True
        else:
            entries = self.add_all(found)
            last, _, settled = self._last
            same = len(found) >= settled and all(map(is_, last[:settled], found))
            settled = max(settled if same else 0, len(found) - _RECENT)
        if len(entries) == len(found):
            self._state = found, entries
            self._last = found, entries, settled
            self._expected, self._shared = (list(found), list(entries)), []
        return entries

    def _as_expected(self, messages: Sequence[BaseMessage]) -> list[SeenMessage] | None:
        """The entries of the state as it was shown last, with what was written since, where the messages are these, as
        objects; they may stand behind a system message. Only the last two are looked at again, where a node may have
        changed one in place, as to moderate a reply; other such changes show when a node writes the message, or at the
        end."""
        raw, entries = self._expected
        more = len(messages) - len(raw)
        if not raw or more not in (0, 1) or (more and not isinstance(messages[0], SystemMessage)):
            return None
        if not all(map(is_, messages[more:] if more else messages, raw)):
            return None
        for message in raw[-2:]:
            known = self._objects.get(id(message))
            if known is None or not known[1].holds(message):
                return None
        if len(self._shared) != len(entries):
            self._shared = list(entries)
        return [self.add(messages[0]), *entries] if more else self._shared

    def _count_same(self, messages: Sequence[BaseMessage]) -> int:
        """How many of the first messages say what the first of the thread's last state did."""
        same = min(len(messages), len(self.thread.seen))
        for own, other in zip(_fields(messages[:same]), self.thread.fields, strict=True):
            if own[:same] != other[:same]:
                same = next(place for place in range(same) if own[place] != other[place])
        return same

    def add_write(self, value: Any) -> list[SeenMessage | Removal] | None:
        """What a node writes to `messages`, in order; None where it is nothing of that kind."""
        found = as_messages(value)
        if found is None:
            return None
        out: list[SeenMessage | Removal] = []
        raw, entries = self._expected
        for message in found:
            if isinstance(message, RemoveMessage):
                out.append(Removal(message.id))
            else:
                seen = self.add(message)
                out.append(seen)
                raw.append(message)
                entries.append(seen)
        return out

    def name_all(self) -> None:
        """Reducers have given their ids to messages that were written without one."""
        for message, converted in list(self._objects.values()):
            if message.id and converted.seen.id is None:
                self._name(converted, message.id)

    def new(self) -> dict[str, _Converted]:
        """What the run has shown beside what was held of the thread, by id."""
        return self._ids

    def last_state(self) -> tuple[Sequence[BaseMessage], list[SeenMessage], int]:
        """The last state that was shown, and how many of its first messages are the held ones."""
        raw, seen = self._state
        same = min(self._same, len(seen))
        if not all(map(is_, seen[:same], self.thread.seen)):
            same = 0
        return raw, seen, same

    def _hold(self, message: BaseMessage, converted: _Converted) -> SeenMessage:
        self._objects[id(message)] = message, converted
        if message.id:
            self._ids[message.id] = converted
        return converted.seen

    def _name(self, converted: _Converted, id: str | None) -> None:
        converted.seen.named(id)
        if id:
            self._ids[id] = converted


_FIELDS = ("type", "id", "content", "additional_kwargs", "tool_calls")
"""What makes a message that comes again the same one. The rest, such as the usage that a provider reported, says
nothing to a model; to compare it too took three times as long."""


def _fields(messages: Sequence[BaseMessage]) -> list[list[Any]]:
    """For each of _FIELDS its value in every message: lists compare faster than messages do."""
    held = [message.__dict__ for message in messages]
    return [[one.get(name) for one in held] for name in _FIELDS]


def as_messages(value: Any) -> Sequence[BaseMessage] | None:
    """One message or a list, in any form LangChain accepts; None for what is neither."""
    if isinstance(value, BaseMessage):
        return [value]
    if not isinstance(value, (list, tuple)):
        return None
    if len(value) == 1 and type(value[0]) in _KINDS:
        return value
    kinds = set(map(type, value))
    if kinds <= _KINDS or all(issubclass(kind, BaseMessage) for kind in kinds):
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
