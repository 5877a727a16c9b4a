"""Numbers in words: `three`, `twenty-one`, `two hundred and fifty`, `drei`, `trois`, `tres`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal

_UNITS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ENGLISH = {
    **{word: number for number, word in enumerate(_UNITS.split(), 1)},
    **{word: 10 * number for number, word in enumerate(_TENS.split(), 2)},
    "a": 1,
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
}
_OTHERS = {
    2: "zwei deux twee",
    3: "drei trois tres tre drie três",
    4: "vier quatre cuatro quattro quatro",
    5: "fünf cinq cinco cinque vijf",
    6: "sechs seis zes",
    7: "sieben siete sette zeven",
    8: "acht huit ocho otto oito",
    9: "neun nueve nove negen",
    10: "zehn diez dieci tien",
    11: "elf onze undici",
    12: "zwölf douze doce dodici twaalf",
}
"""Without those that are also other words: `due`, `sei`, `neuf`, `once`, `dos`, and "one" in any language."""
_OTHER_WORDS = {word: number for number, words in _OTHERS.items() for word in words.split()}

_UNIT = rf"(?:{'|'.join(_UNITS.split())})"
_SMALL = rf"(?:(?:{'|'.join(_TENS.split())})(?:[\s-]{_UNIT})?|{_UNIT})"
_BELOW_1000 = rf"(?:(?:{_SMALL}|a)\s+hundred(?:\s+(?:and\s+)?{_SMALL})?|{_SMALL})"
_NUMBER = re.compile(
    rf"(?<![\w-])(?:(?:{_BELOW_1000}|a)\s+(?:thousand|million)(?:\s+(?:and\s+)?{_BELOW_1000})?|{_BELOW_1000}"
    rf"|{'|'.join(sorted(_OTHER_WORDS, key=len, reverse=True))})(?!\w)",
    re.IGNORECASE,
)


COUNTING = frozenset([*_UNITS.split(), *_TENS.split()])
"""One word of a number in English."""


def number_words(text: str) -> Iterator[tuple[int, int, Decimal]]:
    """Where numbers from two on stand in words, and which: whole numbers of English, those up to twelve of six more
    languages. "One" is an article and a pronoun too, and is not read.

    >>> [int(value) for *_, value in number_words("twenty-one, two hundred and fifty, drei")]
    [21, 250, 3]
    """
    for found in _NUMBER.finditer(text):
        value = _value(found.group().casefold())
        if value > 1:
            yield found.start(), found.end(), Decimal(value).normalize()


def _value(words: str) -> int:
    if words in _OTHER_WORDS:
        return _OTHER_WORDS[words]
    total = group = 0
    for word in re.split(r"[\s-]+", words):
        if word == "and":
            continue
        number = _ENGLISH[word]
        if number >= 1000:
            total, group = total + group * number, 0
        elif number == 100:
            group *= 100
        else:
            group += number
    return total + group


__all__ = ["COUNTING", "number_words"]
