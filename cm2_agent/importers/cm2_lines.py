"""What `cm2 export` writes: a trace with all that is stored of it, and its score."""

from __future__ import annotations

from collections.abc import Mapping

from cm2_agent.errors import TraceError
from cm2_agent.types.imported import ImportedDialogue
from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace


def is_cm2(record: JSON) -> bool:
    """Whether it is a trace that we wrote."""
    trace = record.get("trace") if isinstance(record, Mapping) else None
    return isinstance(trace, Mapping) and isinstance(trace.get("id"), str) and isinstance(trace.get("runs"), list)


def read_cm2(record: JSON, *, source: str, checklists: bool) -> ImportedDialogue:
    """The trace and its score, as they were. Raises TraceError."""
    if not is_cm2(record):
        raise TraceError("holds no trace; expected an object with trace and score, as cm2 export writes it")
    trace = Trace.from_json(record["trace"])
    if not isinstance(record.get("score"), Mapping):
        return ImportedDialogue(trace=trace)
    score = Score.from_json(record["score"])
    if score.trace_id != trace.id:
        raise TraceError(f"holds trace {trace.id!r} and the score of {score.trace_id!r}; expected the score of its own")
    return ImportedDialogue(trace=trace, score=score)


__all__ = ["is_cm2", "read_cm2"]
