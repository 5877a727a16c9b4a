"""Hypothesis strategies for the data types: traces, scores, tasks and checklists as strange as the types allow.

Text holds NUL, lone surrogates and what looks like our own encodings; numbers are what JSON and the columns can hold:
finite floats, log probabilities of float32, times and ids of 64 and 32 bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import (
    Blob,
    Message,
    Other,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolCallResponse,
    ToolSpec,
    Uri,
)
from cm2_agent.types.run import Branch, ModelCall, Run, RunFailure, StateMark, Status, ToolRun
from cm2_agent.types.run_attributes import CUT, GROUP, ROLLOUT, TASK_ID, TASK_TURNS, TASK_VERSION
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.task import Persona, RecordedCall, Task
from cm2_agent.types.trace import Trace

STRANGE = (
    "",
    "\0",
    "\ud800",
    "\ud83d\ude00",
    "😀",
    "b64:",
    "b64:AA==",
    "null",
    "'; DROP TABLE runs; --",
    "é",
    "e\u0301",
    " ",
)


def texts(max_size: int = 12) -> st.SearchStrategy[str]:
    return st.text(st.characters(), max_size=max_size) | st.sampled_from(STRANGE)


def names() -> st.SearchStrategy[str]:
    """Text that is not empty."""
    return texts().map(lambda text: text or "x")


def clean() -> st.SearchStrategy[str]:
    """Text without lone surrogates, which pydantic refuses (tasks and checklists are read by it)."""
    return texts().map(lambda text: text.encode("utf-8", "replace").decode())


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def floats(**limits: Any) -> st.SearchStrategy[float]:
    return st.floats(allow_nan=False, allow_infinity=False, **limits)


def jsons(max_leaves: int = 4, text: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[Any]:
    words = texts() if text is None else text
    leaves = st.none() | st.booleans() | st.integers() | floats() | words
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
        max_leaves=max_leaves,
    )


def objects(text: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(texts() if text is None else text, jsons(2, text), max_size=2)


def extras() -> st.SearchStrategy[dict[str, Any]]:
    """Properties that the conventions do not name."""
    return st.dictionaries(texts().map(lambda key: f"x-{key}"), jsons(2), max_size=1)


def times() -> st.SearchStrategy[int]:
    return st.integers(0, 2**63 - 1)


def parts() -> st.SearchStrategy[Part]:
    media = {"modality": maybe(texts()), "mime_type": maybe(texts()), "extra": extras()}
    return st.one_of(
        st.builds(Text, content=texts(40), extra=extras()),
        st.builds(Reasoning, content=texts(40), extra=extras()),
        st.builds(ToolCall, id=maybe(texts()), name=texts(), arguments=jsons(), extra=extras()),
        st.builds(ToolCallResponse, id=maybe(texts()), response=jsons(), error=st.booleans(), extra=extras()),
        st.builds(Uri, uri=texts(), **media),
        st.builds(Blob, content=texts(), **media),
        st.builds(Other, data=st.fixed_dictionaries({"type": texts().map(lambda kind: f"x-{kind}"), "x": jsons()})),
    )


def messages() -> st.SearchStrategy[Message]:
    return st.builds(
        Message,
        role=st.sampled_from(["system", "user", "assistant", "tool"]),
        parts=st.lists(parts(), max_size=3).map(tuple),
        name=maybe(texts()),
        finish_reason=maybe(texts()),
        extra=extras(),
    )


def tool_specs() -> st.SearchStrategy[ToolSpec]:
    return st.builds(ToolSpec, name=texts(), description=texts(), parameters=objects())


def token_ids(max_size: int = 8) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(0, 3), max_size=max_size).map(tuple)


@st.composite
def model_calls(draw: st.DrawFn, before: ModelCall | None = None) -> ModelCall:
    """A call; often one that goes on where `before` ended, in its tokens, its messages or both."""
    asked = tuple(draw(st.lists(messages(), max_size=2)))
    prompt = draw(maybe(token_ids()))
    if before is not None and draw(st.booleans()):
        earlier = before.input + ((before.output,) if before.output is not None and draw(st.booleans()) else ())
        asked = earlier[: draw(st.integers(0, len(earlier)))] + asked
    if before is not None and before.prompt_ids is not None and prompt is not None and draw(st.booleans()):
        whole = (*before.prompt_ids, *(before.completion_ids or ()))
        prompt = whole[: draw(st.integers(0, len(whole)))] + prompt
    completion = draw(maybe(token_ids()))
    size = len(completion or ())
    return ModelCall(
        span_id=draw(texts()),
        model=draw(maybe(texts())),
        model_version=draw(maybe(st.sampled_from(["v1", "v2"]) | texts())),
        input=asked,
        output=draw(maybe(messages())),
        tools=tuple(draw(st.lists(tool_specs(), max_size=2))),
        prompt_ids=prompt,
        completion_ids=completion,
        logprobs=draw(maybe(st.lists(floats(width=32), min_size=size, max_size=size).map(tuple))),
        sampling=draw(st.sampled_from([{"temperature": 1.0, "logprobs": "processed"}, {}]) | objects()),
        usage=draw(st.dictionaries(texts(), st.integers(0, 2**40), max_size=2)),
        finish_reason=draw(maybe(texts())),
        error=draw(maybe(texts())),
        message=draw(maybe(st.integers(0, 2**31 - 1))),
        agent=draw(maybe(texts())),
        changed=draw(st.sampled_from((None, "edited", "rewritten"))),
        started=draw(times()),
        ended=draw(times()),
    )


def tool_runs() -> st.SearchStrategy[ToolRun]:
    return st.builds(
        ToolRun,
        span_id=texts(),
        name=texts(),
        call_id=maybe(texts()),
        arguments=jsons(),
        result=jsons(),
        error=maybe(texts()),
        backend=maybe(texts()),
        fault=maybe(texts()),
        agent=maybe(texts()),
        artifact=jsons(),
        started=times(),
        ended=times(),
    )


def attributes() -> st.SearchStrategy[dict[str, Any]]:
    """Some that say what the run was part of, some that say anything."""
    known = st.fixed_dictionaries(
        {},
        optional={
            TASK_ID: texts(),
            TASK_VERSION: jsons(1),
            TASK_TURNS: maybe(st.integers()),
            GROUP: jsons(2),
            ROLLOUT: jsons(1),
            CUT: texts(),
        },
    )
    return st.tuples(known, objects()).map(lambda pair: {**pair[1], **pair[0]})


def counts() -> st.SearchStrategy[int]:
    return st.integers(0, 2**31 - 1)


def branches() -> st.SearchStrategy[Branch]:
    return st.builds(Branch, parent=texts(), messages=counts(), reason=st.sampled_from(("sampled", "person")))


@st.composite
def runs(draw: st.DrawFn, thread: str | None = None) -> Run:
    calls: list[ModelCall] = []
    for _ in range(draw(st.integers(0, 3))):
        calls.append(draw(model_calls(before=calls[-1] if calls else None)))
    statuses: tuple[Status, ...] = ("ok", "error", "interrupted", "cancelled")
    status = draw(st.sampled_from(statuses))
    return Run(
        id=draw(names()),
        thread=thread,
        name=draw(texts()),
        status=status,
        failure=draw(maybe(st.builds(RunFailure, kind=texts(), message=texts()))),
        messages=tuple(draw(st.lists(messages(), max_size=4))),
        input=draw(maybe(jsons())),
        output=draw(maybe(jsons())),
        branch=draw(maybe(branches())),
        states=tuple(draw(st.lists(st.builds(StateMark, hash=texts(), messages=counts()), max_size=2))),
        user=draw(maybe(texts())),
        session=draw(maybe(texts())),
        tags=tuple(draw(st.lists(texts(), max_size=2))),
        calls=tuple(calls),
        tools=tuple(draw(st.lists(tool_runs(), max_size=2))),
        attributes=draw(attributes()),
        started=draw(times()),
        ended=draw(times()),
    )


@st.composite
def traces(draw: st.DrawFn, max_runs: int = 3) -> Trace:
    """A trace: one run by itself, or runs of a thread, of a branch of it or of a stateless conversation, by their
    start; run ids are unique within it. The first may have a history."""
    outcomes = draw(st.dictionaries(texts(), maybe(floats().map(lambda value: value + 0.0)), max_size=2))
    history = tuple(draw(st.lists(messages(), max_size=2)))
    if draw(st.booleans()):
        alone = replace(draw(runs()), history=history)
        return Trace(id=alone.id, runs=(alone,), outcomes=outcomes)
    thread = draw(names())
    several = draw(st.lists(runs(thread=thread), max_size=max_runs, unique_by=lambda run: run.id))
    several.sort(key=lambda run: run.started)
    several[:1] = [replace(run, history=history) for run in several[:1]]
    kind = draw(st.sampled_from(("thread", "branch", "stateless")))
    if kind != "thread":
        thread += "~2"
        several = [replace(run, trace=thread, thread=run.thread if kind == "branch" else None) for run in several]
    return Trace(id=thread, runs=tuple(several), outcomes=outcomes)


def as_stored(trace: Trace) -> Trace:
    """A trace of one conversation as a store gives it back: what later runs were shown is in the earlier ones."""
    return replace(trace, runs=(*trace.runs[:1], *(replace(run, history=()) for run in trace.runs[1:])))


def renamed(trace: Trace, prefix: str) -> Trace:
    """The trace under other ids, so that examples share one database without meeting."""

    def other(id: str | None) -> str | None:
        return None if id is None else f"{prefix}{id}"

    changed = tuple(
        replace(run, id=f"{prefix}{run.id}", thread=other(run.thread), trace=other(run.trace)) for run in trace.runs
    )
    return replace(trace, id=f"{prefix}{trace.id}", runs=changed)


def verdicts() -> st.SearchStrategy[Verdict]:
    return st.builds(
        Verdict,
        item=texts(),
        value=maybe(st.booleans()),
        weight=st.floats(0, 1),
        step=maybe(st.integers(1, 99)),
        paid=maybe(st.booleans()),
        depends_on=st.lists(st.integers(0, 9), max_size=2).map(tuple),
        reason=maybe(texts()),
        cause=maybe(st.sampled_from(["infrastructure", "content"])),
        explanation=maybe(texts()),
        evidence=st.lists(objects(), max_size=2).map(tuple),
        payment=maybe(st.floats(0, 1)),
        soft=st.lists(st.floats(0, 1, exclude_max=True), max_size=2).map(tuple),
    )


def turn_scores() -> st.SearchStrategy[TurnScore]:
    return st.builds(
        TurnScore,
        turn=maybe(st.integers(0, 9)),
        reached=st.booleans(),
        steps=st.integers(0, 99),
        reward=maybe(floats()),
        verdicts=st.lists(verdicts(), max_size=3).map(tuple),
    )


def scores(trace_id: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[Score]:
    return st.builds(
        Score,
        trace_id=names() if trace_id is None else trace_id,
        reward_version=names(),
        reward=maybe(floats().map(lambda value: value + 0.0)),
        checklist=maybe(texts()),
        turns=st.lists(turn_scores(), max_size=3).map(tuple),
        runs=st.integers(0, 99),
        null_reason=maybe(texts()),
        components=st.dictionaries(texts(), maybe(floats()), max_size=2),
        usage=objects(),
    )


def personas() -> st.SearchStrategy[Persona]:
    lines = st.lists(clean(), max_size=2).map(tuple)
    words = clean().map(lambda text: text or "x")
    return st.builds(Persona, persona=words, goal=maybe(clean()), knows=lines, does_not_know=lines, mood=maybe(clean()))


def tasks() -> st.SearchStrategy[Task]:
    tool = st.builds(
        ToolSpec, name=clean().map(lambda text: text or "x"), description=clean(), parameters=objects(clean())
    )
    recorded = st.builds(
        RecordedCall,
        name=clean().map(lambda text: text or "x"),
        arguments=objects(clean()),
        result=jsons(text=clean()),
        error=maybe(clean()),
    )
    return st.builds(
        Task,
        id=clean().map(lambda text: text or "x"),
        version=st.integers(1, 2**31 - 1),
        system=maybe(clean()),
        turns=st.lists(clean(), max_size=3).map(tuple),
        persona=maybe(clean() | personas()),
        max_turns=maybe(st.integers(1, 9)),
        tools=st.lists(tool, max_size=2, unique_by=lambda each: each.name).map(tuple),
        recorded=st.lists(recorded, max_size=2).map(tuple),
        checklist=st.none(),
        entities=st.lists(clean(), max_size=2).map(tuple),
        outcome=jsons(text=clean()),
        metadata=objects(clean()),
    )


@st.composite
def checklists(draw: st.DrawFn) -> Checklist:
    """Independent items, each with a question or a check as data."""
    ids = draw(st.lists(st.text("abcxyz0_.:-", min_size=1, max_size=6), min_size=1, max_size=4, unique=True))
    items = [
        Item(
            each,
            draw(clean().map(lambda text: text or "x")),
            turn=draw(st.sampled_from(["each", "trace", 0, 1])),
            kind=draw(st.sampled_from(["reach", "hold", "avoid"])),
            pass_condition=draw(maybe(clean())),
            failure_examples=draw(st.lists(clean(), max_size=2)),
            weight=draw(floats(min_value=0.5, max_value=9)),
        )
        for each in ids
    ]
    return Checklist(*items, name=draw(clean().map(lambda text: text or "x")), version=draw(st.integers(1, 2**31 - 1)))
