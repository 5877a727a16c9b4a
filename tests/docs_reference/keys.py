"""The pages of the files that users write, from the models: checklists in YAML, tasks and labels in JSON Lines."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter

from cm2_agent.importers.human_labels import LabelModel
from cm2_agent.types.check_specs import FORMS, Listed, Statement, ToolValue
from cm2_agent.types.checklist_item import ChecklistModel, EvidenceModel, ItemModel
from cm2_agent.types.checklist_library import LibraryModel, shipped_libraries
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.task import Persona, RecordedCall, Task
from tests.docs_reference.api import class_fields
from tests.docs_reference.markdown import code, escape, prose, table

JSON = Mapping[str, Any]


def checklist_page() -> str:
    """The keys of a checklist file, the checks that can be written as data, and the shipped libraries."""
    parts = {
        "ItemModel": "An item",
        "EvidenceModel": "A pointer into the reference",
        "Listed": "A listed call",
        "Statement": "A statement",
        "ToolValue": "A value of a tool",
    }
    sections = [
        "# Checklist files\n",
        "A checklist is a YAML file with these keys; unknown keys are refused, and every error names its line.\n",
        _keys(ChecklistModel, parts),
        "## A library\n",
        f"{_doc(LibraryModel)} It has the keys of a checklist, and:\n",
        _keys(LibraryModel, parts, without=ChecklistModel),
        "## An item\n",
        _keys(ItemModel, parts),
        "## A pointer into the reference\n",
        f"{_doc(EvidenceModel)}\n",
        _keys(EvidenceModel, parts),
        "## Checks as data\n",
        "An item's `check` is the name of a function or one of these:\n",
        _table_of_checks(),
        *(f"### {name}\n\n{_keys(form, parts)}" for name, form in FORMS.items()),
        "### A listed call\n",
        _keys(Listed, parts),
        "### A statement\n",
        _keys(Statement, parts),
        "### A value of a tool\n",
        _keys(ToolValue, parts),
        "## Libraries that come with the package\n",
        "`include: [cm2:NAME]`, or `include: [{cm2:NAME: {PARAMETER: VALUE}}]` where one has parameters.\n",
        table(["library", "parameters", "items"], _libraries()),
    ]
    return "\n".join(sections)


def jsonl_page() -> str:
    """The keys of a line of a task file, and of a file of people's labels."""
    parts = {
        "Persona": "A persona",
        "ToolSpec": "A tool",
        "RecordedCall": "A recorded call",
        "ChecklistModel": "checklist.md",
    }
    sections = [
        "# JSON Lines files\n",
        "One JSON object a line. Unknown keys are refused, and an error names its line.\n",
        "## Tasks\n",
        f"{_doc(Task)}\n",
        _keys(Task, parts),
        "### A persona\n",
        f"{_doc(Persona)}\n",
        _keys(Persona, parts),
        "### A tool\n",
        f"{_doc(ToolSpec)}\n",
        _keys(ToolSpec, parts),
        "### A recorded call\n",
        f"{_doc(RecordedCall)}\n",
        _keys(RecordedCall, parts),
        "## Labels\n",
        "What `cm2 import labels` reads: a verdict of one person on one item of one trace.\n",
        _keys(LabelModel, parts),
    ]
    return "\n".join(sections)


def _keys(model: type, parts: Mapping[str, str], *, without: type[BaseModel] | None = None) -> str:
    """A table of the keys of a pydantic model, or of a dataclass that pydantic reads."""
    schema = TypeAdapter(model).json_schema(by_alias=True)
    names = {field.alias or name: name for name, field in getattr(model, "model_fields", {}).items()}
    docs = {field.name: field for field in class_fields(model)}
    required = schema.get("required", [])
    rows = []
    for key, own in schema["properties"].items():
        name = names.get(key, key)
        if without is not None and name in without.model_fields:
            continue
        default = "required" if key in required else _value(own["default"]) if "default" in own else _empty(own)
        rows.append([code(key), _words(own, parts), default, escape(own.get("description") or docs[name].doc)])
    return table(["key", "type", "default", "meaning"], rows)


def _empty(schema: JSON) -> str:
    """The default that a factory makes: nothing of its kind."""
    return _value({"array": [], "object": {}}[schema["type"]])


def _words(schema: JSON, parts: Mapping[str, str]) -> str:
    """A JSON schema in words: `text`, `list of text`, `reach` or `hold`."""
    if "$ref" in schema:
        return _link(schema["$ref"].rsplit("/", 1)[-1], parts)
    if "anyOf" in schema:
        words = [_words(option, parts) for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    if "enum" in schema or "const" in schema:
        values = [_value(value) for value in schema.get("enum", [schema.get("const")])]
        return " or ".join(filter(None, [", ".join(values[:-1]), values[-1]]))
    match schema.get("type"):
        case "array":
            items = _words(schema.get("items", {}), parts)
            return f"list of {items}" + (" (at least one)" if schema.get("minItems") else "")
        case "object":
            values = schema.get("additionalProperties", True)
            return (
                "mapping"
                if values is True or not isinstance(values, dict)
                else f"mapping of names to {_words(values, parts)}"
            )
        case "string":
            pattern = schema.get("pattern")
            return "text" + (f" matching {code(pattern)}" if pattern else "")
        case "integer" | "number" as kind:
            least = schema.get("minimum")
            return ("whole number" if kind == "integer" else "number") + ("" if least is None else f" ≥ {least:g}")
        case "boolean":
            return "true or false"
        case _:
            return "anything"


def _link(name: str, parts: Mapping[str, str]) -> str:
    """A link to the section of a model; a part that has no section is an error here rather than a hole in the page."""
    section = parts[name]
    if section.endswith(".md"):
        return f"[checklist]({section})"
    return f"[{section.split(' ', 1)[1]}](#{section.lower().replace(' ', '-')})"


def _value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str) and value:
        return code(value if len(value) <= 40 else value[:39] + "…")
    return code(json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False))


def _table_of_checks() -> str:
    """The table in the docstring of the module that defines the forms."""
    doc = inspect.cleandoc(sys.modules[FORMS["called"].__module__].__doc__ or "")
    lines = [line for line in doc.split("\n") if line.startswith("|")]
    missing = [name for name in FORMS if not any(name in line for line in lines)]
    if missing:
        raise ValueError(
            f"the table of checks in the docstring of {FORMS['called'].__module__} lacks {', '.join(missing)}"
        )
    return "\n".join(lines) + "\n"


def _libraries() -> Iterator[list[str]]:
    for name in shipped_libraries():
        data = yaml.safe_load(files("cm2_agent").joinpath("libraries", f"{name}.yaml").read_text(encoding="utf-8"))
        parameters = data.get("parameters", {})
        given = ", ".join(
            code(key) + (" (required)" if value is None else f" ({_value(value)})") for key, value in parameters.items()
        )
        yield [code(f"cm2:{name}"), given, "<br>".join(code(item["id"]) for item in data["items"])]


def _doc(model: type) -> str:
    """The docstring's prose, on one line."""
    return escape(" ".join(prose(inspect.getdoc(model) or "").split()))
