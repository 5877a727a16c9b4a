"""A reply states the tool's own value, or matches a pattern: in its usual spellings, not denied, and not hedged."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.errors import ChecklistError
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.trace import Trace
from tests.rewards.talk import call, say, trace, turn
from tests.types.test_spellings import amounts, spellings

ORDER = {
    "status": "shipped",
    "arrives": "2026-05-20",
    "ordered": "2026-05-10",
    "price": 1234.5,
    "id": "W-712",
    "eta": "2026-05-20T14:30:00",
    "express": True,
    "items": [{"day": "2026-05-20"}, {"day": "2026-05-22"}],
}
DAYS = st.dates(date(1990, 1, 1), date(2049, 12, 31))


def stated(
    reply: str, result: Any = ORDER, *, user: str = "Where is order 7?", error: bool = False, **source: Any
) -> Any:
    """The verdict on one dialogue: a look-up, and a reply."""
    one = trace(turn(user, call("get_order", result, error=error, order_id=7), say(reply)))
    return verdict(one, **(source or {"path": "arrives"}))


def verdict(one: Trace, *, kind: Any = None, turn: Any = "trace", **source: Any) -> bool | None:
    check = {"reply_states": {"from": {"tool": "get_order", **source}}}
    return ChecklistScorer(Checklist(Item("it", check=check, kind=kind, turn=turn))).score_sync(one).verdicts[0].value


@pytest.mark.parametrize(
    ("path", "reply"),
    [
        ("arrives", "It arrives on 2026-05-20."),
        ("arrives", "It was shipped and arrives on May 20th."),
        ("arrives", "Wednesday, 20 May 2026"),
        ("arrives", "Es kommt am 20.05.2026 an."),
        ("arrives", "It arrives on 5/20/2026"),
        ("arrives", "Ordered May 10, arrives May 20."),
        ("arrives", "It has not left yet, but it arrives on 20 May."),
        ("arrives", "No problem! May 20, 2026."),
        ("arrives", "It arrives May 20, is there anything else?"),
        ("arrives", "On May 20 we deliver 3 parcels for 2 EUR."),
        ("arrives", "It does not arrive on May 19 but on May 20."),
        ("price", "It costs $1,234.50."),
        ("price", "1.234,50 EUR"),
        ("price", "USD 1234.50 plus shipping in 3 days"),
        ("price", "Order 7 costs 1,234.50 for 3 items"),
        ("price", "1234.5, delivered within 2 to 3 days"),
        ("id", "Your order W-712 is here"),
        ("id", "w 712"),
        ("id", "See https://x.org/orders/W712"),
        ("status", "Status: SHIPPED"),
        ("eta", "It arrives on May 20 at 14:30"),
        ("eta", "May 20, 2:30 pm"),
        ("eta", "It arrives on 2026-05-20"),
        ("items.*.day", "On May 20 and May 22."),
        ("items.1.day", "On May 22."),
        ("items.-1.day", "On May 22."),
    ],
)
def test_what_states_it(path: str, reply: str) -> None:
    assert stated(reply, path=path) is True


@pytest.mark.parametrize(
    ("path", "reply"),
    [
        ("arrives", "It arrives on 2026-05-21."),
        ("arrives", "It arrives on 2025-05-20."),
        ("arrives", "May 20 or May 21 or May 22"),
        ("arrives", "May 20 or 21"),
        ("arrives", "May 10 or May 20"),
        ("arrives", "It arrives between May 19 and May 20"),
        ("arrives", "It arrives May 20. Or June 1."),
        ("arrives", "18-20 May"),
        ("arrives", "May 20 or Thursday"),
        ("arrives", "05/20/2026 05/21/2026 05/22/2026"),
        ("arrives", "It does not arrive on 2026-05-20"),
        ("arrives", "I cannot confirm that it arrives on May 20"),
        ("arrives", "Does it arrive on May 20?"),
        ("arrives", "If it arrives on May 20, call us"),
        ("arrives", "I need a date such as 2026-05-20"),
        ("arrives", "Hello"),
        ("arrives", ""),
        ("price", "It costs $1,234.05"),
        ("price", "1,234.50 or 1,300.00"),
        ("price", "$1,234.50, $1,235.50"),
        ("price", "It costs 1,200, 1,234.50 or 1,300 EUR"),
        ("price", "not 1,234.50"),
        ("price", "1234.5 1234.6 1234.7"),
        ("price", "It costs 1234.5, maybe 1234.6"),
        ("price", "It costs 1234.5. Possibly 1234.6."),
        ("price", "$1,234.50. Maybe $99."),
        ("id", "W-713"),
        ("id", "W-7123"),
        ("id", "W-711, W-712, W-713"),
        ("id", "It is not W-712"),
        ("status", "It was not shipped"),
        ("status", "unshipped"),
        ("status", "shipped or delivered"),
        ("status", "delivered/shipped"),
        ("status", "Was it shipped?"),
        ("eta", "May 20 at 15:30"),
        ("eta", "May 21 at 14:30"),
        ("express", "true"),
        ("nothing", "nothing None null"),
        ("items.*.day", "On May 20."),
        ("items.7.day", "On May 20."),
        ("arrives.deeper", "2026-05-20"),
    ],
)
def test_what_does_not(path: str, reply: str) -> None:
    assert stated(reply, path=path) is False


@given(DAYS, st.data())
def test_any_usual_spelling_of_the_date_and_no_other_date(day: date, data: st.DataObject) -> None:
    frames = ["It arrives on {}.", "{}", "Your order is on its way. ({})", "It is late, but it comes on {}, promised."]
    reply = data.draw(st.sampled_from(frames)).format(data.draw(st.sampled_from(spellings(day))))
    result = {"arrives": day.isoformat()}
    assert stated(reply, result) is True
    other = day + timedelta(days=data.draw(st.sampled_from([-365, -30, -1, 1, 2, 10, 31, 366])))
    assert stated(reply, {"arrives": other.isoformat()}) is False
    assert stated(f"{reply} Or {data.draw(st.sampled_from(spellings(other)))}.", result) is False
    assert stated(f"It does not arrive on {day.isoformat()}.", result) is False


@given(st.decimals(Decimal("0.01"), Decimal("9999999"), places=2), st.data())
def test_any_usual_spelling_of_the_amount_and_no_other(value: Decimal, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(amounts(value)))
    assert stated(f"It costs {text} in all.", {"price": float(value)}, path="price") is True
    other = value + Decimal(data.draw(st.sampled_from(["0.01", "1", "10", "0.1", "1000"])))
    assert stated(f"It costs {text} in all.", {"price": float(other)}, path="price") is False
    assert stated(f"It costs {text} or {other} in all.", {"price": float(value)}, path="price") is False


@given(st.from_regex(r"[A-Z]{1,3}-?[0-9]{2,6}", fullmatch=True), st.sampled_from("0123456789"))
def test_an_id_is_whole(identity: str, more: str) -> None:
    for text in (identity, identity.lower(), identity.replace("-", ""), identity.replace("-", " ")):
        assert stated(f"Your order is {text}.", {"id": identity}, path="id") is True
    assert stated(f"Your order is {identity}{more}.", {"id": identity}, path="id") is False
    assert stated(f"Your order is X{identity}.", {"id": identity}, path="id") is False


@given(st.text(max_size=80))
def test_text_that_anyone_can_say_states_no_order(reply: str) -> None:
    if "712" not in reply:
        assert stated(reply, path="id") is False


def test_a_pattern_finds_the_value_in_plain_text() -> None:
    plain = "shipped, arrives on 2026-05-20"
    assert stated("It comes on May 20.", plain, pattern=r"on (\S+)$") is True
    assert stated("It comes on May 20.", plain, pattern=r"\d{4}-\d\d-\d\d") is True
    assert stated("It comes on May 20.", plain, pattern=r"due (\S+)$") is False
    assert stated("It comes on May 20.", {"note": plain}, path="note", pattern=r"on (\S+)$") is True
    assert stated("It comes on May 20.", "2026-05-20", pattern=".+") is True
    assert stated("It was Shipped, arrives on 2026-05-20!", plain, pattern=".+") is True
    assert stated("It comes on May 20.", '{"arrives": "2026-05-20"}') is True  # JSON as text


def test_the_latest_successful_call_before_the_reply_counts() -> None:
    def look(day: str, **more: Any) -> Any:
        return call("get_order", {"arrives": day}, order_id=7, **more)

    said = say("It arrives on May 20.")
    two = trace(turn("Order 7?", look("2026-05-19"), look("2026-05-20"), said))
    assert verdict(two, path="arrives") is True
    assert verdict(trace(turn("Order 7?", look("2026-05-20"), look("2026-05-19"), said)), path="arrives") is False
    assert verdict(trace(turn("Order 7?", look("2026-05-20"), look("x", error=True), said)), path="arrives") is True
    assert verdict(trace(turn("Order 7?", look("2026-05-20", error=True), said)), path="arrives") is False
    assert verdict(trace(turn("Order 7?", said, look("2026-05-20"))), path="arrives") is False
    later = trace(turn("Order 7?", look("2026-05-20"), say("One moment")), turn("When?", said))
    assert verdict(later, path="arrives", turn=1) is True
    assert verdict(later, path="arrives", turn=0) is False
    other = trace(turn("7?", look("2026-05-20"), call("get_order", {"arrives": "2026-06-01"}, order_id=8), said))
    assert verdict(other, path="arrives", **{"with": {"order_id": 7}}) is True
    assert verdict(other, path="arrives") is False


def test_values_that_the_user_or_a_tool_named_may_stand_beside_it() -> None:
    reply = "It arrives on May 20, later than May 18; it was ordered on May 10."
    assert stated(reply) is False
    assert stated(reply, user="I hoped for May 18, 2026") is True


def test_where_it_is_forbidden_any_mention_counts() -> None:
    one = trace(turn("Order 7?", call("get_order", {"secret": "W-712"}), say("I cannot tell you that it is W712.")))
    assert verdict(one, path="secret", kind="avoid") is False
    assert (
        verdict(trace(turn("?", call("get_order", {"secret": "W-712"}), say("No."))), path="secret", kind="avoid")
        is True
    )


@pytest.mark.parametrize(
    ("reply", "pays"),
    [
        ("It arrives on 2026-05-20.", True),
        ("It does not arrive on 2026-05-20.", False),
        ("I cannot confirm that it arrives on 2026-05-20.", False),
        ("I cannot tell you a date such as 2026-05-20.", False),
        ("It has not left yet, but it arrives on 2026-05-20.", True),
        ("It is not 2026-05-19. It is 2026-05-20.", True),
    ],
)
def test_a_denied_match_does_not_count(reply: str, pays: bool) -> None:
    one = trace(turn("When?", say(reply)))

    def value(check: dict[str, Any], kind: Any = None) -> bool | None:
        return ChecklistScorer(Checklist(Item("it", check=check, kind=kind))).score_sync(one).verdicts[0].value

    pattern = {"reply_matches": r"\d{4}-\d{2}-\d{2}"}
    assert value(pattern) is pays
    assert value({**pattern, "negated": "allowed"}) is True
    assert value(pattern, "avoid") is False, "what is forbidden counts however it is said"
    assert value({**pattern, "negated": "refused"}, "avoid") is (not pays)
    assert value({"reply_matches": "(does not|cannot|has not|is not|arrives)"}) is True, "a pattern's own negation"


@pytest.mark.parametrize(
    "check",
    [
        {"reply_states": {"from": {"path": "x"}}},
        {"reply_states": {"from": {"tool": "f", "pattern": "(a)(b)"}}},
        {"reply_states": {"from": {"tool": "f", "pattern": "(?=a)"}}},
        {"reply_states": {"from": {"tool": "f", "with": {"a": {"from": "nobody"}}}}},
        {"reply_states": {"from": "f"}},
        {"reply_states": {"from": {"tool": "f", "way": "x"}}},
        {"reply_matches": "x", "negated": "sometimes"},
        {"called": "f", "failed": "allowed", "succeeded": True},
    ],
)
def test_malformed_checks_are_refused(check: dict[str, Any]) -> None:
    with pytest.raises(ChecklistError):
        Checklist(Item("it", check=check))


@pytest.mark.parametrize(
    ("path", "reply"),
    [
        ("arrives", "Unfortunately, it won't be sooner: it arrives on May 20."),
        ("arrives", "Let me know if anything is unclear: it arrives on May 20."),
        ("arrives", "It arrives on May 20 (no signature needed)."),
        ("arrives", "Status: shipped (not delivered), arrival: 2026-05-20"),
        ("arrives", "Your order arrives on May 20, 2026 (not May 19)."),
        ("arrives", "It is arriving on May 20 rather than May 19."),
        ("arrives", "Shipped, not yet delivered, arriving May 20."),
        ("arrives", "Die Bestellung ist noch nicht zugestellt und kommt am 20. Mai an."),
        ("arrives", "Ohne Gewähr: Ankunft am 20. Mai 2026."),
        ("arrives", "Am 20.05. kommt sie an."),
        ("arrives", "Ankunft: 20. 5. 2026"),
        ("arrives", "It will be there by 5/20."),
        ("arrives", "It arrives on _May 20_."),
        ("arrives", "It arrives no later than May 20."),
        ("arrives", "It arrives on or after all on May 20."),
        ("price", "The total is $1,234.50 (tax not included)."),
        ("price", "Am Ende kostet es 1.234,50."),
        ("id", "Order **W-712** has not been shipped yet."),
        ("id", "Your order (W-712) cannot be cancelled."),
    ],
)
def test_a_negation_of_something_else_denies_no_value(path: str, reply: str) -> None:
    assert stated(reply, path=path)


@pytest.mark.parametrize(
    ("path", "reply"),
    [
        ("arrives", "It is false: it arrives on May 20."),
        ("arrives", "The following is wrong: it arrives on May 20."),
        ("arrives", "I cannot confirm: it arrives on May 20."),
        ("arrives", "It arrives on May 20 (not confirmed)."),
        ("arrives", "It arrives (not) on May 20."),
        ("arrives", "Any day except May 20."),
        ("arrives", "It arrives on any day but May 20."),
        ("arrives", "Jeder Tag außer dem 20. Mai."),
        ("arrives", "The day after May 20."),
        ("arrives", "It arrives later than May 20."),
        ("arrives", "Two days before May 20."),
        ("arrives", "A week from May 20."),
        ("arrives", "Am Tag nach dem 20. Mai."),
        ("arrives", "It will be there by 5/21."),
        ("arrives", "Am 21.05. kommt sie an."),
        ("arrives", "Am 20.05. oder am 21.05."),
        ("price", "It costs -$1,234.50."),
        ("price", "It costs 1234.50 (not confirmed)."),
        ("id", "It is not W-712."),
        ("id", "W-712 is not your order."),
        ("id", "W-712 is wrong."),
        ("id", "Any order but W-712."),
        ("status", "shipped, delivered or lost"),
        ("status", "It is pre-shipped."),
    ],
)
def test_an_exception_an_offset_or_another_sign_states_no_value(path: str, reply: str) -> None:
    assert not stated(reply, path=path)


def test_an_amount_that_is_owed_is_stated_with_its_sign() -> None:
    assert stated("The balance is -$12.50.", {"balance": -12.5}, path="balance")
    assert not stated("The balance is $12.50.", {"balance": -12.5}, path="balance")
    assert not stated("It is non-refundable.", {"fare": "refundable"}, path="fare")


@pytest.mark.parametrize(
    ("value", "reply"),
    [
        ("out_for_delivery", "It is out for delivery."),
        ("IN_TRANSIT", "It's **in transit** now."),
        ("Anna Müller", "It is for **Anna** Müller."),
        ("https://x.com/t/123", "See [here](https://x.com/t/123)."),
        ("a1@b.com", "Write to a1@b.com."),
        ("+49 170 1234567", "Call +49 170 1234567."),
        ("14:30", "It comes at 2:30 pm."),
        ("14:30", "Um 14:30 Uhr."),
        (15000, "It has 15k points."),
        (2_500_000, "It has 2.5 million points."),
    ],
)
def test_codes_addresses_times_and_round_numbers_are_stated(value: Any, reply: str) -> None:
    assert stated(reply, {"it": value}, path="it")


@pytest.mark.parametrize(
    ("value", "reply"),
    [
        ("out_for_delivery", "It is not out for delivery."),
        ("https://x.com/t/123", "See https://x.com/t/124."),
        ("a1@b.com", "Write to a1@c.com."),
        ("14:30", "It comes at 2:30 am."),
        ("14:30", "It comes at 14:30 or 15:30."),
        (15, "It has 15k points."),
        (15, "It has 15 million points."),
    ],
)
def test_other_codes_addresses_times_and_round_numbers_are_not(value: Any, reply: str) -> None:
    assert not stated(reply, {"it": value}, path="it")


@pytest.mark.parametrize("reply", ["May 20, May 21, or May 22.", "May 20, May 21 or May 22", "On May 21 or on May 20"])
def test_dates_that_the_user_named_are_no_excuse_for_an_or(reply: str) -> None:
    assert not stated(reply, user="Is it May 20, May 21 or May 22?")
