"""Sentences: what stands around a place of a text, and what of it a quote must not leave out."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml

Cue = Literal["negation", "condition", "reported"]
NAMES: Mapping[Cue, str] = {"negation": "a negation", "condition": "a condition", "reported": "who says so"}
_CUES: tuple[Cue, ...] = get_args(Cue)
_WIDEST = 400
"""Characters on each side of a quote that are searched for the ends of its sentence."""
_LONG = 4000
"""Characters of a text whose sentences' ends are sought once, and not around each quote anew."""
_SHORT = 12
"""Words of a sentence that is read with the next one whatever it says: `That is not so.`"""
_BREAK = re.compile(
    r"""([.!?\u2026\u061f]["'\u201d\u2019\u00bb)\]*_`]*)\s+(?=[^\sa-z])   # no small letter after it
    | ([\u3002\uff01\uff1f\u0964]["\u201d\u300d\u300f]*)\s*
    | (?:(?<=:)\n|\n(?=[ \t]*(?:\n|[^\sa-z])))\s*                         # nor in a wrapped line
    """,
    re.VERBOSE,
)
_END = re.compile("[.!?\n\u2026\u061f\u3002\uff01\uff1f\u0964]")
_ESCAPED_BREAK = re.compile(r"(?<!\\)(?:\\[rn])+")
_CODE = re.compile(
    r"[={}]|\w\(|;\s*$|\w_\w|^\s*(?:def|class|import|from|return|elif|else|try|with|except)\b", re.MULTILINE
)
_SHORTENED = re.compile(
    r"(?:^|[\s(])(?:mr|mrs|ms|dr|st|no|nr|vs|approx|e\.g|i\.e|z\.b|bzw|ca|sra?|m|mme|prof|inc|[a-z])\.$", re.IGNORECASE
)
_COMMON = frozenset({"from", "when", "that", "only"})
_MARKS = '.,;:!?()[]{}"*_`/<>|\u2026\u201c\u201d\u00ab\u00bb\u2014\u2013'
_CROSSED = re.compile(r"~~|\[ \](?!\()|[\u274c\u2717\u2718\u2610\u26d4\U0001f6ab]")
"""Marks that strike out, deny, or leave undone what stands beside them; an empty box of a to-do list is one."""
_NOT = re.compile(r"\w+n't\b")


class Sentence(NamedTuple):
    """The sentences around a place: `start` to `end`, and the one before from `before` on."""

    before: int
    start: int
    end: int


def sentence_around(text: str, start: int, end: int) -> Sentence:
    """The sentences that text[start:end] touches; what is longer than 400 characters to a side is cut there.

    >>> text = "Hello. Your order, No. 7, arrives on May 3. Bye."
    >>> found = sentence_around(text, 13, 18)
    >>> text[found.before : found.start], text[found.start : found.end]
    ('Hello. ', 'Your order, No. 7, arrives on May 3.')
    """
    low, high = max(0, start - 2 * _WIDEST), min(len(text), end + _WIDEST)
    ends = _ends(text) if len(text) <= _LONG else _ends_in(text, low, high)
    first = before = low
    is_known = False
    place = bisect_left(ends, (start,))
    while place and (found := ends[place - 1])[0] >= low:
        place -= 1
        after = found[2]
        if after > start or (is_known and after == first):
            continue  # a line's end after a full stop is one end
        if is_known:
            before = after
            break
        first, is_known = after, True
    if start - first > _WIDEST:
        first = before = _at_a_word(text, start - _WIDEST, start)
    last = high if high == len(text) else max(text.rfind(" ", end, high), end)
    for mark, ended, _ in islice(ends, bisect_left(ends, (max(end - 1, start),), place), None):
        if mark >= last:
            break
        if ended >= end:
            last = ended
            break
    return Sentence(before=before, start=first, end=last)


def _ends_in(text: str, low: int, high: int) -> list[tuple[int, int, int]]:
    """Where sentences end whose marks stand from `low` to `high`: the mark's place, the end, where the next begins."""
    out = []
    for mark in _END.finditer(text, low, high):
        at = mark.start()
        found = _BREAK.match(text, at)
        if found is not None and not _is_shortened(text, at):
            out.append((at, max(found.end(1), found.end(2), at), found.end()))
    return out


@lru_cache(maxsize=512)
def _ends(text: str) -> list[tuple[int, int, int]]:
    """Those of a whole text, which several items and votes are judged by."""
    return _ends_in(text, 0, len(text))


def without_code(text: str, around: Sentence, start: int, end: int) -> Sentence:
    """The line of text[start:end] alone where the sentences are of a program: what stands around such a line is not
    said about it."""
    if _CODE.search(text, around.before, around.end) is None:
        return around
    first = max(text.rfind("\n", around.start, start) + 1, around.start)
    after = text.find("\n", end, around.end)
    return Sentence(before=first, start=first, end=after if after >= 0 else around.end)


def line_around(text: str, start: int, end: int, low: int, high: int) -> Sentence:
    """As sentence_around, within text[low:high], a string of JSON, whose line breaks are escapes."""
    around = sentence_around(text, start, end)
    lines = [low, *(found.end() for found in _ESCAPED_BREAK.finditer(text, max(low, around.before), start))]
    after = _ESCAPED_BREAK.search(text, end, min(high, around.end))
    begin = max(around.start, lines[-1])
    before = max(around.before, lines[-2] if begin == lines[-1] and len(lines) > 1 else lines[0])
    last = after.start() if after is not None else min(around.end, high)
    return Sentence(before=min(before, begin), start=begin, end=max(last, begin))


def left_out(text: str, around: Sentence, pieces: tuple[tuple[int, int], ...]) -> Cue | None:
    """What the pieces leave out of their sentence, or of the one before, that may turn or bind what it says."""
    first, last = pieces[0][0], pieces[-1][1]
    if _CROSSED.search(text, around.start, first) or _CROSSED.search(text, last, around.end):
        return "negation"
    if len(pieces) > 1 or any(map(str.isalpha, text[around.start : first] + text[last : around.end])):
        cue = _first_outside(text, around.start, around.end, False, pieces)
        if cue is not None:
            return cue
    if first > around.before and around.before < around.start:
        return _first_outside(text, around.before, around.start, True, pieces)
    return None


def cue_in_json(text: str) -> Cue | None:
    """The cue in a key, a path or a value of JSON."""
    cues = _cues(False)
    words = set(re.findall(r"[^\W\d_]+", text.casefold()))
    return "negation" if not words.isdisjoint(cues.json) else None


@dataclass(frozen=True, kw_only=True)
class _Cues:
    words: dict[str, Cue]
    phrases: dict[str, list[tuple[str, Cue]]]
    first: frozenset[str]
    parts: re.Pattern[str]
    part_cues: dict[str, Cue]
    polite: tuple[str, ...]
    offers: tuple[str, ...]
    json: frozenset[str]


@cache
def _cues(leading: bool) -> _Cues:
    data: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "cues.yaml").read_text(encoding="utf-8"))
    json = frozenset(data.pop("json")["negation"])
    words: dict[str, Cue] = {}
    phrases: dict[str, list[tuple[str, Cue]]] = {}
    parts: dict[str, Cue] = {}
    for language in data.values():
        for of in _CUES:
            given = language.get("parts", {}).get(of, ())
            kinds: dict[str, Cue] = dict.fromkeys(language.get(of, ()), of)
            if not leading:
                parts |= dict.fromkeys(given, of)
                _add(words, phrases, kinds)
        if leading:
            parts |= {
                cue: _kind(language.get("parts", {}), cue) for cue in language.get("parts", {}).get("leading", ())
            }
            _add(words, phrases, {cue: _kind(language, cue) for cue in language.get("leading", ())})
    return _Cues(
        words=words,
        phrases=phrases,
        first=frozenset(words) | frozenset(phrases),
        parts=_any(parts),
        part_cues=parts,
        polite=tuple(phrase for language in data.values() for phrase in language.get("polite", ())),
        offers=tuple(phrase for language in data.values() for phrase in language.get("offer", ())),
        json=json,
    )


def _kind(language: Mapping[str, Any], cue: str) -> Cue:
    """What a cue is that speaks of the next sentence: what it is in its own, else the denial of it."""
    for of in _CUES:
        if cue in language.get(of, ()):
            return of
    return "negation"


def _add(words: dict[str, Cue], phrases: dict[str, list[tuple[str, Cue]]], cues: Mapping[str, Cue]) -> None:
    for cue, of in cues.items():
        if " " in cue:  # found by its longest word
            rarest = max(cue.split(), key=lambda word: (word not in _COMMON, len(word)))
            phrases.setdefault(rarest, []).append((cue, of))
        else:
            words[cue] = of


def _spans(phrases: tuple[str, ...], part: str) -> Iterator[tuple[int, int]]:
    """Where phrases stand, the longer before the shorter; most parts hold none, which is seen without a pattern."""
    if found := tuple(phrase for phrase in phrases if phrase in part):
        yield from (one.span() for one in _any(found).finditer(part))


def _any(phrases: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(phrases, key=len, reverse=True))))


def _first_outside(text: str, start: int, end: int, leading: bool, pieces: tuple[tuple[int, int], ...]) -> Cue | None:
    """The first cue of the sentence text[start:end] that stands in no piece and in no harmless phrase."""
    part = text[start:end].lower()
    for cue, first, last in _cues_in(part, leading):
        first, last = start + first, start + last
        if not any(piece[0] <= first and last <= piece[1] for piece in pieces) and not any(
            low <= first - start and last - start <= high for low, high in _harmless(part, pieces[0][0] - start)
        ):
            return cue
    return None


@lru_cache(maxsize=512)
def _cues_in(part: str, leading: bool) -> tuple[tuple[Cue, int, int], ...]:
    """The cues of a sentence in small letters, with their places."""
    part = part.replace("\u2019", "'")
    if not _may_hold_cue(part):
        return ()
    leading = leading and len(part.split()) > _SHORT and not part.rstrip().endswith(":")
    return tuple(_words_in(part, _cues(leading), leading))


def _harmless(part: str, quoted: int) -> list[tuple[int, int]]:
    """Where phrases stand that turn nothing: polite ones, and offers that come after the quote, which begins at
    `quoted`."""
    part = part.replace("\u2019", "'")
    cues = _cues(False)
    return [*_spans(cues.polite, part), *(span for span in _spans(cues.offers, part) if span[0] >= quoted)]


@cache
def _any_cue() -> Any:
    """A set of RE2 with one pattern, which finds something wherever _words_in does: most sentences hold no cue, and it
    says so faster. A set looks for no places, which would take most of the time."""
    import re2

    cues = [_cues(False), _cues(True)]
    words = "|".join(map(re2.escape, sorted(cues[0].first | cues[1].first)))
    parts = "|".join(map(re2.escape, sorted({*cues[0].part_cues, *cues[1].part_cues})))
    out = re2.Set.SearchSet()
    out.Add(rf"(?:^|\PL)(?:{words})(?:\PL|$)|n't|{parts}")
    out.Compile()
    return out


def _may_hold_cue(part: str) -> bool:
    try:
        return bool(_any_cue().Match(part))
    except UnicodeEncodeError:  # lone surrogates, which RE2 cannot read
        return True


def _words_in(part: str, cues: _Cues, leading: bool) -> Iterator[tuple[Cue, int, int]]:
    for word in sorted(cues.first.intersection(_split(part))):
        for start, end in _occurrences(part, word):
            if (cue := cues.words.get(word)) is not None:
                yield cue, start, end
            for phrase, of in cues.phrases.get(word, ()):
                at = part.find(phrase, max(0, start - len(phrase)), end + len(phrase))
                if at >= 0:
                    yield of, at, at + len(phrase)
    if "n't" in part and not leading:
        for found in _NOT.finditer(part):
            yield "negation", found.start(), found.end()
    if not part.isascii():
        for found in cues.parts.finditer(part):
            yield cues.part_cues[found[0]], *found.span()


def _split(part: str) -> list[str]:
    """The words, roughly: none is lost, and it takes a fifth of the time that finding them takes."""
    for mark in _MARKS:
        if mark in part:
            part = part.replace(mark, " ")
    if "'" in part:
        part = f" {part} ".replace(" '", " ").replace("' ", " ")
    return part.split()


def _occurrences(part: str, word: str) -> Iterator[tuple[int, int]]:
    at = part.find(word)
    while at >= 0:
        end = at + len(word)
        if not part[at - 1 : at].isalpha() and not part[end : end + 1].isalpha():
            yield at, end
        at = part.find(word, end)


def _is_shortened(text: str, place: int) -> bool:
    return text[place] == "." and _SHORTENED.search(text, max(0, place - 7), place + 1) is not None


def _at_a_word(text: str, low: int, high: int) -> int:
    found = text.find(" ", low, high)
    return low if found < 0 else found + 1


__all__ = ["NAMES", "Cue", "Sentence", "cue_in_json", "left_out", "line_around", "sentence_around", "without_code"]
