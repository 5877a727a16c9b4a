"""Checklists as files: YAML in, with the line of every error, item libraries, YAML out and a JSON schema for editors; apart from the words.

YAML never imports code: a check that is a name stays a name until functions are given. Libraries are included by `cm2:NAME` (shipped) or by
a path relative to the including file; a path may not leave the folder of the checklist, which so travels as one. A library is a checklist
with `parameters`, `{name: default}`, that its items use as whole values, `${name}`; a parameter whose default is null must be given.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from cm2_agent.types.check_specs import FORMS
from cm2_agent.types.checklist_item import CheckFunction, ChecklistModel, Item
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_rules import problems
from cm2_agent.errors import ChecklistError
from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.yaml_source import MAX_BYTES, Document, Place, YamlError, read_yaml, write_yaml

SHIPPED = "cm2:"
_M = TypeVar("_M", bound=ChecklistModel)
_PARAMETER = re.compile(r"^\$\{([A-Za-z_][A-Za-z0-9_]*)\}$")


class LibraryModel(ChecklistModel):
    """A checklist that others include."""

    parameters: Mapping[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A text and where it is from. `folder` is what local paths are relative to, `root` what they may not leave; None for shipped ones."""

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
        place: Place = ("items", self.index) if key is None else ("items", self.index, key)
        return self.document.line(place)


def load_checklist(path: str | Path, functions: Mapping[str, CheckFunction] | None = None) -> Checklist:
    """The checklist in a YAML file, its libraries included, its check names bound to `functions` where these are given.

    Raises ChecklistError, every line of which begins with `file:line:`: not UTF-8, not YAML, a duplicate, unknown or missing key, a wrong
    type, an unknown check, a broken rule (checklist_rules), a library that is missing, includes itself or lacks a parameter, a
    check name without a function.
    """
    where = Path(path)
    root = where.resolve().parent
    return read_checklist(_text(where, str(path)), functions, name=str(path), folder=root)


def read_checklist(
    text: str, functions: Mapping[str, CheckFunction] | None = None, *, name: str = "checklist", folder: Path | None = None
) -> Checklist:
    """The same from a text; `name` stands for the file in errors, local libraries are looked for in `folder` (None: refused)."""
    chain = () if folder is None else (str((folder / Path(name).name).resolve()),)
    source = _Source(name=name, text=text, folder=folder, root=folder, chain=chain)
    document = _document(source, {})
    model = _model(ChecklistModel, source, document)
    placed = [*_libraries(model.include, source, document), *_items(model, source, document)]
    found = problems([one.item for one in placed])
    if found:
        raise ChecklistError("\n".join(_told(problem.at, problem.field, problem.message, placed, source, document) for problem in found))
    if functions is not None:
        _named(placed, functions)
    checklist = Checklist(*(one.item for one in placed), name=model.name, version=model.version)
    return checklist if functions is None else checklist.bound(functions)


def included(model: ChecklistModel) -> tuple[Item, ...]:
    """The items of the libraries that a checklist without a file includes: shipped ones only. Raises ChecklistError."""
    source = _Source(name=f"checklist {model.name!r}", text="")
    return tuple(one.item for one in _libraries(model.include, source, Document(data={}, lines={})))


def dump_checklist(checklist: Checklist) -> str:
    """The checklist as YAML that `load_checklist` reads back to the same hash. Libraries are written out; functions by their names, which
    must be given again."""
    return write_yaml(checklist.to_json())


def checklist_schema() -> dict[str, JSON]:
    """The JSON schema of a checklist file, for editors; `cookbook/checklist.schema.json` is this."""
    schema = ChecklistModel.model_json_schema(by_alias=True)
    definitions = schema["$defs"]
    forms = []
    for name, form in FORMS.items():
        own = form.model_json_schema(by_alias=True)
        definitions.update(own.pop("$defs", {}))
        definitions[f"check_{name}"] = own
        forms.append({"$ref": f"#/$defs/check_{name}"})
    check = definitions["ItemModel"]["properties"]["check"]
    check["anyOf"] = [{"type": "string", "description": "The name of a check function."}, *forms, {"type": "null"}]
    definitions["ItemModel"]["properties"]["turn"]["anyOf"][0]["minimum"] = 0
    definitions["ItemModel"]["anyOf"] = [{"required": ["question"]}, {"required": ["check"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "CM2 checklist"}


def shipped_libraries() -> list[str]:
    """The names of the libraries that come with the package."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in files("cm2_agent").joinpath("libraries").iterdir() if entry.name.endswith(".yaml")
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
                raise YamlError(line, f"{text} is not a parameter of this library; expected one of {', '.join(values) or 'none'}")
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
    place: Place = tuple(detail["loc"])
    line = document.line(place)
    path = ".".join(str(part) for part in place if place in document.lines or not str(part).startswith(("function-", "tuple[", "dict[")))
    if detail["type"] == "extra_forbidden":
        within = cls if len(place) == 1 else _model_at(place)
        allowed = ", ".join(spec.alias or name for name, spec in within.model_fields.items())
        return f"{source.name}:{line}: unknown key {place[-1]!r}; expected one of {allowed}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "missing":
        return f"{source.name}:{line}: {path} is missing; it must be given"
    given = str(detail.get("input"))
    return f"{source.name}:{line}: {path}: {message} (given {given[:60]!r})"


def _model_at(place: Place) -> Any:
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


def _libraries(include: Sequence[str | Mapping[str, Mapping[str, JSON]]], source: _Source, document: Document) -> Iterator[_Placed]:
    for index, entry in enumerate(include):
        line = document.line(("include", index))
        if isinstance(entry, str):
            name, given = entry, {}
        elif len(entry) == 1:
            [(name, parameters)] = entry.items()
            given = dict(parameters)
        else:
            raise source.error(line, f"include names {len(entry)} libraries in one entry; expected one: begin a new entry for each")
        library = _library(name, source, line)
        if library.chain[-1] in library.chain[:-1]:
            circle = " → ".join(Path(one).name for one in library.chain)
            raise source.error(line, f"the libraries include each other in a circle: {circle}; remove one of these includes")
        inner = _document(library, given)
        model = _model(LibraryModel, library, inner)
        unknown = sorted(set(given) - set(model.parameters))
        if unknown:
            declared = ", ".join(model.parameters) or "none"
            raise source.error(line, f"{name} has no parameter {', '.join(unknown)}; expected {declared}")
        missing = [key for key, default in model.parameters.items() if default is None and given.get(key) is None]
        if missing:
            raise source.error(line, f"{name} needs the parameter {', '.join(missing)}; write {{{name}: {{{missing[0]}: …}}}}")
        yield from _libraries(model.include, library, inner)
        yield from _items(model, library, inner)


def _library(name: str, source: _Source, line: int) -> _Source:
    if name.startswith(SHIPPED):
        known = shipped_libraries()
        if name.removeprefix(SHIPPED) not in known:
            raise source.error(line, f"there is no library {name!r}; shipped are {', '.join(SHIPPED + one for one in known)}")
        text = files("cm2_agent").joinpath("libraries", f"{name.removeprefix(SHIPPED)}.yaml").read_text(encoding="utf-8")
        return _Source(name=name, text=text, chain=(*source.chain, name))
    if source.folder is None or source.root is None:
        raise source.error(
            line, f"the library {name!r} is a local path, and there is no file it could be relative to; expected {SHIPPED}NAME"
        )
    path = (source.folder / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(source.root):
        raise source.error(
            line, f"the library {name!r} is outside the checklist's folder; expected a relative path inside it: copy it there"
        )
    try:
        text = _text(path, str(Path(source.name).parent / name))
    except ChecklistError as error:
        raise source.error(line, f"cannot include: {error}") from error
    return _Source(
        name=str(Path(source.name).parent / name), text=text, folder=path.parent, root=source.root, chain=(*source.chain, str(path))
    )


def _text(path: Path, name: str) -> str:
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise ChecklistError(
                f"{name}:1: the file is larger than {MAX_BYTES // 1024} KiB; expected a checklist: split it and include the parts"
            )
        raw = path.read_bytes()
    except OSError as error:
        raise ChecklistError(f"{name}:1: cannot be read: {error.strerror or error}; expected a YAML file with a checklist") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ChecklistError(f"{name}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8") from error


def _told(at: int | None, key: str | None, message: str, placed: Sequence[_Placed], source: _Source, document: Document) -> str:
    if at is None:
        return f"{source.name}:{document.line(('items',))}: {message}"
    return f"{placed[at].source.name}:{placed[at].line(key)}: {message}"


def _named(placed: Sequence[_Placed], functions: Mapping[str, CheckFunction]) -> None:
    lost = [one for one in placed if isinstance(one.item.check, str) and one.item.check not in functions]
    if lost:
        known = ", ".join(sorted(functions)) or "none"
        raise ChecklistError(
            "\n".join(
                f"{one.source.name}:{one.line('check')}: item {one.item.id!r} names the check {one.item.check!r}, which is not among the "
                f"given functions ({known})"
                for one in lost
            )
        )


def _kind(value: JSON) -> str:
    return {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}.get(type(value), "a number")


__all__ = ["checklist_schema", "dump_checklist", "included", "load_checklist", "read_checklist", "shipped_libraries"]

if __name__ == "__main__":  # python -m cm2_agent.types.checklist_yaml > cookbook/checklist.schema.json
    sys.stdout.write(json.dumps(checklist_schema(), indent=1, ensure_ascii=False) + "\n")
