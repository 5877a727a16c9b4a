"""The rules for personal data: each finds it, says when two finds are the same, and makes a placeholder.

A placeholder keeps the form of what it replaces, so that a tool's schema still holds, and stands where no real value
can: e-mail addresses under a reserved domain (RFC 2606), phone numbers of a country code that nobody has, cards of an
issuer that does not exist, bank accounts of no country, social security numbers of a group that is not given out. So
each is known again by its form, whoever made it, and redacting twice changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cm2_agent.redaction.pii_ids import find_ibans, find_ssns, is_ssn
from cm2_agent.redaction.pii_numbers import find_cards, find_phones, is_card, luhn
from cm2_agent.redaction.pii_secrets import CREDENTIAL, JWT, KEY, PEM
from cm2_agent.redaction.rule import BASE32, Draw, Finder, Rule
from cm2_agent.types.escapes import after, before

_DIGITS = re.compile(r"[0-9]+")
_PHONE_KEY = re.compile(r"(?i)(?:^|[_\- ])(?:tele)?(?:phone|tel|mobile|cell|fax|whatsapp|msisdn)(?:$|[_\- ])")
_SSN_KEY = re.compile(r"(?i)(?:^|[_\- ])(?:ssn|itin|social[_\- ]?security(?:[_\- ]?(?:number|no))?)(?:$|[_\- ])")
_WHOLE_PHONE = re.compile(r"\+?[0-9][0-9 ().\-/]{5,24}")


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


# Bank accounts and social security numbers


def _make_iban(value: str, draw: Draw) -> str:
    return f"ZZ99REDACTED{draw(BASE32.upper(), 12)}"


def _make_ssn(value: str, draw: Draw) -> str:
    digits = "0123456789"
    return f"9{draw(digits, 2)}-{draw('01234', 1)}{draw(digits, 1)}-{draw(digits, 4)}"


def ssn_key(key: str) -> bool:
    """Whether a JSON key says that its value is a US social security number.

    >>> [ssn_key(key) for key in ("ssn", "customerSSN", "social_security_number", "session")]
    [True, True, True, False]
    """
    return _SSN_KEY.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key[:200])) is not None


IBAN = Rule(
    "iban",
    find=find_ibans,
    normal=lambda text: re.sub("[^A-Z0-9]", "", text.upper()),
    make=_make_iban,
    made="ZZ99REDACTED[A-Z2-7]{12}",
)
SSN = Rule(
    "ssn",
    find=find_ssns,
    normal=digits_of,
    make=_make_ssn,
    made="9[0-9]{2}-[0-4][0-9]-[0-9]{4}",
    key=ssn_key,
    whole=is_ssn,
    number=True,
)

SHIPPED: tuple[Rule, ...] = (KEY, JWT, PEM, CREDENTIAL, EMAIL, IBAN, CARD, SSN, PHONE)
"""Secrets, e-mail addresses, bank accounts (IBAN), card numbers, US social security numbers and phone numbers. Names,
addresses and birthdays need a rule of one's own."""

__all__ = [
    "CARD",
    "CREDENTIAL",
    "EMAIL",
    "IBAN",
    "JWT",
    "KEY",
    "PEM",
    "PHONE",
    "SHIPPED",
    "SSN",
    "Draw",
    "Finder",
    "Rule",
]
