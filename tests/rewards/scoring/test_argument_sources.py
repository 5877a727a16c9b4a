"""`{from: user}`, `{from: tool}` and `{from: system}`: where an argument must have come from."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse, ToolSpec
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.trace import Trace
from tests.rewards.talk import call, say, trace, turn
from tests.types.test_spellings import spellings

ORDER = ToolSpec(
    name="get_order",
    description="Look up an order by the customer's number.",
    parameters={
        "properties": {
            "order_id": {"type": "string"},
            "cabin": {"enum": ["economy", "customer"]},
            "items": {"type": "array", "items": {"properties": {"size": {"enum": ["yes", "no"]}}}},
        }
    },
)


def dialogue(user: str, value: Any, *, name: str = "v", tools: tuple[ToolSpec, ...] = (), before: Any = None) -> Trace:
    """A user's message, a call with an argument, and its answer; before it another call with an answer of its own."""
    first: list[Message] = []
    if before is not None:
        first = [
            Message.of("assistant", calls=[ToolCall(id="0", name="search", arguments={})]),
            Message(role="tool", parts=(before,)),
        ]
    asked = Message.of("assistant", calls=[ToolCall(id="1", name="get_order", arguments={name: value})])
    answer = Message(role="tool", parts=(ToolCallResponse(id="1", response="found"),))
    messages = (
        Message.of("system", "Today is 2026-05-01."),
        Message.of("user", user),
        *first,
        asked,
        answer,
        *say("Done"),
    )
    calls = tuple(
        ModelCall(span_id=str(at), input=messages[:at], output=message, message=at, tools=tools)
        for at, message in enumerate(messages)
        if message.role == "assistant"
    )
    return Trace.of(Run(id="r", messages=messages, calls=calls))


def comes(one: Trace, source: str = "user", name: str = "v") -> bool | None:
    check = {"called": "get_order", "with": {name: {"from": source}}}
    return ChecklistScorer(Checklist(Item("it", check=check))).score_sync(one).verdicts[0].value


@pytest.mark.parametrize(
    "value",
    [
        "?",
        "a",
        "the",
        "order",
        "Order",
        "where",
        "is",
        "where is",
        "",
        " ",
        None,
        True,
        [],
        {},
        [None],
        "e",
        "s",
        "look",
    ],
)
@pytest.mark.parametrize("tools", [(), (ORDER,)])
def test_what_anybody_says_comes_from_nobody(value: Any, tools: tuple[ToolSpec, ...]) -> None:
    if value == "look" and not tools:
        return  # nothing tells that it is the tool's own word
    assert comes(dialogue("Where is the order? Look, true: e null a None, 7's", value, tools=tools)) is False


@pytest.mark.parametrize(
    ("user", "value"),
    [
        ("Where is order 7?", 7),
        ("Where is order 7?", "7"),
        ("Where is order 7?", 7.0),
        ("Where is order #W7-12/b_9?", "W7-12/b_9"),
        ("Where is order W712?", "#W712"),
        ("My mail is Ada.Lovelace@Example.com.", "ada.lovelace@example.com"),
        ("Pay $1,234.50", 1234.5),
        ("Pay 1.234,50 EUR", "1234.50"),
        ("On May 20th, 2026", "2026-05-20"),
        ("On 2026-05-20", "2026-05-20"),
        ("I am Noah’s friend Zoë", ["noah", "Zoë"]),
        (
            "Noah Brown, born 1980-01-02",
            [{"name": "Noah", "last": "Brown", "born": "1980-01-02", "vip": True, "x": None}],
        ),
        ("我的订单是99号，去東京", ["99", "東京"]),
    ],
)
def test_what_the_user_said(user: str, value: Any) -> None:
    assert comes(dialogue(user, value)) is True


@pytest.mark.parametrize(
    ("user", "value"),
    [
        ("Where is order 17?", 7),
        ("Where is order 7.5?", 7),
        ("Where is order 1,007?", 7),
        ("Where is order A7?", "7"),
        ("On 2026-05-20", "20"),
        ("On 2026-05-20", "2026-05-21"),
        ("On May 20", "2026-05-20"),
        ("Pay $1,234.50", 1234.05),
        ("It is unauthorised", "authorised"),
        ("Noah Brown", ["Noah", "Browne"]),
        ("It is -7 degrees", 7),
        ("ada@example.com", "example"),
        ("On 5/6/2026", "2026-05-06"),
    ],
)
def test_what_the_user_did_not_say(user: str, value: Any) -> None:
    assert comes(dialogue(user, value)) is False


def test_a_value_that_the_schema_lists_is_a_choice_and_no_word_about_the_tool() -> None:
    said = "Economy for the customer please, size no"
    assert comes(dialogue(said, "economy", name="cabin", tools=(ORDER,)), name="cabin") is True
    assert comes(dialogue(said, "customer", name="cabin", tools=(ORDER,)), name="cabin") is True
    assert comes(dialogue(said, "customer", name="order_id", tools=(ORDER,)), name="order_id") is False
    assert comes(dialogue(said, [{"size": "no"}], name="items", tools=(ORDER,)), name="items") is True


def test_a_tools_result_that_is_no_error_is_a_source() -> None:
    for response, known in (
        (ToolCallResponse(id="0", response={"order_id": "A-9"}), True),
        (ToolCallResponse(id="0", response='{"order_id": "A-9", "date": "2026-05-20"}'), True),
        (ToolCallResponse(id="0", response="no such order: A-9", error=True), False),
        (ToolCallResponse(id="0", response="Error: no such order A-9"), False),
    ):
        assert comes(dialogue("Hi", "A-9", before=response), "tool") is known
    keys = ToolCallResponse(id="0", response='{"order_id": "A-9"}')
    assert comes(dialogue("Hi", "order_id", name="w", before=keys), "tool", "w") is False
    ids = ToolCallResponse(id="0", response={"cards": {"card_9": {"last": "x"}}})
    assert comes(dialogue("Hi", "card_9", before=ids), "tool") is True  # a key that holds a digit is an id
    assert comes(dialogue("Hi", "found"), "tool") is False  # the answer to the call itself


def test_the_system_prompt_is_a_source() -> None:
    assert comes(dialogue("Hi", "2026-05-01"), "system") is True
    assert comes(dialogue("2026-05-02", "2026-05-02"), "system") is False
    assert comes(dialogue("Hi", "today"), "system") is True
    assert comes(dialogue("Hi", "is"), "system") is False


@given(st.dates(date(1990, 1, 1), date(2049, 12, 31)), st.data())
def test_a_date_comes_from_the_user_however_it_is_spelled(day: date, data: st.DataObject) -> None:
    said = data.draw(st.sampled_from(spellings(day)))
    assert comes(dialogue(f"I need it on {said}, thanks", day.isoformat())) is True
    other = data.draw(st.dates(date(1990, 1, 1), date(2049, 12, 31)).filter(lambda one: one != day))
    assert comes(dialogue(f"I need it on {said}, thanks", other.isoformat())) is False


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_number_is_whole(said: int, called: int) -> None:
    assert comes(dialogue(f"Where is {said}?", called)) is (said == called)
    assert comes(dialogue(f"Where is {said}?", str(called))) is (said == called)


@pytest.mark.parametrize("user", ["W 712", "w712, please", "It is W #712.", "order W_712", "W.712?", "no W: 712"])
@pytest.mark.parametrize("value", ["W-712", "w712", "#W712", "W 712"])
def test_an_id_comes_from_the_user_however_it_is_joined(user: str, value: str) -> None:
    assert comes(dialogue(user, value)) is True


@pytest.mark.parametrize(
    ("user", "value"),
    [
        ("W 713", "W-712"),
        ("W 7120", "W-712"),
        ("W 7.12", "W-712"),
        ("X 712", "W-712"),
        ("W-71 2", "W-712"),
        ("in 2026", "IN_2026_X"),
        ("I want 712 of them", "I-712"),
        ("a 17 day trip", "A17"),
        ("2026 05 20", "2026-05-20"),
    ],
)
def test_another_id_or_one_that_common_words_make_does_not(user: str, value: str) -> None:
    assert comes(dialogue(user, value)) is False


@given(
    st.text("bcdfgkqvwxz", min_size=2, max_size=4),
    st.integers(100, 10**9),
    st.sampled_from(["", " ", "-", "_", "/", "#", " #"]),
    st.sampled_from(["", "-", "_"]),
)
def test_ids_of_letters_and_a_number_are_found_and_their_neighbours_are_not(
    letters: str, number: int, said: str, given: str
) -> None:
    text = f"It is about {letters.upper()}{said}{number}, thanks."
    assert comes(dialogue(text, f"{letters}{given}{number}")) is True
    assert comes(dialogue(text, f"{letters}{given}{number + 1}")) is False
    assert comes(dialogue(text, f"{letters}x{given}{number}")) is False


@pytest.mark.parametrize("user", ["Hi, cancel it", "ok, in May it will do for us", "hey"])
@pytest.mark.parametrize("value", ["hi", "hey", "ok", "it", "in", "us", "will"])
def test_greetings_and_small_words_come_from_nowhere(user: str, value: str) -> None:
    assert comes(dialogue(user, value)) is False


def test_codes_in_capitals_are_values() -> None:
    assert comes(dialogue("Ship it to IT", "IT")) is True


def verdict(check: dict[str, Any], one: Trace) -> bool | None:
    return ChecklistScorer(Checklist(Item("it", check=check))).score_sync(one).verdicts[0].value


NOTHING = [
    "Order W-999 not found",
    {"query": "W-999", "results": []},
    {"id": "W-999", "order": None},
    "No order W-999 found",
]


@pytest.mark.parametrize("nothing", NOTHING)
def test_an_invented_id_is_no_tools_because_a_tool_that_found_nothing_repeats_it(nothing: Any) -> None:
    made_up = trace(turn("Cancel it.", call("get_order", nothing, id="W-999"), call("cancel", "done", id="W-999")))
    assert verdict({"called": "cancel", "with": {"id": {"from": "tool"}}}, made_up) is False
    found = {"id": "W-712", "status": "open", "items": []}
    looked_up = trace(turn("Cancel it.", call("get_order", found, id="W-712"), call("cancel", "done", id="W-712")))
    assert verdict({"called": "cancel", "with": {"id": {"from": "tool"}}}, looked_up) is True


@pytest.mark.parametrize("answer", ["W-999", {"note": "W-999", "ok": True}, {"note": "W-999", "status": "saved"}])
def test_a_tool_that_only_repeats_the_call_is_no_source_of_what_nobody_said_before(answer: Any) -> None:
    check = {"called": "cancel", "with": {"id": {"from": "tool"}}}
    steps = (call("note", answer, note="W-999"), call("cancel", "done", id="W-999"))
    assert verdict(check, trace(turn("Cancel it.", *steps))) is False
    assert verdict(check, trace(turn("Cancel W-999.", *steps))) is True
    listed = call("list_orders", [{"id": "W-999"}])
    assert verdict(check, trace(turn("Cancel it.", listed, *steps))) is True


@pytest.mark.parametrize("nothing", ["Order W-9 not found", {"found": False}, {"message": "No such order"}])
def test_a_call_for_what_is_not_there_ran_and_did_not_succeed(nothing: Any) -> None:
    one = trace(turn("Where is W-9?", call("get_order", nothing, id="W-9"), say("There is no such order.")))
    assert verdict({"called": "get_order"}, one) is True
    assert verdict({"called": "get_order", "succeeded": True}, one) is False
    assert verdict({"no_tool_error": True}, one) is True


@pytest.mark.parametrize("empty", ["[]", [], "No flights available", {"results": []}, "", None])
def test_a_search_without_results_succeeded(empty: Any) -> None:
    one = trace(turn("Any flights?", call("search", empty, to="JFK"), say("There are none.")))
    assert verdict({"called": "search", "succeeded": True}, one) is True
