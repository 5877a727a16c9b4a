"""The text that a checklist is written in: read as YAML, parsed into items, every error with its file and line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from cm2_agent.errors import ChecklistError
from cm2_agent.types.checklist_item import (
    HARD,
    SOFT,
    ChecklistModel,
    EvidenceModel,
    Item,
    ItemModel,
    SoftDependency,
)
from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.yaml_source import MAX_BYTES, Document, KeyPath, YamlError, read_yaml

C = TypeVar("C", bound=ChecklistModel)

_PARAMETER = re.compile(r"^\$\{([A-Za-z_][A-Za-z0-9_]*)\}$")


@dataclass(frozen=True, kw_only=True)
class ChecklistSource:
    """A checklist's text and where it is from.

    `name` stands for the file in errors. `folder` is what local includes are relative to, `root` the folder they may
    not leave; both are None for a text that has no file."""

    name: str
    text: str
    folder: Path | None = None
    root: Path | None = None
    chain: tuple[str, ...] = ()
    """The sources that include this one, from the outermost on, itself last."""

    def error(self, line: int, message: str) -> ChecklistError:
        """An error that begins with `name:line:`."""
        return ChecklistError(f"{self.name}:{line}: {message}")


@dataclass(frozen=True, kw_only=True)
class LocatedItem:
    """An item and where it was written."""

    item: Item
    source: ChecklistSource
    document: Document = field(repr=False)
    index: int

    def line(self, key: str | None = None) -> int:
        """The 1-based line of the item, or of one of its keys."""
        place: KeyPath = ("items", self.index) if key is None else ("items", self.index, key)
        return self.document.line(place)


def read_file(path: Path, name: str) -> str:
    """The text of a UTF-8 file, `name` in errors. Raises ChecklistError."""
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise ChecklistError(
                f"{name}:1: the file is larger than {MAX_BYTES // 1024} KiB; expected a checklist: split it and include"
                " the parts"
            )
        raw = path.read_bytes()
    except OSError as error:
        raise ChecklistError(
            f"{name}:1: cannot be read: {error.strerror or error}; expected a YAML file with a checklist"
        ) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ChecklistError(
            f"{name}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error


def read_document(source: ChecklistSource, parameters: Mapping[str, JSON]) -> Document:
    """The text as plain data; where it declares `parameters`, each `${name}` is replaced by the value given for it, or
    by its default. Raises ChecklistError."""
    try:
        plain = read_yaml(source.text)
        if not isinstance(plain.data, dict) or "parameters" not in plain.data:
            return plain
        values = {**(plain.data["parameters"] if isinstance(plain.data["parameters"], dict) else {}), **parameters}

        def fill_in(text: str, line: int) -> JSON:
            name = _PARAMETER.match(text)
            if name is None:
                return text
            if name[1] not in values:
                raise YamlError(
                    line, f"{text} is not a parameter of this library; expected one of {', '.join(values) or 'none'}"
                )
            return values[name[1]]

        return read_yaml(source.text, fill_in)
    except YamlError as error:
        raise source.error(error.line, str(error)) from error


def parse_checklist(cls: type[C], source: ChecklistSource, document: Document) -> C:
    """The data as a checklist or a library. Raises ChecklistError with every wrong key and value on its line."""
    if not isinstance(document.data, dict):
        raise source.error(1, f"holds {_kind(document.data)}; expected a mapping with name and items")
    try:
        return cls.model_validate_json(canonical_json(document.data), strict=True)
    except ValidationError as error:
        sentences = dict.fromkeys(
            _sentence(detail, source, document, cls) for detail in error.errors(include_url=False)
        )
        raise ChecklistError("\n".join(sentences)) from error
    except ValueError as error:
        raise source.error(1, f"cannot be read: {error}") from error


def located_items(model: ChecklistModel, source: ChecklistSource, document: Document) -> list[LocatedItem]:
    """The checklist's own items. Raises ChecklistError with every broken item on its line."""
    placed, broken = [], []
    for index, item in enumerate(model.items):
        try:
            placed.append(LocatedItem(item=Item.from_model(item), source=source, document=document, index=index))
        except ChecklistError as error:
            broken.append(f"{source.name}:{document.line(('items', index))}: {error}")
    if broken:
        raise ChecklistError("\n".join(broken))
    return placed


def _sentence(detail: Any, source: ChecklistSource, document: Document, cls: type[ChecklistModel]) -> str:
    place: KeyPath = tuple(part for part in detail["loc"] if part not in (HARD, SOFT))  # which of the two forms it is
    line = document.line(place)
    path = ".".join(
        str(part)
        for part in place
        if place in document.lines or not str(part).startswith(("function-", "tuple[", "dict["))
    )
    if detail["type"] == "extra_forbidden":
        within = cls if len(place) == 1 else _model_at(place)
        allowed = ", ".join(spec.alias or name for name, spec in within.model_fields.items())
        return f"{source.name}:{line}: unknown key {place[-1]!r}; expected one of {allowed}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "missing":
        return f"{source.name}:{line}: {path} is missing; it must be given"
    value = str(detail.get("input"))
    return f"{source.name}:{line}: {path}: {message} (given {value[:60]!r})"


def _model_at(place: KeyPath) -> Any:
    return EvidenceModel if "evidence" in place else SoftDependency if "depends_on" in place else ItemModel


def _kind(value: JSON) -> str:
    return {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}.get(
        type(value), "a number"
    )


__all__ = ["ChecklistSource", "LocatedItem", "located_items", "parse_checklist", "read_document", "read_file"]
