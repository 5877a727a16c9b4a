"""The pages of docs/reference, made from the code; `python -m tests.docs_reference` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tests.docs_reference.api import api_pages
from tests.docs_reference.cli import cli_page
from tests.docs_reference.database import database_page
from tests.docs_reference.grpo_fields import grpo_fields_page
from tests.docs_reference.keys import checklist_page, jsonl_page

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
COMMAND = "python -m tests.docs_reference"


@cache
def pages() -> Mapping[str, str]:
    """The generated pages: file name in docs/reference → Markdown."""
    made = {
        **api_pages(),
        "cli.md": cli_page(),
        "checklist.md": checklist_page(),
        "jsonl.md": jsonl_page(),
        "database.md": database_page(),
        "grpo-fields.md": grpo_fields_page(),
    }
    return {
        name: f"<!-- Made from the code by `{COMMAND}`; change the code, not this page. -->\n\n{made[name]}"
        for name in made
    }


def stale(folder: Path = REFERENCE) -> list[str]:
    """The names of the pages in `folder` that are missing, differ from what the code gives, or that nothing makes."""
    wanted = pages()
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*") if path.is_file()}
    return sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))


def write(folder: Path = REFERENCE) -> list[str]:
    """Bring the pages in `folder` up to date, delete those that nothing makes, and return the names of what changed."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = stale(folder)
    wanted = pages()
    for name in changed:
        if name in wanted:
            (folder / name).write_text(wanted[name], encoding="utf-8")
        else:
            (folder / name).unlink()
    return changed
