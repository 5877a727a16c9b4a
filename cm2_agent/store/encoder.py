"""Runs encoded as rows, before the database is asked anything.

A model call keeps what it *added*: a base is an earlier call of the same trace, and its tokens (prompt, then
completion) and dialogue (input, then output) are the beginning that the next call is compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cm2_agent.errors import StoreError, TraceError
from cm2_agent.store.codec import (
    DIGEST,
    address,
    dump,
    dump_mapping,
    pack_ids,
    pack_logprobs,
    seal,
    sealed,
    shared_prefix,
)
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, ToolSpec
from cm2_agent.types.run import ModelCall, Run

ID_BYTES = 4
CANDIDATES = 4
"""How many earlier calls are tried as a base: more than one, since sub-agents' calls lie between those of the main
line."""
UNTRAINABLE = 8
"""Where `untrainable` stands among a packed call's facts."""


class Base(NamedTuple):
    """A stored call that later ones may share a beginning with."""

    run: int | None  # its run's `seq`; None within the run that is being packed
    position: int
    tokens: bytes
    dialogue: bytes


@dataclass(frozen=True, kw_only=True)
class PackedCall:
    """A model call: `facts` are its columns from span_id to output, the rest is whole, not yet shortened by a base."""

    facts: tuple[Any, ...]
    input: bytes
    output: bytes | None
    prompt_ids: bytes | None
    completion_ids: bytes | None
    logprobs: bytes | None

    def as_base(self, position: int) -> Base:
        tokens = b"" if self.prompt_ids is None else self.prompt_ids + (self.completion_ids or b"")
        return Base(None, position, tokens, self.input + (self.output or b""))

    def row(self, run: int, position: int, bases: Sequence[Base]) -> tuple[Any, ...]:
        """The row of `model_calls`, against the best of the bases, latest first."""
        prompt = self.prompt_ids or b""
        chosen, ids, messages = None, 0, 0
        for base in reversed(bases):
            shared = shared_prefix(base.tokens, prompt, ID_BYTES), shared_prefix(base.dialogue, self.input, DIGEST)
            if shared > (ids, messages):
                chosen, (ids, messages) = base, shared
        where = (None, None) if chosen is None else (run if chosen.run is None else chosen.run, chosen.position)
        added = None if self.prompt_ids is None else prompt[ids * ID_BYTES :]
        rest = self.input[messages * DIGEST :]
        return (run, position, *self.facts, *where, messages, ids, rest, added, self.completion_ids, self.logprobs)


@dataclass(frozen=True, kw_only=True)
class PackedRun:
    """A run ready to be written: `facts` are its columns from name to ended."""

    run: Run
    id: str
    trace_id: str
    facts: tuple[Any, ...]
    hash: bytes
    attributes: str
    messages: bytes
    calls: tuple[PackedCall, ...]
    tools: tuple[tuple[Any, ...], ...]

    def row(self, trace: int) -> tuple[Any, ...]:
        return (self.id, trace, self.run.thread is not None, *self.facts, self.hash, self.attributes, self.messages)


class Packer:
    """Packs the runs of one write and gathers the contents that they refer to: `{hash: (kind, body)}`."""

    def __init__(self) -> None:
        self.contents: dict[bytes, tuple[str, str]] = {}
        self._by_object: dict[int, tuple[object, bytes]] = {}  # the object is held, so that its id stays its own
        self._by_body: dict[str, bytes] = {}

    def pack(self, run: Run) -> PackedRun:
        """Raises StoreError where the run holds what is not JSON, or what could not be read back."""
        where = f"run {run.id!r}"
        for name, value in (("id", run.id), ("thread", run.thread or "")):
            if not isinstance(value, str):
                raise StoreError(f"{where}: {name} is {type(value).__name__} {value!r:.60}; expected text")
        failure = (None, None) if run.failure is None else (seal(run.failure.kind), seal(run.failure.message))
        facts = (seal(run.name), run.status, *failure, run.started, run.ended)
        attributes = dump_mapping(run.attributes, f"{where}: attributes")
        messages = self._messages(run.messages, where)
        calls = tuple(self._call(call, f"{where}, model call {number}") for number, call in enumerate(run.calls))
        tools = tuple(
            (
                seal(tool.span_id),
                seal(tool.name),
                sealed(tool.call_id),
                sealed(tool.backend),
                tool.started,
                tool.ended,
                sealed(tool.error),
                dump(tool.arguments, f"{where}, tool {tool.name}: arguments"),
                dump(tool.result, f"{where}, tool {tool.name}: result"),
                sealed(tool.fault),
            )
            for tool in run.tools
        )
        blobs = [
            messages,
            *(blob for call in calls for blob in (call.input, call.prompt_ids, call.completion_ids, call.logprobs)),
        ]
        facts_of_calls = [
            call.facts[:UNTRAINABLE] + call.facts[UNTRAINABLE + 1 :] for call in calls
        ]  # a judgement, not a fact of the run
        ran = [
            tool[:-1] if tool[-1] is None else tool for tool in tools
        ]  # runs stored before there were faults keep their hash
        plain = (run.id, run.thread, facts, attributes, facts_of_calls, ran)
        return PackedRun(
            run=run,
            id=seal(run.id),
            trace_id=seal(run.trace_id),
            facts=facts,
            hash=_hash(plain, blobs),
            attributes=attributes,
            messages=messages,
            calls=calls,
            tools=tools,
        )

    def _call(self, call: ModelCall, where: str) -> PackedCall:
        output = None if call.output is None else self._message(call.output, where)
        facts = (
            seal(call.span_id),
            sealed(call.model),
            sealed(call.model_version),
            call.message,
            call.started,
            call.ended,
            sealed(call.finish_reason),
            sealed(call.error),
            call.untrainable,
            dump_mapping(call.sampling, f"{where}: sampling"),
            dump_mapping(call.usage, f"{where}: usage"),
            self._toolset(call.tools, where) if call.tools else None,
            output,
        )
        return PackedCall(
            facts=facts,
            input=self._messages(call.input, where),
            output=output,
            prompt_ids=pack_ids(call.prompt_ids),
            completion_ids=pack_ids(call.completion_ids),
            logprobs=pack_logprobs(call.logprobs),
        )

    def _messages(self, messages: Iterable[Message], where: str) -> bytes:
        return b"".join([self._message(message, where) for message in messages])

    def _message(self, message: Message, where: str) -> bytes:
        seen = self._by_object.get(id(message))
        if seen is None:
            seen = self._by_object[id(message)] = (message, self._content("message", message.to_json(), where))
        return seen[1]

    def _toolset(self, tools: tuple[ToolSpec, ...], where: str) -> bytes:
        seen = self._by_object.get(id(tools))
        if seen is None:
            hashes = [self._tool(tool, where).hex() for tool in tools]
            seen = self._by_object[id(tools)] = (tools, self._content("toolset", hashes, where))
        return seen[1]

    def _tool(self, tool: ToolSpec, where: str) -> bytes:
        seen = self._by_object.get(id(tool))
        if seen is None:
            seen = self._by_object[id(tool)] = (tool, self._content("tool", tool.to_json(), where))
        return seen[1]

    def _content(self, kind: str, value: JSON, where: str) -> bytes:
        body = dump(value, f"{where}: a {kind}")
        found = self._by_body.get(body)
        if found is None:
            _require_readable(kind, value, where)
            found = self._by_body[body] = address(value, f"{where}: a {kind}")
            self.contents.setdefault(found, (kind, body))
        return found


def _require_readable(kind: str, value: JSON, where: str) -> None:
    """Raises StoreError for a content that a reader of the store would refuse: every later command would fail on it."""
    read = {"message": Message.from_json, "tool": ToolSpec.from_json}.get(kind)
    if read is None:
        return
    try:
        read(value)
    except TraceError as error:
        raise StoreError(f"{where}: {error}") from error


def _hash(plain: object, blobs: Sequence[bytes | None]) -> bytes:
    made = hashlib.sha256(repr(plain).encode("utf-8", "surrogatepass"))
    for blob in blobs:
        made.update(b"-" if blob is None else b"%d:" % len(blob))
        made.update(blob or b"")
    return made.digest()
