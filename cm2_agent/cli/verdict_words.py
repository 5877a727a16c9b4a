"""Verdicts as people read them: passed or failed, whatever kind of item it is, and why a verdict is NULL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cm2_agent.types.score import Verdict

WORDS: Final[Mapping[bool | None, str]] = {None: "NULL", True: "passed", False: "failed"}
_CAUSES: Final[Mapping[str | None, str]] = {
    None: "nobody could tell",
    "content": "what the agent did kept it from being judged",
    "infrastructure": "pending: score again",
}


def verdict_word(verdict: Verdict) -> str:
    """What came of the item: an avoid item passed where it was never violated."""
    if not verdict.applies:
        return "n/a"
    if verdict.reason == "when":  # it says whether another item applies
        return "applies" if verdict.value else "applies not"
    return WORDS[verdict.value]


def verdict_reason(verdict: Verdict) -> str:
    """What decided it, where the item itself was not looked at or is NULL, and what the judge says."""
    missing = _CAUSES[verdict.cause] if verdict.value is None and verdict.applies else None
    reason = ", ".join(text for text in (verdict.reason, missing) if text)
    return ": ".join(text for text in (reason, verdict.explanation) if text)


__all__ = ["WORDS", "verdict_reason", "verdict_word"]
