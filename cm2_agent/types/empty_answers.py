"""Answers of tools that found nothing: the call ran, and nothing came of it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cm2_agent.types.json_values import JSON, leaves
from cm2_agent.types.tool_content import content_text

_LONGEST = 300
_AT_FIRST = r"\W{0,3}(?:(?:sorry|error|oops|hm+)\W+)?(?:[^\s.!?;]+\s+){0,9}?"
_LAST = r"[^.!?;\n]{0,80}[.!]?\W{0,3}$"
_NOT_THERE = re.compile(
    rf"""{_AT_FIRST}(?:
      not[\s_]+(?:be\s+)?found(?!\w)(?:\s+(?:in|for|with|under|by|on|at)(?!\w){_LAST}|[.!]?\W{{0,3}}$)
    | (?:does|do)(?:\s+not|n['’]t)\s+exist(?!\w){_LAST}
    | not\s+in\s+(?:our|the)\s+(?:system|database|records?){_LAST}
    | (?:nicht\s+gefunden|existiert\s+nicht|introuvable|n['’]existe\s+pas|no\s+encontrad[oa]s?|no\s+existe
        |não\s+encontrad[oa]s?|niet\s+gevonden|не\s+найден[оаы]?)(?!\w){_LAST}
    )
    | \W{{0,3}}(?:there\s+is\s+)?no\s+such\s+\w+{_LAST}
    | \W{{0,3}}(?:unknown|nonexistent)\s+\w+(?:\s+(?:id|number|code))?(?:\W+\S+)?[.!]?$
    | \W{{0,3}}(?:sorry\W+)?(?:we\s+|i\s+)?
      (?:could\s+not|couldn['’]t|cannot|can['’]t|unable\s+to|did\s+not|didn['’]t)\s+(?:find|locate)(?!\w){_LAST}
    | \W{{0,3}}未找到.{{0,80}}$
    | .{{0,80}}見つかりません.{{0,4}}$""",
    re.IGNORECASE | re.VERBOSE,
)
_NONE = re.compile(
    rf"""\W{{0,3}}(?:there\s+(?:is|are|were)\s+)?(?:no|0|zero)\s+(?:[^\s.!?;]+\s+){{0,4}}?
      (?:found|match\w*|results?|records?|entries|hits|exists?|available|with|for|on|under|in)(?!\w){_LAST}
    | \W{{0,3}}(?:nothing|none|nobody)(?:(?:\s+(?:was|were))?\s+(?:found|matched|available)(?!\w){_LAST}|[.!]?$)
    | \W{{0,3}}(?:keine?n?|aucune?|ningun[oa]?|ningún|nenhuma?|geen)\s+(?:\w+\s+){{0,4}}
      (?:gefunden|trouvée?s?|encontrad[oa]s?|gevonden){_LAST}""",
    re.IGNORECASE | re.VERBOSE,
)
_WELL = frozenset({"", "0", "200", "201", "ok", "success", "succeeded", "done", "true", "created", "saved", "noted"})
_COUNTS = frozenset(
    {"total", "count", "n", "hits", "results", "matches", "found", "total_count", "num_results", "size"}
)


def is_not_there(answer: JSON) -> bool:
    """Whether an answer says that what was asked for does not exist, and nothing else: "Order 9 not found". A search
    without results is another thing: that there are none is what it found out.

    >>> is_not_there("Order 9 not found"), is_not_there({"found": False, "id": "9"}), is_not_there([])
    (True, True, False)
    """
    value = content_text(answer)
    if isinstance(value, Mapping):
        if value.get("found") is False or value.get("exists") is False:
            return True
        if len(value) > 4 or any(isinstance(one, list | Mapping) and one for one in value.values()):
            return False
        return any(isinstance(one, str) and _says(_NOT_THERE, one) for one in value.values())
    return isinstance(value, str) and _says(_NOT_THERE, value)


def finds_nothing(answer: JSON, arguments: JSON = None) -> bool:
    """Whether an answer holds nothing that the call did not: it says that nothing was found, is empty, or is JSON of
    empty places beside the call's own arguments. What it repeats of these, it did not find.

    >>> finds_nothing({"query": "W-9", "results": []}, {"q": "W-9"}), finds_nothing({"id": "W-7", "items": []}, {})
    (True, False)
    """
    value = content_text(answer)
    if is_not_there(value) or (isinstance(value, str) and (not value.strip() or _says(_NONE, value))):
        return True
    if not isinstance(value, Mapping | list):
        return value is None
    if value and not _has_empty_place(value):
        return False
    given = {_spelled(one) for one in leaves(arguments)}
    return all(
        not one or _spelled(one) in given or (isinstance(one, str) and (_says(_NONE, one) or _says(_NOT_THERE, one)))
        for one in leaves(value)
    )


def only_repeats(answer: JSON, arguments: JSON) -> bool:
    """Whether an answer says nothing but what the call said, and that it went well: of a tool for notes, say.

    >>> only_repeats({"ok": True, "note": "W-9"}, {"note": "W-9"}), only_repeats("W-9: shipped", {"id": "W-9"})
    (True, False)
    """
    given = {_spelled(one) for one in leaves(arguments)}
    found = [one for one in leaves(content_text(answer)) if one is not None and not isinstance(one, bool)]
    return bool(found) and all(_spelled(one) in given or _spelled(one) in _WELL for one in found)


def _says(pattern: re.Pattern[str], text: str) -> bool:
    return len(text) <= _LONGEST and pattern.match(text.strip()) is not None


def _spelled(value: JSON) -> str:
    return str(value).strip().casefold()


def _has_empty_place(value: JSON) -> bool:
    """Whether something in the answer is empty: a list, an object, null, a count of none."""
    waiting: list[tuple[str, JSON]] = [("", value)]
    while waiting:
        key, one = waiting.pop()
        if one is None or one == [] or one == {} or (key.casefold() in _COUNTS and one == 0):
            return True
        if isinstance(one, Mapping):
            waiting.extend(one.items())
        elif isinstance(one, list):
            waiting.extend((key, inner) for inner in one)
    return False


__all__ = ["finds_nothing", "is_not_there", "only_repeats"]
