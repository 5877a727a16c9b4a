"""The pages of docs/reference say what the code says, and a stale one is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm2_agent.store.schema import metadata
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.task import Task
from tests.docs_reference import COMMAND, REFERENCE, pages, stale, write
from tests.docs_reference.api import class_fields
from tests.docs_reference.markdown import arguments, docstring, prose


def test_no_page_is_stale() -> None:
    names = stale()
    assert not names, f"docs/reference is stale: {', '.join(names)}; type: {COMMAND}"


def test_a_page_that_differs_is_missing_or_has_no_source_is_found_and_mended(tmp_path: Path) -> None:
    for name, text in pages().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert stale(tmp_path) == []
    with (tmp_path / "cli.md").open("a", encoding="utf-8") as page:
        page.write("\nby hand\n")
    (tmp_path / "database.md").unlink()
    (tmp_path / "old.md").write_text("# Old\n", encoding="utf-8")
    assert write(tmp_path) == ["cli.md", "database.md", "old.md"]
    assert stale(tmp_path) == []
    assert (tmp_path / "database.md").read_bytes() == (REFERENCE / "database.md").read_bytes()


def test_pages_hold_no_address_and_no_path_of_a_machine() -> None:
    for name, text in pages().items():
        assert " at 0x" not in text, name
        assert str(Path.cwd()) not in text, name


@pytest.mark.parametrize(
    ("doc", "markdown"),
    [
        ("One <thing>.", "One &lt;thing>.\n"),
        ("**Note.** a*b, **kw of f_x _y", "**Note.** a\\*b, \\*\\*kw of f_x \\_y\n"),
        (
            "Do it.\n\nArgs:\n    a (int): first, in\n        seconds\n    *b: rest\n\n"
            "Raises:\n    ValueError: `a < 0`.\n\nMore.",
            "Do it.\n\n**Parameters**\n\n- `a` (`int`): first, in seconds\n- `*b`: rest\n\n"
            "**Raises**\n\n- `ValueError`: `a < 0`.\n\nMore.\n",
        ),
        (
            "Do.\n\nExample:\n    graph = watch(\n        graph,\n    )\n",
            "Do.\n\n**Example**\n\n```python\ngraph = watch(\n    graph,\n)\n```\n",
        ),
        ("Do.\n\n>>> f(1)\n2\n\nSo.", "Do.\n\n```pycon\n>>> f(1)\n2\n```\n\nSo.\n"),
        ("Do.\n\n    x = 1\n", "Do.\n\n```python\nx = 1\n```\n"),
    ],
)
def test_a_docstring_becomes_markdown(doc: str, markdown: str) -> None:
    assert docstring(doc) == markdown


def test_arguments_describe_fields_and_prose_leaves_sections_out() -> None:
    doc = "Do.\n\nArgs:\n    a (int): One\n        thing.\n    b: Two.\n\n>>> f(1)\n2\n\nRaises:\n    E: No.\n\nSo."
    assert arguments(doc) == {"a": "One thing.", "b": "Two."}
    assert prose(doc) == "Do.\n\nSo."
    assert arguments("Do.") == {}
    assert {field.name: field.doc for field in class_fields(Task)}["system"] == "The system prompt."


def test_fields_come_with_their_defaults_and_docstrings() -> None:
    fields = {field.name: field for field in class_fields(ToolSpec)}
    assert list(fields) == ["name", "description", "parameters", "output", "reads"]
    assert (fields["name"].default, fields["parameters"].default, fields["reads"].default) == (None, "{}", "None")
    assert fields["output"].doc == "The JSON schema of its results, where the tool declares one."


@pytest.mark.parametrize("page", ["checklist.md", "jsonl.md"])
def test_every_key_is_described(page: str) -> None:
    rows = [line for line in pages()[page].splitlines() if line.startswith("| `") and line.count(" | ") == 3]
    assert rows
    assert not [row for row in rows if row.endswith("|  |")], "describe the field in its model"


def test_every_table_is_described() -> None:
    assert not [name for name, one in metadata.tables.items() if not one.info.get("doc")]
