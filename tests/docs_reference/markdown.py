"""Markdown from docstrings and values: Google sections, examples, tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SECTION = re.compile(r"^(Args|Raises|Returns|Yields|Attributes|Examples?|Notes?):[ ]*$", re.MULTILINE)
_ENTRY = re.compile(r"^(\*{0,2}[A-Za-z_][\w., |]*?)(?: \(([^()]*(?:\([^()]*\)[^()]*)*)\))?:(?:\s+|$)")
_MARKUP = re.compile(r"\*|(?<!\w)_|_(?!\w)")
_LISTS = {"Args": "Parameters", "Raises": "Raises", "Attributes": "Attributes"}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; `|` in a cell is escaped, a line break becomes a space."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def code(text: str) -> str:
    """An inline code span of any text."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def fence(text: str, language: str = "python") -> str:
    """A fenced block."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def escape(text: str) -> str:
    """Text whose `<`, `*` and `_` are no markup, outside code spans and `**bold words**`."""
    parts = re.split(r"(``.+?``|`[^`]+`|\*\*\w[^*`<]*\*\*)", text)
    return "".join(
        part if at % 2 else _MARKUP.sub(r"\\\g<0>", part).replace("<", "&lt;") for at, part in enumerate(parts)
    )


def first_sentence(doc: str) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join(doc.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", paragraph)[0]


def docstring(doc: str) -> str:
    """A docstring as Markdown: prose, `>>>` examples and indented code as blocks, Google sections as lists."""
    out = []
    rest = doc.strip("\n")
    while found := _SECTION.search(rest):
        out.append(_prose(rest[: found.start()]))
        body, rest = _indented(rest[found.end() + 1 :])
        out.append(_section(found.group(1), body))
    return "\n".join(part for part in [*out, _prose(rest)] if part)


def arguments(doc: str) -> dict[str, str]:
    """Name → text of the entries of a docstring's `Args:` section."""
    found = next((one for one in _SECTION.finditer(doc) if one.group(1) == "Args"), None)
    body = "" if found is None else _indented(doc[found.end() + 1 :])[0]
    entries = ((_ENTRY.match(entry), entry) for entry in _joined(body))
    return {start.group(1): entry[start.end() :].strip() for start, entry in entries if start is not None}


def prose(doc: str) -> str:
    """A docstring without its sections and examples."""
    rest, out = doc, ""
    while found := _SECTION.search(rest):
        out += rest[: found.start()]
        rest = _indented(rest[found.end() + 1 :])[1]
    paragraphs = re.split(r"\n[ ]*\n", out + rest)
    return "\n\n".join(one.strip("\n") for one in paragraphs if one.strip() and not one.lstrip().startswith(">>>"))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _indented(text: str) -> tuple[str, str]:
    """The indented lines at the beginning of a text, without their indent, and what follows them."""
    lines = text.split("\n")
    end = next((at for at, line in enumerate(lines) if line.strip() and not line.startswith(" ")), len(lines))
    filled = [line for line in lines[:end] if line.strip()]
    margin = min((len(line) - len(line.lstrip()) for line in filled), default=0)
    return "\n".join(line[margin:] for line in lines[:end]).strip("\n"), "\n".join(lines[end:])


def _section(name: str, body: str) -> str:
    if name in _LISTS:
        return f"**{_LISTS[name]}**\n\n" + "".join(_entries(body))
    if name.startswith("Example"):
        return "**Example**\n\n" + (_prose(body) if ">>>" in body else fence(body))
    return f"**{name}**\n\n{_prose(body)}"


def _entries(body: str) -> Iterable[str]:
    """A list item for each `name (type): text` of a section."""
    for entry in _joined(body):
        found = _ENTRY.match(entry)
        if found is None:
            yield f"- {escape(entry)}\n"
        else:
            kind = f" ({code(found.group(2))})" if found.group(2) else ""
            yield f"- {code(found.group(1))}{kind}: {escape(entry[found.end() :].strip())}\n"


def _joined(body: str) -> list[str]:
    """The entries of a section, each on one line."""
    entries: list[str] = []
    for line in body.split("\n"):
        if _ENTRY.match(line) or not entries:
            entries.append(line)
        else:
            entries[-1] += " " + line.strip()
    return entries


def _prose(text: str) -> str:
    """Paragraphs; what is indented or begins with `>>>` is a block of code, a table stays one."""
    out = []
    for paragraph in re.split(r"\n[ ]*\n", text.strip("\n")):
        lines = paragraph.split("\n")
        if not paragraph.strip():
            continue
        if lines[0].lstrip().startswith(">>>"):
            out.append(fence(_indented("\n".join(" " + line for line in lines))[0], "pycon"))
        elif all(line.startswith("    ") for line in lines):
            out.append(fence(_indented(paragraph)[0]))
        elif lines[0].startswith("|"):
            out.append(paragraph + "\n")
        else:
            out.append(escape(paragraph) + "\n")
    return "\n".join(out)
