"""Answers of tools that bear no id of a call but the name of their tool, in the order of the calls."""

from __future__ import annotations

from collections.abc import Sequence

from cm2_agent.types.messages import Message


def in_call_order(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages; where all answers to a step name their tools and none an id, in the order of the step's calls:
    answers without ids are paired by their order. Left as they are where the names are not those of the calls."""
    found: list[Message] = []
    place = 0
    while place < len(messages):
        message = messages[place]
        found.append(message)
        place += 1
        asked = [call.name for call in message.tool_calls]
        if len(asked) < 2:
            continue
        end = place
        while end < len(messages) and _is_named(messages[end]):
            end += 1
        answers = list(messages[place:end])
        if sorted(str(one.name) for one in answers) == sorted(asked):
            for name in asked:
                found.append(answers.pop(next(at for at, one in enumerate(answers) if one.name == name)))
            place = end
    return tuple(found)


def _is_named(message: Message) -> bool:
    responses = message.responses
    return message.role == "tool" and message.name is not None and len(responses) == 1 and not responses[0].id


__all__ = ["in_call_order"]
