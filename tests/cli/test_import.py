"""`cm2 import MODULE:IMPORTER FILE`: what is stored, what is skipped, and what a wrong name is told."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from cm2_agent import SQLStore
from cm2_agent.cli.app import app
from tests.cli_runner import CliRunner

MODULE = """
import sys

from cm2_agent import ImportedDialogue, Label, Message, Run, Task, ToolCall, Trace

NUMBER = 3


def read_note(record, **options):
    if "label" in record:
        return [Label(trace_id=record["of"], item="polite", rater="ann", value=record["label"])]
    run = Run(id=record["id"], messages=(Message.of("user", record["text"]),), attributes={"x": record.get("x")})
    return ImportedDialogue(trace=Trace.of(run), task=Task(id="t-" + record["id"]), note="from notes")


def read_wrongly(record, **options):
    return Trace.of(Run(id=7, messages=("not a message",)))


def read_a_message(record, **options):
    # can be written and not be read again
    messages = {
        "role": Message.of("robot", "Hi"),
        "text": Message.of("user", 7),
        "call": Message.of("assistant", calls=[ToolCall(id=1, name="f")]),
        "good": Message.of("user", "Hi"),
    }
    return Trace.of(Run(id=record["kind"], messages=(messages[record["kind"]],)))


def read_deeply(record, **options):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    return Trace.of(Run(id="r", messages=(), attributes={"x": deep}))


def exits(record, **options):
    sys.exit(3)


def read_what_is_no_json(record, **options):
    return Trace.of(Run(id="r", messages=(), attributes={"x": object()}))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the module, under a name of this test's own: modules are imported once a process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"notes_{abs(hash(str(tmp_path)))}.py"
    (tmp_path / name).write_text(MODULE)
    return Path(name)


def notes(*records: object) -> str:
    Path("notes.jsonl").write_text("\n".join(json.dumps(one) for one in records))
    return "notes.jsonl"


def cm2(*arguments: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, ["import", *arguments])
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


def test_records_of_an_importer_of_ones_own(here: Path) -> None:
    path = notes({"id": "a", "text": "Hi"}, {"id": "b"}, {"id": "c", "text": "Ho"}, {"id": "a", "text": "other"})
    command = (f"{here.stem}:read_note", path, "--store", "sqlite:///n.db", "--json")
    out, err = cm2(*command)
    assert json.loads(out) == {"imported": 2, "skipped": 2, "duplicates": 0}
    assert "notes.jsonl: line 2, record 2: KeyError: 'text'; skipped" in err
    assert "line 4, record 4: run 'a' is stored already with other content" in err
    assert "note: from notes" in err
    assert json.loads(cm2(*command, "--checklists")[0]) == {"imported": 0, "skipped": 2, "duplicates": 2}
    with SQLStore("sqlite:///n.db") as store:
        assert [trace.id for trace in store.traces()] == ["a", "c"]
        assert store.task("t-a") is not None, "stored with --checklists"
    assert json.loads(cm2(f"{here}:read_note", *command[1:])[0])["duplicates"] == 2, "a file's name does as well"


def test_dialogues_and_labels_of_one_file(here: Path) -> None:
    path = notes({"id": "a", "text": "Hi"}, {"label": True, "of": "a"}, {"label": None, "of": "gone"})
    out, err = cm2(f"{here.stem}:read_note", path, "--store", "sqlite:///n.db", "--json")
    assert json.loads(out) == {"imported": 3, "changed": 0, "skipped": 0, "duplicates": 0, "without_trace": 1}
    assert "1 labels speak of traces that the store does not hold" in err


def test_a_trace_that_cannot_be_stored_costs_its_record(here: Path) -> None:
    path = notes({}, {})
    for reader, reason in (
        ("read_wrongly", "run 7: id is int 7; expected text"),
        ("read_what_is_no_json", "not JSON"),
        ("read_deeply", "not JSON: maximum recursion depth"),
    ):
        out, err = cm2(f"{here.stem}:{reader}", path, "--store", "sqlite:///n.db", "--json")
        assert json.loads(out) == {"imported": 0, "skipped": 2, "duplicates": 0}
        assert reason in err


def test_what_could_not_be_read_back_is_not_stored(here: Path) -> None:
    path = notes(*({"kind": kind} for kind in ("role", "text", "call", "good")))
    out, err = cm2(f"{here.stem}:read_a_message", path, "--store", "sqlite:///n.db", "--json")
    assert json.loads(out) == {"imported": 1, "skipped": 3, "duplicates": 0}
    for reason in (
        "run 'role': a message has role 'robot'; expected one of system, user, assistant, tool",
        "run 'text': a text part has content 7; expected text",
        "run 'call': a tool_call part has id 1; expected text or nothing",
    ):
        assert reason in err
    with SQLStore("sqlite:///n.db") as store:
        assert [trace.id for trace in store.traces()] == ["good"]


def test_an_importer_that_exits_costs_its_records(here: Path) -> None:
    _, err = cm2(f"{here.stem}:exits", notes({}, {}), "--store", "sqlite:///n.db", code=2)
    assert "none of its 2 records is of format" in err
    assert "line 1, record 1: SystemExit: 3" in err


@pytest.mark.parametrize(
    ("name", "given", "hint"),
    [
        ("xml", "format 'xml' is unknown; expected one of ", "MODULE:IMPORTER"),
        ("no_such_module:read", "importer 'no_such_module:read': no_such_module cannot be imported", "MODULE:IMPORTER"),
        ("absent.py:read", "there is no file absent.py", "MODULE:IMPORTER"),
        ("{here}:nothing", "has no 'nothing'; it holds ImportedDialogue, Label", "MODULE:IMPORTER"),
        ("{here}:NUMBER", "is int 3; expected a function or a class", "MODULE:IMPORTER"),
        ("{here}:", "expected MODULE:NAME", "MODULE:IMPORTER"),
    ],
)
def test_a_wrong_name_exits_2(here: Path, name: str, given: str, hint: str) -> None:
    out, err = cm2(name.format(here=here.stem), notes({"id": "a", "text": "Hi"}), "--store", "sqlite:///n.db", code=2)
    assert out == ""
    assert given in err
    assert f"Type: cm2 import {hint} FILE" in err
    assert not Path("n.db").exists()


def test_nothing_usable_exits_2_and_stores_nothing(here: Path) -> None:
    _, err = cm2(f"{here.stem}:read_note", notes({}, {}), "--store", "sqlite:///n.db", code=2)
    assert "none of its 2 records is of format" in err
    assert "line 1, record 1: KeyError: 'id'" in err
    assert not Path("n.db").exists()


def test_a_disk_that_fails_exits_1_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out, err = cm2("openai", "/proc/self/mem", "--store", "sqlite:///n.db", code=1)  # opens, and fails when it is read
    assert out == ""
    assert "/proc/self/mem: the disk failed: Input/output error" in err


def test_a_full_disk_exits_1_and_keeps_what_came_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chats = [[{"role": "user", "content": f"{number} {'x' * 20_000}"}] for number in range(300)]
    Path("chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    Path("one.jsonl").write_text(json.dumps(chats[0]))
    cm2("openai", "one.jsonl", "--store", "sqlite:///n.db")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        _, err = cm2("openai", "chats.jsonl", "--store", "sqlite:///n.db", code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "What came before is stored; type the same command again" in err
    with SQLStore("sqlite:///n.db") as store:
        stored = sum(1 for _ in store.traces())
    assert 0 < stored < len(chats)
    out, _ = cm2("openai", "chats.jsonl", "--store", "sqlite:///n.db", "--json")
    assert json.loads(out) == {"imported": len(chats) - stored, "skipped": 0, "duplicates": stored}


def test_a_format_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "cm2 import openai: which file? Type: cm2 import openai FILE" in cm2("openai", code=2)[1]
    assert "expected one file" in cm2("openai", "sharegpt", "file.json", code=2)[1]
    assert "cannot be read" in cm2("nothing.json", code=2)[1]


def test_the_format_that_is_seen_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("talk.json").write_text(json.dumps([{"conversations": [{"from": "human", "value": "Hi"}]}]))
    out, err = cm2("talk.json", "--store", "sqlite:///n.db", "--json")
    assert json.loads(out) == {"format": "sharegpt", "imported": 1, "skipped": 0, "duplicates": 0}
    assert "talk.json: format sharegpt (`conversations`: turns with `from` and `value`)" in err
