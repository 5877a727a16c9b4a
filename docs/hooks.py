"""Hooks of MkDocs: fences lose the words that only the tests read; a site that fetches from the network is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

FENCE = re.compile(r"^```(\w+) +([^\n`]+)$", re.MULTILINE)
"""The opening of a block with words for tests/test_docs.py after its language: `bash run`, `yaml support.yaml`."""
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|audio|video|embed)\b[^>]*\ssrc=["']?(?:https?:)?//"""
    r"""|<link\b(?![^>]*\brel=["']?canonical)[^>]*\shref=["']?(?:https?:)?//"""
    r"""|(?:@import|url\()\s*["']?(?:https?:)?//""",
    re.IGNORECASE,
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A file's block is headed by the file's name; the other words are dropped."""
    return FENCE.sub(_opening, markdown)


def on_post_build(config: Any, **_: Any) -> None:
    """Raises PluginError where a page or style sheet names a script, style, font or picture on another host."""
    site = Path(config["site_dir"])
    for path in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        found = FETCHED.search(path.read_text(encoding="utf-8"))
        if found:
            raise PluginError(
                f"{path.relative_to(site)} would fetch from the network: {found.group()!r}; ship the file in docs/"
            )


def _opening(found: re.Match[str]) -> str:
    language, words = found.group(1), found.group(2).strip()
    caption = f"*{words}*\n{{ .file }}\n\n" if "." in words else ""
    return f"{caption}```{language}"
