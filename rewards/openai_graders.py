"""OpenAI's graders that need no model, carried out on a dialogue: string check, and text similarity by fuzzy match.

A grader's templates name the recorded item (`{{ item.answer }}`, the run's metadata `item`) and the sample
(`{{ sample.output_text }}`: the assistant's last message)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

from rapidfuzz import fuzz, utils

from cm2_agent.errors import ChecklistError
from cm2_agent.types.json_values import JSON, json_text
from cm2_agent.types.view import View

ITEM: Final = "item"
"""The metadata under which a run holds the item of an evaluation."""
_TEMPLATE = re.compile(r"\{\{\s*(item|sample)((?:\.\w+|\[\d+\])*)\s*\}\}")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")


def passes(grader: Mapping[str, JSON], view: View) -> bool:
    """Whether the dialogue so far passes the grader.

    `eq` and `ne` compare the whole text, `like` and `ilike` look for the reference in it (`ilike` whatever the case);
    `fuzzy_match` is rapidfuzz's `WRatio` of both in small letters without punctuation, from 0 to 1, and passes from
    `pass_threshold` on.

    Raises:
        ChecklistError: a grader of another type, or a template that names what the dialogue does not hold.

    >>> from cm2_agent import Message, Run, Trace
    >>> said = Message.of("user", "Where?"), Message.of("assistant", "It was shipped.")
    >>> view = View.of(Trace.of(Run(id="r", messages=said, attributes={"item": {"answer": "Shipped"}})))
    >>> check = {"type": "string_check", "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"}
    >>> passes({**check, "operation": "ilike"}, view), passes({**check, "operation": "like"}, view)
    (True, False)
    """
    text, reference = (_filled(str(grader.get(key, "")), view) for key in ("input", "reference"))
    if grader.get("type") == "string_check":
        operation = grader.get("operation")
        if operation in ("eq", "ne"):
            return (text == reference) is (operation == "eq")
        if operation in ("like", "ilike"):
            return reference.casefold() in text.casefold() if operation == "ilike" else reference in text
    if grader.get("type") == "text_similarity" and grader.get("evaluation_metric") == "fuzzy_match":
        threshold = grader.get("pass_threshold", 1.0)
        similarity = fuzz.WRatio(text, reference, processor=utils.default_process) / 100
        return bool(similarity >= float(threshold))
    raise ChecklistError(
        f"grader {grader.get('name')!r} is {grader.get('type')} {grader.get('operation', '')}; expected a string_check"
        " (eq, ne, like, ilike) or a text_similarity by fuzzy_match"
    )


def _filled(template: str, view: View) -> str:
    def value(match: re.Match[str]) -> str:
        found = _named(match.group(1), match.group(2), view)
        return found if isinstance(found, str) else json_text(found)

    return _TEMPLATE.sub(value, template)


def _named(space: str, path: str, view: View) -> JSON:
    steps = [name or int(place) for name, place in _STEP.findall(path)]
    found: JSON = view.trace.attributes.get(ITEM)
    if space == "sample":
        last = next((message.text for message in reversed(view.messages)), "")
        if steps[:1] == ["output_text"]:
            found, steps = last, steps[1:]
        elif steps[:1] == ["output_json"]:
            try:
                found, steps = json.loads(last), steps[1:]
            except ValueError:
                raise ChecklistError("sample.output_json: the reply is no JSON") from None
        else:
            raise ChecklistError(f"sample{path} is no part of a dialogue; expected output_text or output_json")
    for step in steps:
        if (isinstance(found, Mapping) and step in found) or (
            isinstance(found, list) and isinstance(step, int) and step < len(found)
        ):
            found = found[step]
        else:
            raise ChecklistError(f"{space}{path} is not there; import the items of the run, which hold it")
    return found


__all__ = ["ITEM", "passes"]
