"""Checklists as YAML files: reading with the line of every error, writing, and a JSON schema for editors.

YAML never imports code: a check that is a name stays a name until functions are given. Libraries are included by
`cm2:NAME` (shipped) or by a path relative to the including file; a path may not leave the folder of the checklist,
which so travels as one. A library is a checklist with `parameters`, `{name: default}`, that its items use as whole
values, `${name}`; a parameter whose default is null must be given."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path

from cm2_agent.errors import ChecklistError
from cm2_agent.types.check_specs import FORMS
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import CheckFunction, ChecklistModel
from cm2_agent.types.checklist_library import library_items
from cm2_agent.types.checklist_rules import problems
from cm2_agent.types.checklist_source import (
    ChecklistSource,
    LocatedItem,
    located_items,
    parse_checklist,
    read_document,
    read_file,
)
from cm2_agent.types.json_values import JSON
from cm2_agent.types.yaml_source import write_yaml


def load_checklist(path: str | Path, functions: Mapping[str, CheckFunction] | None = None) -> Checklist:
    r"""The checklist in a YAML file, with the libraries that it includes.

    Args:
        path: The YAML file. A library is included by `cm2:NAME` (shipped) or a path relative to the file.
        functions: The check functions that items name, by name. None: the names stay names, and a scorer or guard must
            be given the functions.

    Raises:
        ChecklistError: Not UTF-8, not YAML, a duplicate, unknown or missing key, a wrong type, an unknown check, a
            broken rule, a library that is missing, includes itself or lacks a parameter, or a check name without a
            function. Every line of the message begins with `file:line:`.

    >>> from pathlib import Path
    >>> from cm2_agent import load_checklist
    >>> text = "name: support\nitems:\n  - id: looks_up_first\n    check: {called: get_order, before: reply}\n"
    >>> _ = Path("support.yaml").write_text(text)
    >>> [item.id for item in load_checklist("support.yaml")]
    ['looks_up_first']
    """
    where = Path(path)
    root = where.resolve().parent
    return read_checklist(read_file(where, str(path)), functions, name=str(path), folder=root)


def checklist_of(
    given: object, functions: Mapping[str, CheckFunction] | None = None, *, otherwise: str = ""
) -> Checklist:
    """What a parameter `checklist` was given, read where it is a path. Raises ChecklistError, which ends with
    `otherwise` where it is neither a checklist nor a path."""
    if isinstance(given, Checklist):
        return given
    if isinstance(given, str | PathLike):
        return load_checklist(fspath(given), functions)
    raise ChecklistError(
        f"checklist is {type(given).__name__} {given!r:.60}; expected a Checklist or the path of its YAML file"
        f"{otherwise}"
    )


def read_checklist(
    text: str,
    functions: Mapping[str, CheckFunction] | None = None,
    *,
    name: str = "checklist",
    folder: Path | None = None,
) -> Checklist:
    """The same from a text; `name` stands for the file in errors, local libraries are looked for in `folder` (None:
    refused)."""
    chain = () if folder is None else (str((folder / Path(name).name).resolve()),)
    source = ChecklistSource(name=name, text=text, folder=folder, root=folder, chain=chain)
    document = read_document(source, {})
    model = parse_checklist(ChecklistModel, source, document)
    located = [*library_items(model.include, source, document), *located_items(model, source, document)]
    items = [one.item for one in located]
    found = problems(items)
    if found:
        lines = (
            source.error(document.line(("items",)), problem.message)
            if problem.at is None
            else located[problem.at].source.error(located[problem.at].line(problem.field), problem.message)
            for problem in found
        )
        raise ChecklistError("\n".join(map(str, lines)))
    if functions is not None:
        _require_functions(located, functions)
    checklist = Checklist(*items, name=model.name, version=model.version)
    return checklist if functions is None else checklist.bound(functions)


def dump_checklist(checklist: Checklist) -> str:
    """The checklist as YAML that `load_checklist` reads back to the same hash.

    Libraries are written out in full, check functions by their names: give the functions again when you load it.

    >>> from cm2_agent import Checklist, Item, dump_checklist
    >>> print(dump_checklist(Checklist(Item("replies", check={"replied": True}), name="support")))
    name: support
    version: 1
    items:
    - id: replies
      check:
        replied: true
    <BLANKLINE>
    """
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
    keys = definitions["ItemModel"]["properties"]
    for key, text in (("check", "The name of a check function."), ("when", "A check function's name, or a question.")):
        keys[key]["anyOf"] = [{"type": "string", "description": text}, *forms, {"type": "null"}]
    keys["turn"]["anyOf"][0]["minimum"] = 0
    definitions["ItemModel"]["anyOf"] = [{"required": [form]} for form in ("question", "check", "any_of")]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "CM2 checklist"}


def _require_functions(located: Sequence[LocatedItem], functions: Mapping[str, CheckFunction]) -> None:
    known = ", ".join(sorted(functions)) or "none"
    lost = [
        f"{one.source.name}:{one.line(key)}: item {one.item.id!r}: {key} is {name!r}, which is no check function that"
        f" was given ({known}); name the file that holds it (--checks), or correct the name"
        + ("; to ask a judge, write a whole question" if key == "when" else "")
        for one in located
        for key, name in one.item.named_functions.items()
        if name not in functions
    ]
    if lost:
        raise ChecklistError("\n".join(lost))


__all__ = ["checklist_of", "checklist_schema", "dump_checklist", "load_checklist", "read_checklist"]

if __name__ == "__main__":  # python -m cm2_agent.types.checklist_yaml > cookbook/checklist.schema.json
    sys.stdout.write(json.dumps(checklist_schema(), indent=1, ensure_ascii=False) + "\n")
