"""A dialogue as data for a model to read: numbered turns and steps, each part under the name that `focus_on` uses.

What is shown is hostile: it may hold text that looks like instructions or like the end of the data. It is therefore
shown fenced (llm/untrusted_text.py)."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from cm2_agent.types.dialogue_words import as_text
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Blob, Text, Uri
from cm2_agent.types.tool_use import CallStatus, ToolUse
from cm2_agent.types.trace import Step, Trace, Turn

PARTS = ("assistant.reasoning", "assistant.tool_calls", "assistant.reply", "tool.content")
"""The parts of a step, in the order in which they come to be."""
REASONING = "assistant.reasoning"
"""The part that nobody is shown who judges what was said and done."""


def dialogue_data(trace: Trace, *, reasoning: bool = True) -> list[dict[str, JSON]]:
    """The dialogue's turns, 0-based, each with what the user said and its steps, 0-based within the turn. Empty parts
    are left out, with `reasoning=False` what the model thought too; images and files are named, never fetched or
    shown."""
    parts = [part for part in PARTS if reasoning or part != REASONING]
    return [
        {
            "turn": turn.index,
            "user": user_text(turn),
            "steps": [
                {"step": step.index, **{part: _part(step, part) for part in parts if _has(step, part)}}
                for step in turn.steps
            ],
        }
        for turn in trace.turns
    ]


def user_text(turn: Turn) -> str:
    """The user's words that opened the turn, attachments by name."""
    return "\n".join(_text(part) for message in turn.user for part in message.parts)


def call_text(use: ToolUse) -> str:
    """A tool call as it is quoted: its name and the arguments that ran as canonical JSON."""
    return f"{use.call.name} {as_text(use.arguments)}"


def shown_status(use: ToolUse) -> CallStatus | None:
    """What the dialogue does not show by itself of a call: that it was invalid, never ran, or failed without an
    answer."""
    if use.status in ("ok", "answered") or (use.status == "failed" and use.response is not None):
        return None
    return use.status


def part_texts(step: Step, part: str) -> tuple[str, ...]:
    """The texts of a step's part that a quote may stand in: one for each tool call or tool result, none where the step
    lacks the part."""
    if part == "assistant.tool_calls":
        return tuple(map(call_text, step.tool_uses))
    if part == "tool.content":
        return tuple(as_text(response.response) for response in step.responses)
    text = step.message.reasoning if part == "assistant.reasoning" else step.message.text
    return (text,) if text.strip() else ()


def folded(text: str) -> str:
    """Text as quotes are compared: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def quoted_in(snippet: str, texts: Sequence[str]) -> bool:
    """Whether the snippet stands in one of the texts, whatever the case and the white space. JSON may be quoted with
    other spaces and escapes than it is spelled with here, so these do not count either."""
    needle = _bare(snippet)
    return bool(needle) and any(needle in _bare(text) for text in texts)


def _bare(text: str) -> str:
    return folded(text).replace(" ", "").replace("\\", "")


def _has(step: Step, part: str) -> bool:
    return bool(part_texts(step, part))


def _part(step: Step, part: str) -> JSON:
    if part == "tool.content":
        return [{"error": as_text(one.response)} if one.error else as_text(one.response) for one in step.responses]
    if part == "assistant.tool_calls":
        return [
            call_text(use) if (status := shown_status(use)) is None else {"call": call_text(use), "status": status}
            for use in step.tool_uses
        ]
    return part_texts(step, part)[0]


def _text(part: Any) -> str:
    if isinstance(part, Text):
        return part.content
    if isinstance(part, Uri | Blob):
        return f"[{part.modality or part.type}]"
    return f"[{part.type}]"


__all__ = [
    "PARTS",
    "REASONING",
    "call_text",
    "dialogue_data",
    "folded",
    "part_texts",
    "quoted_in",
    "shown_status",
    "user_text",
]
