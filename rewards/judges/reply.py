"""What a judge's reply must be, and reading one.

The order of the fields is the order in which a model must write them: it analyses and quotes before it decides.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, StrictInt

from cm2_agent.llm.failures import MalformedReply
from cm2_agent.llm.reply_json import read_reply
from cm2_agent.types.json_values import JSON

from .transcript import PARTS


class Quote(BaseModel):
    """Where the judge saw it: the dialogue-wide step from 1, the part, and the words."""

    model_config = ConfigDict(extra="forbid")

    step: StrictInt
    part: str
    quote: str


class ItemAnswer(BaseModel):
    """The judge's answer to one item."""

    model_config = ConfigDict(extra="forbid")

    id: str
    analysis: str
    evidence: Quote | None
    verdict: Literal["yes", "no", "cannot_tell"]


class Reply(BaseModel):
    """A judge's whole reply."""

    model_config = ConfigDict(extra="forbid")

    items: list[ItemAnswer]


SCHEMA: dict[str, JSON] = json.loads(json.dumps(Reply.model_json_schema()).replace("ItemAnswer", "Answer"))
"""The reply's JSON schema, for providers that can be held to one; servers compile it once, so its names stay."""

_WORDS = {"true": "yes", "false": "no", "can't_tell": "cannot_tell", "cannottell": "cannot_tell"}
_PARTS = {part.partition(".")[2]: part for part in PARTS}


def read(text: str, asked: Collection[str]) -> dict[str, ItemAnswer]:
    """The answers by item id; ids that the reply left out are missing.

    What leaves no doubt is mended: what stands around the JSON, another spelling of yes and no, a step as text, keys
    that nobody asked for, an analysis or an evidence left out. Raises MalformedReply: not the JSON object that was
    asked for, a second answer to an item, an answer to an item that was not asked (a judge that mixes up items cannot
    be trusted with any)."""
    ids = {name.casefold(): name for name in asked}
    ids = ids if len(ids) == len(asked) else {}
    found: dict[str, ItemAnswer] = {}
    for answer in read_reply(text, Reply, lambda value: _mended(value, ids)).items:
        if answer.id not in asked:
            raise MalformedReply(f"the reply answers an item that was not asked: {answer.id[:60]!r}")
        if answer.id in found:
            raise MalformedReply(f"the reply answers the item {answer.id!r} twice")
        found[answer.id] = answer
    return found


def _mended(value: JSON, ids: Mapping[str, str]) -> JSON:
    """The reply in the form that was asked for, as far as it is one in other words; `ids` are the asked ones, by their
    small letters."""
    if isinstance(value, list):
        listed: Any = value
    elif not isinstance(value, dict):
        return value
    elif "items" in value:
        listed = value["items"]
    elif "id" in value and "verdict" in value:
        listed = [value]
    elif value and all(name.casefold() in ids and isinstance(answer, dict) for name, answer in value.items()):
        listed = [{"id": name, **answer} for name, answer in value.items()]
    else:
        return value
    return {"items": [_mended_answer(one, ids) for one in listed]} if isinstance(listed, list) else value


def _mended_answer(value: JSON, ids: Mapping[str, str]) -> JSON:
    if not isinstance(value, dict):
        return value
    one: dict[str, Any] = {"analysis": "", "evidence": None, **value}
    one = {name: one[name] for name in ItemAnswer.model_fields if name in one}
    if isinstance(one.get("id"), str):
        one["id"] = ids.get(one["id"].strip().casefold(), one["id"])
    if isinstance(one.get("verdict"), str | bool):
        word = str(one["verdict"]).strip().strip(".!").casefold().replace(" ", "_").replace("-", "_")
        one["verdict"] = _WORDS.get(word, word)
    quotes = one["evidence"]
    one["evidence"] = _mended_quote(quotes[0] if isinstance(quotes, list) and len(quotes) == 1 else quotes or None)
    return one


def _mended_quote(value: JSON) -> JSON:
    if not isinstance(value, dict):
        return value
    one: dict[str, Any] = {name: value[name] for name in Quote.model_fields if name in value}
    step, part = one.get("step"), one.get("part")
    number = step.strip() if isinstance(step, str) else ""
    if number.isascii() and number.isdigit():
        one["step"] = int(number)
    elif isinstance(step, float) and step.is_integer():
        one["step"] = int(step)
    if isinstance(part, str):
        one["part"] = _PARTS.get(part, part)
    return one


__all__ = ["SCHEMA", "ItemAnswer", "Quote", "Reply", "read"]
