"""Checklists as files: YAML in, with the line of every error, item libraries, YAML out and a JSON schema for editors;
apart from the words.

YAML never imports code: a check that is a name stays a name until functions are given. Libraries are included by
`cm2:NAME` (shipped) or by a path relative to the including file; a path may not leave the folder of the checklist,
which so travels as one. A library is a checklist with `parameters`, `{name: default}`, that its items use as whole
values, `${name}`; a parameter whose default is null must be given."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cm2_agent.errors import ChecklistError
from cm2_agent.types.check_specs import FORMS
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import CheckFunction, ChecklistModel
from cm2_agent.types.checklist_library import _document, _items, _libraries, _model, _Placed, _Source, _text
from cm2_agent.types.checklist_rules import problems
from cm2_agent.types.json_values import JSON
from cm2_agent.types.yaml_source import Document, write_yaml


def load_checklist(path: str | Path, functions: Mapping[str, CheckFunction] | None = None) -> Checklist:
    """The checklist in a YAML file, its libraries included, its check names bound to `functions` where these are given.

    Raises ChecklistError, every line of which begins with `file:line:`: not UTF-8, not YAML, a duplicate, unknown or
    missing key, a wrong type, an unknown check, a broken rule (checklist_rules), a library that is missing, includes
    itself or lacks a parameter, a check name without a function."""
    where = Path(path)
    root = where.resolve().parent
    return read_checklist(_text(where, str(path)), functions, name=str(path), folder=root)


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
    source = _Source(name=name, text=text, folder=folder, root=folder, chain=chain)
    document = _document(source, {})
    model = _model(ChecklistModel, source, document)
    placed = [*_libraries(model.include, source, document), *_items(model, source, document)]
    found = problems([one.item for one in placed])
    if found:
        raise ChecklistError(
            "\n".join(_told(problem.at, problem.field, problem.message, placed, source, document) for problem in found)
        )
    if functions is not None:
        _named(placed, functions)
    checklist = Checklist(*(one.item for one in placed), name=model.name, version=model.version)
    return checklist if functions is None else checklist.bound(functions)


def dump_checklist(checklist: Checklist) -> str:
    """The checklist as YAML that `load_checklist` reads back to the same hash. Libraries are written out; functions by
    their names, which must be given again."""
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


def _told(
    at: int | None, key: str | None, message: str, placed: Sequence[_Placed], source: _Source, document: Document
) -> str:
    if at is None:
        return f"{source.name}:{document.line(('items',))}: {message}"
    return f"{placed[at].source.name}:{placed[at].line(key)}: {message}"


def _named(placed: Sequence[_Placed], functions: Mapping[str, CheckFunction]) -> None:
    lost = [one for one in placed if isinstance(one.item.check, str) and one.item.check not in functions]
    if lost:
        known = ", ".join(sorted(functions)) or "none"
        raise ChecklistError(
            "\n".join(
                f"{one.source.name}:{one.line('check')}: item {one.item.id!r} names the check {one.item.check!r}, which"
                f" is not among the given functions ({known})"
                for one in lost
            )
        )


__all__ = ["checklist_schema", "dump_checklist", "load_checklist", "read_checklist"]

if __name__ == "__main__":  # python -m cm2_agent.types.checklist_yaml > cookbook/checklist.schema.json
    sys.stdout.write(json.dumps(checklist_schema(), indent=1, ensure_ascii=False) + "\n")
