"""What a simulator is shown: the tool, real calls of this task as examples, the dialogue, the answers so far, the call.

All of it was written by others, so it is data: one line of JSON each, in which nothing can end the data
(llm/untrusted_text.py). The mark after it is a hash of what it marks: the same question is the same prompt to the byte,
in every process, and no data can hold the mark. What changes least comes first, so that a provider's prefix cache
serves a dialogue's later calls."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cm2_agent.errors import ToolError
from cm2_agent.llm.untrusted_text import json_line, mark_of
from cm2_agent.types.json_values import JSON, canonical_json, content_hash, scalars
from cm2_agent.types.messages import Message, ToolSpec
from cm2_agent.types.task import RecordedCall, Task
from cm2_agent.types.tool_calls import CallLog, ToolRequest, reads_only

_FOLDER = Path(__file__).resolve().parent.parent / "prompts"
INSTRUCTIONS = (_FOLDER / "simulator.md").read_text(encoding="utf-8").strip()
_CALL = (_FOLDER / "simulator_call.md").read_text(encoding="utf-8").strip("\n")
_RENDERING = 1
"""Raised whenever the same call would be shown otherwise."""
PROMPT_VERSION = content_hash([INSTRUCTIONS, _CALL, _RENDERING])[:8]
SHOTS = "shots"
"""The key of a task's metadata that names each tool's few-shots: `{tool: [positions among the recorded calls]}`."""

_DEFINITIONS = ("$defs", "definitions")


class Shots:
    """A task's recorded calls as examples of its tools.

    `most` are shown for a call: those of the same tool first, those that share most argument values with it first, then
    as recorded. `metadata["shots"]` of the task, `{tool: [indices into task.recorded]}`, says instead which are shown
    for a tool. Raises ToolError where it names what is not there."""

    def __init__(self, task: Task, most: int) -> None:
        if most < 0:
            raise ToolError(f"shots is {most}; expected 0 or more")
        self.recorded, self.most = task.recorded, most
        self._values = [_told(one.arguments) for one in self.recorded]
        self._chosen = _chosen(task)

    def of(self, request: ToolRequest) -> list[RecordedCall]:
        chosen = self._chosen.get(request.tool.name)
        if chosen is not None:
            return [self.recorded[index] for index in chosen]
        asked = _told(request.arguments)
        ranked = sorted(
            range(len(self.recorded)),
            key=lambda index: (
                self.recorded[index].name != request.tool.name,
                -len(asked & self._values[index]),
                index,
            ),
        )
        return [self.recorded[index] for index in ranked[: self.most]]


def data_of(request: ToolRequest, log: CallLog, shots: Sequence[RecordedCall]) -> str:
    """Everything but the call itself. Answers that an injected fault changed are left out: they tell nothing of the
    world."""
    tool = request.tool
    described: dict[str, JSON] = {
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
    }
    if tool.output is not None:
        described["result_schema"] = dict(tool.output)
    lines = [{"part": "tool", **described}]
    lines += [
        {"part": "example", "tool": one.name, "arguments": dict(one.arguments), **_outcome(one.result, one.error)}
        for one in shots
    ]
    for message in request.messages:
        if isinstance(message, Message) and message.role != "tool" and message.text:
            lines.append({"part": "dialogue", "role": message.role, "content": message.text})
    for entry in log.entries:
        if entry.answer.fault is None:
            content, failed = entry.answer.content, entry.answer.error
            outcome = _outcome(None if failed else content, _text(content) if failed else None)
            asked = {"tool": entry.request.tool.name, "arguments": dict(entry.request.arguments)}
            lines.append({"part": "answered", **asked, **outcome, "write": not reads_only(entry.request.tool)})
    return "\n".join(map(json_line, lines))


def prompt_of(data: str, request: ToolRequest, seed: int, problem: str | None = None) -> str:
    """The message: the data, then the call; `problem` is why the reply before could not be used."""
    note = (
        ""
        if problem is None
        else f"Your last reply could not be used. What was wrong with it: {json_line(problem)} Answer anew.\n"
    )
    asked = json_line({"tool": request.tool.name, "arguments": dict(request.arguments)})
    mark = mark_of(f"{seed}\0{data}\0{asked}\0{note}")
    return f"{data}\n{_CALL.format(mark=mark, call=asked, note=note, seed=seed, tool=json_line(request.tool.name))}"


def reply_schema(tool: ToolSpec) -> dict[str, JSON]:
    """The reply's JSON schema. Definitions of the result's own schema move to the top, where its references look for
    them; a schema that refers to itself as a whole cannot move, so the reply is held to any result, and checked when it
    comes."""
    result: JSON = {}
    definitions: dict[str, JSON] = {}
    if tool.output is not None and not _refers_to_itself(tool.output):
        definitions = {name: tool.output[name] for name in _DEFINITIONS if name in tool.output}
        own = {name: value for name, value in tool.output.items() if name not in (*_DEFINITIONS, "$schema", "$id")}
        result = {"anyOf": [own, {"type": "null"}]}
    return {
        "type": "object",
        "properties": {"result": result, "error": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
        "required": ["result", "error"],
        "additionalProperties": False,
        **definitions,
    }


def _refers_to_itself(schema: Mapping[str, JSON]) -> bool:
    waiting: list[JSON] = [schema]
    while waiting:
        at = waiting.pop()
        if isinstance(at, Mapping):
            to = at.get("$ref")
            if isinstance(to, str) and not to.startswith(tuple(f"#/{name}/" for name in _DEFINITIONS)):
                return True
            waiting += at.values()
        elif isinstance(at, list):
            waiting += at
    return False


def _outcome(result: JSON, error: str | None) -> dict[str, JSON]:
    """How a call ended. Text that is a JSON object or list is shown as one: it becomes text again when it is told to
    the agent."""
    if error is not None:
        return {"error": error}
    if isinstance(result, str) and result.lstrip()[:1] in ("{", "["):
        try:
            return {"result": json.loads(result)}
        except (ValueError, RecursionError):
            pass
    return {"result": result}


def _text(content: str | list[JSON]) -> str:
    return content if isinstance(content, str) else canonical_json(content)


def _told(value: JSON) -> frozenset[str]:
    """The scalar values within, spelled as JSON."""
    found = (one for _, one in scalars(value))
    return frozenset(
        json.dumps(one) for one in found if one is not None and not isinstance(one, bool | Mapping | list | tuple)
    )


def _chosen(task: Task) -> dict[str, tuple[int, ...]]:
    given = task.metadata.get(SHOTS, {})
    where = f"task {task.id!r}: metadata['shots']"
    if not isinstance(given, Mapping):
        raise ToolError(f"{where} is {str(given)[:60]!r}; expected {{tool: [indices into its recorded calls]}}")
    found = {}
    for tool, indices in given.items():
        if not isinstance(indices, Iterable) or isinstance(indices, str | Mapping):
            raise ToolError(
                f"{where} gives {str(indices)[:60]!r} for {tool!r}; expected a list of indices into its recorded calls"
            )
        for index in indices:
            if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(task.recorded):
                raise ToolError(
                    f"{where} names the call {index!r} for {tool!r}; the task has {len(task.recorded)} recorded calls,"
                    " from 0"
                )
        found[str(tool)] = tuple(indices)
    return found


__all__ = ["INSTRUCTIONS", "PROMPT_VERSION", "SHOTS", "Shots", "data_of", "prompt_of", "reply_schema"]
