"""Libraries of items that checklists include: those shipped with the package, and files beside the checklist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import Field

from cm2_agent.errors import ChecklistError
from cm2_agent.types.checklist_item import ChecklistModel, Item
from cm2_agent.types.checklist_source import (
    ChecklistSource,
    LocatedItem,
    located_items,
    parse_checklist,
    read_document,
    read_file,
)
from cm2_agent.types.json_values import JSON
from cm2_agent.types.yaml_source import Document

SHIPPED = "cm2:"
"""What the name of a shipped library begins with."""


class LibraryModel(ChecklistModel):
    """A checklist that others include."""

    parameters: Mapping[str, Any] = Field(
        default_factory=dict,
        description="What items use as ${NAME}: name and default; null: the including file must give it.",
    )


def shipped_libraries() -> list[str]:
    """The names of the libraries that come with the package."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in files("cm2_agent").joinpath("libraries").iterdir()
        if entry.name.endswith(".yaml")
    )


def included(model: ChecklistModel) -> tuple[Item, ...]:
    """The items of the libraries that a checklist without a file includes: shipped ones only. Raises ChecklistError."""
    source = ChecklistSource(name=f"checklist {model.name!r}", text="")
    return tuple(one.item for one in library_items(model.include, source, Document(data={}, lines={})))


def library_items(
    include: Sequence[str | Mapping[str, Mapping[str, JSON]]], source: ChecklistSource, document: Document
) -> Iterator[LocatedItem]:
    """The items of the libraries that `source` includes, those of the libraries' own includes first. Raises
    ChecklistError at the line of the include: an unknown or unreadable library, a parameter that is missing or unknown,
    libraries that include each other."""
    for index, entry in enumerate(include):
        line = document.line(("include", index))
        if isinstance(entry, str):
            name, arguments = entry, {}
        elif len(entry) == 1:
            [(name, parameters)] = entry.items()
            arguments = dict(parameters)
        else:
            raise source.error(
                line, f"include names {len(entry)} libraries in one entry; expected one: begin a new entry for each"
            )
        library = _open(name, source, line)
        if library.chain[-1] in library.chain[:-1]:
            circle = " → ".join(Path(one).name for one in library.chain)
            raise source.error(
                line, f"the libraries include each other in a circle: {circle}; remove one of these includes"
            )
        inner = read_document(library, arguments)
        model = parse_checklist(LibraryModel, library, inner)
        unknown = sorted(set(arguments) - set(model.parameters))
        if unknown:
            declared = ", ".join(model.parameters) or "none"
            raise source.error(line, f"{name} has no parameter {', '.join(unknown)}; expected {declared}")
        missing = [key for key, default in model.parameters.items() if default is None and arguments.get(key) is None]
        if missing:
            raise source.error(
                line, f"{name} needs the parameter {', '.join(missing)}; write {{{name}: {{{missing[0]}: …}}}}"
            )
        yield from library_items(model.include, library, inner)
        yield from located_items(model, library, inner)


def _open(name: str, source: ChecklistSource, line: int) -> ChecklistSource:
    if name.startswith(SHIPPED):
        known = shipped_libraries()
        if name.removeprefix(SHIPPED) not in known:
            raise source.error(
                line, f"there is no library {name!r}; shipped are {', '.join(SHIPPED + one for one in known)}"
            )
        text = (
            files("cm2_agent").joinpath("libraries", f"{name.removeprefix(SHIPPED)}.yaml").read_text(encoding="utf-8")
        )
        return ChecklistSource(name=name, text=text, chain=(*source.chain, name))
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
        text = read_file(path, str(Path(source.name).parent / name))
    except ChecklistError as error:
        raise source.error(line, f"cannot include: {error}") from error
    return ChecklistSource(
        name=str(Path(source.name).parent / name),
        text=text,
        folder=path.parent,
        root=source.root,
        chain=(*source.chain, str(path)),
    )


__all__ = ["SHIPPED", "LibraryModel", "included", "library_items", "shipped_libraries"]
