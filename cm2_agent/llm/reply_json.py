"""The JSON of a model's reply, out of what models put around it: thinking, prose, code fences, a byte-order mark."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from cm2_agent.llm.failures import MalformedReply
from cm2_agent.llm.relaxed_json import DECODER, relaxed_json
from cm2_agent.models.reasoning_text import TAG
from cm2_agent.types.json_values import JSON
from cm2_agent.types.text import first_problem

__all__ = ["json_replies", "read_reply"]


_BRACKETS = re.compile(r"[{}\[\]]")
M = TypeVar("M", bound=BaseModel)


def json_replies(text: str) -> list[JSON]:
    """The objects and lists of a reply, in order; what was drafted in thinking is none of them, nor is half a one, or
    one that may be read in two ways (relaxed_json.py). A reply that is one JSON value as a whole is that value, a
    string of JSON what it says.

    >>> json_replies('<think>{"a": 0}?</think>Sure:\\n```json\\n{"a": 1}\\n```')
    [{'a': 1}]
    """
    text = text.strip().lstrip("\ufeff").strip()
    try:
        whole = DECODER.decode(text)
        return [DECODER.decode(whole.strip()) if isinstance(whole, str) else whole]
    except (ValueError, RecursionError):
        pass
    found: list[JSON] = []
    position, inside = 0, False
    tag = TAG.search(text)
    while position < len(text):
        if tag and tag.start() < position:
            tag = TAG.search(text, position)
        end = tag.start() if tag else len(text)
        opened = -1 if inside else _bracket(text, position, end)
        if opened >= 0:
            try:
                value, position = _value_at(text, opened)
                found.append(value)
            except (ValueError, RecursionError):  # what is whole within something broken is no reply either
                position = _after_brackets(text, opened)
        elif tag is None:
            break
        else:
            position = tag.end()
            if tag["close"] and not inside:  # its beginning was the prompt's: what came before was thinking
                found.clear()
            inside = bool(tag["open"]) or (inside and not tag["close"])
    return found


def read_reply(text: str, form: type[M], shape: Callable[[JSON], JSON] = lambda value: value) -> M:
    """The reply as the form that was asked for; `shape` mends what may be mended before it is checked.

    Raises MalformedReply: no JSON, JSON of another form, or several different answers, of which none can be told to be
    meant.

    >>> from pydantic import BaseModel
    >>> class Answer(BaseModel):
    ...     right: bool
    >>> read_reply('It is: {"right": true}. I hope this helps.', Answer)
    Answer(right=True)
    """
    problem = "it holds no JSON object"
    fitting: list[M] = []
    for value in json_replies(text):
        try:
            one = form.model_validate(shape(value))
        except ValidationError as error:
            problem = first_problem(error)
            continue
        if one not in fitting:
            fitting.append(one)
    if len(fitting) > 1:
        raise MalformedReply(f"the reply holds {len(fitting)} different answers; expected one")
    if not fitting:
        raise MalformedReply(f"the reply is not the JSON that was asked for: {problem}")
    return fitting[0]


def _value_at(text: str, opened: int) -> tuple[JSON, int]:
    try:
        return DECODER.raw_decode(text, opened)
    except ValueError:
        return relaxed_json(text, opened)


def _bracket(text: str, start: int, end: int) -> int:
    """Where the first object or list begins; -1 where none does."""
    found = [place for place in (text.find("{", start, end), text.find("[", start, end)) if place >= 0]
    return min(found, default=-1)


def _after_brackets(text: str, start: int) -> int:
    """Where what the bracket opens ends: the end of the text where it is never closed."""
    depth = 0
    for bracket in _BRACKETS.finditer(text, start):
        depth += 1 if bracket[0] in "{[" else -1
        if depth == 0:
            return bracket.end()
    return len(text)
