"""The importers' door: functions, classes and entry points by one protocol, and what raises costs its record."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from cm2_agent import ImportedDialogue, Importer, Label, Message, Run, Task, Trace
from cm2_agent.errors import TraceError
from cm2_agent.importers import ENTRY_POINTS, FORMATS, Imported, ImportedLabels, Problem, formats, read_recordings
from cm2_agent.types.json_values import JSON


def lines(folder: Path, *records: JSON) -> Path:
    path = folder / "notes.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in records), encoding="utf-8")
    return path


def note(id: str) -> Trace:
    return Trace.of(Run(id=id, messages=(Message.of("user", "Hi"),)))


def test_what_an_importer_may_return(tmp_path: Path) -> None:
    label = Label(trace_id="a", item="polite", rater="ann", value=True)
    results: list[Any] = [
        note("a"),
        ImportedDialogue(trace=note("b"), task=Task(id="t"), note="as you know"),
        [label],
        (label, label),
    ]
    path = lines(tmp_path, *range(len(results)))

    def importer(record: Any, **options: Any) -> Any:
        return results[record]

    assert list(read_recordings(importer, path)) == [
        Imported(line=1, number=1, trace=note("a")),
        Imported(line=2, number=2, trace=note("b"), task=Task(id="t"), note="as you know"),
        ImportedLabels(line=3, number=3, labels=(label,)),
        ImportedLabels(line=4, number=4, labels=(label, label)),
    ]


def test_what_it_raises_or_returns_by_mistake_costs_its_record(tmp_path: Path) -> None:
    def importer(record: Any, **options: Any) -> Any:
        if record == "key":
            return {"text": record}["messages"]
        if record == "value":
            raise ValueError("two\nlines")
        if record == "stop":
            raise StopIteration
        return {"none": None, "text": "dialogue", "empty": [], "mixed": [note("a")]}.get(record, note("good"))

    found = list(
        read_recordings(importer, lines(tmp_path, "key", "value", "stop", "none", "text", "empty", "mixed", 8))
    )
    assert [one.reason for one in found[:3] if isinstance(one, Problem)] == [
        "KeyError: 'messages'",
        "two; lines",
        "StopIteration: ",
    ]
    for kind, problem in zip(("NoneType None", "str 'dialogue'", "list []", "list [Trace"), found[3:7], strict=True):
        assert isinstance(problem, Problem)
        assert problem.reason.startswith(f"the importer returned {kind}")
        assert "expected a Trace, an ImportedDialogue (or a list of them), or a list of Labels" in problem.reason
    assert found[7] == Imported(line=8, number=8, trace=note("good"))


def test_what_it_is_given_and_that_a_class_is_made_for_each_file(tmp_path: Path) -> None:
    class Counting:
        def __init__(self) -> None:
            self.seen: list[JSON] = []

        def __call__(self, record: JSON, *, source: str, checklists: bool) -> Trace:
            self.seen.append(record)
            return note(f"{source} {len(self.seen)} {checklists} {record}")

    path = lines(tmp_path, {"a": 1}, 2)
    for checklists in (False, True):
        found = list(read_recordings(Counting, path, checklists=checklists))
        assert [one.trace.id for one in found if isinstance(one, Imported)] == [
            f"notes 1 {checklists} {{'a': 1}}",
            f"notes 2 {checklists} 2",
        ]
    one: Importer = Counting()
    assert len(list(read_recordings(one, path))) == 2
    assert isinstance(one, Counting)
    assert one.seen == [{"a": 1}, 2]


def test_the_formats_that_come_with_cm2_load_as_entry_points_do() -> None:
    assert {"tau-bench", "openai", "labels"} <= FORMATS.keys()
    assert formats().items() >= FORMATS.items()
    for entry in FORMATS.values():
        assert entry.group == ENTRY_POINTS
        assert callable(entry.load())


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package on the path that offers formats of its own."""
    folder = tmp_path / "site"
    about = folder / "notes_importer-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: notes-importer\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        f"[{ENTRY_POINTS}]\nnotes = notes_of_one_test:read_note\ngone = no_such_module_here:read\n"
        "number = notes_of_one_test:NUMBER\n"
    )
    (folder / "notes_of_one_test.py").write_text(
        "from cm2_agent import Message, Run, Trace\n\nNUMBER = 3\n\n\ndef read_note(record, **options):\n"
        "    return Trace.of(Run(id=record['id'], messages=(Message.of('user', 'Hi'),)))\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    return about


class Needy:
    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, record: Any, **options: Any) -> Trace:
        return note(self.path)


class Mute:
    pass


@pytest.mark.parametrize(
    ("kind", "reason"), [(Needy, "cannot be made: TypeError: .*'path'"), (Mute, "has no __call__")]
)
def test_a_class_that_is_no_importer_is_refused(kind: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=rf"importer {kind.__name__} {reason}.*made without arguments and called with"):
        read_recordings(kind, lines(tmp_path, {"id": "n1"}))


@pytest.mark.usefixtures("installed")
def test_an_installed_package_offers_a_format(tmp_path: Path) -> None:
    (found,) = read_recordings("notes", lines(tmp_path, {"id": "n1"}))
    assert isinstance(found, Imported)
    assert found.trace == note("n1")
    with pytest.raises(
        TraceError, match="format 'gone' cannot be loaded from no_such_module_here:read: ModuleNotFound"
    ):
        read_recordings("gone", tmp_path)
    with pytest.raises(TraceError, match="format 'number' is notes_of_one_test:NUMBER, int 3; expected a function"):
        read_recordings("number", tmp_path)
    with pytest.raises(TraceError, match=r"expected one of .*openai, .*labels, notes, gone, number, or"):
        read_recordings("xml", tmp_path)


def test_two_importers_of_one_name_are_refused(installed: Path) -> None:
    (installed / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nopenai = other:read\n")
    with pytest.raises(
        TraceError, match=r"two importers are named 'openai': .*openai_chat:read_openai_chat and other:read"
    ):
        formats()


def test_an_entry_point_is_what_the_standard_says() -> None:
    assert isinstance(FORMATS["openai"], EntryPoint)
    assert FORMATS["openai"].value == "cm2_agent.importers.openai_chat:read_openai_chat"
