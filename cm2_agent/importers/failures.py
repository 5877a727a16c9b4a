"""What a recording tells of failed tool calls: a mark on the answer, its words, or a pattern that the user gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from cm2_agent.errors import TraceError
from cm2_agent.types.check_specs import compile_pattern
from cm2_agent.types.dialogue_words import as_text
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, ToolCallResponse
from cm2_agent.types.run import Run, ToolRun
from cm2_agent.types.tool_errors import FAILURE_UNKNOWN, reads_as_error
from cm2_agent.types.trace import Trace

_FAILED = frozenset({"error", "failed", "failure"})
_SUCCEEDED = frozenset({"success", "succeeded", "ok", "completed", "complete"})


def marked(message: Mapping[str, JSON]) -> bool | None:
    """Whether a tool's message is marked as failed, by the keys that tools write it under (`is_error`, `isError`,
    `error`, `status`); None where it bears no mark."""
    for key in ("is_error", "isError", "error"):
        value = message.get(key)
        if isinstance(value, bool):
            return value
        if isinstance(value, str | Mapping) and value:
            return True
    status = message.get("status")
    if isinstance(status, str):
        return True if status.casefold() in _FAILED else False if status.casefold() in _SUCCEEDED else None
    return None


def tool_answer(
    identity: str | None, content: JSON, *, failed: bool | None, told: bool, extra: Mapping[str, JSON] | None = None
) -> ToolCallResponse:
    """A tool's answer. `failed` is what its mark says (None: it has none); `told` whether the format marks every
    failure, so that an answer without a mark did not fail."""
    error = reads_as_error(content) if failed is None else failed
    known = error or told or failed is not None
    return ToolCallResponse(
        id=identity,
        response=content,
        error=error,
        extra={**(extra or {}), **({} if known else {FAILURE_UNKNOWN: True})},
    )


def compiled(pattern: str | None) -> Any:
    """The RE2 pattern of answers that are errors. Raises TraceError where it is none."""
    if pattern is None:
        return None
    try:
        return compile_pattern(pattern)
    except ValueError as error:
        raise TraceError(f"--error-pattern: {error}") from error


def by_pattern(trace: Trace, pattern: Any) -> Trace:
    """The dialogue with the calls failed whose answers match the pattern; no other answer without a mark is one."""

    def read(response: ToolCallResponse) -> ToolCallResponse:
        extra = {key: value for key, value in response.extra.items() if key != FAILURE_UNKNOWN}
        return replace(response, error=response.error or _matches(pattern, response.response), extra=extra)

    return replace(
        trace, runs=tuple(_read(run, read, lambda tool: _matches(pattern, tool.result)) for run in trace.runs)
    )


def by_executions(run: Run, failed: Mapping[str, bool]) -> Run:
    """The run with what its executions tell, by their span ids: an answer to one of them failed, or did not."""
    told = {tool.call_id: failed[tool.span_id] for tool in run.tools if tool.call_id and tool.span_id in failed}
    if not told:
        return run

    def read(response: ToolCallResponse) -> ToolCallResponse:
        if response.id not in told:
            return response
        extra = {key: value for key, value in response.extra.items() if key != FAILURE_UNKNOWN}
        return replace(response, error=response.error or told[response.id], extra=extra)

    return _read(run, read, lambda tool: failed.get(tool.span_id, False))


def _read(run: Run, read: Callable[[ToolCallResponse], ToolCallResponse], fails: Callable[[ToolRun], bool]) -> Run:
    """The run with all its answers of tools read anew, and the executions failed that did."""

    def message(one: Message) -> Message:
        parts = tuple(read(part) if isinstance(part, ToolCallResponse) else part for part in one.parts)
        return replace(one, parts=parts) if parts != one.parts else one

    tools = tuple(
        replace(tool, error=as_text(tool.result), result=None) if tool.error is None and fails(tool) else tool
        for tool in run.tools
    )
    calls = tuple(replace(call, input=tuple(map(message, call.input))) for call in run.calls)
    return replace(
        run,
        messages=tuple(map(message, run.messages)),
        history=tuple(map(message, run.history)),
        calls=calls,
        tools=tools,
    )


def unknown_failures(runs: Iterable[Run]) -> int:
    """How many answers of tools do not tell whether the call failed."""
    return sum(
        part.extra.get(FAILURE_UNKNOWN) is True
        for run in runs
        for message in (*run.history, *run.messages)
        for part in message.parts
        if isinstance(part, ToolCallResponse)
    )


def _matches(pattern: Any, content: JSON) -> bool:
    if content is None:
        return False
    return pattern.search(as_text(content).encode("utf-8", "replace").decode()) is not None


__all__ = ["by_executions", "by_pattern", "compiled", "marked", "tool_answer", "unknown_failures"]
