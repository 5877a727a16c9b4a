"""Bank accounts (IBAN) and US social security numbers in a text."""

from __future__ import annotations

import re
from collections.abc import Iterator

Span = tuple[int, int]

# One run, or groups of four as on paper.
_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}"
    r"(?:[A-Za-z0-9]{11,30}|([ \u00a0\u202f.-])[A-Za-z0-9]{4}(?:\1[A-Za-z0-9]{1,4}){2,6})"
)
_SHORTEST_IBAN = 15
_SSN = re.compile(r"(?<![A-Za-z0-9_#$.\-/])([0-9]{3})-([0-9]{2})-([0-9]{4})(?![A-Za-z0-9_\-/]|\.[0-9])")
_HINTED_SSN = re.compile(
    r"(?i)\b(?:ssn|itin|social security(?: number| no\.?)?)[\"']?(?: is)?[ :=#\"']{1,4}"
    r"([0-9]{3}[ -]?[0-9]{2}[ -]?[0-9]{4})(?![A-Za-z0-9_\-/]|\.[0-9])"
)
_NOT_SSN = re.compile(
    r"(?i)\b(?:order|invoice|sku|part|item|ticket|case|ref|reference|tracking|model|serial|isbn|product|quote|po)"
    r"(?:[ _](?:number|no\.?|id|nr))?[ :#]{1,3}$"
)
_WHOLE_SSN = re.compile(r"([0-9]{3})[ -]?([0-9]{2})[ -]?([0-9]{4})")


def find_ibans(text: str) -> Iterator[Span]:
    """International bank account numbers (ISO 13616): the country's length and form, and the check digits. National
    check digits are not looked at, since examples do not have them right."""
    at = 0
    while (found := _IBAN.search(text, at)) is not None:
        end = next((end for end in _ends(text, found) if _is_iban(text[found.start() : end])), None)
        if end is not None:
            yield found.start(), end
        at = end or found.start() + 4


def _ends(text: str, found: re.Match[str]) -> Iterator[int]:
    """Where the number may end, the farthest first: at the end of a group. A word may follow it."""
    end = found.end()
    if found[1] is None:
        if not text[end : end + 1].isalnum():
            yield end
        return
    while end > found.start() + _SHORTEST_IBAN:
        if not text[end : end + 1].isalnum():
            yield end
        end = text.rfind(found[1], found.start(), end)


def _is_iban(text: str) -> bool:
    compact = re.sub("[^A-Za-z0-9]", "", text).upper()
    number = "".join(str(int(char, 36)) for char in compact[4:] + compact[:4])
    if len(compact) < _SHORTEST_IBAN or int(number) % 97 != 1:
        return False
    from stdnum import iban

    return iban.is_valid(compact, check_country=False)


def find_ssns(text: str) -> Iterator[Span]:
    """Social security and individual taxpayer numbers, laid out as 123-45-6789; in other layouts after a word that says
    so. Not what is called an order or the like."""
    for found in _SSN.finditer(text):
        if is_ssn(found[0]) and _NOT_SSN.search(text, max(0, found.start() - 30), found.start()) is None:
            yield found.span()
    for found in _HINTED_SSN.finditer(text):
        if is_ssn(found[1]):
            yield found.span(1)


def is_ssn(text: str) -> bool:
    """Whether these nine digits can be such a number: an area, group and serial number that are given out."""
    found = _WHOLE_SSN.fullmatch(text)
    if found is None:
        return False
    area, group, serial = map(int, found.groups())
    if area >= 900:  # taxpayer numbers
        return 50 <= group <= 65 or 70 <= group <= 88 or 90 <= group <= 92 or 94 <= group <= 99
    return area not in (0, 666) and group != 0 and serial != 0


__all__ = ["find_ibans", "find_ssns", "is_ssn"]
