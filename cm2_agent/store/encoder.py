"""Runs encoded as rows, before the database is asked anything.

A model call keeps what it *added*: a base is an earlier call of the same trace, and its tokens (prompt, then
completion) and dialogue (input, then output) are the beginning that the next call is compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import is_
from typing import Any, NamedTuple

from cm2_agent.errors import StoreError
from cm2_agent.store.call_addresses import before, message_at
from cm2_agent.store.codec import (
    DIGEST,
    dump,
    dump_mapping,
    dump_tags,
    narrowed,
    pack_ids,
    pack_logprobs,
    seal,
    sealed,
    shared_prefix,
)
from cm2_agent.store.content import Content, KnownContents
from cm2_agent.types.json_values import JSON, canonical_json, content_digest, json_text, text_digest
from cm2_agent.types.message_text import spellings
from cm2_agent.types.messages import Message, ToolCallResponse, ToolSpec
from cm2_agent.types.run import Branch, ModelCall, Run

ID_BYTES = 4
CANDIDATES = 4
"""How many earlier calls are tried as a base: more than one, since sub-agents' calls lie between those of the main
line."""
PREFIXES = 4
"""How many dialogues of a trace are remembered: the main line with and without its instructions, and sub-agents'."""
MESSAGE, UNTRAINABLE, TOOLSET, OUTPUT = 3, 8, 11, 12
"""Where these stand among a packed call's facts."""
CALL_ID, RESULT = 2, 8
"""Where these stand among the facts of a tool's execution."""
BRANCH = 2
"""Where the branch's three columns stand among what was seen of a run."""
LATER = 2
"""How many facts of calls and of tools' executions revision 0006 added at their end."""


class Base(NamedTuple):
    """A stored call that later ones may share a beginning with."""

    run: int | None  # its run's `seq`; None within the run that is being packed
    position: int
    tokens: bytes
    dialogue: bytes
    toolset: bytes | None


@dataclass(frozen=True, kw_only=True)
class PackedCall:
    """A model call: `facts` are its columns from span_id to changed, the rest is whole, not yet shortened by a base."""

    facts: tuple[Any, ...]
    input: bytes
    output: bytes | None
    prompt_ids: bytes | None
    completion_ids: bytes | None
    logprobs: bytes | None

    def as_base(self, position: int, run: int | None = None) -> Base:
        tokens = b"" if self.prompt_ids is None else self.prompt_ids + (self.completion_ids or b"")
        return Base(run, position, tokens, self.input + (self.output or b""), self.facts[TOOLSET])

    def row(self, run: int, position: int, bases: Sequence[Base], messages: bytes) -> tuple[Any, ...]:
        """The row of `model_calls`, against the best of the bases, latest first, and the messages of its run."""
        prompt = self.prompt_ids or b""
        chosen, ids, shared = None, 0, 0
        for base in reversed(bases):
            if ids * ID_BYTES >= min(len(base.tokens), len(prompt)) and shared * DIGEST >= len(base.dialogue):
                continue  # it cannot share more
            both = shared_prefix(base.tokens, prompt, ID_BYTES), shared_prefix(base.dialogue, self.input, DIGEST)
            if both > (ids, shared):
                chosen, (ids, shared) = base, both
        where = (None, None) if chosen is None else (run if chosen.run is None else chosen.run, chosen.position)
        added = None if self.prompt_ids is None else narrowed(prompt[ids * ID_BYTES :])
        rest, output, toolset = self.input[shared * DIGEST :], self.output, self.facts[TOOLSET]
        place = self.facts[MESSAGE]
        if place is not None:
            rest = before(messages, place, rest)
            output = b"" if output is None else None if output == message_at(messages, place) else output
        if chosen is not None and toolset is not None and toolset == chosen.toolset:
            toolset = b""
        facts = (*self.facts[:TOOLSET], toolset, output, *self.facts[OUTPUT + 1 :])
        completion = narrowed(self.completion_ids)
        return (run, position, *facts, *where, shared, ids, rest, added, completion, self.logprobs)


@dataclass(frozen=True, kw_only=True)
class PackedRun:
    """A run ready to be written: `facts` are its columns from name to ended."""

    run: Run
    id: str
    trace_id: str
    facts: tuple[Any, ...]
    hash: bytes
    """Of everything that happened in it: not of the place in its conversation (trace, branch, history)."""
    attributes: str
    messages: bytes
    history: bytes
    seen: tuple[Any, ...]
    """Its columns from input to tags."""
    calls: tuple[PackedCall, ...]
    tools: tuple[tuple[Any, ...], ...]
    dialogue: bytes | None = None
    """The key of all that had been said in its conversation when it ended (`dialogue_key`); None where nobody asked."""
    begins: bool = False
    """Whether its trace must not be there yet."""

    def placed(
        self, trace: str, branch: Branch | None, history: bytes, dialogue: bytes | None, *, begins: bool = False
    ) -> PackedRun:
        """The run as part of a trace."""
        own = self.run.id if self.run.thread is None else self.run.thread
        run = replace(self.run, trace=None if trace == own else trace, branch=branch)
        seen = (*self.seen[:BRANCH], *_branch(branch), *self.seen[BRANCH + 3 :])
        return replace(
            self,
            run=run,
            trace_id=seal(trace),
            history=history,
            seen=seen,
            dialogue=dialogue,
            begins=begins,
        )

    def row(self, project: str, trace: int) -> tuple[Any, ...]:
        thread = self.run.thread
        threaded = thread is not None and thread == self.run.trace_id
        named = None if threaded else sealed(thread)
        head = (project, self.id, trace, threaded, named, *self.facts, self.hash, self.attributes, self.messages)
        return (*head, self.history or None, *self.seen, self.dialogue)

    def tool_rows(self, run: int) -> Iterable[tuple[Any, ...]]:
        """The rows of `tool_runs`. What the dialogue holds as the answer is not stored again."""
        answers = answers_of(self.run.messages)
        for position, (tool, facts) in enumerate(zip(self.run.tools, self.tools, strict=True)):
            given = answers.get(tool.call_id) if tool.call_id is not None else None
            if given is not None and _same(given.response, tool.result, facts[RESULT]):
                facts = (*facts[:RESULT], None, *facts[RESULT + 1 :])
            yield (run, position, *facts)


class Prefixes:
    """The last few dialogues of a trace whose messages are all in this write or known to be stored, and their
    addresses: the next one goes on from there with the same objects, and only what it adds is looked at."""

    def __init__(self) -> None:
        self._seen: list[tuple[tuple[Message, ...], bytes]] = []

    def find(self, messages: tuple[Message, ...]) -> tuple[bytes, int]:
        """The addresses of the first messages, and how many these are."""
        for seen, joined in self._seen:
            if seen[0] is messages[0] and all(map(is_, seen, messages)):
                count = min(len(seen), len(messages))
                return joined[: count * DIGEST], count
        return b"", 0

    def add(self, messages: tuple[Message, ...], joined: bytes, found: int) -> None:
        """Take note of a dialogue of which `found` messages were found here."""
        if found == len(messages):
            return
        others = [(seen, own) for seen, own in self._seen if len(seen) != found or own != joined[: found * DIGEST]]
        self._seen = [(messages, joined), *others[: PREFIXES - 1]]

    def __len__(self) -> int:
        return sum(len(seen) for seen, _ in self._seen)


class Packer:
    """Packs the runs of one write and gathers the contents that they refer to, by content address, but for those that
    are `known` to be stored."""

    def __init__(self, known: KnownContents, prefixes: dict[str, Prefixes] | None = None) -> None:
        self.contents: dict[bytes, Content] = {}
        self._known = known
        self.prefixes: dict[str, Prefixes] = {} if prefixes is None else prefixes
        self._prefixes = Prefixes()
        self._toolsets: dict[int, bytes] = {}
        self._by_body: dict[str, bytes] = {}

    def pack(self, run: Run) -> PackedRun:
        """Raises StoreError where the run holds what is not JSON, or what could not be read back."""
        where = f"run {run.id!r}"
        _require_text(run, where)
        self._prefixes = self.prefixes.setdefault(run.trace_id, Prefixes())
        failure = (None, None) if run.failure is None else (seal(run.failure.kind), seal(run.failure.message))
        facts = (seal(run.name), run.status, *failure, run.started, run.ended)
        attributes = dump_mapping(run.attributes, f"{where}: attributes")
        messages = self._messages(run.messages, where)
        seen = _seen(run, where)
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
                sealed(tool.agent),
                None if tool.artifact is None else dump(tool.artifact, f"{where}, tool {tool.name}: artifact"),
            )
            for tool in run.tools
        )
        blobs = [
            messages,
            *(blob for call in calls for blob in (call.input, call.prompt_ids, call.completion_ids, call.logprobs)),
        ]
        plain: tuple[Any, ...] = (
            run.id,
            run.thread,
            facts,
            attributes,
            [_facts_of_call(call.facts) for call in calls],
            [_facts_of_tool(tool) for tool in tools],
        )
        happened = (*seen[:BRANCH], *seen[BRANCH + 3 :])
        if any(value is not None for value in happened):
            plain += (happened,)
        return PackedRun(
            run=run,
            id=seal(run.id),
            trace_id=seal(run.trace_id),
            facts=facts,
            hash=_hash(plain, blobs),
            attributes=attributes,
            messages=messages,
            history=self._messages(run.history, where),
            seen=seen,
            calls=calls,
            tools=tools,
        )

    def _call(self, call: ModelCall, where: str) -> PackedCall:
        output = None if call.output is None else self._messages((call.output,), where)
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
            sealed(call.agent),
            call.changed,
        )
        return PackedCall(
            facts=facts,
            input=self._messages(call.input, where),
            output=output,
            prompt_ids=pack_ids(call.prompt_ids),
            completion_ids=pack_ids(call.completion_ids),
            logprobs=pack_logprobs(call.logprobs),
        )

    def _messages(self, messages: tuple[Message, ...], where: str) -> bytes:
        if not messages:
            return b""
        shared, start = self._prefixes.find(messages)
        rest = messages[start:]
        try:
            digests = [vars(message).get("digest") or self._digest("message", message, where) for message in rest]
        except (TypeError, ValueError, RecursionError, AttributeError) as error:
            raise _no_content("message", where, error) from error
        if missing := self._known.missing(digests):
            for digest, message in zip(digests, rest, strict=True):
                if digest in missing and digest not in self.contents:
                    self.contents[digest] = Content("message", message, where)
        joined = shared + b"".join(digests)
        if len(messages) > 1:
            self._prefixes.add(messages, joined, start)
        return joined

    def _toolset(self, tools: tuple[ToolSpec, ...], where: str) -> bytes:
        seen = self._toolsets.get(id(tools))  # which the packed runs hold, so that its id stays its own
        if seen is not None:
            return seen
        try:
            digests = [vars(tool).get("digest") or self._digest("tool", tool, where) for tool in tools]
        except (TypeError, ValueError, RecursionError, AttributeError) as error:
            raise _no_content("tool", where, error) from error
        hashes = [digest.hex() for digest in digests]
        seen = self._toolsets[id(tools)] = content_digest(hashes)
        if self._known.missing([seen]):
            self.contents[seen] = Content("toolset", hashes, where)
            for digest, tool in zip(digests, tools, strict=True):
                self.contents.setdefault(digest, Content("tool", tool, where))
        return seen

    def _digest(self, kind: str, thing: Message | ToolSpec, where: str) -> bytes:
        """The address of a content that is met for the first time. Others of this write may say the same: comparing
        their bodies costs less than another hash."""
        kept = vars(thing)  # as a `cached_property` keeps it
        if isinstance(thing, Message):
            kept["json_text"], canonical = spellings(thing)
            body = seal(kept["json_text"])
        else:
            data = thing.to_json()
            body, canonical = dump(data, f"{where}: a {kind}"), canonical_json(data)
        digest = self._by_body.get(body)
        if digest is None:
            digest = self._by_body[body] = text_digest(canonical)
            if self._known.missing([digest]):
                self.contents[digest] = Content(kind, thing, where, body)
        kept["digest"] = digest
        return digest


def answers_of(messages: Iterable[Message]) -> dict[str, ToolCallResponse]:
    """The first answer to each call, by the call's id."""
    found: dict[str, ToolCallResponse] = {}
    for message in messages:
        if message.role == "tool":
            for part in message.responses:
                if part.id is not None:
                    found.setdefault(part.id, part)
    return found


def _same(response: JSON, result: JSON, dumped: str) -> bool:
    if isinstance(response, str) or isinstance(result, str):
        return type(response) is type(result) is str and response == result
    return seal(json_text(response)) == dumped


def _no_content(kind: str, where: str, error: Exception) -> StoreError:
    return StoreError(
        f"{where}: a {kind} is not JSON: {error}; expected text, finite numbers, true, false, null, lists and objects"
    )


def _require_text(run: Run, where: str) -> None:
    """Raises StoreError where an id is no text."""
    parent = "" if run.branch is None else run.branch.parent
    ids = {"thread": run.thread, "trace": run.trace, "user": run.user, "session": run.session}
    for name, value in (("id", run.id), ("parent", parent), *ids.items()):
        if not isinstance(value, str) and not (value is None and name in ids):
            raise StoreError(f"{where}: {name} is {type(value).__name__} {value!r:.60}; expected text")


def _seen(run: Run, where: str) -> tuple[Any, ...]:
    """The columns from input to tags, each NULL where the run says nothing."""
    return (
        None if run.input is None else dump(run.input, f"{where}: input"),
        None if run.output is None else dump(run.output, f"{where}: output"),
        *_branch(run.branch),
        dump([[mark.hash, mark.messages] for mark in run.states], f"{where}: states") if run.states else None,
        sealed(run.user),
        sealed(run.session),
        dump_tags(run.tags, where) if run.tags else None,
    )


def _branch(branch: Branch | None) -> tuple[Any, ...]:
    return (None,) * 3 if branch is None else (seal(branch.parent), branch.messages, branch.reason)


# A run without what came later keeps the hash that it was stored under before.


def _facts_of_call(facts: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the hash is taken of: not `untrainable`, a judgement and not a fact of the run."""
    end = -LATER if facts[-LATER:] == (None,) * LATER else len(facts)
    return facts[:UNTRAINABLE] + facts[UNTRAINABLE + 1 : end]


def _facts_of_tool(tool: tuple[Any, ...]) -> tuple[Any, ...]:
    if tool[-LATER:] != (None,) * LATER:
        return tool
    return tool[: -LATER - 1] if tool[-LATER - 1] is None else tool[:-LATER]


def _hash(plain: object, blobs: Sequence[bytes | None]) -> bytes:
    made = hashlib.sha256(repr(plain).encode("utf-8", "surrogatepass"))
    for blob in blobs:
        made.update(b"-" if blob is None else b"%d:" % len(blob))
        made.update(blob or b"")
    return made.digest()
