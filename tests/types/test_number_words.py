"""Numbers in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.types.number_words import number_words

TEENS = "thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
UNITS = f"zero one two three four five six seven eight nine ten eleven twelve {TEENS}".split()
TENS = ["_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(number: int, joint: str = "-") -> str:
    if number >= 1000:
        rest = f" {in_words(number % 1000, joint)}" if number % 1000 else ""
        return f"{in_words(number // 1000, joint)} thousand{rest}"
    if number >= 100:
        rest = f" and {in_words(number % 100, joint)}" if number % 100 else ""
        return f"{UNITS[number // 100]} hundred{rest}"
    if number < 20:
        return UNITS[number]
    return TENS[number // 10] + (joint + UNITS[number % 10] if number % 10 else "")


@given(st.integers(2, 999_999), st.sampled_from(["-", " "]), st.sampled_from(["{}", "You have {} left.", "({} items)"]))
def test_whole_numbers_of_english(number: int, joint: str, frame: str) -> None:
    text = frame.format(in_words(number, joint))
    [(start, end, value)] = number_words(text)
    assert (int(value), text[start:end]) == (number, in_words(number, joint))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("drei Artikel", [3]),
        ("deux ou trois", [2, 3]),
        ("A hundred thanks", [100]),
        ("one moment", []),
        ("everyone is due once", []),
        ("often fourth tension", []),
        ("well-nine", []),
    ],
)
def test_words_that_are_numbers_and_words_that_are_not(text: str, values: list[int]) -> None:
    assert [int(value) for *_, value in number_words(text)] == values
