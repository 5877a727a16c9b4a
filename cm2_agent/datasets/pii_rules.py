"""The rules for personal data: each finds it, says when two finds are the same, and makes a placeholder.

A placeholder keeps the form of what it replaces, so that a tool's schema still holds, and stands where no real value
can: e-mail addresses under a reserved domain (RFC 2606), phone numbers of a country code that nobody has, cards of an
issuer that does not exist. So each is known again by its form, whoever made it, and redacting twice changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from cm2_agent.datasets.pii_numbers import after, before, find_cards, find_phones, is_card, luhn
from cm2_agent.errors import TaskError
from cm2_agent.types.check_specs import compile_pattern

BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_DIGITS = re.compile(r"[0-9]+")
_PHONE_KEY = re.compile(r"(?i)(?:^|[_\- ])(?:tele)?(?:phone|tel|mobile|cell|fax|whatsapp|msisdn)(?:$|[_\- ])")
_WHOLE_PHONE = re.compile(r"\+?[0-9][0-9 ().\-/]{5,24}")


class Draw(Protocol):
    """Characters that depend on the value and the redactor's key alone, as many as are asked for."""

    def __call__(self, alphabet: str, length: int) -> str: ...


Finder = Callable[[str], Iterable[tuple[int, int]]]


def _same(value: str) -> str:
    return value


@dataclass(frozen=True)
class Rule:
    """What to replace. `pattern` is RE2 syntax (linear time; no look-around); `find` is a function of a text that gives
    the spans (start, end) instead. Give one of the two.

    `normal`: the spelling that all spellings of one value share. `make(value, draw)`: a placeholder, `[name …]` where
    none is given; `made`: a pattern that every placeholder of the rule matches and no value does. `key` tells from a
    JSON key that a text under it which is `whole` is a value although `find` would not know it. `number`: a JSON number
    may be a value too, by its digits. Raises TaskError where a rule cannot be one.

    >>> Rule("badge", r"B-[0-9]{5}").spans("badge B-12345")
    [(6, 13)]
    """

    name: str
    pattern: str | None = None
    find: Finder | None = field(default=None, kw_only=True)
    normal: Callable[[str], str] = field(default=_same, kw_only=True)
    make: Callable[[str, Draw], str] | None = field(default=None, kw_only=True)
    made: str | None = field(default=None, kw_only=True)
    key: Callable[[str], bool] | None = field(default=None, kw_only=True)
    whole: Callable[[str], bool] | None = field(default=None, kw_only=True)
    number: bool = field(default=False, kw_only=True)
    _finder: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if re.fullmatch(r"[a-z][a-z0-9_\-]{0,39}", self.name) is None:
            raise TaskError(f"a rule is named {self.name!r}; expected lower-case letters, digits, - and _")
        if (self.pattern is None) == (self.find is None):
            raise TaskError(
                f"rule {self.name!r} has {'both' if self.find else 'neither'} pattern and find; give one of the two"
            )
        if (self.make is None) != (self.made is None):
            raise TaskError(
                f"rule {self.name!r} gives one of make and made; a placeholder must be known again: give both or"
                " neither"
            )
        if self.pattern is None:
            return
        try:
            compiled = compile_pattern(self.pattern)
        except ValueError as error:
            raise TaskError(f"rule {self.name!r}: {error}") from error
        if compiled.search("") is not None:
            raise TaskError(
                f"rule {self.name!r}: the pattern {self.pattern!r} matches nothing at all; expected at least one"
                " character"
            )
        object.__setattr__(self, "_finder", compiled)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where the rule finds something: spans within the text, none empty."""
        found = (
            ((hit.start(), hit.end()) for hit in self._finder.finditer(text)) if self.find is None else self.find(text)
        )
        return [(start, end) for start, end in found if 0 <= start < end <= len(text)]

    def placeholder(self, value: str, draw: Draw) -> str:
        return f"[{self.name} {draw(BASE32, 12)}]" if self.make is None else self.make(value, draw)

    @property
    def placeholders(self) -> str:
        """A pattern of the rule's placeholders."""
        return rf"\[{re.escape(self.name)} [a-z2-7]{{12}}\]" if self.made is None else self.made


# E-mail

_LOCAL = frozenset("._%+-")


def _find_emails(text: str) -> Iterator[tuple[int, int]]:
    free = 0  # where the previous find ended: no character belongs to two
    at = text.find("@")
    while at != -1:
        start = at
        while start > free and at - start < 64 and (char := before(text, start)) and _local(text, start, char):
            start -= 1
        while start < at and text[start] in ".%+-":  # no address begins so
            start += 1
        end = _domain_end(text, at + 1)
        if start < at and text[at - 1] != "." and end is not None:
            yield start, end
            free = end
        at = text.find("@", at + 1)


def _local(text: str, start: int, char: str) -> bool:
    """Whether the character before `start` belongs to the address: an apostrophe does between letters, as in
    o'brien@x.org."""
    return (
        char.isalnum()
        or char in _LOCAL
        or (char == "'" and text[start].isalnum() and before(text, start - 1).isalnum())
    )


def _domain_end(text: str, start: int) -> int | None:
    """The end of the longest domain from here whose last label is letters."""
    end, label, dots, best = start, start, 0, None
    while end < len(text) and end - start < 254:
        char = text[end]
        if char == ".":
            if end == label:
                break
            dots += 1
            label = end + 1
        elif not (char.isalnum() or char == "-"):
            break
        end += 1
        following = after(text, end)
        if not dots or end - label < 2 or char == "." or following.isalnum() or following == "-":
            continue
        if text[label:end].isalpha() or text[label : label + 4].lower() == "xn--":
            best = end
    return best


def _make_email(value: str, draw: Draw) -> str:
    return f"u{draw(BASE32, 16)}@redacted.example.com"


EMAIL = Rule(
    "email",
    find=_find_emails,
    normal=str.casefold,
    make=_make_email,
    made=r"u[a-z2-7]{16}@redacted\.example\.com",
)


# Phones and cards


def _make_phone(value: str, draw: Draw) -> str:
    return "+999" + draw("0123456789", 12)


def _make_card(value: str, draw: Draw) -> str:
    body = "9999" + draw("0123456789", 11)
    return next(body + last for last in "0123456789" if luhn(body + last))


def phone_key(key: str) -> bool:
    """Whether a JSON key says that its value is a phone number.

    >>> [phone_key(key) for key in ("phone", "home_phone", "mobileNumber", "order_id")]
    [True, True, True, False]
    """
    return _PHONE_KEY.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key[:200])) is not None


def whole_phone(text: str) -> bool:
    """Whether a text under such a key is nothing but a number of 7 to 15 digits."""
    return len(text) <= 40 and _WHOLE_PHONE.fullmatch(text) is not None and 7 <= len(digits_of(text)) <= 15


def digits_of(text: str) -> str:
    return "".join(_DIGITS.findall(text))


def normal_phone(text: str) -> str:
    """The number as E.164 writes it, where the text tells the country; ten digits laid out as in North America are
    taken to be there.

    >>> normal_phone("(415) 555-2671") == normal_phone("+1 415.555.2671")
    True
    """
    digits = digits_of(text.replace("(0)", "") if text.lstrip().startswith(("+", "00")) else text)
    if text.lstrip(" (").startswith("+"):
        return "+" + digits
    if digits.startswith("00"):
        return "+" + digits[2:]
    if len(digits) == 10 and digits[0] in "23456789":
        return "+1" + digits
    return "+" + digits if len(digits) == 11 and digits[0] == "1" and digits[1] in "23456789" else digits


PHONE = Rule(
    "phone",
    find=find_phones,
    normal=normal_phone,
    make=_make_phone,
    made=r"\+999[0-9]{12}",
    key=phone_key,
    whole=whole_phone,
    number=True,
)
CARD = Rule(
    "card", find=find_cards, normal=digits_of, make=_make_card, made=r"9999[0-9]{12}", whole=is_card, number=True
)


# Keys

_FORMS: tuple[tuple[str, int, str], ...] = (
    ("sk-", 40, BASE32),
    ("sk_live_", 24, BASE32),
    ("sk_test_", 24, BASE32),
    ("rk_live_", 24, BASE32),
    ("rk_test_", 24, BASE32),
    ("ghp_", 36, BASE32),
    ("gho_", 36, BASE32),
    ("ghu_", 36, BASE32),
    ("ghs_", 36, BASE32),
    ("ghr_", 36, BASE32),
    ("github_pat_", 60, BASE32),
    ("AKIA", 16, BASE32.upper()),
    ("ASIA", 16, BASE32.upper()),
    ("AIza", 35, BASE32),
    ("xoxa-", 40, BASE32),
    ("xoxb-", 40, BASE32),
    ("xoxe-", 40, BASE32),
    ("xoxo-", 40, BASE32),
    ("xoxp-", 40, BASE32),
    ("xoxr-", 40, BASE32),
    ("xoxs-", 40, BASE32),
    ("glpat-", 20, BASE32),
    ("hf_", 34, BASE32),
    ("npm_", 36, BASE32),
)
"""Prefix, the length of what follows it in a placeholder, and its letters."""
_KEYS = re.compile(r"(?i:(bearer)[ ]{1,3})?([A-Za-z0-9_\-.~+/]{16,}={0,2})")
_PREFIXES = tuple(prefix for prefix, _, _ in _FORMS)


def _find_keys(text: str) -> Iterator[tuple[int, int]]:
    """Tokens with a well-known prefix, and what follows `Bearer`. Tokens are maximal runs of their characters: no way
    to go back."""
    if not any(prefix in text for prefix in (*_PREFIXES, "earer", "EARER")):
        return
    for found in _KEYS.finditer(text):
        start, end = found.span(2)
        while end > start and text[end - 1] in "./":  # the end of the sentence
            end -= 1
        if found.group(1) is not None and end - start >= 20 and any(char.isdigit() for char in text[start:end]):
            yield start, end
            continue
        for at in _token_starts(text, start, end):
            stop = at
            while stop < end and (text[stop].isalnum() or text[stop] in "_-"):
                stop += 1
            if _secret(text[at:stop]):
                yield at, stop
                break


def _token_starts(text: str, start: int, end: int) -> Iterator[int]:
    """Where within a run a token may begin: at its front (after an escape that ends there), and after what is part of
    no key."""
    yield start
    yield from (at for at in (start + 1, start + 5) if at < end and before(text, at) == "")
    yield from (at for at in range(start + 1, end) if text[at - 1] in "./+~")


def _secret(token: str) -> bool:
    prefix = next((prefix for prefix in _PREFIXES if token.startswith(prefix)), None)
    if prefix is None:
        return False
    rest = token[len(prefix) :]
    if prefix in ("AKIA", "ASIA"):
        return len(rest) == 16 and rest.isalnum() and rest.upper() == rest
    mixed = any(char.isdigit() for char in rest)
    return len(rest) >= 16 and (mixed or (len(rest) >= 20 and not {"-", "_"} & set(rest)))


def _make_key(value: str, draw: Draw) -> str:
    prefix, length, letters = next((form for form in _FORMS if value.startswith(form[0])), ("", 40, BASE32))
    return f"{prefix}REDACTED{draw(letters, length - 8)}"


KEY = Rule(
    "key",
    find=_find_keys,
    make=_make_key,
    made="|".join(
        f"{prefix}REDACTED[{chars[0]}-{chars[25]}2-7]{{{length - 8}}}"
        for prefix, length, chars in (*_FORMS, ("", 40, BASE32))
    ),
)

SHIPPED: tuple[Rule, ...] = (KEY, EMAIL, CARD, PHONE)
"""E-mail addresses, phone numbers, card numbers and API keys. Names, addresses and birthdays need a rule of one's
own."""

__all__ = ["CARD", "EMAIL", "KEY", "PHONE", "SHIPPED", "Draw", "Finder", "Rule"]
