"""Rows into traces: every prefix restored, every content read once a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, select

from cm2_agent.errors import StoreError, TraceError
from cm2_agent.store.call_addresses import input_of, output_of
from cm2_agent.store.codec import (
    body_of,
    load,
    load_tags,
    pack_ids,
    split_digests,
    unpack_ids,
    unpack_logprobs,
    unseal,
    unsealed,
)
from cm2_agent.store.encoder import Base, answers_of
from cm2_agent.store.schema import contents, model_calls, outcomes, runs, tool_runs, traces
from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.messages import ROLES, Message, ToolCall, ToolCallResponse, ToolSpec, other_part
from cm2_agent.types.packed import Packed
from cm2_agent.types.run import Branch, ModelCall, Run, RunFailure, StateMark, ToolRun
from cm2_agent.types.trace import Trace

T = TypeVar("T")
CHUNK = 500
"""Keys in one IN (…): far below every database's limit on parameters."""
PAGE = 64
"""Traces read in one transaction."""


def chunks(values: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    """The values in lists of at most `size`."""
    chunk: list[T] = []
    for value in values:
        chunk.append(value)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class Reader:
    """Reads traces and remembers the contents it has parsed: use one a page, or one for a fetch that is held in memory
    as a whole."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._messages: dict[bytes, Message] = {}
        self._tools: dict[bytes, ToolSpec] = {}
        self._toolsets: dict[bytes, tuple[ToolSpec, ...]] = {}

    def traces(self, seqs: Sequence[int]) -> list[Trace]:
        """The traces of these rows, in the order given."""
        made: dict[int, Trace] = {}
        for chunk in chunks(seqs, PAGE):
            made.update(self._page(chunk))
        return [made[seq] for seq in seqs]

    def _page(self, seqs: Sequence[int]) -> dict[int, Trace]:
        run = self._connection.execute
        heads = run(select(traces.c.seq, traces.c.id).where(traces.c.seq.in_(seqs))).all()
        run_rows = run(select(runs).where(runs.c.trace.in_(seqs)).order_by(runs.c.started, runs.c.seq)).all()
        calls: dict[int, list[_Restored]] = {}
        for restored in _restored(self._connection, seqs, {row.seq: bytes(row.messages) for row in run_rows}):
            calls.setdefault(restored.row.run, []).append(restored)
        tools: dict[int, list[Any]] = {}
        of_traces = select(runs.c.seq).where(runs.c.trace.in_(seqs))
        for row in run(
            select(tool_runs).where(tool_runs.c.run.in_(of_traces)).order_by(tool_runs.c.run, tool_runs.c.position)
        ):
            tools.setdefault(row.run, []).append(row)
        ends: dict[int, dict[str, float | None]] = {}
        for row in run(select(outcomes).where(outcomes.c.trace.in_(seqs)).order_by(outcomes.c.trace, outcomes.c.name)):
            ends.setdefault(row.trace, {})[unseal(row.name)] = row.value
        self._fetch(run_rows, calls)
        ids = {row.seq: unseal(row.id) for row in heads}
        made: dict[int, list[Run]] = {seq: [] for seq in ids}
        for row in run_rows:
            made[row.trace].append(self._run(row, ids[row.trace], calls.get(row.seq, []), tools.get(row.seq, [])))
        return {seq: Trace(id=ids[seq], runs=tuple(made[seq]), outcomes=ends.get(seq, {})) for seq in ids}

    def _run(self, row: Any, trace_id: str, calls: Sequence[_Restored], tools: Sequence[Any]) -> Run:
        failure = (
            None
            if row.failure_kind is None
            else RunFailure(kind=unseal(row.failure_kind), message=unseal(row.failure_message))
        )
        messages = self._dialogue(row.messages)
        answers = answers_of(messages) if any(tool.result is None for tool in tools) else {}
        id, thread = unseal(row.id), trace_id if row.threaded else unsealed(row.thread)
        return Run(
            id=id,
            thread=thread,
            trace=None if trace_id == (id if thread is None else thread) else trace_id,
            name=unseal(row.name),
            status=row.status,
            failure=failure,
            messages=messages,
            history=() if row.history is None else self._dialogue(row.history),
            input=None if row.input is None else load(row.input),
            output=None if row.output is None else load(row.output),
            branch=branch_of(row),
            states=states_of(row),
            user=unsealed(row.user),
            session=unsealed(row.session),
            tags=load_tags(row.tags),
            calls=tuple(self._call(call) for call in calls),
            tools=tuple([_tool_run(tool, answers) for tool in tools]),
            attributes=load(row.attributes),
            started=row.started,
            ended=row.ended,
        )

    def _call(self, restored: _Restored) -> ModelCall:
        row = restored.row
        return ModelCall(
            span_id=unseal(row.span_id),
            model=unsealed(row.model),
            model_version=unsealed(row.model_version),
            input=tuple([self._messages[digest] for digest in restored.input]),
            output=None if restored.output is None else self._messages[restored.output],
            tools=() if restored.toolset is None else self._toolsets[restored.toolset],
            prompt_ids=restored.prompt_ids,
            completion_ids=restored.completion_ids,
            logprobs=None if row.logprobs is None else Packed.of(unpack_logprobs(row.logprobs)),
            sampling=load(row.sampling),
            usage=load(row.usage),
            finish_reason=unsealed(row.finish_reason),
            error=unsealed(row.error),
            message=row.message,
            agent=unsealed(row.agent),
            changed=row.changed,
            started=row.started,
            ended=row.ended,
        )

    def _dialogue(self, digests: bytes) -> tuple[Message, ...]:
        return tuple([self._messages[digest] for digest in split_digests(digests)])

    def _fetch(self, run_rows: Iterable[Any], calls: dict[int, list[_Restored]]) -> None:
        """Read the contents that these rows refer to and that were not read before."""
        wanted: set[bytes] = set()
        toolsets: set[bytes] = set()
        for row in run_rows:
            wanted.update(split_digests(row.messages))
            if row.history is not None:
                wanted.update(split_digests(row.history))
        for restored in (call for several in calls.values() for call in several):
            wanted.update(restored.added)  # what it shares with its base is among the base's own
            if restored.output is not None:
                wanted.add(restored.output)
            if restored.toolset is not None:
                toolsets.add(restored.toolset)
        for digest, body in self._bodies(wanted - self._messages.keys()).items():
            self._messages[digest] = stored_message(load(body))
        sets = self._bodies(toolsets - self._toolsets.keys())
        lists = {digest: [bytes.fromhex(tool) for tool in json.loads(body)] for digest, body in sets.items()}
        for digest, body in self._bodies(
            {tool for tools in lists.values() for tool in tools} - self._tools.keys()
        ).items():
            self._tools[digest] = ToolSpec.from_json(load(body))
        self._toolsets.update({digest: tuple(self._tools[tool] for tool in tools) for digest, tools in lists.items()})

    def _bodies(self, digests: set[bytes]) -> dict[bytes, str]:
        found: dict[bytes, str] = {}
        for chunk in chunks(sorted(digests)):
            rows = self._connection.execute(select(contents).where(contents.c.hash.in_(chunk)))
            found.update({row.hash: body_of(row) for row in rows})
        if len(found) < len(digests):
            missing = sorted(digest.hex() for digest in digests - found.keys())
            raise StoreError(
                f"{len(missing)} contents that traces refer to are missing, such as {missing[0]}: rows were deleted"
                " from `contents`; restore the database from a copy"
            )
        return found


def branch_of(row: Any) -> Branch | None:
    """Where the trace of a row of `runs` left another, None where it left none."""
    if row.branch_parent is None:
        return None
    return Branch(parent=unseal(row.branch_parent), messages=row.branch_messages, reason=row.branch_reason)


class _Restored:
    """A row of `model_calls` made whole again; `messages` are its run's, as addresses."""

    __slots__ = ("added", "completion_ids", "input", "output", "prompt_ids", "row", "toolset")

    def __init__(self, row: Any, base: _Restored | None, messages: bytes) -> None:
        self.row = row
        self.added = split_digests(input_of(row, messages))
        """The addresses of the messages that it adds to what its base said."""
        self.input: tuple[bytes, ...] = tuple(self.added)
        """The addresses of its messages: as objects that it shares with its base."""
        if base is not None:
            self.input = base.dialogue[: row.shared_input] + self.input
        self.output = output_of(row, messages)
        self.toolset: bytes | None = row.toolset
        if base is not None and row.toolset == b"":
            self.toolset = base.toolset
        self.prompt_ids: Packed[int] | None = None
        self.completion_ids: Packed[int] | None = None
        if row.prompt_ids is not None:
            shared: Packed[int] = Packed() if base is None else base.tokens[: row.shared_ids]
            self.prompt_ids = shared.followed_by(unpack_ids(row.prompt_ids))
        if row.completion_ids is not None:
            before: Packed[int] = Packed() if self.prompt_ids is None else self.prompt_ids
            self.completion_ids = before.followed_by(unpack_ids(row.completion_ids))[len(before) :]

    @property
    def tokens(self) -> Packed[int]:
        """What a later call may share a beginning with."""
        if self.prompt_ids is None:
            return Packed()
        return self.prompt_ids if self.completion_ids is None else self.prompt_ids.joined(self.completion_ids)

    @property
    def dialogue(self) -> tuple[bytes, ...]:
        return self.input if self.output is None else (*self.input, self.output)


def bases(connection: Connection, trace: int, last: int) -> list[Base]:
    """The last calls of a trace as what a later call may share a beginning with, in the order of storing."""
    of_runs = connection.execute(select(runs.c.seq, runs.c.messages).where(runs.c.trace == trace))
    messages = {row.seq: bytes(row.messages) for row in of_runs}
    return [
        Base(one.row.run, one.row.position, pack_ids(one.tokens) or b"", b"".join(one.dialogue), one.toolset)
        for one in list(_restored(connection, [trace], messages))[-last:]
    ]


def _restored(connection: Connection, seqs: Sequence[int], messages: Mapping[int, bytes]) -> Iterator[_Restored]:
    """The model calls of these traces, whose runs have these messages, by run and position. A base was stored before
    what builds on it, so it comes first."""
    of_traces = select(runs.c.seq).where(runs.c.trace.in_(seqs))
    query = (
        select(model_calls).where(model_calls.c.run.in_(of_traces)).order_by(model_calls.c.run, model_calls.c.position)
    )
    known: dict[tuple[int, int], _Restored] = {}
    for row in connection.execute(query):
        base = None if row.base_run is None else known[row.base_run, row.base_position]
        restored = _Restored(row, base, messages[row.run])
        known[row.run, row.position] = restored
        yield restored


def stored_message(data: JSON) -> Message:
    """A stored message. Version 0.1 stored some that are refused today, and one of them shall not make the others
    unreadable: ids that are no text become text, parts that lack what their type needs unknown parts, and a message of
    a role that there is not one of the system, which opens no turn; its role stands under `stored_role`."""
    try:
        return Message.from_json(data)
    except TraceError:
        known = dict(data) if isinstance(data, Mapping) else {"value": data}
        if known.get("role") not in ROLES:
            known = {**known, "stored_role": known.get("role"), "role": "system"}
        parts = known.get("parts")
        listed = parts if isinstance(parts, list) else [] if parts is None else [parts]
        return Message.from_json({**known, "parts": [_stored_part(part) for part in listed]})


def _stored_part(part: JSON) -> dict[str, JSON]:
    if not isinstance(part, Mapping):
        return {"type": "unknown", "value": part}
    own = part.get("id")
    if own is not None and not isinstance(own, str) and part.get("type") in (ToolCall.type, ToolCallResponse.type):
        part = {**part, "id": canonical_json(own)}
    return dict(other_part(part).data)


def states_of(row: Any) -> tuple[StateMark, ...]:
    """The states of a row of `runs`."""
    marks: list[JSON] = [] if row.states is None else load(row.states)
    return tuple(StateMark(hash=mark, messages=count) for mark, count in marks)


def _tool_run(row: Any, answers: Mapping[str, ToolCallResponse]) -> ToolRun:
    """The execution of a row of `tool_runs`; `answers` are those of its run's messages, by the call's id."""
    call_id = unsealed(row.call_id)
    return ToolRun(
        span_id=unseal(row.span_id),
        name=unseal(row.name),
        call_id=call_id,
        arguments=load(row.arguments),
        result=load(row.result) if row.result is not None else answers[call_id or ""].response,
        error=unsealed(row.error),
        backend=unsealed(row.backend),
        fault=unsealed(row.fault),
        agent=unsealed(row.agent),
        artifact=None if row.artifact is None else load(row.artifact),
        started=row.started,
        ended=row.ended,
    )
