"""What holds of any text: redacting twice changes nothing, JSON keeps its form, and noise and depth are only read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.datasets import Redactor
from tests.datasets.personal import CARDS, EMAILS, KEYS, ORDINARY, PHONES, redactor
from tests.strategies import jsons, texts


def personal() -> st.SearchStrategy[str]:
    return st.sampled_from((*EMAILS, *PHONES, *CARDS, *KEYS, *ORDINARY))


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
    ]
    glue = st.sampled_from([*signs, "[", "]", '{"home_phone": "4155552671", "card": ', "}"])
    made = st.sampled_from([redactor().redact(value) for value in (EMAILS[0], PHONES[0], CARDS[0], *KEYS)])
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
    text = "; ".join(values)
    got = mine.redact(text).split("; ")
    assert not {new for new, old in zip(got, values, strict=True) if new != old} & set(values)


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
