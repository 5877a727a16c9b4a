"""What a judge's reply must be, and reading one.

The order of the fields is the order in which a model must write them: it analyses and quotes before it decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, StrictInt, ValidationError

from cm2_agent.llm.failures import MalformedReply
from cm2_agent.llm.reply_json import json_replies
from cm2_agent.types.json_values import JSON
from cm2_agent.types.text import first_problem

from .echoes import without_echoes
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

_YES = "yes y true ja oui sí si sim да 是 はい evet"
_NO = "no n false nein non não нет 否 いいえ nee nej hayır"
_UNKNOWN = "cannot_tell can't_tell cant_tell cannottell can_not_tell cannot_say unknown unclear unsure undetermined"
_WORDS = {
    word: verdict
    for verdict, words in (("yes", _YES), ("no", _NO), ("cannot_tell", _UNKNOWN))
    for word in words.split()
}
"""Other spellings of the three verdicts, in small letters: those that mean one of them in every language that has
them."""
_PARTS = {name: part for part in PARTS for name in (part.replace(".", ""), part.partition(".")[2])}
_PARTS |= {name.replace("_", ""): part for name, part in _PARTS.items()}
_STEP = re.compile(r"(?:step)?\s*#?\s*([0-9]{1,9})", re.IGNORECASE)
_NOTHING = frozenset({"", "none", "null", "n/a", "-"})
_MOST_WRAPPERS = 3


def read(text: str, asked: Collection[str], shown: str = "") -> dict[str, ItemAnswer]:
    """The answers by item id; ids that the reply left out are missing. `shown` is the transcript: what a reply in prose
    only cites of it answers nothing.

    What leaves no doubt is mended: what stands around the JSON, another spelling of yes and no, a step as text, keys
    that nobody asked for, an analysis or an evidence left out, one object in place of a list, an object for each item.
    Raises MalformedReply: not the JSON that was asked for, two different answers to an item, an answer to an item that
    was not asked (a judge that mixes up items cannot be trusted with any)."""
    ids = {name.casefold(): name for name in asked}
    ids = ids if len(ids) == len(asked) else {name: name for name in asked}
    found: dict[str, ItemAnswer] = {}
    problem = "it holds no JSON object"
    replies: list[Reply] = []
    plain = _plain(text, ids)
    if plain is not None:
        replies.append(plain)
    for value in () if plain is not None else without_echoes(json_replies(text), text, shown):
        try:
            one = _reply(value, ids)
        except ValidationError as error:
            problem = first_problem(error)
            continue
        if one not in replies:
            replies.append(one)
    if not replies:
        raise MalformedReply(f"the reply is not the JSON that was asked for: {problem}")
    for answer in (answer for one in replies for answer in one.items):
        if answer.id not in asked:
            raise MalformedReply(f"the reply answers an item that was not asked: {answer.id[:60]!r}")
        if answer.id in found:
            raise MalformedReply(f"the reply answers the item {answer.id!r} twice")
        found[answer.id] = answer
    return found


def _plain(text: str, ids: Mapping[str, str]) -> Reply | None:
    """The reply where it is exactly what was asked for, which it mostly is: each key spelled out, and there once.
    None otherwise, whatever it may be then."""
    if "\\u" in text:
        return None
    try:
        one = Reply.model_validate_json(text)
    except ValueError:
        return None
    of_answers, quotes = len(one.items), sum(answer.evidence is not None for answer in one.items)
    count = text.count
    once = (
        count('"items"') == 1
        and count('"id"') == count('"analysis"') == count('"evidence"') == count('"verdict"') == of_answers
        and count('"step"') == count('"part"') == count('"quote"') == quotes
    )
    return one if once and _is_asked(one, ids) else None


def _is_asked(reply: Reply, ids: Mapping[str, str]) -> bool:
    names = set(ids.values())
    return all(
        answer.id in names and (answer.evidence is None or answer.evidence.part in PARTS) for answer in reply.items
    )


def _reply(value: JSON, ids: Mapping[str, str]) -> Reply:
    """Raises ValidationError where it is none, as it stands or mended."""
    try:
        as_asked = Reply.model_validate(value)
        if _is_asked(as_asked, ids):
            return as_asked
    except ValidationError:
        pass
    return Reply.model_validate(_mended(value, ids))


def _mended(value: JSON, ids: Mapping[str, str]) -> JSON:
    """The reply in the form that was asked for, as far as it is one in other words; `ids` are the asked ones, by their
    small letters."""
    for _ in range(_MOST_WRAPPERS):
        listed = _listed(value, ids)
        if listed is not None:
            return {"items": [_mended_answer(one, ids) for one in listed]}
        inner = _within(value)
        if inner is None:
            break
        value = inner
    return value


def _listed(value: JSON, ids: Mapping[str, str]) -> list[JSON] | None:
    """The answers of a reply in one of the forms in which they can stand."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return None
    keyed = _keyed(value)
    if "items" in keyed:
        return _listed(keyed["items"], ids)
    if "verdict" in keyed and ("id" in keyed or len(ids) == 1):
        return [value]
    if value and all(_id(name, ids) is not None and isinstance(one, dict | str | bool) for name, one in value.items()):
        return [{"id": name, **(one if isinstance(one, dict) else {"verdict": one})} for name, one in value.items()]
    return None


def _within(value: JSON) -> JSON | None:
    """What a wrapper holds: an object of one key, or a call of a function."""
    if not isinstance(value, dict):
        return None
    inner: JSON = None
    if len(value) == 1:
        (inner,) = value.values()
    elif value.keys() <= {"name", "arguments", "parameters", "type", "id"}:
        inner = value.get("arguments", value.get("parameters"))
    if isinstance(inner, str):
        found = json_replies(inner)
        inner = found[0] if len(found) == 1 else None
    return inner if isinstance(inner, dict | list) else None


def _keyed(value: Mapping[str, JSON]) -> dict[str, JSON]:
    """The values by the names of their keys, without those that are there twice ("verdict", "Verdict") and differ: none
    of them can be told to be meant."""
    found: dict[str, JSON] = {}
    twice: set[str] = set()
    for key, given in value.items():
        name = _name(key)
        if name in found and found[name] != given:
            twice.add(name)
        found[name] = given
    return {name: given for name, given in found.items() if name not in twice}


def _name(key: str) -> str:
    return key.strip().casefold()


def _id(given: str, ids: Mapping[str, str]) -> str | None:
    return ids.get(given) or ids.get(given.strip(" \t\n`'\"#:.").casefold())


def _mended_answer(value: JSON, ids: Mapping[str, str]) -> JSON:
    if not isinstance(value, dict):
        return value
    one: dict[str, Any] = {"analysis": "", "evidence": None, **_keyed(value)}
    one = {name: one[name] for name in ItemAnswer.model_fields if name in one}
    if "id" not in one and len(ids) == 1:
        one["id"] = next(iter(ids.values()))
    elif isinstance(one.get("id"), str):
        one["id"] = _id(one["id"], ids) or one["id"]
    if isinstance(one.get("verdict"), str | bool):
        word = " ".join(str(one["verdict"]).strip(" \t\n.!*_`'\"").casefold().split())
        one["verdict"] = _WORDS.get(re.sub(r"[ -]", "_", word), word)
    if not isinstance(one["analysis"], str):
        one["analysis"] = ""
    quotes = one["evidence"]
    quote = _mended_quote(quotes[0] if isinstance(quotes, list) and len(quotes) == 1 else quotes or None)
    if one.get("verdict") in ("no", "cannot_tell") and not _is_quote(quote):
        quote = None  # neither needs one
    one["evidence"] = quote
    return one


def _mended_quote(value: JSON) -> JSON:
    if isinstance(value, str):
        return None if _name(value) in _NOTHING else value
    if not isinstance(value, dict):
        return value
    keyed = _keyed(value)
    one: dict[str, Any] = {name: keyed[name] for name in Quote.model_fields if name in keyed}
    step, part = one.get("step"), one.get("part")
    number = _STEP.fullmatch(step.strip()) if isinstance(step, str) else None
    if number is not None:
        one["step"] = int(number[1])
    elif isinstance(step, float) and step.is_integer():
        one["step"] = int(step)
    if isinstance(part, str):
        one["part"] = _PARTS.get(re.sub(r"[\s._-]", "", part.casefold()), part)
    return one


def _is_quote(value: JSON) -> bool:
    try:
        Quote.model_validate(value)
    except ValidationError:
        return False
    return True


__all__ = ["SCHEMA", "ItemAnswer", "Quote", "Reply", "read"]
