"""What a judge's reply must be, and reading one.

The order of the fields is the order in which a model must write them: it analyses and quotes before it decides.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Literal

from pydantic import BaseModel, ConfigDict, StrictInt, ValidationError

from cm2_agent.llm.client import MalformedReply
from cm2_agent.types.json_values import JSON
from cm2_agent.types.text import first_problem, unfenced


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


def read(text: str, asked: Collection[str]) -> dict[str, ItemAnswer]:
    """The answers by item id; ids that the reply left out are missing. Raises MalformedReply: not the JSON object that
    was asked for, a second answer to an item, an answer to an item that was not asked (a judge that mixes up items
    cannot be trusted with any)."""
    try:
        reply = Reply.model_validate_json(unfenced(text))
    except ValidationError as error:
        raise MalformedReply(f"the reply is not the JSON that was asked for: {first_problem(error)}") from error
    found: dict[str, ItemAnswer] = {}
    for answer in reply.items:
        if answer.id not in asked:
            raise MalformedReply(f"the reply answers an item that was not asked: {answer.id[:60]!r}")
        if answer.id in found:
            raise MalformedReply(f"the reply answers the item {answer.id!r} twice")
        found[answer.id] = answer
    return found


__all__ = ["SCHEMA", "ItemAnswer", "Quote", "Reply", "read"]
