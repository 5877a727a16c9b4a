"""Card and phone numbers in a text: told from an order id, a date or a price by the layout of their groups of digits.

A text is cut into groups of digits once; a number is looked for from each group over the few that follow it, so that
the time is linear. Cards: ISO/IEC 7812 (13 to 19 digits, Luhn's check digit). Phones: E.164 after a plus sign, else the
national layouts below.

The layouts stand here, and no list of assigned numbers: `phonenumbers` (9.0) at its VALID leniency passes by numbers
that nobody was given, such as +1 555 0100 123, which people and models write as examples; at POSSIBLE it takes dates
and UUIDs; and without a country it needs a pass a region (seven regions: 19 times the CPU time)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cm2_agent.types.escapes import after, before

Span = tuple[int, int]

_ISSUERS: tuple[tuple[tuple[int, ...], tuple[str, ...]], ...] = (
    ((13, 16, 19), ("4",)),  # Visa
    ((16,), ("51", "52", "53", "54", "55", "22", "23", "24", "25", "26", "27")),  # Mastercard, Mir
    ((15,), ("34", "37", "1", "2131")),  # American Express, UATP, JCB
    ((14, 15, 16, 17, 18, 19), ("30", "36", "38", "39")),  # Diners Club
    ((16, 17, 18, 19), ("35", "60", "62", "64", "65", "81")),  # JCB, Discover, RuPay, UnionPay
    (
        (13, 14, 15, 16, 17, 18, 19),
        ("50", "56", "57", "58", "60", "61", "63", "66", "67", "68", "69"),
    ),  # Maestro and other debit cards
    ((16,), ("9792",)),  # Troy
)
"""Who issues cards of how many digits: the beginnings in use under ISO/IEC 7812."""
_DIGITS = re.compile(r"[0-9]+")  # one class alone: no way to go back over the text
_SPACES = frozenset(" \u00a0\u202f")
_SEPARATORS = _SPACES | {"-", "."}
_CARDS = {
    (4, 4, 4, 4),
    (4, 4, 4, 4, 1),
    (4, 4, 4, 4, 2),
    (4, 4, 4, 4, 3),
    (4, 4, 4, 1),
    (4, 4, 4, 2),
    (4, 4, 4, 3),
    (4, 6, 4),
    (4, 6, 5),
}
_NATIONAL = {
    (2, 2, 2, 2, 2),
    (2, 4, 4),
    (2, 7),
    (2, 8),
    (3, 3, 3),
    (3, 3, 4),
    (3, 4, 4),
    (3, 6),
    (3, 7),
    (3, 8),
    (4, 2, 4),
    (4, 3, 3),
    (4, 3, 4),
    (4, 6),
    (4, 7),
    (4, 8),
    (5, 3, 3),
    (5, 5),
    (5, 6),
}
"""The lengths of the groups of numbers that begin with the trunk 0; no date is laid out like any of them."""
_LENGTHS = {"1": 11, "7": 11, "33": 11, "34": 11, "44": 12, "61": 11, "86": 13, "91": 12}
"""How long an international number is, where its country has but one length."""
_HINTED = re.compile(
    r"(?i)\b(?:tele)?(?:phone|tel|mobile|cell|fax|whatsapp)(?:[ _](?:number|no|nr|is)){0,2}[\\\"'"
    r" .:#=]{1,6}(\+?[0-9]{7,15})(?![0-9A-Za-z])"
)


def is_card(digits: str) -> bool:
    """Whether these are the digits of a card: as many as its issuer's cards have, the last one Luhn's. One in ten of
    all numbers passes Luhn's check alone, so that it would take order ids and times for cards."""
    return any(len(digits) in lengths and digits.startswith(issuers) for lengths, issuers in _ISSUERS) and luhn(digits)


def luhn(digits: str) -> bool:
    """Luhn's check, over the last digit too.

    >>> luhn("4111111111111111"), luhn("4111111111111112")
    (True, False)
    """
    total = 0
    for position, char in enumerate(reversed(digits)):
        value = ord(char) - 48
        if position % 2:
            value = value * 2 - 9 if value > 4 else value * 2
        total += value
    return total % 10 == 0


def find_cards(text: str) -> Iterator[Span]:
    groups = _Groups(text)
    index = 0
    while index < len(groups):
        end = groups.card(index)
        if end is not None:
            yield groups.starts[index], groups.ends[end]
        index = index + 1 if end is None else end + 1


def find_phones(text: str) -> Iterator[Span]:
    groups = _Groups(text)
    index = 0
    while index < len(groups):
        found = groups.international(index) or groups.national(index)
        if found is not None:
            start, end = found
            yield start, groups.ends[end]
            index = end
        index += 1
    yield from (found.span(1) for found in _HINTED.finditer(text))


class _Groups:
    """The groups of digits in a text, and the separators between them."""

    def __init__(self, text: str) -> None:
        self.text = text
        spans = [found.span() for found in _DIGITS.finditer(text)]
        self.starts = [start for start, _ in spans]
        self.ends = [end for _, end in spans]

    def __len__(self) -> int:
        return len(self.starts)

    def length(self, index: int) -> int:
        return self.ends[index] - self.starts[index]

    def between(self, index: int) -> str | None:
        """What separates a group from the next, None where that is too much or nothing comes."""
        if index + 1 >= len(self.starts) or self.starts[index + 1] - self.ends[index] > 4:
            return None
        return self.text[self.ends[index] : self.starts[index + 1]]

    def digits(self, first: int, last: int) -> str:
        return "".join(self.text[self.starts[i] : self.ends[i]] for i in range(first, last + 1))

    def run(self, first: int, allowed: frozenset[str], most: int) -> list[str]:
        """The separators, one character each, that lead from a group through at most `most` more."""
        found: list[str] = []
        while (
            len(found) < most and (separator := self.between(first + len(found))) is not None and separator in allowed
        ):
            found.append(separator)
        return found

    # Cards

    def card(self, first: int) -> int | None:
        """The last group of the card that begins with this one."""
        length = self.length(first)
        if (length != 4 and not 13 <= length <= 19) or not self._free_for_card(first):
            return None
        if length != 4:
            return first if self._ends_card(first) and is_card(self.digits(first, first)) else None
        separators = self.run(first, _SEPARATORS, 4)
        for more in range(len(separators), 1, -1):
            lengths = tuple(self.length(first + i) for i in range(more + 1))
            same = len(set(separators[:more])) == 1
            if (
                same
                and lengths in _CARDS
                and self._ends_card(first + more)
                and is_card(self.digits(first, first + more))
            ):
                return first + more
        return None

    def _free_for_card(self, first: int) -> bool:
        start = self.starts[first]
        left = before(self.text, start)
        return not (left.isalpha() or (left in ".,-" and left and before(self.text, start - 1).isdigit()))

    def _ends_card(self, last: int) -> bool:
        end = self.ends[last]
        right, next_ = after(self.text, end), after(self.text, end + 1)
        return not (right.isalpha() or right == "_" or (right == "." and next_.isdigit()))

    # Phones

    def international(self, first: int) -> tuple[int, int] | None:
        """Where a number that begins with a plus sign (or 00) at this group begins, and its last group."""
        start = self.starts[first]
        at = start - 1
        while at >= 0 and start - at <= 2 and self.text[at] in " (":
            at -= 1
        plus = at >= 0 and self.text[at] == "+" and self.text[start] != "0"
        if not plus and not self.text.startswith("00", start):
            return None
        digits = self.digits(first, first)
        if not plus:
            if not 3 <= len(digits) <= 5 or digits[2] == "0" or self.between(first) not in _SPACES:
                return None
            at = start
        if not self._free_for_phone(at):
            return None
        code = digits if plus else digits[2:]
        last = self._international_end(first, code)
        return None if last is None or not self._ends_phone(last) else (at, last)

    def _international_end(self, first: int, code: str) -> int | None:
        wanted = next((length for prefix, length in _LENGTHS.items() if code.startswith(prefix)), None)
        count, last, best = len(code), first, None
        dotted: bool | None = None
        while count <= 15:
            if count == wanted:
                return last
            if count >= (8 if wanted is None else wanted - 1):
                best = last
            separator = self.between(last)
            if (
                separator is None
                or not separator
                or not set(separator) <= set(" \u00a0\u202f.-/()")
                or self._dated(last + 1)
            ):
                break
            if dotted is not None and dotted != (separator == "."):
                break
            if last > first or separator == ".":  # +1 415.555.2671, but no price: +30.00 2024
                dotted = separator == "."
            last += 1
            trunk = separator.endswith("(") and self.digits(last, last) == "0"
            count += 0 if trunk else self.length(last)
        return best

    def _dated(self, first: int) -> bool:
        """Whether a date of year, month and day begins here."""
        if self.length(first) != 4 or first + 2 >= len(self):
            return False
        lengths = (self.length(first + 1), self.length(first + 2))
        return lengths == (2, 2) and self.between(first) == self.between(first + 1) in ("-", "/", ".")

    def national(self, first: int) -> tuple[int, int] | None:
        start, digits = self.starts[first], self.digits(first, first)
        if len(digits) > 5:
            return None
        opened = before(self.text, start) == "(" and (self.between(first) or "").startswith(")")
        at = start - 1 if opened else start
        if not self._free_for_phone(at):
            return None
        last = (
            self._bracketed(first, digits)
            if opened
            else self._north_american(first, digits) or self._trunk(first, digits)
        )
        return None if last is None or not self._ends_phone(last) else (at, last)

    def _bracketed(self, first: int, digits: str) -> int | None:
        """An area code in brackets."""
        if self.between(first) not in (")", ") ", ")-", ")\u00a0", ") -"):
            return None
        more = self.run(first + 1, _SPACES | {"-"}, 2)
        lengths = [self.length(first + 1 + i) for i in range(len(more) + 1)]
        if len(digits) == 3 and digits[0] in "23456789" and lengths[:2] == [3, 4]:
            return first + 2
        for count in range(len(lengths), 0, -1):
            rest = tuple(lengths[:count])
            if digits[0] == "0" and len(digits) >= 2 and digits[1] != "0" and (len(digits), *rest) in _NATIONAL:
                return first + count
            if len(digits) == 2 and rest in {(4, 4), (5, 4)}:
                return first + count
        return None

    def _north_american(self, first: int, digits: str) -> int | None:
        if digits == "1":
            separator = self.between(first)
            if separator in (" (", "-("):
                inner = self.digits(first + 1, first + 1)
                return self._bracketed(first + 1, inner) if len(inner) == 3 else None
            return self._three_three_four(first + 1) if separator in _SEPARATORS else None
        if digits[0] == "1" and len(digits) == 3 and digits[1] in "3456789":  # China's mobile numbers, 3-4-4
            more = self.run(first, _SPACES | {"-"}, 2)
            lengths = [self.length(first + 1 + i) for i in range(len(more))]
            return first + 2 if lengths == [4, 4] and len(set(more)) == 1 else None
        return self._three_three_four(first)

    def _three_three_four(self, first: int) -> int | None:
        if self.text[self.starts[first]] in "01" or [
            self.length(i) for i in range(first, min(first + 3, len(self)))
        ] != [3, 3, 4]:
            return None
        more = self.run(first, _SEPARATORS, 2)
        if len(more) < 2:
            return None
        spaced = more[0] in _SPACES and more[1] in _SPACES
        if spaced and self.text[self.starts[first + 1]] in "01":  # three plain numbers in a row
            return None
        return first + 2 if more[0] == more[1] or (more[0] in _SPACES and more[1] == "-") else None

    def _trunk(self, first: int, digits: str) -> int | None:
        """A national number that begins with the trunk 0."""
        if digits[0] != "0" or not 2 <= len(digits) <= 5 or digits[1] == "0":
            return None
        slash = self.between(first) == "/" and len(digits) >= 3
        more = self.run(first, _SPACES | {"-", "."} | ({"/"} if slash else frozenset()), 4)
        for count in range(len(more), 0, -1):
            lengths = tuple(self.length(first + i) for i in range(count + 1))
            kinds = set(more[1:count] if slash else more[:count])
            dotted = "." in kinds and lengths != (2, 2, 2, 2, 2)
            if lengths in _NATIONAL and len(kinds) <= 1 and not dotted and "/" not in kinds:
                return first + count
        return None

    def _free_for_phone(self, start: int) -> bool:
        left = before(self.text, start)
        if left.isalnum() or (left and left in "_#$€£¥@%+"):
            return False
        further = before(self.text, start - 1)
        return not (left and left in "-./,:" and further.isalnum() and (left not in ",:" or further.isdigit()))

    def _ends_phone(self, last: int) -> bool:
        end = self.ends[last]
        right, next_ = after(self.text, end), after(self.text, end + 1)
        if right.isalnum():
            return right in "xX" and next_.isdigit()
        if right and right in "_@%":
            return False
        return not (right and right in "-/.,:" and (next_.isdigit() or (right in "-/" and next_.isalpha())))


__all__ = ["Span", "find_cards", "find_phones", "is_card", "luhn"]
