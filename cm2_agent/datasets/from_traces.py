"""A stored trace into a task: its user turns, tools and recorded calls, with personal data replaced.

A user turn is what the user wrote until somebody answered, several messages joined by a line break; a last message that
nobody answered is left out. A recorded call is an answered call of the dialogue's own line: its arguments are those
that ran, its answer is spelled as the agent received it. A call that is invalid or never ran is left out, since no tool
answered it. The recorded calls of a task are those of its own trace: another customer's answers would be examples that
no replay should give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from cm2_agent.datasets.entities import KEYS, entities_of
from cm2_agent.errors import TaskError
from cm2_agent.redaction.redacted_checklist import redacted_checklist_json
from cm2_agent.redaction.redactor import Redactor
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.json_values import JSON, canonical_json, content_hash
from cm2_agent.types.messages import Reasoning, Text, ToolCallResponse, ToolSpec
from cm2_agent.types.run_attributes import SYSTEM
from cm2_agent.types.score import Score
from cm2_agent.types.task import RecordedCall, Task
from cm2_agent.types.trace import Trace, Turn

UNTYPED: Mapping[str, JSON] = {"type": "object"}
"""The parameters of a tool that was called, while nothing tells its schema."""
_NOT_TEXT = "text that is not Unicode"


class UnfitTrace(TaskError):
    """A trace that cannot be a task; `reason` is the same for traces alike."""

    def __init__(self, trace_id: str, reason: str) -> None:
        super().__init__(f"trace {trace_id!r} cannot be a task: {reason}")
        self.reason = reason


def unfit(trace: Trace) -> str | None:
    """Why the dialogue cannot be a task, in words that sort alike traces together; None where it can."""
    if trace.failure is not None:
        return f"failed ({trace.failure.kind})"
    if not trace.runs or not any(message.role == "user" for message in trace.messages):
        return "no user message"
    if trace.runs[-1].status != "ok":
        return f"ended as {trace.runs[-1].status}"
    if not trace.turns:
        return "no user message was answered"
    for turn in trace.turns:
        if not all(isinstance(part, Text | Reasoning) for message in turn.user for part in message.parts):
            return "a user message is not text alone"
        if not user_text(turn).strip():
            return "a user turn without words"
    return None


def user_text(turn: Turn) -> str:
    """What the user said in a turn."""
    return "\n".join(message.text for message in turn.user if message.text)


def task_from_trace(
    trace: Trace,
    *,
    checklist: Checklist | None = None,
    redactor: Redactor | None,
    score: Score | None = None,
    keys: Sequence[str] = KEYS,
    metadata: Mapping[str, JSON] | None = None,
) -> Task:
    """The task by which the trace's dialogue can be run again.

    The id is a hash of everything in the task: other content, another id; the version is 1.

    Args:
        trace: the dialogue. Its first system message is the task's; where the graph wrote it itself, the metadata say
            `{"system": "graph"}`, and `run` leaves it to the graph.
        checklist: what scores the task's rollouts. Where something in its words was replaced it gets a name of its own.
        redactor: replaces personal data; None leaves it as it is.
        score: the trace's score, for the metadata.
        keys: the names of arguments and JSON keys whose values are entities (`entities_of`).
        metadata: goes into the task's metadata, with the trace, its model, policy and score.

    Raises:
        UnfitTrace: where `unfit(trace)` says why, and where the content is not JSON.

    The outcome is the trace's: by itself where there is one, by name where there are several.

    >>> from cm2_agent import Message, Redactor, Run, Trace, task_from_trace
    >>> messages = (Message.of("user", "I am ada@x.org"), Message.of("assistant", "Hello."))
    >>> task_from_trace(Trace.of(Run(id="r", messages=messages)), redactor=Redactor(key=b"k")).turns
    ('I am uj6rz4mddkykr6rsi@redacted.example.com',)
    """
    reason = unfit(trace)
    if reason is not None:
        raise UnfitTrace(trace.id, reason)
    try:
        data = _content(trace, score, metadata or {})
        canonical_json(data).encode("utf-8")
        if redactor is not None:
            data = redactor.redact_json(data)
        data["checklist"] = None if checklist is None else _checklist_json(checklist, redactor)
        made = Task.model_validate({"id": "unnamed", **data})
        return with_content_id(made.model_copy(update={"entities": entities_of(made, keys)}))
    except RecursionError as error:
        raise UnfitTrace(trace.id, "nested too deep") from error
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in detail["loc"] if not isinstance(part, int))
        raise UnfitTrace(
            trace.id, _NOT_TEXT if detail["type"] == "string_unicode" else f"{place}: {detail['msg']}"
        ) from error
    except ValueError as error:
        raise UnfitTrace(trace.id, _NOT_TEXT if isinstance(error, UnicodeError) else "not JSON") from error


def with_content_id(task: Task) -> Task:
    """The task under the id that its content gives it."""
    content = task.to_json()
    del content["id"]
    return task.model_copy(update={"id": f"trace-{content_hash(content)[:16]}"})


def _content(trace: Trace, score: Score | None, metadata: Mapping[str, JSON]) -> dict[str, Any]:
    ends = dict(trace.outcomes)
    return {
        "version": 1,
        "system": next((message.text for message in trace.messages if message.role == "system"), None),
        "turns": [user_text(turn) for turn in trace.turns],
        "tools": [asdict(tool) for tool in _tools(trace)],
        "recorded": [call.model_dump() for call in _recorded(trace)],
        "outcome": next(iter(ends.values())) if len(ends) == 1 else ends or None,
        "metadata": {**_provenance(trace, score, ends), **metadata},
    }


def _checklist_json(checklist: Checklist, redactor: Redactor | None) -> dict[str, JSON]:
    return checklist.to_json() if redactor is None else redacted_checklist_json(checklist, redactor)


def _provenance(trace: Trace, score: Score | None, ends: Mapping[str, float | None]) -> dict[str, JSON]:
    """Where the task comes from."""
    models = sorted({call.model for call in trace.calls if call.message is not None and call.model is not None})
    facts: dict[str, JSON] = {
        "source": "trace",
        "trace": trace.id,
        "task": trace.task_id,
        "model": models[0] if len(models) == 1 else models or None,
        "policy": trace.policy,
        "outcome": next(iter(ends)) if len(ends) == 1 else None,
        "score": None if score is None else score.lower,
        "reward": None if score is None else score.reward_version,
        SYSTEM.removeprefix("cm2."): trace.runs[0].attributes.get(SYSTEM) if trace.runs else None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _tools(trace: Trace) -> list[ToolSpec]:
    """The tools that the agent's own model calls offered, each as it was offered last; where nobody told what was
    offered, those that were called. A call of a tool that was not among those offered is the model's invention, and no
    tool."""
    calls = [call for call in trace.calls if call.message is not None] or list(trace.calls)
    found = {tool.name: tool for call in calls for tool in call.tools if tool.name}
    called = dict.fromkeys(call.name for step in trace.steps for call in step.message.tool_calls if call.name)
    return list(found.values()) or [ToolSpec(name=name, parameters=dict(UNTYPED)) for name in called]


def _recorded(trace: Trace) -> list[RecordedCall]:
    recorded: list[RecordedCall] = []
    for step in trace.steps:
        for use in step.tool_uses:
            answer, given = use.response, use.arguments
            if answer is None or use.status in ("invalid", "not_run") or not isinstance(given, Mapping | None):
                continue
            arguments = dict(given or {})
            content = _shown(answer)
            ended: dict[str, JSON] = {"result": content}
            if answer.error:  # of several blocks both stay: their text, and they themselves
                ended = (
                    {"error": content} if isinstance(content, str) else {"error": _texts(content), "result": content}
                )
            recorded.append(RecordedCall(name=use.call.name, arguments=arguments, **ended))
    return recorded


def _shown(answer: ToolCallResponse) -> str | list[JSON]:
    """The answer as a tool message tells it: text, or content blocks as they are."""
    response = answer.response
    if isinstance(response, list) and all(
        isinstance(block, str) or (isinstance(block, Mapping) and "type" in block) for block in response
    ):
        return response
    return response if isinstance(response, str) else "" if response is None else canonical_json(response)


def _texts(blocks: Sequence[JSON]) -> str:
    texts = [block if isinstance(block, str) else block.get("text") for block in blocks]
    return "\n".join(text for text in texts if isinstance(text, str))


__all__ = [
    "UNTYPED",
    "UnfitTrace",
    "task_from_trace",
    "unfit",
    "user_text",
    "with_content_id",
]
