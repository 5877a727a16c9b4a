"""What one export request held: its spans, and what could not be taken of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cm2_agent.dialects.span_record import SpanRecord

__all__ = ["DEEPEST", "NO_SPAN", "Decoded", "check_ids"]

DEEPEST = 32
"""How deep values of attributes may be nested."""
_REMOTE = 0x300
"""The bits of a span's flags that say that its parent is in another process."""
NO_SPAN = "0" * 16
_NO_TRACE = "0" * 32
_HEX = frozenset("0123456789abcdef")


@dataclass(kw_only=True)
class Decoded:
    """What an export request held. `size` is its bytes as they were unpacked; `rooted` holds the traces of which a root
    is among the spans, or a span whose parent is in another process; `rejected` counts the spans that were left out, by
    reason; `ignored` attributes that a client may not give, by name."""

    size: int = 0
    spans: list[SpanRecord] = field(default_factory=list)
    rooted: set[str] = field(default_factory=set)
    rejected: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)

    def add(self, span: SpanRecord, flags: int) -> None:
        """Take a span with its flags."""
        if span.parent_id is None or flags & _REMOTE == _REMOTE:
            self.rooted.add(span.trace_id)
        self.spans.append(span)

    @property
    def message(self) -> str:
        """What the answer says of both, empty where all was taken."""
        parts = [f"{count} spans: {reason}" for reason, count in sorted(self.rejected.items())]
        if self.ignored:
            parts.append(f"ignored, as only the collector may say it: {', '.join(sorted(self.ignored))[:400]}")
        return "; ".join(parts)


def check_ids(trace: str, span: str, parent: str, start: int, end: int) -> str | None:
    """Why a span cannot be taken, None where it can. Ids are given in lower-case hexadecimal digits."""
    if len(trace) != 32 or trace == _NO_TRACE or not _HEX.issuperset(trace):
        return "the trace id is not 16 bytes, or all zero"
    if len(span) != 16 or span == NO_SPAN or not _HEX.issuperset(span):
        return "the span id is not 8 bytes, or all zero"
    if parent and (len(parent) != 16 or not _HEX.issuperset(parent)):
        return "the parent's id is not 8 bytes"
    if not (0 <= start < 1 << 63 and 0 <= end < 1 << 63):
        return "a time is not in nanoseconds since the epoch"
    return None
