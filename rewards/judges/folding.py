"""Text as quotes are compared: its words and numbers, folded, in a key in which one text stands in another only where
it begins and ends with whole words.

Words are those of UAX #29, by the `regex` package: re has no word boundaries of Unicode, ICU is a system library, and a
tokenizer of our own would miss most scripts. Numbers are wider than there: a sign, a currency, a percent sign and what
joins digits (3.5, 1,200, 2026-05-20) belong to the number."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property, lru_cache

import regex

from cm2_agent.llm.untrusted_text import INVISIBLE

GLUE = "\x01"
"""Stands between two words that may be told apart but not taken apart: `non` and `refundable`, `$` and `10`."""
_UNSEEN = re.compile(f"[{INVISIBLE}]")
# NFKC would make other digits of these: 10² is not 102, ½ is not 1⁄2, ① is not 1.
_KEPT_DIGITS = re.compile(
    "(["
    + "".join(
        letter
        for letter in map(chr, [*range(0x80, 0xD800), *range(0xF900, 0x10000), *range(0x1F100, 0x1F10D)])
        if not unicodedata.category(letter).startswith("Nd")
        and any(folded.isdigit() for folded in unicodedata.normalize("NFKC", letter))
    )
    + "])"
)
_SAME = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\u2043\u058a\u05be\u1806\ufe63", "-"),
        **dict.fromkeys("\u2014\u2015\u2e3a\u2e3b", "\u2014"),
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4`", "'"),
        **dict.fromkeys(
            "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a\u300c\u300d\u300e\u300f\u2033\u301d\u301e", '"'
        ),
        "\u301c": "~",
        "\u2044": "/",
    }
)
_TOKEN = regex.compile(
    r"""(?w)
    (?P<sign>(?<![\p{L}\p{M}\p{N}_)\]%-])[-+\u00b1](?=\p{Sc}?\.?\d))
    | (?P<number>(?:(?<!\w)\.)?\d(?:\B\w|(?<=\d)[.,:/'\u2014-]\d)*\S*?\b)
    | (?P<dots>\.{2,}) | (?P<dashes>-{2,}|[\u2014])
    | (?P<word>\S+?\b)""",
    regex.VERBOSE,
)
CURRENCY = frozenset("$\u20ac\u00a3\u00a5\u20b9\u20bd\u20a9\u20ba\u20aa\u20ab\u20b4\u20a6\u0e3f\u20bf\u00a2\u0192")
OF_NUMBERS = frozenset("%\u2030\u2031\u00b0\u066a")
_DROPPED = frozenset("*~|\\\"'_\u2022\u00b7\u2014")
"""Quotation marks, dashes and Markdown's marks, where they stand in no word and are no sign."""
_EDGE = frozenset(".,;:!()[]{}<>\u3002\u3001\u060c\u061b\u0964\u00a1\u00bf")
_COMPARED = re.compile(r"(?<![-=<>!])(?:>=|<=|!=)(?![=>])")
_AT_MOST = {">=": "\u2265", "<=": "\u2264", "!=": "\u2260"}
BOUNDS = frozenset("<\u2264\u2265\u2248\u2260~")
_COMPARING = BOUNDS | {">"}
"""Before a number: another one is meant."""
_INSIDE = re.compile(r"(?<=[^\W\d_])(?:\*{2,3}|~~)(?=[^\W\d_])|(?<=[-+])\*{1,3}(?=[$\u20ac\u00a3\u00a5]?\.?\d)")
"""Markdown's marks in the middle of a word, or between a sign and its number."""
# compact JSON is one long run without white space: in parts of it, what is the same is folded once
_IN_JSON = re.compile(r'(?<=[,{}\[\]:])(?=["{}\[\]])')
_LONG = 48
_LONGEST = 4096
"""Characters of a piece whose letters are placed one by one."""


_NUMBERS = re.compile(r"\[-?\d[\d.]*(?:,-?\d[\d.]*)+")
"""A compact list of JSON, whose commas would join its numbers."""


class FoldedText:
    """A text and its key.

    >>> text = FoldedText("Your **order** — #W12 — isn\u2019t non-refundable (10%).")
    >>> text.plain
    " your order # w12 isn't non refundable ( 10 % ) . "
    """

    __slots__ = ("__dict__", "raw")

    def __init__(self, raw: str) -> None:
        self.raw = raw

    @cached_property
    def key(self) -> str:
        """The folded words, a space before and after each, GLUE where two belong together."""
        chunks = self.raw.split()
        if max(map(len, chunks), default=0) <= _LONG:
            return f" {' '.join(filter(None, map(_remembered, chunks)))} "
        return f" {' '.join(filter(None, map(_piece_key, _pieces(self.raw))))} "

    @cached_property
    def plain(self) -> str:
        """The key with spaces alone: as long, so places in one are places in the other."""
        return self.key.replace(GLUE, " ")

    @cached_property
    def trimmed(self) -> str:
        """The key without punctuation at its ends; empty where there is nothing else."""
        words = self.key.split(" ")[1:-1]
        first, last = 0, len(words)
        while first < last and set(words[first]) <= _EDGE and not _opens_bound(words, first):
            first += 1
        while last > first and set(words[last - 1]) <= _EDGE:
            last -= 1
        return f" {' '.join(words[first:last])} " if first < last else ""

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where in the raw text the words stand that the plain key has from `start` to `end`, both at a space."""
        first = self.plain.count(" ", 0, start)
        last = self.plain.count(" ", 0, end) - 1
        return self._word(first)[0], self._word(max(first, last))[1]

    def _word(self, number: int) -> tuple[int, int]:
        counts, places, pieces = self._places
        at = bisect_right(counts, number) - 1
        start, end = _word_spans(pieces[at])[number - counts[at]]
        return places[at] + start, places[at] + end

    @cached_property
    def _places(self) -> tuple[list[int], list[int], list[str]]:
        """The pieces that hold words: how many words come before each, where each stands, and what it is."""
        counts: list[int] = []
        places: list[int] = []
        pieces: list[str] = []
        at = known = 0
        for piece in _pieces(self.raw):
            at = self.raw.index(piece, at)
            if key := _piece_key(piece):
                counts.append(known)
                places.append(at)
                pieces.append(piece)
                known += 1 + key.count(" ") + key.count(GLUE)
            at += len(piece)
        return counts, places, pieces


class RewrittenText:
    """A text in which every match of a pattern is replaced, and where its places stand in the original."""

    def __init__(self, raw: str, matches: Iterator[tuple[int, int, str]]) -> None:
        parts: list[str] = []
        self._ours, self._theirs = [0], [0]
        at = size = 0
        for start, end, text in matches:
            parts += [raw[at:start], text]
            size += start - at
            self._ours += [size, size + len(text)]
            self._theirs += [start, end]
            size += len(text)
            at = end
        self.text = FoldedText("".join([*parts, raw[at:]]))

    def origin(self, place: int) -> int:
        """Where a place of the rewritten text stands in the original."""
        known = bisect_right(self._ours, place) - 1
        beyond = place - self._ours[known]
        if known % 2 and beyond:  # within a replacement
            return self._theirs[known + 1]
        return self._theirs[known] + beyond


def _pieces(text: str) -> Iterator[str]:
    for chunk in text.split():
        if len(chunk) <= _LONG:
            yield chunk
        else:
            yield from filter(None, _IN_JSON.split(chunk))


def _piece_key(piece: str) -> str:
    """The key of a text without white space: its words, in order."""
    return _remembered(piece) if len(piece) <= _LONG else _folded(piece)


def _folded(piece: str) -> str:
    if piece.isascii() and piece.isalpha():
        return piece.lower()
    out: list[str] = []
    for word, glued, _, _ in _words(_compatible(piece)):
        out += [GLUE if glued else " ", word]
    return "".join(out[1:])


_remembered = lru_cache(maxsize=1 << 15)(_folded)


def _compatible(piece: str) -> str:
    """NFKC but for the digits that it would change, case folded, with one spelling of dashes and quotation marks.
    Folding can leave letters that compose anew, so it is repeated until nothing changes."""
    if piece.isascii():
        return _plain_marks(piece.lower())
    text = _UNSEEN.sub("", piece)
    for _ in range(4):
        again = "".join(
            part if place % 2 else unicodedata.normalize("NFKC", part)
            for place, part in enumerate(_KEPT_DIGITS.split(text))
        ).casefold()
        if again == text:
            break
        text = again
    return _plain_marks(_UNSEEN.sub("", text))


def _plain_marks(text: str) -> str:
    text = text.translate(_SAME)
    if "=" in text:
        text = _COMPARED.sub(lambda found: _AT_MOST[found[0]], text)
    if "*" in text or "~" in text:
        text = _INSIDE.sub("", text)
    return _NUMBERS.sub(lambda found: found[0].replace(",", ", "), text) if "[" in text else text


def _words(text: str) -> Iterator[tuple[str, bool, int, int]]:
    """The words of folded text: each with whether it cannot be taken from the one before, and its place."""
    if text.strip("#") == "":
        return  # a heading's mark
    before, end = "", -1  # the last word, and where what belongs to it ends
    hyphen = marked = False  # whether a hyphen, or a mark of emphasis, stands between them
    for found in _TOKEN.finditer(text):
        kind, word = found.lastgroup, found[0]
        close = found.start() == end
        if kind == "dashes" or (kind == "word" and len(word) == 1 and unicodedata.category(word) == "Cc"):
            continue
        if kind == "word":
            word = word.strip("_'")
            if word == "-":
                hyphen = close and _is_word(before)
                end = found.end() if hyphen else -1
                continue
            if not word or (word in _DROPPED and not (word == "~" and _is_bound(text, found.start(), found.end()))):
                if close and (hyphen or found[0] in "*~_"):
                    marked, end = True, found.end()
                continue
        elif kind == "number":
            word = word.rstrip("_").replace("\u2014", "-")  # "_May 20_" is emphasis
        if not close:
            glued = False
        elif hyphen:
            glued = _is_word(word)
        else:
            glued = _is_cased(before[-1]) and _is_cased(word[0]) if marked else _belong(before, word)
            glued = glued or (before in _COMPARING and _is_bound(text, end - 1, end))
        yield word, glued, found.start(), found.end()
        before, end, hyphen, marked = word, found.end(), False, False


def _opens_bound(words: list[str], at: int) -> bool:
    return words[at] in BOUNDS and at + 1 < len(words) and words[at + 1][0].isdigit()


def _is_bound(text: str, start: int, end: int) -> bool:
    """Whether a sign makes the number behind it a bound: `<30`, `~30`; what closes a tag (`<b>30`) or an arrow is
    none."""
    clear = text[start] not in "~>" or not start or text[start - 1] in "(["
    return clear and (text[end : end + 1].isdigit() or text[end : end + 1] in CURRENCY) and end < len(text)


def _is_word(word: str) -> bool:
    return word[:1].isalnum() or word[-1:].isalnum()


def _is_cased(letter: str) -> bool:
    return letter.lower() != letter.upper()


def _belong(before: str, word: str) -> bool:
    """Whether two words that touch make one statement: a sign or currency and its number, a number and its percent
    sign, a power, a half."""
    first, last = word[0], before[-1]
    if before in "+-\u00b1" or (before in CURRENCY and (first.isdigit() or first in ".+-\u00b1")):
        return True
    if word in CURRENCY or word in OF_NUMBERS:
        return last.isdigit()
    if before in OF_NUMBERS:
        return first.isalpha()
    return "No" in (unicodedata.category(first), unicodedata.category(last)) and _is_word(word) and _is_word(before)


@lru_cache(maxsize=64)
def _word_spans(piece: str) -> list[tuple[int, int]]:
    """Where in the piece the words of its key stand."""
    text = _compatible(piece)
    places = [(start, end) for _, _, start, end in _words(text)]
    if len(text) == len(piece):
        return places
    origin: list[tuple[int, int]] = []
    if len(piece) <= _LONGEST:
        letters = regex.finditer(r"\X", piece)
        origin = [place for letter in letters for place in [letter.span()] * len(_compatible(letter[0]))]
    if len(origin) != len(text):  # marks were taken out of the middle: nearly there is near enough for a sentence
        scale = len(piece) / max(len(text), 1)
        origin = [(int(place * scale), int((place + 1) * scale)) for place in range(len(text))]
    return [(origin[start][0], origin[end - 1][1]) for start, end in places]


__all__ = ["BOUNDS", "CURRENCY", "GLUE", "OF_NUMBERS", "FoldedText", "RewrittenText"]
