"""Small dialogues with token ids, of words alone, and groups of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse, ToolSpec
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace

GOOD = {"temperature": 1.0, "logprobs": "processed"}


def call(prompt: list[int], completion: list[int], message: int | None, **changed: Any) -> ModelCall:
    made = ModelCall(
        span_id=f"s{message}",
        model_version="v1",
        prompt_ids=tuple(prompt),
        completion_ids=tuple(completion),
        logprobs=tuple(-0.5 - token / 100 for token in completion),
        sampling=GOOD,
        message=message,
    )
    return replace(made, **changed)


def tool_turn(first: ModelCall, second: ModelCall, run: str = "r1") -> Run:
    """A user message, a tool call, its result, the reply."""
    messages = (
        Message.of("user", "Where is order 7?"),
        Message.of("assistant", calls=[ToolCall(id="c", name="get_order", arguments={"id": 7})]),
        Message(role="tool", parts=(ToolCallResponse(id="c", response={"status": "sent"}),)),
        Message.of("assistant", "It was sent."),
    )
    return Run(id=run, thread="t", messages=messages, calls=(first, second))


def merged() -> Trace:
    """Two runs, three calls, each prompt an extension of all that was before."""
    one = tool_turn(call([1, 2], [10, 11], 1), call([1, 2, 10, 11, 3], [12], 3))
    two = Run(
        id="r2",
        thread="t",
        messages=(Message.of("user", "Thanks"), Message.of("assistant", "Bye")),
        calls=(call([1, 2, 10, 11, 3, 12, 4, 5], [13, 14, 15], 1),),
    )
    return Trace(id="t", runs=(one, two))


def words() -> Trace:
    run = tool_turn(call([1], [2], None), call([1], [2], None))  # no call is on the main line: text only
    tools = (ToolSpec(name="get_order", parameters={"type": "object"}),)
    asked = ModelCall(span_id="x", tools=tools, message=1)
    return Trace(id="t", runs=(replace(run, calls=(asked,)),))


def group(rewards: list[float | None], traces: list[Trace] | None = None, **key: Any) -> Group:
    made = traces or [replace(merged(), id=f"t{number}") for number in range(len(rewards))]
    return Group(
        key={"task": "a", "policy": "v1", "reward": "r1", **key},
        rollouts=tuple(
            Rollout(
                trace=trace,
                score=Score(
                    trace_id=trace.id,
                    reward_version="r1",
                    reward=reward,
                    null_reason="failure: ToolError: x" if reward is None else None,
                ),
            )
            for trace, reward in zip(made, rewards, strict=True)
        ),
    )
