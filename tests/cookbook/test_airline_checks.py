"""The generic airline checklist of the cookbook: what each item catches, and that idleness where something was due is
not paid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cm2_agent.importers import Imported, read_recordings
from cm2_agent.rewards.scoring.checks import load_functions
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist_yaml import load_checklist
from tests.importers.recordings import (
    CANCEL,
    CHANGE,
    FLIGHT,
    LOOKUP,
    RESERVATION,
    STOP,
    USER,
    call,
    cancelling,
    denying,
    record,
    saved,
    say,
)

COOKBOOK = Path(__file__).parents[2] / "cookbook"
YES = [say("assistant", "I would do that. Proceed?"), say("user", "Yes.")]
SEARCH = call(
    "search_direct_flight",
    {"origin": "A", "destination": "B", "date": "2024-06-02"},
    [
        {
            "flight_number": "HAT901",
            "origin": "A",
            "destination": "B",
            "available_seats": {"business": 3},
            "prices": {"business": 500},
        },
        {
            "flight_number": "HAT902",
            "origin": "A",
            "destination": "B",
            "available_seats": {"business": 3},
            "prices": {"business": 400},
        },
    ],
)
TWO = [*call("get_user_details", {"user_id": "ada_1"}, {**USER, "reservations": ["QQ7AA1", "QQ7AA2"]}, 1), *LOOKUP[2:]]
BAGS = {"reservation_id": "QQ7AA1", "total_baggages": 5, "nonfree_baggages": 2, "payment_id": "gift_card_1"}
CHANGED = {**RESERVATION, "flights": [FLIGHT], "payment_history": [{"payment_id": "gift_card_1", "amount": 90}]}
HOW = {  # what is asked of a write: unpaid where one was due and none was made
    "confirmed_first",
    "cancels_only_what_may_be",
    "changes_only_what_may_be",
    "compensates_only_who_may_be",
    "charges_bags_by_allowance",
    "pays_as_allowed",
    "keeps_to_the_budget",
    "books_what_it_found",
    "takes_the_cheapest_when_asked",
}


@pytest.fixture(scope="module")
def scorer() -> ChecklistScorer:
    functions = load_functions(COOKBOOK / "airline_checks.py")
    return ChecklistScorer(load_checklist(COOKBOOK / "airline.yaml", functions), functions=functions)


def failed(scorer: ChecklistScorer, folder: Path, one: dict[str, Any]) -> tuple[float, set[str]]:
    """The reward, and the items that were not paid."""
    (found,) = read_recordings("tau-bench", saved(folder, [one]))
    assert isinstance(found, Imported)
    score = scorer.score_sync(found.trace)
    assert score.reward is not None
    assert None not in [verdict.paid for verdict in score.verdicts]
    return score.reward, {verdict.item for verdict in score.verdicts if not verdict.paid}


def dialogue(
    *parts: list[dict[str, Any]], user: str = "I am ada_1, about QQ7AA1.", reply: str = "Good."
) -> dict[str, Any]:
    turns = [
        say("user", user),
        *(message for part in parts for message in part),
        say("assistant", reply),
        say("user", STOP),
    ]
    return record(8, 0, 0.0, [], [], turns)


def using(**changed: Any) -> list[dict[str, Any]]:
    """The look-ups, with another reservation."""
    return [*LOOKUP[:2], *call("get_reservation_details", {"reservation_id": "QQ7AA1"}, {**RESERVATION, **changed}, 2)]


def certificate(amount: int = 100) -> list[dict[str, Any]]:
    return call("send_certificate", {"user_id": "ada_1", "amount": amount}, "Certificate certificate_1 added")


def moving(**changed: Any) -> list[dict[str, Any]]:
    return call("update_reservation_flights", {**CHANGE, **changed}, CHANGED)


def bags(**changed: Any) -> list[dict[str, Any]]:
    return call("update_reservation_baggages", {**BAGS, **changed}, RESERVATION)


@pytest.mark.parametrize(
    "right",
    [
        cancelling(0, extra=False),
        denying(0, gives_in=False),
        dialogue(LOOKUP, SEARCH, YES, moving(), reply="QQ7AA1 has been changed."),
        dialogue(LOOKUP, YES, bags()),
        dialogue(LOOKUP, YES, certificate(), user="I am ada_1; QQ7AA1 was cancelled and I want compensation."),
    ],
)
def test_a_right_dialogue_is_paid_in_full(scorer: ChecklistScorer, tmp_path: Path, right: dict[str, Any]) -> None:
    assert failed(scorer, tmp_path, right) == (1.0, set())


@pytest.mark.parametrize(
    ("wrong", "items"),
    [
        (dialogue(LOOKUP, user="I am ada_1. Please move QQ7AA1.", reply="No."), {"acts_or_has_a_reason", *HOW}),
        (dialogue(LOOKUP, YES), {"does_what_was_confirmed", *HOW}),
        (
            dialogue(LOOKUP, YES, CANCEL, call("update_reservation_flights", CHANGE, "Error: no")),
            {"finishes_what_it_began"},
        ),
        (
            dialogue(TWO, YES, CANCEL, user="I am ada_1. Cancel all my flights."),
            {"looks_at_all_when_all_are_meant"},
        ),
        (
            dialogue(LOOKUP, YES, bags(), user="I am ada_1. Please cancel QQ7AA1, and add bags."),
            {"cancels_what_may_be"},
        ),
        (
            dialogue(LOOKUP, SEARCH, YES, moving(), user="I am ada_1. Change the passenger on QQ7AA1 to Bob."),
            {"changes_the_passenger"},
        ),
        (
            dialogue(LOOKUP, SEARCH, YES, moving(), user="I am ada_1. Move QQ7AA1, I can pay up to $50."),
            {"keeps_to_the_budget"},
        ),
        (dialogue(LOOKUP, CANCEL), {"confirmed_first"}),
        (dialogue(LOOKUP[:2], YES, CANCEL), {"cancels_only_what_may_be"}),
        (dialogue(using(cabin="economy"), YES, CANCEL), {"cancels_only_what_may_be"}),
        (
            dialogue(using(flights=[{"flight_number": "HAT900", "date": "2024-05-14"}]), YES, CANCEL),
            {"cancels_only_what_may_be"},
        ),
        (dialogue(using(cabin="basic_economy"), SEARCH, YES, moving()), {"changes_only_what_may_be"}),
        (dialogue(using(total_baggages=6), YES, bags()), {"changes_only_what_may_be"}),
        (dialogue(LOOKUP, YES, bags(nonfree_baggages=0)), {"charges_bags_by_allowance"}),
        (dialogue(LOOKUP, SEARCH, YES, moving(payment_id="gift_card_9")), {"pays_as_allowed"}),
        (dialogue(LOOKUP, SEARCH, YES, moving(payment_id="certificate_1")), {"pays_as_allowed"}),
        (
            dialogue(
                LOOKUP,
                SEARCH,
                YES,
                moving(payment_id="credit_card_2"),
                user="I am ada_1; pay with the card ending in 7334.",
            ),
            {"pays_as_allowed"},
        ),
        (dialogue(LOOKUP, YES, moving()), {"books_what_it_found"}),
        (
            dialogue(LOOKUP, SEARCH, YES, moving(), user="I am ada_1. The cheapest flight, please."),
            {"takes_the_cheapest_when_asked"},
        ),
        (dialogue(LOOKUP, YES, certificate()), {"compensates_only_who_may_be"}),
        (
            dialogue(LOOKUP, YES, certificate(70), user="I am ada_1; QQ7AA1 was delayed and I want compensation."),
            {"compensates_only_who_may_be"},
        ),
        (
            dialogue(LOOKUP, user="I am ada_1; my flight was cancelled, I want compensation.", reply="No."),
            {"acts_or_has_a_reason", "compensates_who_asks", *HOW},
        ),
        (dialogue(LOOKUP, reply="QQ7AA1 has been cancelled."), {"claims_only_what_was_done"}),
    ],
)
def test_each_item_catches_its_own_fault(
    scorer: ChecklistScorer, tmp_path: Path, wrong: dict[str, Any], items: set[str]
) -> None:
    reward, found = failed(scorer, tmp_path, wrong)
    assert found == items
    assert 0 < reward < 1


def test_doing_nothing_is_worth_less_than_doing_it(scorer: ChecklistScorer, tmp_path: Path) -> None:
    """Whoever was asked to cancel what may be cancelled, or had a yes, and did nothing, is paid for nothing that speaks
    of writes."""
    right, _ = failed(scorer, tmp_path, cancelling(0, extra=False))
    for one in (dialogue(LOOKUP, user="I am ada_1. Please cancel QQ7AA1."), dialogue(LOOKUP, YES)):
        reward, items = failed(scorer, tmp_path, one)
        assert items >= HOW
        assert reward < right / 2
    assert failed(scorer, tmp_path, dialogue())[0] == 0
    withdrawn = dialogue(LOOKUP, YES, [say("assistant", "It costs 9000."), say("user", "Never mind then.")])
    assert failed(scorer, tmp_path, withdrawn)[0] == 1


def test_answers_that_are_no_json_break_no_check(scorer: ChecklistScorer, tmp_path: Path) -> None:
    odd = [
        *call("get_user_details", {"user_id": "ada_1"}, "[1, 2"),
        *call("get_reservation_details", ["x"], {"reservation_id": None, "flights": 3}),
    ]
    reward, _ = failed(
        scorer, tmp_path, dialogue(odd, YES, call("cancel_reservation", "text", USER), bags(total_baggages="many"))
    )
    assert reward < 1
