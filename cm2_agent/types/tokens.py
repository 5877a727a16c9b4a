"""Whole tokens of a text: where words and numbers begin and end (after UAX #29), and which of them tell anything."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from functools import lru_cache

_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    r"\uac00-\ud7a3\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
"""Scripts that put no space between words (and Hangul, whose particles stick to them): each character may begin one."""
_UNSPACED_CHAR = re.compile(f"[{_UNSPACED}]")
INDEXED = re.compile(rf"[^\W_{_UNSPACED}]+")
"""Runs of letters and digits, each of which is a whole word wherever it stands in a whole token."""
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:['’.·][^\W\d_{_UNSPACED}]+|(?<=\d)[.,:]\d+)*")
_FOLDED = {
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
    **dict.fromkeys(map(ord, "‐‑‒–—―−﹘﹣－"), "-"),
    **dict.fromkeys(map(ord, "‘’‛ʼ`´"), "'"),
    **dict.fromkeys(map(ord, "“”„‟«»"), '"'),
    **dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u200a\u202f\u3000\t"), " "),
    **dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"), None),
}
_STOP = """
a aan aber about above after again against all alle als also an and any are as at au auch auf aus aux avec be because
been before bei being below between bij bin bitte both but by can't cannot ce ces cette che chi com come como con could
cuando da dans das dass dat dei del della dem den der des di did die doch does doing don't dos dove down du during
dónde e each een ein eine einem einen einer eines el ella elle else em en er es est esta este et etc eu few for from
fue further für get give gli go ha had has hat have having hay he hello her here hers het hey hi hij him his ho how i
ich if ihr ik il ils im into io is ist it's its ja je just kann kein keine know las le les let leur like lo look los
lui mais make man mein meine mes met meu mi mich mijn minha mir mit moi mon more most much must muy my más na naar nach
ne need nein nel nicht niet no noch non nor nos not nous now nur o oder of off ok okay om on once only ont onto op os
other ou our out over own où par para pas pelo per pero più please por pour put quando que quel quelle qui qué sa same
se see sehr sein sem ses seu she should si sich sie sin sind so sobre some son sono sont su such sur sus take te tell
than thank thanks that that's the their them then there these they this those through ti tiene to too tu um uma un una
und under une uns until up upon use van very você vom von voor vor vous waar wann want war warum was wat we wel well
wenn wer were what what's when where where's whether which while who whom whose why wie wir with wo would y ya yes yo
you your zijn zu zum zur
"""
STOP_WORDS = frozenset(_STOP.split())
"""Words that stand in any text: articles, pronouns, particles, question words. Those that are also codes or names
(`IN`, `US`, `Will`) are not among them."""
CODE_WORDS = frozenset(["am", "can", "in", "it", "may", "me", "us", "will"])
"""Words that are codes or names too, in capitals; in small letters they tell nothing."""


_FOREIGN_DIGIT = re.compile(r"(?![0-9])\d")


def _ascii_digit(found: re.Match[str]) -> str:
    return str(unicodedata.decimal(found.group()))


def fold(text: str) -> str:
    """The text as it is compared: case, kinds of dashes, quotation marks and spaces aside, digits of all scripts as
    ASCII's, full-width letters as narrow ones, without invisible characters."""
    if not text.isascii():
        text = _FOREIGN_DIGIT.sub(_ascii_digit, unicodedata.normalize("NFC", text).translate(_FOLDED))
    return text.replace("\t", " ").replace("`", "'").casefold()


_RUN = re.compile(r"[^\W\d_]+|\d+")
_JOINED = re.compile(r"[^\W_]+(?:[-_/.#: ]{0,2}[^\W_]+)*")
_JOINTS = ("", " ", "-", "_", "/", ".", "#", " #", ": ", " - ")
_MOST_RUNS = 4


def id_spellings(needle: str) -> list[str]:
    """How else people write an id of letters and a number, folded: `w-712` as `w 712`, `w712`, `w #712`. Empty for what
    is no such id: a number that tells little by itself, or a word that stands in any text, could be there by chance.

    >>> "w 712" in id_spellings("w-712"), id_spellings("2026-05-20"), id_spellings("in 20"), id_spellings("a7")
    (True, [], [], [])
    """
    runs = _RUN.findall(needle) if len(needle) <= 40 and _JOINED.fullmatch(needle) else []
    letters = [run for run in runs if run.isalpha()]
    if not letters or len(letters) == len(runs) or not 2 <= len(runs) <= _MOST_RUNS:
        return []
    if any(run in STOP_WORDS for run in letters) or sum(map(len, runs)) - sum(map(len, letters)) < 3:
        return []
    return [other for joint in _JOINTS if (other := joint.join(runs)) != needle]


def tokens(text: str) -> list[str]:
    """The words and numbers of a folded text, in order; of a script without spaces each character."""
    return [found.group() for found in _TOKEN.finditer(text)]


def end_of(needle: str, hay: str) -> int | None:
    """Where the first occurrence ends that begins and ends at the boundaries of whole tokens; both texts are folded."""
    return next((end for _, end in occurrences(needle, hay)), None)


def occurrences(needle: str, hay: str) -> Iterator[tuple[int, int]]:
    """Where a needle stands in a text as whole tokens: (start, end), in order."""
    start = hay.find(needle) if needle else -1
    while start >= 0:
        end = start + len(needle)
        if _begins(hay, start, needle) and is_boundary(hay, end):
            yield start, end
        start = hay.find(needle, start + 1)


def _begins(hay: str, start: int, needle: str) -> bool:
    if not is_boundary(hay, start):
        return False
    if needle[0] == "-" and needle[1:2].isdigit():  # a sign, and no dash within an id
        return start == 0 or not hay[start - 1].isalnum()
    signed = start >= 1 and hay[start - 1] == "-" and needle[0].isdigit()
    return not signed or (start >= 2 and not hay[start - 2].isspace() and hay[start - 2] not in "(=:$€£")


def is_boundary(text: str, at: int) -> bool:
    """Whether a token may begin or end there: no letter, digit, mark or underscore stands on both sides, and no number
    (`1,234.50`, `14:30`), address (`example.com`) or word with an apostrophe goes on. A possessive `'s` may be left
    off; scripts without spaces have a boundary at every character, and between them and digits.

    >>> is_boundary("order 7.", 7), is_boundary("7.5", 1), is_boundary("A-7", 2), is_boundary("2026-05-20", 4)
    (True, False, True, False)
    """
    if at <= 0 or at >= len(text):
        return True
    before, after = text[at - 1], text[at]
    if _is_mark(after):
        return False
    if _joins(before) and _joins(after):
        return bool(_UNSPACED_CHAR.match(before) or _UNSPACED_CHAR.match(after))
    if _joins(before) and at + 1 < len(text):
        return not _goes_on(before, after, text[at + 1], text, at)
    if _joins(after) and at >= 2:
        return not _goes_on(text[at - 2], before, after, text, at - 1)
    return True


def _goes_on(left: str, mark: str, right: str, text: str, at: int) -> bool:
    if left.isdigit() and right.isdigit():
        return mark in ".,:'" or (mark in "-/" and _in_date(text, at))
    if mark not in ".'·" or not (left.isalpha() and right.isalpha()):
        return False
    if _UNSPACED_CHAR.match(left) or _UNSPACED_CHAR.match(right):
        return False
    return not (mark == "'" and right == "s" and (at + 2 >= len(text) or not _joins(text[at + 2])))


_DATE = re.compile(r"\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2(?:\d{4}|\d{2})")


def _in_date(text: str, at: int) -> bool:
    """Whether the mark stands within a date of three numbers, which are one."""
    start, end = at, at + 1
    while start > 0 and at - start < 9 and (text[start - 1].isdigit() or text[start - 1] in "-/."):
        start -= 1
    while end < len(text) and end - at < 9 and (text[end].isdigit() or text[end] in "-/."):
        end += 1
    return _DATE.fullmatch(text[start:end].strip("-/.")) is not None


def _joins(char: str) -> bool:
    return char.isalnum() or char == "_" or _is_mark(char)


@lru_cache(4096)
def _is_mark(char: str) -> bool:
    return char > "\u02ff" and unicodedata.category(char)[0] == "M"


def tells(value: str, *, common: Collection[str] = ()) -> bool:
    """Whether a folded text holds a token that could tell it from others: one with a digit, or with two letters that
    is no stop word and none of the `common` words.

    >>> tells("7"), tells("the order", common={"order"}), tells("?"), tells("x"), tells("ada@example.com")
    (True, False, False, False, True)
    """
    letters = 0
    for token in tokens(value):
        if any(char.isdigit() for char in token):
            return True
        if _UNSPACED_CHAR.match(token):
            letters += 1
            if letters >= 2:
                return True
        elif sum(map(str.isalpha, token)) >= 2 and token not in STOP_WORDS and token not in common:
            return True
    return False


__all__ = [
    "CODE_WORDS",
    "INDEXED",
    "STOP_WORDS",
    "end_of",
    "fold",
    "id_spellings",
    "is_boundary",
    "occurrences",
    "tells",
    "tokens",
]
