"""What stands beside a question, an answer or a list of records: it is the dialogue's metadata, or named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cm2_agent.importers import Imported
from tests.importers.foreign_files import only, read, written
from tests.importers.test_span_exports import langfuse


def heard(found: Imported) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in found.trace.messages]


@pytest.mark.parametrize("context", ["The shop opens at 9.", ["one", "two"], {"page": 3}, 7])
@pytest.mark.parametrize("shape", ["dataset", "pair", "stored", "request", "better"])
def test_a_context_is_metadata_and_not_lost(tmp_path: Path, shape: str, context: Any) -> None:
    asked, answered = {"question": "When?", "context": context}, {"answer": "At 9.", "sources": ["a"]}
    more = {"context": context, "sources": ["a"]}
    shapes: dict[str, dict[str, Any]] = {
        "dataset": {"inputs": asked, "outputs": answered},
        "pair": {**asked, **answered},
        "stored": {"input": "When?", "output": "At 9.", **more},
        "request": {"request": "When?", "response": "At 9.", **more},
        "better": {"prompt": "When?", "chosen": "At 9.", "rejected": "At 8.", **more},
    }
    found = read(written(tmp_path, shapes[shape]))[0]
    assert heard(found) == [("user", "When?"), ("assistant", "At 9.")]
    (run,) = found.trace.runs
    assert {key: run.attributes[key] for key in ("context", "sources")} == {"context": context, "sources": ["a"]}


def test_a_key_of_both_halves_and_the_metadata(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    asked = {"question": "When?", "context": "a", "language": "en", "system": "Be kind.", "tools": tools}
    answered = {"answer": "At 9.", "context": "b"}
    found = only(tmp_path, {"inputs": asked, "outputs": answered, "metadata": {"context": "c"}})
    (run,) = found.trace.runs
    expected = {"context": "c", "inputs.context": "a", "outputs.context": "b", "language": "en"}
    assert {key: value for key, value in run.attributes.items() if not key.startswith("cm2.")} == expected
    assert heard(found)[0] == ("system", "Be kind.")
    assert [tool.name for tool in found.trace.calls[0].tools] == ["f"]


def test_what_has_a_place_of_its_own_is_no_metadata(tmp_path: Path) -> None:
    record = {
        "instruction": "Tell.",
        "input": "Paris",
        "output": "Done.",
        "system": "s",
        "model": "m",
        "topic": "towns",
    }
    (run,) = only(tmp_path, record).trace.runs
    assert {key: value for key, value in run.attributes.items() if not key.startswith("cm2.")} == {"topic": "towns"}


@pytest.mark.parametrize("rows", [[{"question": "q", "answer": "a"}] * 3, langfuse()])
@pytest.mark.parametrize("depth", [0, 1])
def test_keys_beside_a_list_of_records_are_named(tmp_path: Path, rows: list[Any], depth: int) -> None:
    wrapped: dict[str, Any] = {"data": rows, "product": "desk", "next": None, "meta": {"page": 1}}
    bare: dict[str, Any] = {"data": rows}
    for _ in range(depth):
        wrapped, bare = {"result": wrapped}, {"result": bare}
    notes = {one.note for one in read(written(tmp_path, wrapped))}
    (note,) = notes
    assert note is not None
    assert "`data` alone was read; 2 other keys were not: `product`, `meta`" in note
    assert {one.note for one in read(written(tmp_path, bare))} == {None}
