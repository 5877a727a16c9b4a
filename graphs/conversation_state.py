"""A conversation's state as bytes that come back exactly, where a checkpointer's own serialisation would change it
(lone surrogates) or refuse it (integers beyond 64 bits)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ormsgpack
from langchain_core.messages import BaseMessage, message_to_dict, messages_from_dict

from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, ToolSpec
from cm2_agent.types.run import ModelCall, Run

_STRICT = (
    ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_UUID
)
_MSGPACK, _TEXT = b"m", b"j"


def dump(value: JSON) -> bytes:
    """The bytes of a JSON value: msgpack, a tenth of the time that JSON text takes, or JSON text where msgpack cannot
    say it. Raises TypeError, ValueError for what is not JSON."""
    try:
        return _MSGPACK + ormsgpack.packb(value, option=_STRICT)
    except ormsgpack.MsgpackEncodeError:
        # not as \u escapes: two of them that are next to each other would come back as one character
        return _TEXT + json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def load(blob: bytes) -> JSON:
    """The value that `dump` was given, tuples as lists."""
    return (
        ormsgpack.unpackb(blob[1:]) if blob[:1] == _MSGPACK else json.loads(blob[1:].decode("utf-8", "surrogatepass"))
    )


class MessageEncoder:
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


class RunEncoder:
    """The runs of a dialogue as JSON, each message and tool definition once for all of them: a run's calls repeat the
    whole dialogue."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self._known: list[Message | ToolSpec] = []

    def write(self, run: Run) -> JSON:
        """What `read` makes the run of, after those before it. Raises TypeError, ValueError where it holds what is not
        JSON."""
        places: dict[int, int] = {}
        new: list[JSON] = []

        def place(one: Message | ToolSpec) -> int:
            if id(one) not in places:
                key = dump(data := one.to_json())
                if key not in self._places:
                    self._remember(key, one)
                    new.append([isinstance(one, ToolSpec), data])
                places[id(one)] = self._places[key]
            return places[id(one)]

        calls = []
        for call in run.calls:
            data = replace(call, input=(), output=None, tools=()).to_json()
            data["input"], data["tools"] = (
                [place(message) for message in call.input],
                [place(tool) for tool in call.tools],
            )
            data["output"] = None if call.output is None else place(call.output)
            calls.append(data)
        return {
            **replace(run, messages=(), calls=()).to_json(),
            "messages": [place(m) for m in run.messages],
            "calls": calls,
            "new": new,
        }

    def read(self, data: JSON) -> Run:
        known = dict(data)
        for is_tool, one in known.pop("new"):
            self._remember(dump(one), ToolSpec.from_json(one) if is_tool else Message.from_json(one))
        calls, messages = known.pop("calls"), known.pop("messages")
        return replace(
            Run.from_json(known),
            messages=self._at(messages),
            calls=tuple(
                replace(
                    ModelCall.from_json({**call, "input": (), "output": None, "tools": ()}),
                    input=self._at(call["input"]),
                    tools=self._at(call["tools"]),
                    output=None if call["output"] is None else self._known[call["output"]],
                )
                for call in calls
            ),
        )

    def _remember(self, key: bytes, one: Message | ToolSpec) -> None:
        self._places[key] = len(self._known)
        self._known.append(one)

    def _at(self, places: Sequence[int]) -> Any:
        return tuple(self._known[place] for place in places)


__all__ = ["MessageEncoder", "RunEncoder", "dump", "load"]
