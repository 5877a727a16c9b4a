"""What user and agent said to each other, as bytes that compare, and what of it a run was shown that no run wrote."""

from __future__ import annotations

from collections.abc import Sequence

from cm2_agent.types.json_values import canonical_json
from cm2_agent.types.messages import Message, Reasoning, Text, ToolCall, part_to_json

__all__ = ["spoken", "unrecorded"]


def spoken(message: Message) -> bytes | None:
    """What the user or the agent said, as bytes; None for what neither said to the other."""
    if not _may_speak(message):
        return None
    others = [part for part in message.parts if not isinstance(part, Text | Reasoning | ToolCall)]
    text = message.text.strip()
    if not text and not others:
        return None
    said = [message.role, text, *(part_to_json(part) for part in others)]
    return canonical_json(said).encode("utf-8", "surrogatepass")


def unrecorded(history: Sequence[Message], dialogue: Sequence[Message]) -> tuple[Message, ...]:
    """What a run was shown behind all that its trace holds: an answer that a person wrote into the state, a turn that
    ran elsewhere. Nothing where the history is another one, or says again what was said, as where the client sends what
    the checkpointer holds too."""
    if sum(map(_may_speak, history)) <= sum(map(_may_speak, dialogue)):
        return ()
    said = [words for message in dialogue if (words := spoken(message)) is not None]
    shown = [(place, words) for place, message in enumerate(history) if (words := spoken(message)) is not None]
    more = [words for _, words in shown[len(said) :]]
    if not said or not more or [words for _, words in shown[: len(said)]] != said:
        return ()
    if any(said[at : at + len(more)] == more for at in range(len(said) - len(more) + 1)):
        return ()
    behind = list(history[shown[len(said) - 1][0] + 1 :])
    if not any(message.role == "assistant" and spoken(message) is not None for message in behind):
        return ()
    for message in reversed(dialogue):  # calls of the last turn that it never answered itself
        if spoken(message) is not None:
            break
        if message in behind:
            behind.remove(message)
    return tuple(message for message in behind if message.role != "system")


def _may_speak(message: Message) -> bool:
    return message.role in ("user", "assistant") and not message.tool_calls
