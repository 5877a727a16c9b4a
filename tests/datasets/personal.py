"""Personal data in every spelling that is found, and texts that look like it and are none."""

from __future__ import annotations

from cm2_agent.datasets import SHIPPED, Redactor, Rule

SECRET = b"a key for the tests"

EMAILS = ("ada@x.org", "Ada.Lovelace+news@mail.example.co.uk", "o'brien@x.org", "jörg@müller.de", "a_b-c@x-y.io")
PHONES = (
    "+14155552671",
    "+1 415 555 2671",
    "+1 (415) 555-2671",
    "(415) 555-2671",
    "415-555-2671",
    "415.555.2671",
    "1-415-555-2671",
    "+44 20 7946 0958",
    "+44 (0)20 7946 0958",
    "020 7946 0958",
    "07700 900123",
    "+49 171 1234567",
    "0171/1234567",
    "(030) 12345678",
    "06 12 34 56 78",
    "06.12.34.56.78",
    "+33 6 12 34 56 78",
    "0412 345 678",
    "138 1234 5678",
    "+91 98765 43210",
    "0049 171 1234567",
    "+1 555 0100 123",  # assigned to nobody: what people and models write as an example
    "+1 (555) 123-4567",
)
CARDS = (
    "4111111111111111",
    "4111 1111 1111 1111",
    "4111-1111-1111-1111",
    "378282246310005",
    "3782 822463 10005",
    "30569309025904",
    "4222222222222",
    "6304000000000000000",
)
KEYS = (
    "sk-proj-Ab3dEf6hIj9lMn2pQr5tUv8x",
    "sk-abcdefghijklmnopqrstuvwxyz",
    "ghp_0123456789abcdefghijABCDEFGHIJ012345",
    "gho_0123456789abcdefghijABCDEFGHIJ012345",
    "AKIAIOSFODNN7EXAMPLE",
    "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "xoxb-123456789012-1234567890123-AbCdEfGhIjKl",
    "glpat-x1y2z3A4B5C6D7E8F9G0",
    "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567",
)
ORDINARY = (
    "order 123456789",
    "order #415-555-2671",
    "ORD-415-555-2671",
    "reservation 0012345678901",
    "flight HAT136 on 2024-05-20",
    "05/20/2024",
    "20.05.2024 12:30",
    "2024-05-15T15:00:00Z",
    "$1,204.56",
    "USD 4111.11",
    "1716300000000",
    "1716300000000000000",
    "credit_card_4421486",
    "192.168.100.123",
    "v1.12.345.6789",
    "4111111111111112",
    "0.4111111111111111",
    "100 200 3000",
    "+30.00 2024 1200",
    "9-1-1",
    "risk-taking-behaviour-of-2024",
    "a@b",
    "@home",
    "x @ y.com",
    "bearer of bad news",
    "3fa85f64-5717-4562-b3fc-2c963f66afa6",
    "ISBN 978-3-16",
    "sk-learn",
    "id 7963242628536487935",
    "1234567890123456",
    "between 10:00-11:30",
    "12 345 678",
    "1e1000000000000000",
)


def redactor(*rules: Rule) -> Redactor:
    return Redactor(rules or SHIPPED, key=SECRET)
