"""The steps by which an agent handed the dialogue over, where its graph leaves them out of the messages.

A tool that sends the parent graph elsewhere (`Command(goto=…, graph=Command.PARENT)`) ends its own agent's graph there
and then: what that graph had written, the call itself among it, is lost unless the tool's update repeats it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cm2_agent.tracing.run_dialogue import Dialogue
from cm2_agent.tracing.span_records import ChatRecord, ToolRecord
from cm2_agent.types.messages import Message, ToolCallResponse


def with_handoffs(dialogue: Dialogue, chats: Sequence[ChatRecord], tools: Sequence[ToolRecord]) -> Dialogue:
    """The dialogue with the calls that handed over, each before its answer (which is added where it is missing too),
    or before what was written after it. The chats are those of the dialogue, in the order of their starts."""
    leavers = {tool.call_id: tool for tool in tools if tool.handoff and tool.call_id is not None}
    if not leavers:
        return dialogue
    for chat in chats:
        if id(chat) in dialogue.written or chat.output is None:
            continue
        asked = [call.id for call in chat.output.message.tool_calls]
        left = [leavers[call] for call in asked if call is not None and call in leavers]
        known = {call.id for message in dialogue.messages for call in message.tool_calls}
        if left and not known.intersection(asked):
            dialogue = _with_step(dialogue, chat, left, chats)
    return dialogue


def _with_step(
    dialogue: Dialogue, chat: ChatRecord, left: Sequence[ToolRecord], chats: Sequence[ChatRecord]
) -> Dialogue:
    assert chat.output is not None
    ids = {tool.call_id for tool in left}
    answered = {
        part.id: number
        for number, message in enumerate(dialogue.messages)
        for part in message.responses
        if part.id in ids
    }
    later = [
        dialogue.written[id(other)] for other in chats if other.started > chat.started and id(other) in dialogue.written
    ]
    at = min([*answered.values(), *later], default=len(dialogue.messages))
    missing = [
        Message(role="tool", parts=(ToolCallResponse(id=tool.call_id, response=tool.result),), name=tool.name)
        for tool in left
        if tool.call_id not in answered
    ]
    new = (chat.output.message, *missing)
    return replace(
        dialogue,
        messages=(*dialogue.messages[:at], *new, *dialogue.messages[at:]),
        written={**_shifted(dialogue.written, at, len(new)), id(chat): at},
        states=tuple(
            replace(mark, messages=mark.messages + len(new)) if mark.messages > at else mark for mark in dialogue.states
        ),
    )


def _shifted(written: Mapping[int, int], at: int, by: int) -> dict[int, int]:
    return {call: number + by if number >= at else number for call, number in written.items()}
