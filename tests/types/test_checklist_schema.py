"""The schema of checklist files for editors, and the way back to YAML."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import yaml

from cm2_agent.types.checklist_item import ChecklistModel
from cm2_agent.types.checklist_library import shipped_libraries
from cm2_agent.types.checklist_yaml import checklist_schema, dump_checklist, read_checklist
from tests.types.test_checklist_yaml import BROKEN, FULL, ROOT


def plain(text: str) -> Any:
    return json.loads(json.dumps(yaml.safe_load(text)))


def test_the_committed_schema_is_fresh() -> None:
    committed = json.loads((ROOT / "cookbook" / "checklist.schema.json").read_text(encoding="utf-8"))
    assert committed == checklist_schema(), (
        "write it anew: python -m cm2_agent.types.checklist_yaml > cookbook/checklist.schema.json"
    )


def test_the_schema_says_what_the_reader_says() -> None:
    schema = checklist_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    check.validate(plain(FULL))
    for library in shipped_libraries():
        text = (ROOT / "cm2_agent" / "libraries" / f"{library}.yaml").read_text(encoding="utf-8")
        body = {key: value for key, value in plain(text).items() if key != "parameters"}
        assert not [error for error in check.iter_errors(body) if "${" not in str(error.instance)]
    by_shape = [
        "unknown top key",
        "unknown item key",
        "wrong type",
        "true for a turn",
        "unknown word",
        "bad id",
        "negative turn",
    ]
    by_shape += [
        "missing id",
        "negative weight",
        "missing name",
        "neither question nor check",
        "unknown check",
        "unknown check key",
    ]
    for name in by_shape:
        assert list(check.iter_errors(plain(BROKEN[name][0]))), name


def test_a_dump_reads_back() -> None:
    first = read_checklist(FULL)
    again = read_checklist(dump_checklist(first))
    assert again.hash == first.hash
    assert again == first
    assert ChecklistModel.model_validate(again.to_json()).name == "support"
