"""A checklist without personal data, as a redactor leaves it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cm2_agent.errors import ChecklistError, TaskError
from cm2_agent.redaction.redactor import Redactor
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.json_values import JSON, content_hash

__all__ = ["redacted_checklist", "redacted_checklist_json"]

_PIECE = re.compile(r"\\([^A-Za-z0-9])|.", re.DOTALL)
"""A character of a pattern, by itself or escaped."""
_REFERENCES = ("id", "depends_on", "part_of", "any_of", "otherwise")
"""What of an item is a name within the checklist, of letters that no placeholder has."""


def redacted_checklist(checklist: Checklist, redactor: Redactor) -> Checklist:
    """The checklist with the personal data in its questions and checks replaced, so that a check that names a value
    still finds it in a redacted dialogue; the same object where it has none. Its functions stay. Raises TaskError where
    what comes of it is no checklist."""
    data = redacted_checklist_json(checklist, redactor)
    if data == checklist.to_json():
        return checklist
    new = Checklist.from_json(data)
    items = (
        item.model_copy(update={key: getattr(old, key) for key in ("check", "when") if callable(getattr(old, key))})
        for item, old in zip(new.items, checklist.items, strict=True)
    )
    return Checklist(*items, name=new.name, version=new.version)


def redacted_checklist_json(checklist: Checklist, redactor: Redactor) -> dict[str, JSON]:
    """The checklist as a task holds it, its words redacted. Raises TaskError where what comes of it is none."""
    data = checklist.to_json()
    items = [{name: _redacted(name, value, redactor) for name, value in item.items()} for item in data["items"]]
    name = redactor.redact(data["name"])
    if items == data["items"] and name == data["name"]:
        return data
    try:  # the name and version of the original belong to the original's content
        return Checklist.from_json(
            {**data, "items": items, "name": f"{name}-{content_hash([name, items])[:8]}"}
        ).to_json()
    except ChecklistError as error:
        raise TaskError(f"checklist {name!r}: redacted, it is no checklist any more: {error}") from error


def _redacted(name: str, value: JSON, redactor: Redactor) -> JSON:
    if name in _REFERENCES:
        return value
    if name in ("check", "when") and isinstance(value, Mapping):
        for key in ("reply_matches", "user_matches"):
            if isinstance(pattern := value.get(key), str):
                return {**value, key: _redacted_pattern(pattern, redactor)}
        stated = value.get("reply_states")
        source = stated.get("from") if isinstance(stated, Mapping) else None
        if isinstance(source, Mapping) and isinstance(pattern := source.get("pattern"), str):
            redacted = {**redactor.redact_json(source), "pattern": _redacted_pattern(pattern, redactor)}
            return {**value, "reply_states": {"from": redacted}}
    return redactor.redact_json(value)


def _redacted_pattern(pattern: str, redactor: Redactor) -> str:
    """The pattern with the values that it spells replaced, as what matches them: `ada@x\\.org` is an address with an
    escape in it."""
    pieces = [(found.start(), found.group(1) or found.group()) for found in _PIECE.finditer(pattern)]
    starts = [*(start for start, _ in pieces), len(pattern)]
    out, at = "", 0
    for start, end, placeholder in redactor.finds("".join(char for _, char in pieces)):
        out += pattern[at : starts[start]] + re.escape(placeholder)
        at = starts[end]
    return out + pattern[at:]
