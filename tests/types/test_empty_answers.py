"""Answers that found nothing, and answers that only look so."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.types.empty_answers import finds_nothing, is_not_there

NOT_THERE: list[Any] = [
    "Order 9 not found",
    "Order #W-9 was not found.",
    "No such order: 9",
    "Order 9 does not exist.",
    "Error? order 9 not found in our system",
    "Could not find order 9",
    "Unknown order 9",
    "unknown order id",
    "Bestellung nicht gefunden",
    "no order with id 9 could not be found",
    {"message": "Order not found"},
    {"found": False, "id": "9"},
    {"status": "not_found"},
    "Sorry, I couldn't find that order.",
    "未找到订单",
]
ANSWERS: list[Any] = [
    "Order found: not shipped",
    "The missing item was not found in the parcel; refund of 30 EUR issued to card 1234.",
    "shipped",
    "Your order does not exist as a parcel yet. It ships on May 3 and arrives May 5.",
    [],
    {},
    "No flights available",
    {"results": []},
    "ok",
    None,
    "",
    {"items": [{"note": "not found"}]},
    {"id": "W-7", "status": "open", "note": "invoice not found", "total": 3, "x": 1},
    "Valid order",
    "Invalid",
    "invalid date format, use YYYY",
]
NOTHING: list[tuple[Any, Any]] = [
    ("No results", None),
    ("No flights available on 2026-05-20.", None),
    ("0 results", None),
    ("No orders found for W-999", None),
    ([], None),
    ({}, None),
    ({"query": "W-999", "results": [], "total": 0}, {"query": "W-999"}),
    ({"query": {"id": "W-999"}, "hits": {"total": 0, "items": []}}, {"id": "W-999"}),
    ({"order": None, "id": "W-999"}, {"id": "w-999"}),
    ("Keine Bestellung gefunden", None),
    ("nothing found", None),
    ("None", None),
    (None, None),
    ({"message": "No orders found", "results": []}, {}),
]
FOUND: list[tuple[Any, Any]] = [
    ({"id": "W-7", "items": [], "status": "open"}, {"id": "W-7"}),
    ({"ok": True, "id": "7"}, {"id": "7"}),
    ("W-7", {}),
    ({"id": "W-7"}, {"id": "W-7"}),
    ("No problem, order W-7 is cancelled", {}),
    ("No refund needed; the order W-7 is paid", {}),
    ([{"id": "W-7"}], {}),
    ("Nothing to pay for order W-7", {}),
    ("None of the items is late: W-7, W-8", {}),
    (0, {}),
    ({"balance": 0}, {}),
    ({"delayed": False, "order": "W-7"}, {"order": "W-7"}),
]
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("answer", NOT_THERE)
def test_what_says_that_a_thing_does_not_exist(answer: Any) -> None:
    assert is_not_there(answer)
    assert finds_nothing(answer)


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_says_something_else(answer: Any) -> None:
    assert not is_not_there(answer)


@pytest.mark.parametrize(("answer", "arguments"), NOTHING)
def test_what_found_nothing(answer: Any, arguments: Any) -> None:
    assert finds_nothing(answer, arguments)


@pytest.mark.parametrize(("answer", "arguments"), FOUND)
def test_what_found_something(answer: Any, arguments: Any) -> None:
    assert not finds_nothing(answer, arguments)


@given(JSONS, JSONS)
def test_an_answer_with_a_value_of_its_own_found_something(answer: Any, arguments: Any) -> None:
    value = {"inner": answer, "own": "W-712 is on its way"}
    assert not finds_nothing(value, arguments)
    assert not is_not_there(value)
