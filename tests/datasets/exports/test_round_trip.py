"""What is exported is recognised and read back: the same dialogue, unless a loss was counted."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.datasets.exports.chat_messages import Entry, Losses
from cm2_agent.datasets.exports.files import write_lines
from cm2_agent.datasets.exports.records import FORMATS
from cm2_agent.datasets.exports.tables import write_table
from cm2_agent.importers import Imported, read_recordings, recording_format
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Blob, Message, Part, Reasoning, Text, ToolCall, ToolCallResponse, ToolSpec, Uri
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace
from tests import strategies
from tests.fuzzing import examples

READ_AS = {"cm2": "cm2", "chat": "openai", "sft": "openai", "sharegpt": "sharegpt", "parquet": "cm2"}
WORDS = st.sampled_from(["Hi", "ja\nwohl", "", " ", "ünï", '{"a": 1}', "[1, 2]", "<b>", "role", "a,b\tc", "3"])
ANSWERS: st.SearchStrategy[JSON] = WORDS | strategies.jsons(3, WORDS)
NAMES = strategies.maybe(st.sampled_from(["1", "2", "call_1_0", ""]))
TOOLS = (ToolSpec(name="look", description="Looks.", parameters={"type": "object", "properties": {"id": {}}}),)


def _answer(name: str | None, value: JSON) -> Message:
    return Message(role="tool", parts=(ToolCallResponse(id=name, response=value),))


@st.composite
def some_turns(draw: st.DrawFn) -> list[Message]:
    """A user's message, steps with calls and their answers (some missing, some without ids), and a reply."""
    pictures: st.SearchStrategy[Part] = st.builds(Uri, uri=st.just("https://x/y.png"), modality=st.just("image")) | (
        st.builds(Blob, content=st.just("AAAA"), modality=st.sampled_from(["image", "audio", "file"]))
    )
    user: list[Part] = [Text(content=one) for one in draw(st.lists(WORDS, min_size=1, max_size=2))]
    found = [Message(role="user", parts=(*user, *draw(st.lists(pictures, max_size=1))))]
    for _ in range(draw(st.integers(0, 2))):
        parts: list[Part] = [Reasoning(content=one) for one in draw(st.lists(WORDS, max_size=1))]
        parts += [Text(content=one) for one in draw(st.lists(WORDS, max_size=1))]
        calls = [
            ToolCall(id=draw(NAMES), name="look", arguments=draw(strategies.maybe(strategies.objects(WORDS))))
            for _ in range(draw(st.integers(1, 3)))
        ]
        found.append(Message(role="assistant", parts=(*parts, *calls)))
        answered = draw(st.permutations(calls))[: draw(st.integers(0, len(calls)))]
        found += [_answer(call.id, draw(ANSWERS)) for call in answered]
    return [*found, Message.of("assistant", draw(WORDS))]


@st.composite
def some_dialogues(draw: st.DrawFn) -> Trace:
    messages = tuple(one for turns in draw(st.lists(some_turns(), max_size=2)) for one in turns)
    system = tuple(Message.of("system", one) for one in draw(st.lists(WORDS, max_size=1)))
    asked = (*(Message.of("system", one) for one in draw(st.lists(WORDS, max_size=1))), *messages[:1])
    calls = tuple(
        ModelCall(span_id=f"s{at}", model="m", input=asked, message=at, tools=TOOLS)
        for at, message in enumerate((*system, *messages))
        if message.role == "assistant"
    )
    run = Run(id="r", messages=(*system, *messages), calls=calls, user="ann", tags=("beta",), attributes={"plan": 1})
    return Trace(id="r", runs=(run,))


@settings(max_examples=examples(10))
@given(given_traces=st.lists(some_dialogues() | strategies.traces(max_runs=2), min_size=1, max_size=3))
def test_what_is_read_back_is_the_same_dialogue(tmp_path: Path, given_traces: list[Trace]) -> None:
    for name in READ_AS:
        written = []
        for trace in given_traces:
            losses = Losses()
            score = Score(trace_id=trace.id, reward_version="v1", reward=0.5)
            record = FORMATS[name].make(trace, score, losses)
            if record is not None and "\\ud" not in json.dumps(record):  # half a surrogate pair: cm2 import refuses it
                written.append((trace, score, record, +losses))
        if written:
            assert read_back(tmp_path, name, written) == len(written)


def read_back(folder: Path, name: str, written: list[tuple[Trace, Score, Entry, Losses]]) -> int:
    """How many dialogues came back, each as it should."""
    path = folder / f"out.{'parquet' if name == 'parquet' else 'jsonl'}"
    (write_table if name == "parquet" else write_lines)(path, (record for _, _, record, _ in written))
    assert recording_format(path).name == READ_AS[name]
    read = list(read_recordings(None, path))
    for (trace, score, record, losses), one in zip(written, read, strict=True):
        assert isinstance(one, Imported), (name, one)
        if name in ("cm2", "parquet"):
            assert (one.trace, one.score) == (trace, score)
        elif not losses:
            assert one.trace.content_hash == trace.content_hash, (name, record)
    return len(read)
