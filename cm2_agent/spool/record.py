"""A run as the bytes that a spool file holds: each distinct message and tool once, calls refer to them by number.

`Run.to_json` repeats the whole dialogue in every call's input; here the size grows with what was said. The bytes are
MessagePack, or JSON where MessagePack cannot say it (lone surrogates, integers beyond 64 bits)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from operator import is_
from typing import Any

import ormsgpack

from cm2_agent.errors import TraceError
from cm2_agent.types.messages import Message, ToolSpec
from cm2_agent.types.run import Branch, ModelCall, Run, RunFailure, StateMark, ToolRun

__all__ = ["decode_run", "encode_run"]

_JSON, _MSGPACK = b"J", b"M"
_STRICT = ormsgpack.OPT_PASSTHROUGH_DATACLASS | ormsgpack.OPT_PASSTHROUGH_DATETIME | ormsgpack.OPT_PASSTHROUGH_SUBCLASS


def encode_run(run: Run) -> bytes:
    """Raises TypeError or ValueError where the run holds what is not JSON, or is nested too deeply for it; a store
    would refuse it too."""
    try:
        record = _Table().of_run(run)
        try:
            return _MSGPACK + ormsgpack.packb(record, option=_STRICT)
        except (TypeError, ValueError):
            text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
            return _JSON + text.encode("utf-8", "surrogatepass")
    except RecursionError as error:
        raise ValueError(f"run {run.id!r} is nested too deeply to be written: {error}") from error


def decode_run(record: bytes) -> Run:
    """The run that `encode_run` was given. Raises TraceError on anything else."""
    try:
        kind, body = record[:1], record[1:]
        data = ormsgpack.unpackb(body) if kind == _MSGPACK else json.loads(body.decode("utf-8", "surrogatepass"))
        return _run(data)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise TraceError(f"not a record of a run: {error}; expected the bytes that encode_run writes") from error


class _Table:
    """The distinct messages and tools of one run, in the order in which they were met."""

    def __init__(self) -> None:
        self._messages: list[Any] = []
        self._tools: list[Any] = []
        self._numbers: dict[int, int] = {}  # by identity: the run holds the objects, so an id stays its own
        self._last: tuple[Sequence[Message], list[int]] = (), []

    def of_run(self, run: Run) -> dict[str, Any]:
        record = _given(run, _RUN)
        if run.history:
            record["history"] = self._numbered(run.history)
        record["messages"] = [self._number(message, self._messages) for message in run.messages]
        if run.failure is not None:
            record["failure"] = dict(run.failure.__dict__)
        if run.branch is not None:
            record["branch"] = dict(run.branch.__dict__)
        if run.states:
            record["states"] = [[mark.hash, mark.messages] for mark in run.states]
        record["attributes"] = dict(run.attributes)
        record["calls"] = [self._call(call) for call in run.calls]
        record["tools"] = [_given(tool, _TOOL) for tool in run.tools]
        record["table"] = self._messages
        record["specs"] = self._tools
        return record

    def _call(self, call: ModelCall) -> dict[str, Any]:
        record = _given(call, _CALL)
        record["input"] = self._numbered(call.input)
        if call.output is not None:
            record["output"] = self._number(call.output, self._messages)
        if call.tools:
            record["tools"] = [self._number(tool, self._tools) for tool in call.tools]
        record["sampling"], record["usage"] = dict(call.sampling), dict(call.usage)
        return record

    def _numbered(self, messages: Sequence[Message]) -> list[int]:
        """Each list goes on from the one before, mostly: what they share is not looked up again."""
        if not self._messages:
            self._numbers = {id(message): place for place, message in enumerate(messages)}
            if len(self._numbers) == len(messages):
                self._messages += [message.json_text for message in messages]
                self._last = messages, [*range(len(messages))]
                return self._last[1]
            self._numbers = {}
        last, numbers = self._last
        same = min(len(last), len(messages))
        if not all(map(is_, last, messages)):
            same = 0
        out, known, table = numbers[:same], self._numbers, self._messages
        for message in messages[same:]:
            number = known.get(id(message))
            if number is None:
                number = known[id(message)] = len(table)
                table.append(message.json_text)
            out.append(number)
        self._last = messages, out
        return out

    def _number(self, value: Message | ToolSpec, table: list[Any]) -> int:
        found = self._numbers.get(id(value))
        if found is None:
            found = self._numbers[id(value)] = len(table)
            table.append(value.json_text if isinstance(value, Message) else value.to_json())
        return found


def _defaults(kind: type[Any]) -> dict[str, Any]:
    return {spec.name: spec.default for spec in fields(kind)}


_RUN, _CALL, _TOOL = _defaults(Run), _defaults(ModelCall), _defaults(ToolRun)


def _given(value: Run | ModelCall | ToolRun, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not the default itself."""
    held = value.__dict__  # cached properties are in it too
    return {name: held[name] for name, default in defaults.items() if held[name] is not default}


def _run(data: dict[str, Any]) -> Run:
    table = [Message.from_json(json.loads(text)) for text in data.pop("table")]
    specs = [ToolSpec.from_json(tool) for tool in data.pop("specs")]
    for name in ("messages", "history"):
        data[name] = tuple(table[number] for number in data.get(name, ()))
    if "failure" in data:
        data["failure"] = RunFailure(**data["failure"])
    if "branch" in data:
        data["branch"] = Branch(**data["branch"])
    data["states"] = tuple(StateMark(hash=mark[0], messages=mark[1]) for mark in data.get("states", ()))
    data["tags"] = tuple(data.get("tags", ()))
    data["calls"] = tuple(_call(call, table, specs) for call in data["calls"])
    data["tools"] = tuple(ToolRun(**tool) for tool in data["tools"])
    return Run(**data)


def _call(data: dict[str, Any], table: list[Message], specs: list[ToolSpec]) -> ModelCall:
    data["input"] = tuple(table[number] for number in data.get("input", ()))
    if "output" in data:
        data["output"] = table[data["output"]]
    data["tools"] = tuple(specs[number] for number in data.get("tools", ()))
    for name in ("prompt_ids", "completion_ids", "logprobs"):
        if name in data:
            data[name] = tuple(data[name])
    return ModelCall(**data)
