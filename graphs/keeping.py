"""A dialogue's state as bytes that come back exactly, where a checkpointer's own serialisation would change it (lone surrogates) or refuse
it (integers beyond 64 bits); apart from the dialogue, which does not care how."""

from __future__ import annotations

import json
from collections.abc import Sequence

import ormsgpack
from langchain_core.messages import BaseMessage, message_to_dict, messages_from_dict

from cm2_agent.messages import JSON

_STRICT = (
    ormsgpack.OPT_PASSTHROUGH_DATACLASS | ormsgpack.OPT_PASSTHROUGH_DATETIME | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS | ormsgpack.OPT_PASSTHROUGH_UUID
)  # fmt: skip
_MSGPACK, _TEXT = b"m", b"j"


def dump(value: JSON) -> bytes:
    """The bytes of a JSON value: msgpack, a tenth of the time that JSON text takes, or JSON text where msgpack cannot say it. Raises
    TypeError, ValueError for what is not JSON."""
    try:
        return _MSGPACK + ormsgpack.packb(value, option=_STRICT)
    except ormsgpack.MsgpackEncodeError:
        return _TEXT + json.dumps(value).encode()


def load(blob: bytes) -> JSON:
    """The value that `dump` was given, tuples as lists."""
    return ormsgpack.unpackb(blob[1:]) if blob[:1] == _MSGPACK else json.loads(blob[1:])


class Written:
    """The messages of a dialogue as bytes, each written once."""

    def __init__(self) -> None:
        self._known: list[tuple[BaseMessage, bytes]] = []

    def blobs(self, messages: Sequence[BaseMessage]) -> list[bytes]:
        """Raises TypeError, ValueError where a message holds what is not JSON."""
        known = self._known
        for place, message in enumerate(messages):
            if place >= len(known) or not (known[place][0] is message or known[place][0] == message):
                known[place:] = [(message, dump(message_to_dict(message)))]
        del known[len(messages) :]
        return [blob for _, blob in known]

    def messages(self, blobs: Sequence[bytes]) -> list[BaseMessage]:
        self._known = list(zip(messages_from_dict([load(blob) for blob in blobs]), blobs, strict=True))
        return [message for message, _ in self._known]


__all__ = ["Written", "dump", "load"]
