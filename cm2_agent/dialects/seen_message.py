"""One message as a callback showed it, and the name of a state that holds several."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from hashlib import blake2b
from operator import attrgetter
from typing import Any, Final

from cm2_agent.types.json_values import canonical_json
from cm2_agent.types.messages import SHOWN, Message, Text, part_to_json

_BITS: Final = 64
_LONGEST: Final = 1 << 18
"""Of a longer text only its length and its ends count in a state's hash."""


class SeenMessage:
    """One message as a callback showed it. `id` is LangChain's, where it has one by now; `shown` says that the model
    was shown it and nobody said it, `notice` that LangChain marks it as such; `original` is the message in whose
    place the application has put it since."""

    __slots__ = ("_hash", "_key", "id", "message", "notice", "original", "shown")

    def __init__(self, message: Message, id: str | None, notice: bool = False, key: Hashable = None) -> None:
        self.message, self.id, self.notice = message, id, notice
        self.shown = False
        self.original: Message | None = None
        self._key = key
        self._hash: int | None = None

    @property
    def key(self) -> Hashable:
        """The same for messages with the same content, and for those that had one id in one run."""
        if self._key is None:
            kept = vars(self.message)  # as a `cached_property` keeps it: a prompt's messages come again with the next
            self._key = kept.get("_signature")
            if self._key is None:
                self._key = kept["_signature"] = _signature(self.message)
        return self._key

    @property
    def hash(self) -> int:
        """Of id and content; the same in every process."""
        if self._hash is None:
            content = _content(self.message)
            text = canonical_json([self.id, *content])
            if len(text) > _LONGEST:
                text = canonical_json([self.id, *map(_shortened, content)])
            self._hash = int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_BITS // 8).digest())
        return self._hash

    def mark_shown(self) -> None:
        if not self.shown:
            self.message = replace(self.message, extra={**self.message.extra, SHOWN: True})
            self.shown = True

    def named(self, id: str | None) -> None:
        """A reducer has given the message its id."""
        self.id, self._hash = id, None


_hashes = attrgetter("_hash")


def total_hash(messages: Iterable[SeenMessage]) -> int:
    """The sum of the messages' hashes, which names a state (`state_hash`)."""
    listed = list(messages)
    hashes = list(map(_hashes, listed))
    if None in hashes:
        hashes = [seen.hash for seen in listed]
    return sum(hashes)


def state_hash(total: int) -> str:
    """The name of a state whose messages' hashes have this sum: the order does not count, ids and contents do."""
    return f"{total % (1 << _BITS):0{_BITS // 4}x}"


class Removal:
    """A RemoveMessage: its id, or REMOVE_ALL_MESSAGES."""

    __slots__ = ("id",)

    def __init__(self, id: str | None) -> None:
        self.id = id


def _signature(message: Message) -> Hashable:
    asked, answered = message.tool_calls, message.responses
    calls = tuple([(call.id, call.name, None if call.id else _text(call.arguments)) for call in asked])
    responses = tuple([(part.id, None if part.id else _text(part.response)) for part in answered])
    counted = len(asked) + len(answered)
    others = (
        ()
        if counted + 1 >= len(message.parts)
        else tuple(str(part) for part in message.parts if part.type not in ("text", "reasoning"))
    )
    return message.role, message.text, calls, responses, others


def _content(message: Message) -> list[Any]:
    """What of a message counts in the hash of a state: not how the model stopped, nor our marks."""
    parts = message.parts
    if not parts or (type(parts[0]) is Text and all(type(part) is Text for part in parts)):
        return [message.role, message.text]
    return [message.role, *map(part_to_json, parts)]


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else [len(value), value[: _LONGEST // 2], value[-_LONGEST // 2 :]]
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    return [_shortened(item) for item in value] if isinstance(value, list) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value)
