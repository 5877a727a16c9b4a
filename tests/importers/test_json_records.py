"""Records out of whole and broken files: each where it begins, and whatever is wrong with one, the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.errors import TraceError
from cm2_agent.importers.json_records import Found, Problem, parse_json, read_records

VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('abc{}[]"\\\n,', max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
RECORD = st.fixed_dictionaries({"task_id": st.integers(0, 99), "traj": VALUE})
LAYOUT = st.sampled_from(["lines", "list", "indented list", "indented objects"])


def laid_out(records: list[str], layout: str) -> tuple[str, list[int]]:
    """The file's text and the line on which each record begins."""
    text = "[" if layout == "list" else "[\n" if layout == "indented list" else ""
    lines = []
    for number, one in enumerate(records):
        lines.append(text.count("\n") + 1)
        last = number == len(records) - 1
        text += one + (
            "\n"
            if layout in {"lines", "indented objects"}
            else ("" if last else ",") + ("\n" if layout == "indented list" else "")
        )
    return text + ("]" if "list" in layout else ""), lines


def spelled(record: object, layout: str) -> str:
    return json.dumps(record, ensure_ascii=False, indent=2 if "indented" in layout else None)


def read(folder: Path, text: str | bytes) -> list[Found | Problem]:
    path = folder / "records.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_records(path))


@given(st.lists(RECORD, min_size=1, max_size=5), LAYOUT)
def test_every_record_and_its_line(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]], layout: str
) -> None:
    text, lines = laid_out([spelled(one, layout) for one in records], layout)
    found = read(tmp_path_factory.mktemp("r"), text)
    assert [one.value for one in found if isinstance(one, Found)] == records
    assert [one.line for one in found] == lines
    assert [one.number for one in found] == list(range(1, len(records) + 1))


@given(st.lists(RECORD, min_size=2, max_size=5), LAYOUT, st.data())
def test_one_broken_record_costs_itself_and_the_rest_of_its_list(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]], layout: str, data: st.DataObject
) -> None:
    """A value is torn out of one record, which is reported with its line: in a list those before it are there, else all
    others."""
    at = data.draw(st.integers(0, len(records) - 1))
    texts = [spelled(one, layout) for one in records]
    texts[at] = texts[at].replace('"task_id": ', '"task_id": ?', 1)
    text, lines = laid_out(texts, layout)
    found = read(tmp_path_factory.mktemp("r"), text)
    assert [one.value for one in found if isinstance(one, Found)] == [
        one for index, one in enumerate(records) if index < at or (index > at and "list" not in layout)
    ]
    assert [one.line for one in found if isinstance(one, Problem)] == [lines[at]]


@given(st.lists(RECORD, min_size=1, max_size=3), LAYOUT, st.data())
def test_a_cut_file_keeps_what_came_before(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]], layout: str, data: st.DataObject
) -> None:
    text, _ = laid_out([spelled(one, layout) for one in records], layout)
    cut = text[: data.draw(st.integers(1, len(text)))]
    found = read(tmp_path_factory.mktemp("r"), cut)
    kept = [one.value for one in found if isinstance(one, Found)]
    assert kept == records[: len(kept)]
    if cut.rstrip() != text.rstrip() and len(kept) == len(records):
        assert layout in {"list", "indented list"}
        assert "cut short" in str(found[-1])


@given(
    st.text(st.sampled_from('{}[]",:\\ \n1ea'), min_size=1, max_size=40).filter(str.strip)
    | st.binary(min_size=1, max_size=40).filter(
        lambda data: data.decode("utf-8", "surrogateescape").removeprefix("\ufeff").strip()
    )
)
def test_no_text_breaks_the_scanner(tmp_path_factory: pytest.TempPathFactory, text: str | bytes) -> None:
    try:
        found = read(tmp_path_factory.mktemp("r"), text)
    except TraceError:  # begins as another kind of file does, or is UTF-16 without a character
        found = []
    assert [one.number for one in found] == list(range(1, len(found) + 1))
    assert all(one.line >= 1 for one in found)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ('{"task_id": 1e999}', "not finite"),
        ('{"task_id": NaN}', "not finite"),
        ('{"task_id": ' + "9" * 5000 + "}", "digits"),
        ('{"task_id": ' + "[" * 300 + "]" * 300 + "}", "nested deeper"),
        ('{"task_id": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested deeper"),
        ('{"task_id": "\\ud800"}', "surrogate"),
        ('{"task_id": "x}', "not JSON"),
        ('{"task_id": [1, 2}', "not JSON"),
        ('{"task_id"', "not JSON"),
    ],
)
@pytest.mark.parametrize("layout", ["lines", "list"])
def test_hostile_records_are_reported_with_their_line(tmp_path: Path, broken: str, reason: str, layout: str) -> None:
    text, lines = laid_out(['{"task_id": 1}', broken, '{"task_id": 3}'], layout)
    first, problem, *rest = read(tmp_path, text)
    assert isinstance(first, Found)
    assert isinstance(problem, Problem)
    assert reason in problem.reason
    assert (problem.line, problem.number) == (lines[1], 2)
    if layout == "list" and "JSON Lines" in problem.reason:
        assert rest == []
    else:
        assert [one.value for one in rest if isinstance(one, Found)] == [{"task_id": 3}]


def test_a_list_goes_on_behind_a_record_that_is_json_and_yet_unusable(tmp_path: Path) -> None:
    for unusable in ('{"a": NaN}', '{"a": "\\ud800"}', '{"a": ' + "[" * 300 + "]" * 300 + "}"):
        _, problem, last = read(tmp_path, f'[{{"a": 1}},\n{unusable},\n{{"a": 3}}]')
        assert isinstance(problem, Problem)
        assert isinstance(last, Found)
        assert (problem.line, last.value) == (2, {"a": 3})


def test_bytes_that_are_not_utf8_spoil_their_own_record_only(tmp_path: Path) -> None:
    first, problem, last = read(tmp_path, b'\xef\xbb\xbf{"a": 1}\n{"a": "\xff"}\n{"a": 3}\n')
    assert isinstance(first, Found)
    assert str(problem).startswith("line 2, record 2: not UTF-8. Name its encoding")
    assert isinstance(last, Found)


def test_a_chat_is_one_record(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}]
    assert [one.value for one in read(tmp_path, json.dumps(chat)) if isinstance(one, Found)] == [chat]
    assert [one.value for one in read(tmp_path, json.dumps([chat, chat])) if isinstance(one, Found)] == [chat, chat]
    lines = "\n".join([json.dumps(chat)] * 2)
    assert [(one.line, one.value) for one in read(tmp_path, lines) if isinstance(one, Found)] == [(1, chat), (2, chat)]


def test_what_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read"):
        read_records(tmp_path / "nothing.json")
    with pytest.raises(TraceError, match="is empty"):
        read(tmp_path, " \n ")


@given(VALUE)
def test_parse_json_reads_what_json_writes(value: object) -> None:
    assert parse_json(json.dumps(value)) == value
