"""What reads nothing of the dialogue: writes, length and failures are counted, and nothing else matters."""

from __future__ import annotations

from cm2_agent.analysis.baselines import baselines, fewest_writes, no_tool_error, shortest
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse
from cm2_agent.types.run import Run
from cm2_agent.types.tool_errors import FAILURE_UNKNOWN
from cm2_agent.types.trace import Trace


def trace(*calls: tuple[str, bool], unknown: bool = False) -> Trace:
    """A dialogue that makes these calls, one a step; whether each of them fails, and whether nobody knows."""
    messages = [Message.of("user", "hi")]
    for number, (name, fails) in enumerate(calls):
        extra: dict[str, JSON] = {FAILURE_UNKNOWN: True} if unknown else {}
        answer = ToolCallResponse(id=str(number), response="x", error=fails, extra=extra)
        messages += [Message.of("assistant", calls=[ToolCall(id=str(number), name=name, arguments={})])]
        messages += [Message(role="tool", parts=(answer,))]
    return Trace.of(Run(id="r", messages=(*messages, Message.of("assistant", "Done."))))


def test_writes_that_failed_and_calls_that_read_do_not_count() -> None:
    dialogue = trace(("get_order", False), ("cancel_order", False), ("refund", True), ("hand_over", False))
    assert fewest_writes(dialogue) == -2
    assert fewest_writes(dialogue, ["hand_over"]) == -1
    assert shortest(dialogue) == -5
    assert no_tool_error(dialogue) == 0
    assert no_tool_error(trace(("cancel_order", False))) == 1
    assert fewest_writes(trace(("cancel_order", False), unknown=True)) == -1
    assert str(fewest_writes(trace(("get_order", False)))) == "0.0"


def test_each_has_a_name() -> None:
    found = {name: figure(trace(("cancel_order", False))) for name, figure in baselines().items()}
    assert found == {"constant": 0.0, "fewest_writes": -1.0, "shortest": -2.0, "no_tool_error": 1.0}
