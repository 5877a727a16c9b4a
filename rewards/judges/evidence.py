"""Evidence: where a judge's quote stands in the part that it names, word for word.

A quote stands in a part where its folded words do (folding.py): no digit, letter or word may differ. It begins and ends
with whole words and whole numbers, has at least 12 characters or is the whole part, and may leave out what stands
between two pieces by dots: each piece must then stand there, in order."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from cm2_agent.types.checklist_item import Item
from cm2_agent.types.number_words import COUNTING

from .folding import BOUNDS, CURRENCY, GLUE, OF_NUMBERS, FoldedText, RewrittenText
from .json_places import JSONPlaces
from .transcript import PARTS, REASONING

SHORTEST = 12
"""Characters of a quote, ideographs counted twice; a shorter one counts only as the whole part."""
SHORTEST_PIECE = 6
"""Characters of each piece of a quote with dots; a piece has two words, or is as long as a whole quote must be."""
_SAID_AND_DONE = tuple(part for part in PARTS if part != REASONING)
_MOST_PLACES = 64
"""Places of a quote in one part that are looked at."""
_DOTS = re.compile(r"\s*[\[(<]?\s*(?:\u2026|\.{3,}|\.\s\.\s\.)+\s*[\])>]?\s*")
_BEGIN = 32
"""Characters of a quote that mostly show that it is long enough."""
_MARKS = " .\u2026*_`~\n\t\r"
_LEFT_OUT = re.compile(r"^[\s.\u2026*_`~]{2,}|[\s.\u2026*_`~]{2,}$")
"""Dots and marks at a quote's ends, which make it no longer."""
_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/nrt]))')
_PLAIN = {"n": "\n", "r": "\n", "t": " "}
_LINK = re.compile(r"!?\[([^\[\]]{1,300})\]\([^()\s]{1,500}\)|^[ \t]*>(?![=\d$€£])[ \t]?", re.MULTILINE)
_ASKS = frozenset("?\u061f")
_DIGITS = re.compile(r"\d{1,3}")
_COUNTS_FROM = frozenset(letter for word in COUNTING for letter in (word[0], word[0].upper()))
_COUNTED = rf"(?:\d\S*|{'|'.join(sorted(COUNTING))})"
_BOUND_BEFORE = re.compile(
    rf" (?:(?:less|more|fewer|greater|higher|lower|other|rather) than|at (?:least|most|the earliest)|up to"
    rf"|minus|negative|{_COUNTED}(?: \w+)? (?:to|or|through)|between {_COUNTED}(?: \w+)? and"
    r"|(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety))$"
)
_THOUSANDS = re.compile(r"\d{3}(?:[.,]\d+)?")


@dataclass(kw_only=True)
class PartText:
    """One text of a step's part, ready to be searched. `may_be_code`: a tool wrote it, and may have read a program."""

    raw: str
    may_be_code: bool = False

    @cached_property
    def folded(self) -> FoldedText:
        return FoldedText(self.raw)

    @cached_property
    def json(self) -> JSONPlaces | None:
        """Where its keys and values stand, of JSON and of a tool call."""
        return JSONPlaces.of(self.raw)

    @cached_property
    def rewritten(self) -> tuple[RewrittenText, ...]:
        """The text as a reader may see it: without JSON's escapes, without the addresses of links."""
        out = [RewrittenText(self.raw, _unescaped(self.raw))] if "\\" in self.raw else []
        if "](" in self.raw or ">" in self.raw:
            links = ((found.start(), found.end(), found[1] or "") for found in _LINK.finditer(self.raw))
            out.append(RewrittenText(self.raw, links))
        return tuple(out)


class Place(NamedTuple):
    """Where a quote stands in a text: the (start, end) of each of its pieces, in order."""

    text: PartText
    pieces: tuple[tuple[int, int], ...]

    @property
    def start(self) -> int:
        return self.pieces[0][0]

    @property
    def end(self) -> int:
        return self.pieces[-1][1]

    @property
    def is_whole(self) -> bool:
        raw, ((start, end), *others) = self.text.raw, self.pieces
        return not others and (not start or raw[:start].isspace()) and (end == len(raw) or raw[end:].isspace())


def places(quote: str, text: PartText) -> Iterator[Place]:
    """Where the quote stands in the text, the first place first.

    >>> text = PartText(raw="Your order arrives on **May 3**; it isn\u2019t refundable.")
    >>> [text.raw[place.start : place.end] for place in places("your order arrives on May 3", text)]
    ['Your order arrives on **May 3']
    >>> list(places("your order arrives on May 30", text)), list(places("May 3", text))
    ([], [])
    """
    raw, quote = text.raw, quote.strip()
    if quote == raw and any(map(str.isalnum, quote)):
        yield Place(text=text, pieces=((0, len(raw)),))
        return
    at = raw.find(quote) if len(quote) >= SHORTEST else -1
    if at > 0 and _is_counted(quote):
        at = -1  # what stands before it may belong to the number
    if at >= 0 and is_clear(raw, at, at + len(quote)) and _is_long_enough(quote):
        yield Place(text=text, pieces=((at, at + len(quote)),))
        if raw.find(quote, at + 1) < 0:
            return
    seen: set[tuple[tuple[int, int], ...]] = set()
    for words in _readings(quote):
        for pieces in _found(words, text):
            if pieces not in seen:
                seen.add(pieces)
                yield Place(text=text, pieces=pieces)
        if seen:
            return


def _found(quote: str, text: PartText) -> Iterator[tuple[tuple[int, int], ...]]:
    yield from _in_folded(quote, text.folded)
    for other in text.rewritten:
        for pieces in _in_folded(quote, other.text):
            yield tuple((other.origin(start), other.origin(end)) for start, end in pieces)
    if not _DOTS.search(quote):
        return
    # dots that stand in the text itself were found above
    for one in (None, *text.rewritten):
        ordered = _in_order(quote, text.folded if one is None else one.text)
        if ordered is not None:
            pieces = tuple(ordered if one is None else [(one.origin(a), one.origin(b)) for a, b in ordered])
            if text.json is None or text.json.parts_of_one(pieces):
                yield pieces


def _in_folded(quote: str, text: FoldedText) -> Iterator[tuple[tuple[int, int], ...]]:
    needle, asks = _needle(quote)
    if not needle or not any(map(str.isalnum, needle)):
        if quote.strip() and needle == text.plain and any(map(_is_picture, quote)):
            yield ((0, len(text.raw)),)
        return
    if needle == text.trimmed.replace(GLUE, " "):
        yield ((0, len(text.raw)),)
        return
    if not _is_long_enough(quote):
        return
    for start, end in _word_places(needle, text, asks):
        yield (text.span(start, end),)


def _in_order(quote: str, text: FoldedText) -> list[tuple[int, int]] | None:
    """The places of the pieces of a quote with dots; None where one is not there."""
    pieces = [piece for piece in _DOTS.split(quote) if piece.strip()]
    if len(pieces) < 2 or not _is_long_enough("".join(pieces)):
        return None
    out: list[tuple[int, int]] = []
    at = 0
    for piece in pieces:
        needle, asks = _needle(piece)
        if not _is_meaningful(piece, needle):
            return None
        found = next(_word_places(needle, text, asks, at), None)
        if found is None:
            return None
        out.append(text.span(*found))
        at = found[1] - 1
    return out


def _word_places(needle: str, text: FoldedText, asks: bool | None, at: int = 0) -> Iterator[tuple[int, int]]:
    """Where in the text's key the needle stands, as whole words and whole numbers."""
    plain, key = text.plain, text.key
    for _ in range(_MOST_PLACES):
        start = plain.find(needle, at)
        if start < 0:
            return
        end = start + len(needle)
        at = start + 1
        if key[start] == GLUE or key[end - 1] == GLUE:
            continue
        before = plain[plain.rfind(" ", 0, start) + 1 : start] if start else ""
        after = plain[end : plain.find(" ", end)] if end < len(plain) else ""
        if (
            _cuts_a_number(before, needle, after)
            or _is_bounded(plain, start, needle)
            or (asks is False and after in _ASKS and after)
        ):
            continue
        yield start, end - 1


def _cuts_a_number(before: str, needle: str, after: str) -> bool:
    """Whether a number of the quote goes on outside it: `000` of `12 000`, `10` of `10 %` or of `$ 10`."""
    if before and needle[1].isdigit():
        if before in CURRENCY or before in BOUNDS:
            return True
        if _DIGITS.fullmatch(before) and _THOUSANDS.fullmatch(needle[1 : needle.index(" ", 1)]):
            return True
    if after and needle[-2].isdigit():
        if after in OF_NUMBERS or after in CURRENCY:
            return True
        if _THOUSANDS.fullmatch(after) and _DIGITS.fullmatch(needle[needle.rindex(" ", 0, -1) + 1 : -1]):
            return True
    return False


def _is_bounded(plain: str, start: int, needle: str) -> bool:
    """Whether the quote begins with a number that words before it make another one, or a bound: `less than 30`, `3 to
    5`, `thirty five`."""
    if not (needle[1].isdigit() or _is_counted(needle)):
        return False
    return _BOUND_BEFORE.search(plain, max(0, start - 48), start) is not None


def _is_counted(quote: str) -> bool:
    """Whether it begins with a number in words."""
    return quote.lstrip()[:1] in _COUNTS_FROM and quote[:20].split(maxsplit=1)[0].lower() in COUNTING


@lru_cache(maxsize=256)
def _needle(quote: str) -> tuple[str, bool | None]:
    """The quote's words between spaces, without punctuation at its ends; and whether it is spelled as a question,
    where its end says so."""
    folded = FoldedText(quote)
    words, end = folded.trimmed, folded.plain.rstrip()[-1:]
    asks = True if words.rstrip()[-1:] in _ASKS and words.strip() else False if end in (".", "!", "\u3002") else None
    return words.replace(GLUE, " "), asks


def _readings(quote: str) -> Iterator[str]:
    """The quote as it is, and without the escapes that a judge may have added to it."""
    yield quote
    if "\\" in quote:
        yield RewrittenText(quote, _unescaped(quote)).text.raw


def _unescaped(text: str) -> Iterator[tuple[int, int, str]]:
    at = 0
    while (found := _ESCAPE.search(text, at)) is not None:
        at = end = found.end()
        if found[2]:
            yield found.start(), end, _PLAIN.get(found[2], found[2])
            continue
        code = int(found[1], 16)
        low = _ESCAPE.match(text, end)
        if 0xD800 <= code < 0xDC00 and low is not None and low[1] and 0xDC00 <= int(low[1], 16) < 0xE000:
            code = 0x10000 + ((code - 0xD800) << 10) + int(low[1], 16) - 0xDC00
            at = end = low.end()
        yield found.start(), end, chr(code)


def is_clear(raw: str, start: int, end: int) -> bool:
    """Whether it can be seen from the letters next to it that raw[start:end] is made of whole words and numbers."""
    first, last = raw[start], raw[end - 1]
    if not (first.isascii() and last.isascii()):
        return start == 0 and end == len(raw)
    if start:
        before = raw[start - 1]
        if first.isdigit() or first in ".,%$" or before not in ' \n\t{[("':
            return False
    if end < len(raw):
        after = raw[end]
        if after in ".,;:!?" and last.isalnum():
            after = raw[end + 1 : end + 2] or " "
        elif last.isdigit() and after in " \n\t":
            following = raw[end : end + 3].lstrip()[:1]
            if following and not (following.isascii() and following.isalpha()):
                return False
        if after not in ' \n\t}])"':
            return False
    return True


def _is_long_enough(quote: str) -> bool:
    plain = quote[:2].strip(_MARKS) and quote[-2:].strip(_MARKS)
    if plain and (begin := quote[:_BEGIN]).isascii() and len(" ".join(begin.split())) >= SHORTEST:
        return any(map(str.isalnum, quote))
    if plain:
        words = " ".join(quote.split())
    else:
        words = " ".join(_LEFT_OUT.sub("", quote).split())
    if words.isascii():
        length = len(words)
    else:
        words = unicodedata.normalize("NFKC", words)
        length = sum(2 if unicodedata.east_asian_width(letter) == "W" else letter.isprintable() for letter in words)
    return length >= SHORTEST and any(map(str.isalnum, words))


def _is_meaningful(piece: str, needle: str) -> bool:
    words = [word for word in needle.split() if word[0].isalnum()]
    long = len(needle) - 2 >= SHORTEST_PIECE or not piece.isascii()
    return bool(words) and long and (len(words) > 1 or _is_long_enough(piece))


def _is_picture(letter: str) -> bool:
    return unicodedata.category(letter) == "So"


def allowed(item: Item) -> tuple[str, ...]:
    """The parts of a step in which the item's evidence may stand: the one it focuses on, else all that it is judged by,
    which is what was said and done."""
    return _SAID_AND_DONE if item.focus_on is None else (item.focus_on,)


def quote_problem(item: Item, part: str, quote: str, texts: Sequence[PartText]) -> str | None:
    """What is wrong with a quote said to stand in `part`, whose texts these are; None where nothing is."""
    if any(True for text in texts for _ in places(quote, text)):
        return part_problem(item, part)
    return part_problem(item, part) or missing_problem(part, quote)


def part_problem(item: Item, part: str) -> str | None:
    """What is wrong with quoting that part for the item; None where nothing is."""
    if part not in PARTS:
        return f"the quoted part is none of {', '.join(PARTS)}"
    if part not in allowed(item):
        return f"the quote is from {part}, but the item must be shown by {item.focus_on or 'what was said and done'}"
    return None


def missing_problem(part: str, quote: str) -> str:
    """What is wrong with a quote that stands nowhere in that part."""
    if not _is_long_enough(quote) and not _DOTS.search(quote):
        return f"the quote is too short: expected {SHORTEST} characters or more with a word in them, or the whole part"
    return f"the quote does not stand in {part} of that step word for word"


__all__ = [
    "SHORTEST",
    "PartText",
    "Place",
    "allowed",
    "is_clear",
    "missing_problem",
    "part_problem",
    "places",
    "quote_problem",
]
