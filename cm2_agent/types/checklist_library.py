"""Item libraries that checklists include, shipped or beside the checklist file, with the line of every error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from cm2_agent.errors import ChecklistError
from cm2_agent.types.checklist_item import ChecklistModel, Item
from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.yaml_source import MAX_BYTES, Document, KeyPath, YamlError, read_yaml

SHIPPED = "cm2:"


_M = TypeVar("_M", bound=ChecklistModel)


_PARAMETER = re.compile(r"^\$\{([A-Za-z_][A-Za-z0-9_]*)\}$")


class LibraryModel(ChecklistModel):
    """A checklist that others include."""

    parameters: Mapping[str, Any] = Field(
        default_factory=dict,
        description="What items use as ${NAME}: name and default; null: the including file must give it.",
    )


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A text and where it is from. `folder` is what local paths are relative to, `root` what they may not leave; None
    for shipped ones."""

    name: str
    text: str
    folder: Path | None = None
    root: Path | None = None
    chain: tuple[str, ...] = ()
    """The sources that include this one, from the outermost on, itself last."""

    def error(self, line: int, message: str) -> ChecklistError:
        return ChecklistError(f"{self.name}:{line}: {message}")


@dataclass(frozen=True, kw_only=True)
class _Placed:
    """An item and where it was written."""

    item: Item
    source: _Source
    document: Document = field(repr=False)
    index: int

    def line(self, key: str | None = None) -> int:
        place: KeyPath = ("items", self.index) if key is None else ("items", self.index, key)
        return self.document.line(place)


def included(model: ChecklistModel) -> tuple[Item, ...]:
    """The items of the libraries that a checklist without a file includes: shipped ones only. Raises ChecklistError."""
    source = _Source(name=f"checklist {model.name!r}", text="")
    return tuple(one.item for one in _libraries(model.include, source, Document(data={}, lines={})))


def shipped_libraries() -> list[str]:
    """The names of the libraries that come with the package."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in files("cm2_agent").joinpath("libraries").iterdir()
        if entry.name.endswith(".yaml")
    )


def _document(source: _Source, parameters: Mapping[str, JSON]) -> Document:
    try:
        plain = read_yaml(source.text)
        if not isinstance(plain.data, dict) or "parameters" not in plain.data:
            return plain
        values = {**(plain.data["parameters"] if isinstance(plain.data["parameters"], dict) else {}), **parameters}

        def put(text: str, line: int) -> JSON:
            name = _PARAMETER.match(text)
            if name is None:
                return text
            if name[1] not in values:
                raise YamlError(
                    line, f"{text} is not a parameter of this library; expected one of {', '.join(values) or 'none'}"
                )
            return values[name[1]]

        return read_yaml(source.text, put)
    except YamlError as error:
        raise source.error(error.line, str(error)) from error


def _model(cls: type[_M], source: _Source, document: Document) -> _M:
    if not isinstance(document.data, dict):
        raise source.error(1, f"holds {_kind(document.data)}; expected a mapping with name and items")
    try:
        return cls.model_validate_json(canonical_json(document.data), strict=True)
    except ValidationError as error:
        told = dict.fromkeys(_sentence(detail, source, document, cls) for detail in error.errors(include_url=False))
        raise ChecklistError("\n".join(told)) from error
    except ValueError as error:
        raise source.error(1, f"cannot be read: {error}") from error


def _sentence(detail: Any, source: _Source, document: Document, cls: type[ChecklistModel]) -> str:
    place: KeyPath = tuple(detail["loc"])
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
    given = str(detail.get("input"))
    return f"{source.name}:{line}: {path}: {message} (given {given[:60]!r})"


def _model_at(place: KeyPath) -> Any:
    from cm2_agent.types.checklist_item import EvidenceModel, ItemModel

    return EvidenceModel if "evidence" in place else ItemModel


def _items(model: ChecklistModel, source: _Source, document: Document) -> list[_Placed]:
    placed, broken = [], []
    for index, item in enumerate(model.items):
        try:
            placed.append(_Placed(item=Item.from_model(item), source=source, document=document, index=index))
        except ChecklistError as error:
            broken.append(f"{source.name}:{document.line(('items', index))}: {error}")
    if broken:
        raise ChecklistError("\n".join(broken))
    return placed


def _libraries(
    include: Sequence[str | Mapping[str, Mapping[str, JSON]]], source: _Source, document: Document
) -> Iterator[_Placed]:
    for index, entry in enumerate(include):
        line = document.line(("include", index))
        if isinstance(entry, str):
            name, given = entry, {}
        elif len(entry) == 1:
            [(name, parameters)] = entry.items()
            given = dict(parameters)
        else:
            raise source.error(
                line, f"include names {len(entry)} libraries in one entry; expected one: begin a new entry for each"
            )
        library = _library(name, source, line)
        if library.chain[-1] in library.chain[:-1]:
            circle = " → ".join(Path(one).name for one in library.chain)
            raise source.error(
                line, f"the libraries include each other in a circle: {circle}; remove one of these includes"
            )
        inner = _document(library, given)
        model = _model(LibraryModel, library, inner)
        unknown = sorted(set(given) - set(model.parameters))
        if unknown:
            declared = ", ".join(model.parameters) or "none"
            raise source.error(line, f"{name} has no parameter {', '.join(unknown)}; expected {declared}")
        missing = [key for key, default in model.parameters.items() if default is None and given.get(key) is None]
        if missing:
            raise source.error(
                line, f"{name} needs the parameter {', '.join(missing)}; write {{{name}: {{{missing[0]}: …}}}}"
            )
        yield from _libraries(model.include, library, inner)
        yield from _items(model, library, inner)


def _library(name: str, source: _Source, line: int) -> _Source:
    if name.startswith(SHIPPED):
        known = shipped_libraries()
        if name.removeprefix(SHIPPED) not in known:
            raise source.error(
                line, f"there is no library {name!r}; shipped are {', '.join(SHIPPED + one for one in known)}"
            )
        text = (
            files("cm2_agent").joinpath("libraries", f"{name.removeprefix(SHIPPED)}.yaml").read_text(encoding="utf-8")
        )
        return _Source(name=name, text=text, chain=(*source.chain, name))
    if source.folder is None or source.root is None:
        raise source.error(
            line,
            f"the library {name!r} is a local path, and there is no file it could be relative to; expected"
            f" {SHIPPED}NAME",
        )
    path = (source.folder / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(source.root):
        raise source.error(
            line,
            f"the library {name!r} is outside the checklist's folder; expected a relative path inside it: copy it"
            " there",
        )
    try:
        text = _text(path, str(Path(source.name).parent / name))
    except ChecklistError as error:
        raise source.error(line, f"cannot include: {error}") from error
    return _Source(
        name=str(Path(source.name).parent / name),
        text=text,
        folder=path.parent,
        root=source.root,
        chain=(*source.chain, str(path)),
    )


def _text(path: Path, name: str) -> str:
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


def _kind(value: JSON) -> str:
    return {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}.get(
        type(value), "a number"
    )
