"""The page that a command writes with --html FILE."""

from __future__ import annotations

from pathlib import Path

from cm2_agent.cli.common import echo_err, printable
from cm2_agent.errors import StoreError


def check_page(html: Path | None) -> None:
    """Raises StoreError where the file's folder is not there: before the command begins its work."""
    if html is not None and not html.resolve().parent.is_dir():
        raise StoreError(f"--html {html}: the folder {html.parent} does not exist; make it, or name another file")


def write_page(html: Path, text: str) -> None:
    """Write the page and say so. Raises StoreError where it cannot be written."""
    try:
        html.write_text(text, encoding="utf-8", errors="replace")  # half a surrogate pair is no text
    except OSError as error:
        raise StoreError(f"--html {html}: cannot be written: {error.strerror or error}") from error
    echo_err(printable(f"wrote {html}"))
