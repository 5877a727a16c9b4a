"""Tasks: tools are checked when a task is made, and tasks read and write the bytes that they did."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.task import Task

LOOK = ToolSpec(name="look", description="Look a key up.", parameters={"type": "object"}, reads=True)


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ({"name": ""}, "at least 1 character"),
        (ToolSpec(name=""), "at least 1 character"),
        ({"name": 3}, "valid string"),
        ({}, "Field required"),
        ({"name": "x", "returns": {}}, "Unexpected keyword argument"),
        ({"name": "x", "reads": "perhaps"}, "valid boolean"),
        (ToolSpec(name="x", parameters=3), "valid dictionary"),  # type: ignore[arg-type]
        ("look", "dictionary or an instance of ToolSpec"),
        ({"name": "look"}, "tool named twice: look"),
    ],
)
def test_a_task_refuses_what_is_no_tool(tool: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Task(id="t", tools=(LOOK, tool))


def test_a_task_writes_every_key_of_a_tool_and_a_trace_those_of_the_conventions() -> None:
    written = json.dumps(Task(id="t", tools=(LOOK,)).to_json()["tools"])
    assert written == (
        '[{"name": "look", "description": "Look a key up.", "parameters": {"type": "object"}, "output": null,'
        ' "reads": true}]'
    )
    assert Task.model_validate({"id": "t", "tools": json.loads(written)}).tools == (LOOK,)
    assert json.dumps(LOOK.to_json()) == (
        '{"type": "function", "name": "look", "description": "Look a key up.", "parameters": {"type": "object"}}'
    )
    assert ToolSpec.from_json(LOOK.to_json()).reads is None


def test_the_tool_of_a_trace_is_as_it_was_recorded() -> None:
    assert ToolSpec.from_json({"name": "", "description": "\ud800"}) == ToolSpec(name="", description="\ud800")
