"""A hedge is no statement: guesses, bounds, rough figures and what was planned before do not state a value."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rewards.scoring.test_reply_states import stated

GUESSES = (
    "Maybe on {}.",
    "It comes on {}, maybe.",
    "Perhaps it arrives on {}.",
    "Possibly {}.",
    "It will probably arrive on {}.",
    "I think it arrives on {}.",
    "It arrives on {}, I believe.",
    "My guess is {}.",
    "It might be {}.",
    "The parcel could arrive on {}.",
    "It may still come on {}.",
    "At the earliest {}.",
    "{} at the earliest.",
    "It arrives as early as {}.",
    "It arrives on {} at best.",
    "Hopefully on {}!",
    "With some luck it is there on {}.",
    "It arrives on {} if all goes well.",
    "It arrives on {} or later.",
    "It's possible that it arrives on {}.",
    "There is a chance that it comes on {}.",
    "I'm not sure, but {}.",
    "If I am not mistaken, it arrives on {}.",
    "It arrives from {} on.",
    "Vielleicht am {}.",
    "Frühestens am {} ist es da.",
    "Es könnte am {} kommen.",
    "Peut-être le {}.",
    "Au plus tôt le {}.",
    "Quizás el {}.",
    "Forse il {}.",
    "{}, give or take a few days.",
    "{} ± 2 days",
    "Rumor has it that it comes on {}.",
    "It arrives on {}, unless it is delayed.",
    "It arrives within a week of {}.",
    "Two days past {}.",
)
DAYS_BEFORE = (
    "It was to arrive on {} but there is a delay.",
    "It was supposed to arrive on {}.",
    "It should have arrived on {}.",
    "It would have come on {}.",
    "The old date was {}.",
    "The old dates were May 19 and {}.",
    "Originally it was {}.",
    "The previous delivery date, {}, does no longer hold.",
    "It was due on {}, but it has been postponed.",
    "It was scheduled for {}. However, that has changed.",
    "It was moved from {} to a later day.",
    "{} was wrong.",
    "{} was the old date.",
    "{} has been postponed.",
    "{} is outdated.",
    "Ursprünglich war es der {}.",
    "It arrives before {}.",
    "It arrives around {}.",
    "Es kommt ungefähr am {}.",
    "It was expected on {}; there is a delay.",
    "{} (old), another day (new)",
)
STATED = (
    "It arrives on {}.",
    "It should arrive on {}.",
    "It is expected on {}.",
    "It is scheduled to arrive on {}.",
    "It is supposed to arrive on {}.",
    "It is due by {}.",
    "The estimated date is {}.",
    "I could see that it arrives on {}.",
    "You may want to know that it arrives on {}.",
    "Maybe you have heard already, but it arrives on {}.",
    "It was shipped yesterday and arrives on {}.",
    "Not on May 19 but on {}.",
    "It was due on May 19, but now it arrives on {}.",
    "It arrives on or before {}.",
    "It arrives on {}. Maybe you want to be at home.",
    "Your order was delayed; it arrives on {}.",
    "You should have received a mail: it arrives on {}.",
    "You should have it on {}.",
    "Originally May 19 was planned, now it arrives on {}.",
    "Ursprünglich war der 19. Mai geplant, jetzt kommt es am {}.",
    "It arrives on {}, I think you will be happy.",
    "It arrives on {}, maybe you want to be at home.",
    "It arrives on {} as originally planned.",
    "Es kommt am {} an.",
    "Il arrive le {}.",
)
SPELLED = ("2026-05-20", "May 20", "20 May 2026", "Wednesday, May 20th")


@pytest.mark.parametrize("day", SPELLED)
@pytest.mark.parametrize("template", GUESSES + DAYS_BEFORE)
def test_a_hedged_or_superseded_date_is_not_stated(template: str, day: str) -> None:
    assert stated(template.format(day), user="Not on May 19?") is False


@pytest.mark.parametrize("day", SPELLED)
@pytest.mark.parametrize("template", STATED)
def test_a_date_that_is_expected_or_beside_a_hedge_of_something_else_is_stated(template: str, day: str) -> None:
    assert stated(template.format(day), user="Not on May 19?") is True


@pytest.mark.parametrize(
    ("path", "reply", "expected"),
    [
        ("price", "It costs about 1,234.50 EUR.", False),
        ("price", "It costs up to 1,234.50 EUR.", False),
        ("price", "It costs more than 1,234.50 EUR.", False),
        ("price", "It costs at least $1,234.50.", False),
        ("price", "Perhaps 1234.50", False),
        ("price", "It costs 1,234.50 EUR.", True),
        ("price", "The original price is 1,234.50 EUR.", True),
        ("price", "It was 1,234.50 EUR in all.", True),
        ("id", "I think it is W-712.", False),
        ("id", "Your previous order W-712 was cancelled.", True),
        ("id", "Order W-712 may be late.", True),
        ("id", "Order W-712 was to arrive yesterday.", True),
        ("status", "Maybe it has shipped.", False),
        ("status", "It has shipped and should arrive soon.", True),
        ("status", "It will be shipped tomorrow.", False),
        ("status", "It should be shipped.", False),
        ("status", "It would have been shipped.", False),
        ("status", "It has yet to be shipped.", False),
        ("status", "Once shipped, it is traced.", False),
        ("status", "You get a mail when it is shipped.", False),
        ("status", "It will be with you soon, since it has shipped.", True),
        ("status", "Shipped, delivered, cancelled, pending", False),
        ("status", "Possible values: shipped, pending", False),
        ("status", "Packed, insured and shipped by DHL.", True),
        ("price", "It costs $1,234.50+.", False),
        ("price", "It costs >$1,234.50.", False),
        ("price", "It costs 1,234.50 EUR and up.", False),
        ("price", "<b>1,234.50 EUR</b>", True),
        ("price", "> 1,234.50 EUR", True),
    ],
)
def test_amounts_ids_and_words(path: str, reply: str, expected: bool) -> None:
    assert stated(reply, path=path) is expected


def test_a_date_that_is_said_to_be_wrong_is_not_stated_though_the_right_one_is_known() -> None:
    monday: Any = {"arrives": "2026-05-22", "before": "2026-05-20"}
    reply = "May 20 was wrong, it is May 22."
    assert stated(reply, monday, path="before") is False
    assert stated(reply, monday, path="arrives") is True


@given(st.sampled_from(GUESSES), st.sampled_from(STATED), st.sampled_from(SPELLED))
def test_what_is_hedged_once_and_stated_once_is_stated(hedge: str, statement: str, day: str) -> None:
    assert stated(f"{statement.format(day)}\n\n{hedge.format(day)}", user="Not on May 19?") is True


@pytest.mark.parametrize(
    ("value", "reply", "expected"),
    [
        ("30.00 EUR", "It takes 30 days.", False),
        ("30.00 EUR", "30 cents", False),
        ("30.00 EUR", "It costs 30 in all.", True),
        ("15%", "15 days", False),
        ("15%", "15 EUR", False),
        ("15%", "15 %", True),
        ("B12", "Gates B1, B2, B12", False),
        ("B12", "Gate B12, seat A1", True),
    ],
)
def test_other_units_and_lists_of_ids(value: str, reply: str, expected: bool) -> None:
    assert stated(reply, {"value": value}, path="value") is expected
