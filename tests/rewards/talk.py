"""Small dialogues for the tests of scoring: written down as a user would tell them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cm2_agent.types.messages import Message, Part, Text, ToolCall, ToolCallResponse
from cm2_agent.types.run import Run, RunFailure, Status
from cm2_agent.types.trace import Trace


def call(name: str, result: Any = "ok", *, error: bool = False, text: str = "", **arguments: Any) -> list[Message]:
    """A step that calls a tool, and the tool's answer."""
    parts: tuple[Part, ...] = ((Text(content=text),) if text else ()) + (
        ToolCall(id="c", name=name, arguments=arguments),
    )
    answer = ToolCallResponse(id="c", response=result, error=error)
    return [Message(role="assistant", parts=parts), Message(role="tool", parts=(answer,))]


def say(text: str) -> list[Message]:
    """A step that replies."""
    return [Message.of("assistant", text)]


def turn(user: str, *steps: list[Message]) -> list[Message]:
    return [Message.of("user", user), *(message for step in steps for message in step)]


def trace(
    *turns: list[Message], failure: str | None = None, status: Status = "ok", id: str = "t", **attributes: Any
) -> Trace:
    """A dialogue of one run; attributes are spelled `cm2_task_turns` for `cm2.task.turns`."""
    return trace_of_runs([list(turns)], failure=failure, status=status, id=id, last=attributes)


def trace_of_runs(
    runs: Sequence[Sequence[list[Message]]],
    *,
    failure: str | None = None,
    status: Status = "ok",
    id: str = "t",
    first: dict[str, Any] | None = None,
    last: dict[str, Any] | None = None,
) -> Trace:
    made = [
        Run(id=f"{id}#{n}", thread=id, messages=tuple(m for part in parts for m in part))
        for n, parts in enumerate(runs)
    ]
    made[0] = Run(**{**made[0].__dict__, "attributes": _attributes(first or {})})
    made[-1] = Run(
        **{
            **made[-1].__dict__,
            "attributes": {**made[-1].attributes, **_attributes(last or {})},
            "failure": None if failure is None else RunFailure(kind=failure, message="as the test wants it"),
            "status": status if failure is None else "error",
        }
    )
    return Trace(id=id, runs=tuple(made))


def _attributes(named: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "."): value for name, value in named.items()}
