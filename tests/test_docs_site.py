"""The documentation site is built strictly, from its own files: what would break it for a reader stops the build."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort, PluginError

from docs.hooks import on_page_markdown, on_post_build

ROOT = Path(__file__).resolve().parent.parent
PAGE = "# Home\n\n[one](one.md#part)\n"


def site(folder: Path, **pages: str) -> Path:
    """Build these pages by the project's own settings, with a `nav` of index and one."""
    docs = folder / "docs"
    docs.mkdir()
    for name, text in {"index": PAGE, "one": "# One\n\n## Part\n", **pages}.items():
        (docs / f"{name}.md").write_text(text, encoding="utf-8")
    (docs / "site.css").write_text("", encoding="utf-8")
    config = load_config(
        str(ROOT / "mkdocs.yml"),
        docs_dir=str(docs),
        site_dir=str(folder / "site"),
        nav=["index.md", "one.md"],
        strict=True,
    )
    build(config)
    return folder / "site"


def test_sound_pages_build(tmp_path: Path) -> None:
    built = site(
        tmp_path, one="# One\n\n## Part\n\n```yaml support.yaml\nname: support\n```\n\n```bash run\ncm2 --help\n```\n"
    )
    page = (built / "one.html").read_text(encoding="utf-8")
    assert '<p class="file"><em>support.yaml</em></p>' in page
    assert page.count('<div class="codehilite">') == 2
    assert "```" not in page


@pytest.mark.parametrize(
    ("pages", "complaint"),
    [
        ({"index": "# Home\n\n[none](none.md)\n"}, "'none.md'"),
        ({"index": "# Home\n\n[one](one.md#none)\n"}, "'#none'"),
        ({"index": "# Home\n\n[none](#none)\n"}, "'#none'"),
        ({"index": "# Home\n\n![none](none.png)\n"}, "'none.png'"),
        ({"index": "# Home\n\n[outside](../README.md)\n"}, "'../README.md'"),
        ({"two": "# Two\n"}, "two.md"),
    ],
)
def test_a_broken_link_or_a_page_without_a_place_stops_the_build(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pages: dict[str, str], complaint: str
) -> None:
    with caplog.at_level(logging.WARNING, "mkdocs"), pytest.raises(Abort, match="in strict mode"):
        site(tmp_path, **pages)
    assert complaint in caplog.text


def test_a_page_that_would_fetch_from_the_network_stops_the_build(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Abort):
        site(tmp_path, one='# One\n\n## Part\n\n<script src="https://cdn.example/x.js"></script>\n')
    assert "one.html would fetch from the network: '<script src=\"https://'" in caplog.text


@pytest.mark.parametrize(
    ("html", "fetches"),
    [
        ('<a href="https://example.org">x</a>', False),
        ('<img src="a.png">', False),
        ('<link rel="canonical" href="https://example.org/x.html">', False),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', True),
        ("<img alt='x' src=http://example.org/x.png>", True),
        ("@import 'https://fonts.example/css';", True),
        ("src: url(https://fonts.example/x.woff2)", True),
    ],
)
def test_what_fetches(tmp_path: Path, html: str, fetches: bool) -> None:
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    if fetches:
        with pytest.raises(PluginError, match="would fetch from the network"):
            on_post_build({"site_dir": str(tmp_path)})
    else:
        on_post_build({"site_dir": str(tmp_path)})


def test_words_after_a_language_are_not_shown() -> None:
    assert on_page_markdown("```text output\n3\n```\n") == "```text\n3\n```\n"
    assert on_page_markdown("```python own.py\nx = 1\n```\n") == "*own.py*\n{ .file }\n\n```python\nx = 1\n```\n"
    assert on_page_markdown("```python\nx = 1\n```\n") == "```python\nx = 1\n```\n"
