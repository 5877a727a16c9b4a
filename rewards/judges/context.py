"""Context: a quote widened to the sentence, or to the key and value of JSON, that it was taken from, and what of that
it leaves out."""

from __future__ import annotations

from typing import NamedTuple

from .evidence import Place
from .json_places import JSONEntry, JSONPlaces
from .sentences import Cue, Sentence, cue_in_json, left_out, line_around, sentence_around, without_code

_LONGEST_VALUE = 600
"""Characters of a JSON value that is shown whole; of a longer text, the sentence."""
_LONGEST_EXCERPT = 2400


class Context(NamedTuple):
    """What a quote was taken from.

    `snippet` is the quote's sentence, or `path: value`; `excerpt` has the sentence before it too. `missing` is what
    stands in them that may turn or bind the quote and that it leaves out."""

    snippet: str
    excerpt: str
    missing: Cue | None


def context_of(place: Place) -> Context:
    """The context of a quote.

    >>> from cm2_agent.rewards.judges.evidence import PartText, places
    >>> text = PartText(raw="I see. Unless you object, your order is cancelled today.")
    >>> context = context_of(next(places("your order is cancelled", text)))
    >>> context.snippet, context.missing
    ('Unless you object, your order is cancelled today.', 'condition')
    """
    raw = place.text.raw
    if place.is_whole:
        return Context(snippet=(whole := raw.strip()), excerpt=whole, missing=None)
    if place.text.json is not None:
        return _of_json(place, place.text.json)
    if len(place.pieces) == 1:
        one = _sentence(place, place.start, place.end)
        return Context(
            snippet=raw[one.start : one.end].strip(),
            excerpt=raw[one.before : one.end].strip()[:_LONGEST_EXCERPT],
            missing=left_out(raw, one, place.pieces),
        )
    sentences = [_sentence(place, start, end) for start, end in place.pieces]
    cues: list[Cue | None] = [left_out(raw, one, place.pieces) for one in sentences]
    return Context(
        snippet=_joined(raw, [(one.start, one.end) for one in sentences]),
        excerpt=_joined(raw, [(one.before, one.end) for one in sentences])[:_LONGEST_EXCERPT],
        missing=next((cue for cue in cues if cue is not None), None),
    )


def _sentence(place: Place, start: int, end: int) -> Sentence:
    found = sentence_around(place.text.raw, start, end)
    return without_code(place.text.raw, found, start, end) if place.text.may_be_code else found


def _joined(raw: str, spans: list[tuple[int, int]]) -> str:
    """The spans' texts, dots between those that do not touch."""
    out: list[tuple[int, int]] = []
    for start, end in spans:
        if out and not raw[out[-1][1] : start].strip():
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return " \u2026 ".join(raw[start:end].strip() for start, end in out)


def _of_json(place: Place, json: JSONPlaces) -> Context:
    raw = place.text.raw
    entry = json.around(place.start, place.end)
    if entry.is_leaf:
        return _of_value(place, entry)
    start, end = json.within(entry, place.start, place.end)
    shown = f"{entry.path}: {raw[start:end]}" if entry.path else raw[start:end]
    missing = cue_in_json(_without(raw, start, end, place)) or cue_in_json(entry.path)
    return Context(snippet=shown, excerpt=shown[:_LONGEST_EXCERPT], missing=missing)


def _of_value(place: Place, entry: JSONEntry) -> Context:
    raw = place.text.raw
    start, end = entry.value, entry.end
    missing: Cue | None
    if raw[start] == '"':
        first, last = max(place.start, start), min(max(place.end, start + 1), end)
        within = without_code(raw, line_around(raw, first, last, start, end), first, last)
        missing = left_out(raw, within, place.pieces)
        if end - start > _LONGEST_VALUE:
            start, end = within.start, within.end
    else:
        missing = cue_in_json(_without(raw, start, end, place))
    key = place.start < entry.value  # the quote has the key too
    above = entry.path[: max(entry.path.rfind("."), entry.path.rfind("["), 0)] if key else entry.path
    shown = f"{entry.path}: {raw[start:end]}" if entry.path else raw[start:end]
    return Context(snippet=shown, excerpt=shown[:_LONGEST_EXCERPT], missing=missing or cue_in_json(above))


def _without(raw: str, start: int, end: int, place: Place) -> str:
    """raw[start:end] without what is quoted of it."""
    out = []
    for first, last in place.pieces:
        out.append(raw[start : max(first, start)])
        start = max(last, start)
    return " ".join([*out, raw[start:end]])


__all__ = ["Context", "context_of"]
