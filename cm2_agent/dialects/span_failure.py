"""How a span ended, and a run by its spans: its status, the error's text, and whose error it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cm2_agent.dialects.readings import ChatReading, ToolReading
from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.dialects.span_tree import Node
from cm2_agent.types.run import RunFailure, Status
from cm2_agent.types.secrets import mask_secrets
from cm2_agent.types.text import shorten

_LONGEST = 500
_CANCELLED = frozenset({"CancelledError", "GeneratorExit", "KeyboardInterrupt", "AbortError"})
_STATUSES: Mapping[str, Status] = {"ok": "ok", "error": "error", "interrupted": "interrupted", "cancelled": "cancelled"}
_INTERRUPTED = frozenset({"GraphInterrupt", "GraphBubbleUp", "NodeInterrupt", "ParentCommand"})


def exception_of(span: SpanRecord) -> tuple[str, str] | None:
    """The last exception recorded on the span: the name of its type without its module, and its message."""
    for event in reversed(span.events):
        if event.name == "exception":
            kind = str(event.attributes.get("exception.type") or "Exception").rpartition(".")[2]
            return kind, str(event.attributes.get("exception.message") or "")
    return None


def span_error(span: SpanRecord) -> str | None:
    """The error that ended the span, in at most 500 characters and without credentials; None where none did."""
    if span.status != "error":
        return None
    kind, message = exception_of(span) or ("", "")
    if not kind:
        given = span.attributes.get("error.type")
        kind, message = given.rpartition(".")[2] if isinstance(given, str) else "", span.status_message or ""
    said = message.startswith(kind) or kind == "ToolError"  # ours marks an answer that tells of a failure so
    text = message if said and message else ": ".join(part for part in (kind, message) if part)
    text = text or "the span ended with status error"
    return shorten(mask_secrets(text), _LONGEST)


def stated_status(value: str | None) -> Status | None:
    """The status that our own exporter wrote on the root's span; None for anything else."""
    return _STATUSES.get(value or "")


def status_of(span: SpanRecord) -> Status:
    """How a span ended: an error by which somebody outside ended it, or asked a human, is none of its own."""
    if span.status != "error":
        return "ok"
    found = exception_of(span)
    kind = found[0] if found is not None else str(span.attributes.get("error.type") or "").rpartition(".")[2]
    if kind in _CANCELLED:
        return "cancelled"
    return "interrupted" if kind in _INTERRUPTED else "error"


def failure_of(top: SpanRecord | None, inner: Iterable[Node]) -> RunFailure:
    """What ended the run of an agent's span (None: of calls outside of any): an error of the model or of a tool where
    one of its spans ended with the same exception first."""
    failed = sorted((node for node in inner if node.span.status == "error"), key=lambda node: node.span.end)
    raised = None if top is None else exception_of(top)
    message = None if top is None else span_error(top)
    for node in failed:
        same = top is None or raised is None or exception_of(node.span) in (None, raised)
        if same and isinstance(node.reading, ChatReading | ToolReading):
            kind = "ModelError" if isinstance(node.reading, ChatReading) else "ToolError"
            return RunFailure(kind=kind, message=message or span_error(node.span) or kind)
    kind = raised[0] if raised is not None else "Exception"
    return RunFailure(kind=kind, message=message or kind)


__all__ = ["exception_of", "failure_of", "span_error", "stated_status", "status_of"]
