"""Tool calls that could not be read: each is answered by an error that the model sees, so that it can call again."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage, InvalidToolCall, ToolMessage

from cm2_agent.models.chat_template import call_id_of
from cm2_agent.types.text import shorten

_LONGEST = 500
"""Characters of a reason: providers' errors repeat the whole call."""


def with_call_ids(message: BaseMessage, place: int) -> BaseMessage:
    """The message with an id for each tool call that has none, without which no answer could name it. `place` is the
    message's in the dialogue: the ids are a function of it and of the calls."""
    if not isinstance(message, AIMessage):
        return message
    calls = [*message.tool_calls, *message.invalid_tool_calls]
    if all(call.get("id") for call in calls):
        return message
    ids = [call.get("id") or call_id_of(f"{place}:{number}:{call['name']}") for number, call in enumerate(calls)]
    valid = [{**call, "id": id_} for call, id_ in zip(message.tool_calls, ids, strict=False)]
    invalid = [
        {**call, "id": id_}
        for call, id_ in zip(message.invalid_tool_calls, ids[len(message.tool_calls) :], strict=True)
    ]
    return message.model_copy(update={"tool_calls": valid, "invalid_tool_calls": invalid})


def parse_errors(message: BaseMessage, tools: Sequence[str]) -> list[ToolMessage]:
    """The answers to the message's calls that could not be read, in order; `tools` are the names of those that there
    are."""
    if not isinstance(message, AIMessage):
        return []
    return [_answer(call, tools) for call in message.invalid_tool_calls]


def _answer(call: InvalidToolCall, tools: Sequence[str]) -> ToolMessage:
    name = call.get("name")
    reason = (call.get("error") or "the arguments are not a JSON object").partition("\nFor troubleshooting")[0].strip()
    if tools:
        known = "" if name in tools else f" The tools are {', '.join(tools)}."
        expected = (
            "Expected the name of a tool and its arguments as one JSON object:"
            f' {{"name": "{name or "TOOL"}", "arguments": {{…}}}}.{known} Write the call again.'
        )
    else:
        expected = "There are no tools: answer in words."
    content = f"Error: this tool call could not be read, and nothing was run: {shorten(reason, _LONGEST)}\n{expected}"
    return ToolMessage(content=content, name=name, tool_call_id=call.get("id") or "", status="error")


__all__ = ["parse_errors", "with_call_ids"]
