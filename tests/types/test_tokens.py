"""Whole tokens: what stands in a text as a word or number of its own, and what tells anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.types.tokens import STOP_WORDS, end_of, fold, is_boundary, occurrences, tells

TEXT = (
    "Where is order 7? It is A-7/x_9 of Ada.Lovelace@Example.com, $1,234.50 on 2026-05-20 at 14:30, Noah’s can't"
    " 订单99号 東京 -5 don't 12345-678 (5/20/2026)"
)


@pytest.mark.parametrize(
    "value",
    [
        "7",
        "A-7",
        "a‑7",
        "x_9",
        "A-7/x_9",
        "ada.lovelace@example.com",
        "1,234.50",
        "2026-05-20",
        "14:30",
        "Noah",
        "Noah's",
        "99",
        "東京",
        "-5",
        "12345",
        "678",
        "5/20/2026",
        "order 7",
    ],
)
def test_whole_tokens_are_found(value: str) -> None:
    assert end_of(fold(value), fold(TEXT)) is not None


@pytest.mark.parametrize(
    "value", ["9", "x", "example", "lovelace", "1", "234", "1,234", "234.50", "20", "05", "30", "can", "5", "orde", "2"]
)
def test_parts_of_tokens_are_not(value: str) -> None:
    assert end_of(fold(value), fold(TEXT)) is None


@given(st.integers(0, 10**9), st.sampled_from(["order {}?", "{}", "a {}, b", "#{}.", "({})", "订单{}号", "x: {}\n"]))
def test_a_number_is_found_beside_anything_but_more_of_itself(number: int, frame: str) -> None:
    text = fold(frame.format(number))
    assert end_of(str(number), text) is not None
    for other in (
        f"{number}5",
        f"5{number}",
        f"{number}.5",
        f"5.{number}",
        f"{number},500",
        f"x{number}",
        f"{number}_",
    ):
        assert end_of(str(number), fold(frame.format(other))) is None


def test_digits_of_all_scripts_are_digits() -> None:
    assert fold("Order ７, Ｗ９, ٧, ७") == "order 7, w9, 7, 7"
    assert fold("10²") == "10²"  # no digit of a number


@given(st.text(max_size=30), st.text(max_size=6))
def test_occurrences_are_where_they_say(hay: str, needle: str) -> None:
    folded, wanted = fold(hay), fold(needle)
    for start, end in occurrences(wanted, folded):
        assert folded[start:end] == wanted
        assert is_boundary(folded, start)
        assert is_boundary(folded, end)
    assert fold(folded) == fold(fold(folded))


@pytest.mark.parametrize("value", ["7", "ada@x.org", "Paris", "o7", "東京", "Öl", "Иван", "order 7", "x9", "محمد"])
def test_values_that_tell_something(value: str) -> None:
    assert tells(fold(value), common={"order", "get"})


@pytest.mark.parametrize(
    "value", ["", "?", "a", "the", "where is", "order", "The order", "-", "京", "x", "...", "¿", "get"]
)
def test_values_that_anybody_says(value: str) -> None:
    assert not tells(fold(value), common={"order", "get"})


@given(st.lists(st.sampled_from(sorted(STOP_WORDS)) | st.sampled_from("?!.,- "), max_size=5))
def test_stop_words_and_marks_tell_nothing(words: list[str]) -> None:
    assert not tells(" ".join(words))
