"""Crashes of tools: which of them the same call brings about again, so that the policy that wrote it is their cause."""

from __future__ import annotations

import re

from langgraph.errors import GraphBubbleUp

from cm2_agent.errors import CM2Error

_REPRODUCED = "__cm2_reproduced__"
_OUTSIDE = re.compile(r"Timeout|TimedOut|Connect|Network|Transport|Unavailable|RateLimit|TooManyRequests|Throttl", re.I)


def may_repeat(error: Exception) -> bool:
    """Whether a tool's exception may be the call's own doing, so that the call is made once more to see. Not what
    networks, clocks and servers bring about: there a second call tells nothing, and the first may have had its effect.
    Not what is no crash either: an interrupt, and our own errors."""
    if isinstance(error, GraphBubbleUp | CM2Error | TimeoutError | ConnectionError | InterruptedError):
        return False
    from cm2_agent.llm.failures import status_of  # slow to import, and only needed once something has failed

    status = status_of(error)
    if status is not None and (status >= 500 or status in (401, 402, 403, 408, 429)):
        return False
    return not any(_OUTSIDE.search(one.__name__) for one in type(error).__mro__)


def note_reproduced(error: Exception) -> None:
    """The same call raises this error whenever it is made."""
    setattr(error, _REPRODUCED, True)


def is_reproduced(error: BaseException | None) -> bool:
    """Whether the same call raised this error again."""
    return getattr(error, _REPRODUCED, False) is True


__all__ = ["is_reproduced", "may_repeat", "note_reproduced"]
