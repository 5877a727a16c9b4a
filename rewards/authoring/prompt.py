"""What a model that writes checklists is shown, and how its reply is read.

The instructions are prompts/label.md, the same for every dialogue. The dialogue follows as data behind a nonce
(transcript.py). Where the first answer fails, one more question shows it together with what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cm2_agent.errors import ModelError
from cm2_agent.llm.reply_json import json_replies
from cm2_agent.llm.untrusted_text import fenced
from cm2_agent.types.checklist_item import EvidenceModel, ItemModel
from cm2_agent.types.json_values import JSON, content_hash
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.trace import Trace

from ..judges.transcript import dialogue_data

PER_TURN = ""
CLOSING = '; here always `"trace"`: the items are about the whole dialogue, and none is required_for_next_turn'


class LabelItem(ItemModel, frozen=True):
    """An item as a model may write it: like ItemModel, but a check is data, a place is one turn or the closing block,
    the reference is pointed at, every item applies and depends on others wholly, and no agent is named, since the model
    is not shown any."""

    check: dict[str, Any] | None = None
    agent: None = None
    any_of: tuple[()] = ()
    when: None = None
    otherwise: None = None
    depends_on: tuple[str, ...] = ()
    turn: int | Literal["trace"] = Field(union_mode="left_to_right")
    question: str = Field(min_length=8)
    evidence: tuple[EvidenceModel, ...] = Field(min_length=1)


class LabelReply(BaseModel):
    """The whole answer; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: tuple[LabelItem, ...] = Field(min_length=1)

    @field_validator("items")
    @classmethod
    def _unique(cls, items: tuple[LabelItem, ...]) -> tuple[LabelItem, ...]:
        twice = sorted({item.id for item in items if sum(item.id == other.id for other in items) > 1})
        if twice:
            raise ValueError(f"ids used twice: {', '.join(twice)}; ids must be unique")
        return items


class Rewritten(LabelReply):
    """The answer to a second question: like LabelReply, but nothing at all may be saved."""

    items: tuple[LabelItem, ...] = ()


@cache
def instructions(block: bool) -> str:
    """The system prompt: items of turns, or (block) of the closing block alone."""
    text = files("cm2_agent.rewards").joinpath("prompts", "label.md").read_text(encoding="utf-8")
    return text.format(turn_rule=CLOSING if block else PER_TURN)


@cache
def prompt_version() -> str:
    """Names the wording: the first digits of a hash over both forms of the instructions."""
    return content_hash([instructions(False), instructions(True)])[:12]


def first_question(trace: Trace, tools: Sequence[ToolSpec], mark: str) -> str:
    """The tools and the dialogue as data, and what is wanted of them."""
    specs = [asdict(tool) for tool in tools]
    return (
        f"{fenced('tools', specs, mark)}\n\n{fenced('dialogue', dialogue_data(trace), mark)}\n\nWrite the checklist of"
        f" the dialogue between the marks {mark}. It has {len(trace.turns)} turns. Reply with the JSON object alone."
    )


def second_question(written: Mapping[str, JSON], failures: Mapping[str, Sequence[str]], mark: str) -> str:
    """The items that failed and why, by id, and what to write now. Reasons quote the dialogue, so they are data too."""
    listed = [{"item": written[name], "failed": list(reasons)} for name, reasons in failures.items()]
    return (
        f"These items were tried and failed:\n{fenced('failures', listed, mark)}\n\nThe others stand. Write each failed"
        " item anew under its own id so that it no longer fails, or leave it out where nothing sound can be asked."
        ' Reply with the JSON object alone: {"items": […]} with failed items only (an empty list if none can be'
        " saved)."
    )


def malformed_question(error: str, mark: str) -> str:
    """What is wrong with an answer that could not be read at all."""
    return (
        f"The reply could not be read:\n{fenced('error', error, mark)}\n\nWrite the whole checklist again. Reply with"
        " the JSON object alone, with the keys that were named and no others."
    )


def read_reply(text: str, form: type[LabelReply] = LabelReply) -> tuple[LabelItem, ...]:
    """The items of an answer, whatever stands around the JSON. Raises ModelError that says every broken rule (eight at
    most) by its place in the reply."""
    found = json_replies(text)
    if not found:
        raise ModelError("reply: it holds no JSON object")
    try:
        return form.model_validate(found[-1]).items
    except ValidationError as error:
        broken = error.errors(include_url=False, include_input=False)
        messages = [f"{'.'.join(map(str, one['loc'])) or 'reply'}: {one['msg']}" for one in broken]
        more = f"; and {len(messages) - 8} more" if len(messages) > 8 else ""
        raise ModelError("; ".join(messages[:8]) + more) from error


__all__ = [
    "LabelItem",
    "LabelReply",
    "Rewritten",
    "first_question",
    "instructions",
    "malformed_question",
    "prompt_version",
    "read_reply",
    "second_question",
]
