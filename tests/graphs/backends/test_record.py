"""Real calls written down are read back as they were, whatever happened to the file's end."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage, ToolMessage

from cm2_agent.errors import TaskError, ToolError
from cm2_agent.graphs.backends.backends import TOOLS, Backends
from cm2_agent.graphs.backends.record import CallRecorder, load_recording
from cm2_agent.graphs.backends.replay import ReplayTools
from cm2_agent.graphs.interception.tool_node import switched
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.task import RecordedCall
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest
from tests.strategies import clean, jsons, objects, texts
from tests.tracing.apps import ScriptedModel, agent, calls

HEADER = '{"format": "cm2.recording", "version": 1}\n'
LINE = '{"name": "f", "arguments": {"id": 1}, "result": "one", "error": null, "seconds": 0.5}\n'


def call(name: str = "f", **arguments: Any) -> ToolRequest:
    return ToolRequest(tool=ToolSpec(name=name), arguments=arguments)


def test_the_file_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    with CallRecorder(path) as recorder:
        recorder.add(call(id=1), ToolAnswer(content="one"), 0.5)
        assert path.read_text() == HEADER + LINE  # before it is closed
        recorder.add(call("g"), ToolAnswer(content="no é", error=True), 0.25)
        recorder.add(call("g"), ToolAnswer(content=[{"type": "text", "text": "a"}, "b"], error=True), 0)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert "no é" in path.read_text(encoding="utf-8")
    assert lines[2] == {"name": "g", "arguments": {}, "result": None, "error": "no é", "seconds": 0.25}
    assert lines[3]["error"] == "a\nb"
    read = load_recording(path)
    assert read[0] == RecordedCall(name="f", arguments={"id": 1}, result="one")
    replay = ReplayTools(read)
    assert replay.find(call("g"), CallLog()) == ToolAnswer(content="no é", error=True, backend="replay")


blocks = st.builds(lambda text, more: {"type": "text", "text": text, "x": more}, texts(), jsons(2))
answers = st.builds(ToolAnswer, content=texts(20) | st.lists(blocks, min_size=1, max_size=2), error=st.booleans())


@given(st.lists(st.tuples(clean().map(lambda name: name or "x"), objects(clean()), answers), max_size=5))
def test_what_is_recorded_replays_to_the_letter(
    tmp_path: Path, made: list[tuple[str, dict[str, Any], ToolAnswer]]
) -> None:
    path = tmp_path / f"{os.urandom(8).hex()}.jsonl"
    kept: list[tuple[ToolRequest, ToolAnswer]] = []
    with CallRecorder(path) as recorder:
        for name, arguments, answer in made:
            asked = ToolRequest(tool=ToolSpec(name=name), arguments=arguments)
            recorder.add(asked, answer, 0.1)
            kept.append((asked, answer))
    read = load_recording(path)
    assert len(read) == len(kept)
    for one, (asked, answer) in zip(read, kept, strict=True):
        again = ReplayTools([one]).find(asked, CallLog())
        assert again is not None
        assert (again.content, again.error) == (
            json.loads(json.dumps(answer.content)),
            answer.error,
        )  # two half characters are one


@pytest.mark.parametrize(
    "unserialisable", [float("nan"), {1, 2}, b"x", object(), 10**5000], ids=["nan", "set", "bytes", "object", "huge"]
)
def test_what_is_no_json_is_refused_and_leaves_no_trace(tmp_path: Path, unserialisable: Any) -> None:
    path = tmp_path / "calls.jsonl"
    with CallRecorder(path) as recorder:
        with pytest.raises(ToolError, match=r"call of tool 'f' cannot be recorded.*holds JSON"):
            recorder.add(call(x=unserialisable), ToolAnswer(content="one"), 0.5)
        with pytest.raises(ToolError, match="a result of type list"):
            recorder.add(call(id=1), ToolAnswer(content=[unserialisable]), 0.5)
        recorder.add(call(id=1), ToolAnswer(content="one"), 0.5)
    assert path.read_text() == HEADER + LINE
    with pytest.raises(ToolError, match="after the recorder was closed"):
        recorder.add(call(id=1), ToolAnswer(content="one"), 0.5)


def test_an_existing_file_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    for _ in range(3):
        with CallRecorder(path) as recorder:
            recorder.add(call(id=1), ToolAnswer(content="one"), 0.5)
    assert path.read_text() == HEADER + 3 * LINE


@pytest.mark.parametrize("cut", [*range(len(HEADER) + len(LINE) + 1)])
def test_a_file_cut_off_anywhere_is_continued(tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_text((HEADER + LINE)[:cut])
    whole = cut >= len(HEADER) + len(LINE) - 1  # but for its end
    with caplog.at_level(logging.WARNING, logger="cm2_agent"):
        if cut < len(HEADER) - 1:
            with pytest.raises(TaskError, match="not a recording"):
                load_recording(path)
        else:
            assert len(load_recording(path)) == whole
    assert ("cut off" in caplog.text) == (len(HEADER) < cut and not whole)
    with CallRecorder(path) as recorder:
        recorder.add(call(id=1), ToolAnswer(content="one"), 0.5)
    assert path.read_text() == HEADER + LINE * (2 if whole else 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"format": "cm2.recording", "version": 2}\n', r":1: a recording of a newer version, 2; expected .*: upgrade"),
        (
            '{"format": "cm2.recording", "version": 0}\n',
            r":1: a recording of another version, 0; expected .*: record the calls again",
        ),
        ('{"format": "cm2.recording"}\n', r":1: a recording of another version, None"),
        ('{"format": "cm2.recording", "version": 1, "x": 1}\n', r":1: not a recording"),
        (
            '{"format": "other", "version": 1}\n',
            r":1: not a recording: its first line is .*other.*give a file that CallRecorder wrote",
        ),
        ('{"id": "t1", "turns": ["a task, rather"]}\n', r":1: not a recording"),
        ("no json\n", r":1: not a recording"),
        ("no end of line", r":1: not a recording"),
        (HEADER + LINE + "{\n" + LINE, r":3: not JSON"),
        (HEADER + LINE + LINE + '{"name": "f", "arguments": {}, "latency": 3}\n', r":4: not a recorded call: latency"),
        (HEADER + '{"name": "", "arguments": {}}\n', r":2: not a recorded call: name"),
        (HEADER + '{"name": "f", "arguments": []}\n', r":2: not a recorded call: arguments"),
        (HEADER + '{"name": "f", "seconds": -1}\n', r":2: not a recorded call: seconds"),
        (HEADER + '{"name": "f", "result": NaN}\n', r":2: not JSON: NaN is no JSON number"),
        (HEADER + "[" * 100_000 + "\n", r":2: not JSON"),
    ],
)
def test_what_is_no_recording_is_refused_and_left_alone(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_text(text)
    with pytest.raises(TaskError, match=f"calls.jsonl{problem}"):
        load_recording(path)
    with pytest.raises(TaskError, match=f"calls.jsonl{problem}"):
        CallRecorder(path)
    assert path.read_text() == text


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="cannot read the recording: No such file"):
        load_recording(tmp_path / "none.jsonl")
    with pytest.raises(ToolError, match="cannot record calls there: No such file"):
        CallRecorder(tmp_path / "none" / "calls.jsonl")
    with pytest.raises(ToolError, match="cannot record calls there: Is a directory"):
        CallRecorder(tmp_path)


def test_one_recorder_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    with CallRecorder(path), pytest.raises(ToolError, match="another recorder"):
        CallRecorder(path)
    CallRecorder(path).close()


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    with CallRecorder(path) as recorder:

        def work(number: int) -> None:
            for each in range(50):
                recorder.add(call(id=number), ToolAnswer(content=str(each) * 3000), 0.0)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    read = load_recording(path)
    for number in range(8):
        assert [one.result for one in read if one.arguments == {"id": number}] == [
            str(each) * 3000 for each in range(50)
        ]


async def test_a_recorded_dialogue_replays_byte_by_byte(tmp_path: Path) -> None:
    """In a real graph: what the real tool said, errors too, and what its replay says, are the same tool messages."""
    graph = agent(ScriptedModel(script=[calls(1, 2), calls(-3), calls(1), calls(text="done")]))
    question = {"messages": [HumanMessage("1, 2?")]}
    with CallRecorder(tmp_path / "calls.jsonl") as recorder:
        recording = Backends("record", recorder=recorder)
        states = [
            await graph.ainvoke(question),
            await switched(graph).ainvoke(question, {"configurable": {TOOLS: recording}}),
        ]
    replaying = Backends("replay", replay=ReplayTools(load_recording(tmp_path / "calls.jsonl")))
    states.append(await switched(graph).ainvoke(question, {"configurable": {TOOLS: replaying}}))
    heard = [[message for message in state["messages"] if isinstance(message, ToolMessage)] for state in states]
    real, recorded, replayed = (
        [(one.content, one.status, one.name, one.tool_call_id) for one in each] for each in heard
    )
    assert [status for _, status, _, _ in real] == ["success", "success", "error", "success"]
    assert real == recorded == replayed
    assert [entry.answer.backend for entry in replaying.log.entries] == ["replay"] * 4
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "calls.jsonl").read_text().splitlines()[1:]]
    assert len(seconds) == 4
    assert min(seconds) > 0


WRITER = """
import sys
from cm2_agent.graphs.backends.backends import TOOLS, Backends
from cm2_agent.types.tool_calls import ToolAnswer, ToolRequest
from cm2_agent.graphs.backends.record import CallRecorder
from cm2_agent.types.messages import ToolSpec
with CallRecorder(sys.argv[1]) as recorder:
    for number in range(10**9):
        request = ToolRequest(tool=ToolSpec(name="f"), arguments={"id": number})
        recorder.add(request, ToolAnswer(content="x" * 100_000), 0.0)
        print(number, flush=True)
"""


def test_a_killed_recorder_keeps_what_it_said_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) == 20:
            break
    writer.send_signal(signal.SIGKILL)
    last = max([20, *map(int, writer.stdout.read().split())])
    writer.wait()
    with CallRecorder(path) as recorder:
        recorder.add(call(id="after"), ToolAnswer(content="one"), 0.0)
    numbers = [one.arguments["id"] for one in load_recording(path)]
    assert numbers[:-1] == list(range(len(numbers) - 1))
    assert len(numbers) - 2 >= last
    assert numbers[-1] == "after"
