"""What a reward must beat: predictions of success that read nothing of what the dialogue is about.

Each gives a trace a number, higher for more likely success, and its direction is fixed beforehand: fewer writes, fewer
steps, no failed call. `constant` gives all the same."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.tool_calls import reads_only
from cm2_agent.types.trace import Trace

_RAN = frozenset({"ok", "answered"})
"""The statuses of calls that an answer came back for, and no error as far as is known."""


def fewest_writes(trace: Trace, reads: Collection[str] = ()) -> float:
    """Less the number of tool calls that ran, did not fail as far as is known, and may have changed something: whose
    tool begins with no verb of reading and is none of `reads`."""
    ran = (call.name for call in trace.scope(None).calls_by(len(trace.steps)) if call.status in _RAN)
    return float(-sum(name not in reads and not reads_only(ToolSpec(name=name)) for name in ran))


def shortest(trace: Trace) -> float:
    """Less the number of the assistant's messages."""
    return float(-len(trace.steps))


def no_tool_error(trace: Trace) -> float:
    """1 where no tool call failed or could not be run, else 0."""
    return float(all(call.status not in {"failed", "invalid"} for call in trace.scope(None).calls_by(len(trace.steps))))


def baselines(reads: Collection[str] = ()) -> Mapping[str, Callable[[Trace], float]]:
    """The baselines by name; tools in `reads` change nothing, whatever they are called."""
    return {
        "constant": lambda trace: 0.0,
        "fewest_writes": lambda trace: fewest_writes(trace, reads),
        "shortest": shortest,
        "no_tool_error": no_tool_error,
    }


__all__ = ["baselines", "fewest_writes", "no_tool_error", "shortest"]
