"""A run's bytes in the spool: what goes in comes out, and a long run does not grow with its square."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from cm2_agent.errors import TraceError
from cm2_agent.spool.record import decode_run, encode_run
from cm2_agent.types.messages import Message, Text, ToolSpec
from cm2_agent.types.run import Branch, ModelCall, Run, StateMark
from tests import strategies
from tests.fuzzing import examples


@settings(max_examples=examples(30))
@given(strategies.runs())
def test_what_goes_in_comes_out(run: Run) -> None:
    assert decode_run(encode_run(run)) == run


def test_every_field_comes_out() -> None:
    said = Message.of("user", "and the other one?")
    run = Run(
        id="r",
        thread="t",
        messages=(said,),
        history=(Message.of("user", "where is it?"), said),
        input={"question": "\ud800"},
        output=[1, None, 2**70],
        trace="t~1",
        branch=Branch(parent="t", messages=2),
        states=(StateMark(hash="h", messages=1),),
        user="u",
        session="s",
        tags=("a", "b"),
        calls=(ModelCall(span_id="c", agent="", changed="edited", prompt_ids=(), input=(said,)),),
    )
    assert decode_run(encode_run(run)) == run
    assert decode_run(encode_run(replace(run, input=None, output=False))) == replace(run, input=None, output=False)


def test_a_message_is_written_once_however_many_calls_saw_it() -> None:
    said = tuple(Message.of("user", f"{number}" * 400) for number in range(100))
    tools = (ToolSpec(name="look", description="d" * 5000),)
    calls = tuple(ModelCall(span_id=str(n), input=said[:n], output=said[n], tools=tools) for n in range(100))
    run = Run(id="r", messages=said, calls=calls)
    assert len(encode_run(run)) < 100_000
    read = decode_run(encode_run(run))
    assert read == run
    assert read.calls[9].input[0] is read.messages[0]


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(TypeError):
        encode_run(Run(id="r", messages=(Message(role="user", parts=(Text(content="x", extra={"at": object()}),)),)))


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        encode_run(Run(id="r", input=deep))


@pytest.mark.parametrize(
    "record", [b"", b"M", b"M\xc1", b"J{}", b"J[]", b"X123", b'J{"table":[],"specs":[]}', b"J" + b"[" * 100_000]
)
def test_other_bytes_are_no_run(record: bytes) -> None:
    with pytest.raises(TraceError, match="not a record of a run"):
        decode_run(record)
