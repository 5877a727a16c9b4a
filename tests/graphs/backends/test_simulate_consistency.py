"""Facts of a dialogue's tool answers: what is one, what is not, and when a new answer contradicts them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.graphs.backends.simulate_consistency import contradictions, facts_of, known_facts, same_answer
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest
from tests.strategies import jsons, objects


def call(name: str, /, **arguments: Any) -> ToolRequest:
    return ToolRequest(tool=ToolSpec(name=name), arguments=arguments)


def log(*answered: tuple[ToolRequest, Any]) -> CallLog:
    made = CallLog()
    for asked, value in answered:
        made.add(asked, value if isinstance(value, ToolAnswer) else ToolAnswer(content=text(value), backend="simulate"))
    return made


def text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


ORDER = {
    "order_id": 7,
    "user_id": "u1",
    "status": "shipped",
    "address": {"city": "Rome"},
    "items": [{"item_id": "a", "price": 3.0}],
}


@pytest.mark.parametrize(
    ("asked", "value", "found"),
    [
        (
            call("get_order_details", order_id=7),
            ORDER,
            {
                ("order_id=7", "order_id"): 7,
                ("order_id=7", "user_id"): "u1",
                ("order_id=7", "status"): "shipped",
                ("order_id=7", "address.city"): "Rome",
                ('item_id=a given {"order_id":7}', "item_id"): "a",
                ('item_id=a given {"order_id":7}', "price"): 3.0,
            },
        ),
        (
            call("getOrder", orderId=7),
            {"orderId": 7, "paid": False},
            {("orderId=7", "orderId"): 7, ("orderId=7", "paid"): False},
        ),
        (
            call("get_order", order_id=7),
            {"id": 7, "status": "new"},
            {("order_id=7", "id"): 7, ("order_id=7", "status"): "new"},
        ),
        (call("list_orders"), {"orders": [{"id": 7, "x": 1}]}, {("order_id=7", "id"): 7, ("order_id=7", "x"): 1}),
        (call("list_orders"), {"orders": {"7": {"id": 7, "x": 1}}}, {("order_id=7", "id"): 7, ("order_id=7", "x"): 1}),
        (call("get_order_status", order_id=7), {"status": "new", "eta": None}, {("order_id=7", "status"): "new"}),
        (
            call("find_user", name="Al"),
            {"email": "a@b.c", "age": 3},
            {('email=a@b.c given {"name":"Al"}', "email"): "a@b.c", ('email=a@b.c given {"name":"Al"}', "age"): 3},
        ),
        (
            call("search_flights", date="d1"),
            [{"flight_number": "H1", "date": "d1", "price": 5}],
            {
                ("date=d1, flight_number=H1", "flight_number"): "H1",
                ("date=d1, flight_number=H1", "date"): "d1",
                ("date=d1, flight_number=H1", "price"): 5,
            },
        ),
        # not clear whose they are:
        (call("get_order_invoice", order_id=7), {"status": "paid"}, {}),
        (call("get_order", order_id=7), "shipped", {}),
        (call("get_weather", city="Rome"), {"temperature": 20}, {}),
        (
            call("list_payments"),
            {"history": [{"payment_method_id": "card", "amount": 3}, {"payment_method_id": "card", "amount": 4}]},
            {},
        ),
        (call("list_orders"), {"orders": [{"id": 7, "x": 1}, {"id": 7, "x": 2}]}, {("order_id=7", "id"): 7}),
    ],
)
def test_what_is_a_fact(asked: ToolRequest, value: Any, found: Mapping[tuple[str, str], Any]) -> None:
    assert facts_of(asked, text(value)) == found
    assert facts_of(asked, [{"type": "text", "text": text(value)}]) == found


def test_a_contradiction_is_named() -> None:
    known = log((call("get_order_details", order_id=7), ORDER))
    (found,) = contradictions(known, call("list_orders"), text({"orders": [{"id": 7, "status": "new", "note": "x"}]}))
    assert found == 'status of order_id=7 was "shipped" before, now it is "new"'
    assert contradictions(known, call("get_order_status", order_id=7), text({"status": "shipped"})) == ()


@pytest.mark.parametrize(
    ("asked", "value"),
    [
        (call("get_order", order_id=8), {"order_id": 8, "status": "new"}),  # another order
        (call("get_order", order_id=7, language="de"), {"order_id": 7, "status": "verschickt"}),  # asked otherwise
        (call("cancel_order", order_id=7), {"order_id": 7, "status": "cancelled"}),  # a write
        (call("get_user", user_id="u1"), {"user_id": "u1", "status": "gold"}),  # another thing
        (call("get_order", order_id=7), {"order_id": 7.0, "status": "shipped"}),
        (call("get_order", order_id=7), {"order_id": 7, "status": None}),
        (call("get_order", order_id=7), "the status is new"),
    ],
)
def test_what_is_no_contradiction(asked: ToolRequest, value: Any) -> None:
    assert contradictions(log((call("get_order", order_id=7), ORDER)), asked, text(value)) == ()


def test_after_a_write_the_old_facts_are_gone_and_its_own_hold() -> None:
    known = log(
        (call("get_order", order_id=7), ORDER),
        (call("cancel_order", order_id=7), {"order_id": 7, "status": "cancelled"}),
    )
    asked = call("get_order", order_id=7)
    assert known_facts(known) == {("order_id=7", "order_id"): 7, ("order_id=7", "status"): "cancelled"}
    assert contradictions(known, asked, text({"order_id": 7, "status": "cancelled"})) == ()
    assert len(contradictions(known, asked, text({"order_id": 7, "status": "shipped"}))) == 1


def test_failures_and_injected_faults_are_no_facts() -> None:
    asked = call("get_order", order_id=7)
    failed = ToolAnswer(content=text(ORDER), error=True, backend="simulate")
    faulty = ToolAnswer(content=text(ORDER), backend="simulate", fault="truncated")
    refused = log((asked, failed), (asked, faulty), (call("cancel_order", order_id=7), failed))
    assert known_facts(refused) == {}
    assert refused.writes_before == 0


def test_the_same_call_has_the_same_answer_until_a_write() -> None:
    asked = call("get_order", order_id=7)
    made = log((asked, "shipped"))
    made.add(asked, ToolAnswer(content="", backend="simulate", fault="empty"))
    again = same_answer(made, call("get_order", order_id=7.0))
    assert again == ToolAnswer(content="shipped", backend="simulate")
    assert same_answer(made, call("get_order", order_id=8)) is None
    made.add(call("refund", order_id=7), ToolAnswer(content="no", error=True))  # a write that failed changed nothing
    assert same_answer(made, asked) == again
    made.add(call("refund", order_id=7), ToolAnswer(content="done"))
    assert same_answer(made, asked) is None
    assert same_answer(CallLog(), asked) is None


names = st.sampled_from(["get_order", "list_orders", "getUser", "search_flights", "cancel_order", "x", ""])
keys = st.sampled_from(
    ["id", "order_id", "user_id", "flight_number", "code", "email", "orders", "user", "date", "status", "7", ""]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.sampled_from(["7", "a", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
calls = st.builds(
    lambda name, arguments: ToolRequest(tool=ToolSpec(name=name or "x"), arguments=arguments),
    names,
    st.dictionaries(keys, values, max_size=3),
)
answers = st.tuples(calls, values)


@given(calls, values | jsons() | objects())
def test_facts_are_a_function_of_the_value_alone(asked: ToolRequest, value: Any) -> None:
    found = facts_of(asked, json.dumps(value))
    assert found == facts_of(asked, json.dumps(_turned(value)))  # the order of keys says nothing
    assert all(told is not None and not isinstance(told, list | dict) for told in found.values())


@given(st.lists(answers, max_size=5), calls, values)
def test_an_answer_never_contradicts_itself(
    before: list[tuple[ToolRequest, Any]], asked: ToolRequest, value: Any
) -> None:
    made = log(*before, (asked, value))
    again = contradictions(made, asked, text(value))
    told_before = known_facts(log(*before))
    if not any(fact in told_before for fact in facts_of(asked, text(value))):
        assert again == ()
    repeated = same_answer(made, asked)
    assert repeated is None or repeated.content == next(
        entry.answer.content for entry in reversed(made.entries) if entry.request.key == asked.key
    )


@given(
    st.integers() | st.text(min_size=1),
    st.sampled_from(["status", "total", "ship_date"]),
    st.integers() | st.text(),
    st.integers() | st.text(),
    st.lists(
        st.tuples(calls.filter(lambda one: one.tool.name == "search_flights"), st.just({"nothing": 0})), max_size=3
    ),
)
def test_another_value_is_always_found(
    own: Any, field: str, one: Any, other: Any, between: list[tuple[ToolRequest, Any]]
) -> None:
    asked = call("get_order", order_id=own)
    made = log((asked, {"order_id": own, field: one}), *between)
    found = contradictions(made, asked, json.dumps({"order_id": own, field: other}))
    assert bool(found) == (one != other)


def _turned(value: Any) -> Any:
    """The same JSON with every object's keys the other way round."""
    if isinstance(value, dict):
        return {key: _turned(value[key]) for key in reversed(list(value))}
    return [_turned(item) for item in value] if isinstance(value, list) else value
