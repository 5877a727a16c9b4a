"""What holds of any text: redacting twice changes nothing, JSON keeps its form, and noise and depth are only read."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.datasets import Redactor
from tests.redaction.personal import (
    CARDS,
    EMAILS,
    IBANS,
    JWTS,
    KEYS,
    ORDINARY,
    PEMS,
    PHONES,
    SECRETS,
    SPELLED,
    SSNS,
    redactor,
)
from tests.strategies import jsons, texts


def personal() -> st.SearchStrategy[str]:
    found = (*EMAILS, *PHONES, *CARDS, *KEYS, *JWTS, *IBANS, *SSNS, *PEMS)
    return st.sampled_from((*found, *(text for text, _ in (*SECRETS, *SPELLED)), *ORDINARY))


def pieces() -> st.SearchStrategy[str]:
    signs = [
        "",
        " ",
        "-",
        ".",
        ",",
        "/",
        "(",
        ")",
        "+",
        "@",
        "\\",
        "\\n",
        '"',
        ":",
        "1",
        "0",
        "a",
        "Bearer ",
        "phone: ",
        "\n",
        "é",
        "%40",
        "%",
        "&#64;",
        "\u200b",
        "password=",
        "://",
        "-----",
        "is",
    ]
    glue = st.sampled_from([*signs, "[", "]", '{"home_phone": "4155552671", "card": ', "}"])
    made = st.sampled_from(
        [
            redactor().redact(value)
            for value in (
                EMAILS[0],
                PHONES[0],
                CARDS[0],
                *KEYS,
                JWTS[0],
                IBANS[0],
                SSNS[0],
                PEMS[0],
                *(one for one, _ in SECRETS),
            )
        ]
    )
    return st.lists(st.one_of(personal(), glue, made, texts()), max_size=8).map("".join)


@given(pieces())
def test_redacting_twice_changes_nothing(text: str) -> None:
    once = redactor().redact(text)
    assert redactor().redact(once) == once
    assert Redactor(key=b"another").redact(once) == once


@given(st.text(alphabet="+()-./ 0149@abx.co\\n\"'", max_size=60))
def test_redacting_noise_twice_changes_nothing(text: str) -> None:
    once = redactor().redact(text)
    assert Redactor(key=b"another").redact(once) == once


@given(jsons(6, st.one_of(pieces(), texts())))
def test_json_keeps_its_form(value: Any) -> None:
    mine = redactor()
    got = mine.redact_json(value)
    assert mine.redact_json(got) == got
    assert shape(got) == shape(value)
    try:
        text = json.dumps(value)
    except ValueError:
        return
    assert shape(json.loads(mine.redact(text))) in (shape(value), shape(json.loads(text)))


def shape(value: Any) -> Any:
    """What stays when strings and numbers are taken for one."""
    if isinstance(value, dict):
        return [shape(item) for item in value.values()]
    if isinstance(value, list):
        return [shape(item) for item in value]
    return "number" if isinstance(value, int | float) else type(value).__name__


@given(st.lists(personal(), min_size=1, max_size=6, unique=True))
def test_a_placeholder_is_no_value_of_the_input(values: list[str]) -> None:
    mine = redactor()
    text = " | ".join(values)
    got = mine.redact(text).split(" | ")
    assert not {new for new, old in zip(got, values, strict=True) if new != old} & set(values)


WORDS = st.text(alphabet="abcdefghijklmnopqrstuvwxyz ABC äöü 。\n", max_size=30)


@given(WORDS, st.sampled_from((*EMAILS, *PHONES, *CARDS, *KEYS, *JWTS, *IBANS, *SSNS, *PEMS)), WORDS)
def test_a_planted_value_is_found_wherever_it_stands(before: str, value: str, after: str) -> None:
    got = redactor().redact(f"{before} {value} {after}")
    assert value not in got
    assert got.startswith(f"{before} ")
    assert got.endswith(f" {after}")


@given(WORDS, st.sampled_from(SPELLED), WORDS)
def test_so_is_one_in_another_spelling(before: str, value: tuple[str, str], after: str) -> None:
    got = redactor().redact(f"{before} {value[0]} {after}")
    assert value[0] not in got
    assert got.startswith(f"{before} ")
    assert got.endswith(f" {after}")


def identifiers() -> st.SearchStrategy[str]:
    """Order numbers, versions, hashes, dates, times, prices and UUIDs as applications write them."""
    numbers = st.integers(0, 99_999_999)
    digits = st.integers(0, 9999)
    return st.one_of(
        numbers.map("order {}".format),
        numbers.map("#W{}".format),
        st.tuples(digits, digits).map(lambda pair: f"ORD-{pair[0]:04}-{pair[1]:04}"),
        st.lists(st.integers(0, 99), min_size=3, max_size=4).map(lambda parts: "v" + ".".join(map(str, parts))),
        st.binary(min_size=16, max_size=32).map(lambda data: hashlib.sha256(data).hexdigest()),
        st.binary(max_size=8).map(lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest()),
        st.uuids().map(str),
        st.datetimes().map(lambda moment: moment.isoformat(sep=" ", timespec="seconds")),
        st.dates().map(lambda day: day.strftime("%d.%m.%Y")),
        st.dates().map(lambda day: day.strftime("%m/%d/%Y")),
        st.times().map(lambda moment: moment.strftime("%H:%M")),
        st.floats(0, 1e6).map(lambda price: f"${price:,.2f}"),
        st.tuples(digits, digits).map(lambda pair: f"{pair[0] / 100:.2f} x {pair[1]}"),
    )


@given(st.lists(st.one_of(identifiers(), st.sampled_from(["and", "for", "at", "is", "id:", "status: ok"])), max_size=6))
def test_what_applications_count_and_date_by_stays(words: list[str]) -> None:
    text = ", ".join(words)
    assert redactor().redact(text) == text


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "a" * 10**6,
        "a@" * 500_000,
        "a@b." * 250_000,
        "1 " * 500_000,
        "4111 " * 200_000,
        "+1 (" * 250_000,
        "sk-." * 250_000,
        "\\" * 10**6,
        "\\n" * 500_000,
        "0" * 10**6,
        "[" * 10**6,
        "bearer " * 140_000,
        "phone " * 160_000,
        '"' * 10**6,
        "-" * 10**6,
        "a." * 500_000 + "@",
        "-----BEGIN -----" * 60_000,
        "%41" * 300_000,
        "&#" * 500_000,
        "password: " * 100_000,
        "://" * 300_000,
        "a://b:" * 160_000,
        "eyJ" * 300_000,
        "AB12 " * 200_000,
        "DE12 " * 200_000,
        "123-45-" * 140_000,
        "(at)" * 250_000,
        "\u200b" * 500_000,
        "\uff11" * 300_000,
        "basic " * 160_000,
    ],
)
def test_a_megabyte_of_noise_is_read(text: str) -> None:
    assert redactor().redact(text) == text


def test_deep_json_is_read() -> None:
    mine = redactor()
    value: Any = "ada@x.org"
    for _ in range(100_000):
        value = [value]
    got = mine.redact_json(value)
    while isinstance(got, list):
        got = got[0]
    assert got == mine.redact("ada@x.org")
    deep = "[" * 50_000 + '"ada@x.org"' + "]" * 50_000
    assert mine.redact(deep) == deep.replace("ada@x.org", mine.redact("ada@x.org"))
