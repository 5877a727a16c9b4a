"""Checks for an airline desk, used by `airline.yaml`: what its written policy allows is worked out from what the tools
answered. Each is a function of a view over the whole dialogue; nothing here knows a task's reference solution."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cm2_agent import Turn, View

NOW = datetime(2024, 5, 15, 15)  # "The current time is 2024-05-15 15:00:00 EST."
WRITES = {f"update_reservation_{part}" for part in ("baggages", "flights", "passengers")}
WRITES |= {"book_reservation", "cancel_reservation", "send_certificate"}
HAND_OVER = "transfer_to_human_agents"
FREE_BAGS = {  # free checked bags a passenger, by membership and cabin
    "regular": {"basic_economy": 0, "economy": 1, "business": 2},
    "silver": {"basic_economy": 1, "economy": 2, "business": 3},
    "gold": {"basic_economy": 2, "economy": 3, "business": 3},
}
YES = re.compile(r"(?i)\b(yes|yeah|yep|sure|confirm\w*|proceed|go ahead|sounds good|that works|okay?|correct|agree)\b")
CONSENTS = re.compile(YES.pattern + r"|\b(please|let'?s|i'?ll (go|take|use)|go with|i would like|i'?d like|i want)\b")
OFFERS = re.compile(r"(?i)\b(proceed|confirm|go ahead|would you like (me )?to)\b")
WITHDRAWS = re.compile(
    r"(?i)\b(never ?mind|hold off|changed my mind|not (want to )?proceed|leave it|above my budget|too (expensive|much)"
    r"|keep (it|my|the|everything)( \w+){0,2} (as|reservation|booking|flights?))\b"
)
CANCEL = re.compile(r"(?i)\bcancel(l?ing|lation)?\b")
BY_AIRLINE = re.compile(r"(?i)\bairline (has |have )?cancel+ed|cancel+ed by the airline|flight (was|got) cancel+ed")
COVERED = re.compile(r"(?i)\b(health|medical|sick\w*|ill|illness|hospital|surgery|doctor|injur\w+|weather|storm\w*)\b")
TROUBLE = re.compile(r"(?i)\b(delay\w*|cancel+ed|cancel+ation)\b")
COMPENSATION = re.compile(r"(?i)\b(compensat\w*|vouchers?|make up for|gesture)\b")
ERRAND = re.compile(r"(?i)\b(cancel|chang|modif|book|(up|down)grad|add|mov|switch|updat|compensat|refund|voucher)")
CHEAPEST = re.compile(r"(?i)\b(cheapest|lowest[- ]price\w*|lowest fare|least expensive)\b")
NONSTOP = re.compile(r"(?i)\b(direct|non-?stop)\b")
ALL_OF_THEM = re.compile(r"(?i)\ball (of )?(my|the|these|those)\b[^.!?\n]{0,40}\b(flight|reservation|booking|trip)s?\b")
NEW_PASSENGER = re.compile(r"(?i)\b(change|update|modify|switch|replace)\b[^.!?\n]{0,30}\bpassengers?\b")
REFUSED = re.compile(r"(?i)\b(remove|drop)\b|\badd\b[^.!?\n]{0,30}\b(insurance|passengers?)\b")  # policy never lets it
OTHER_CHANGE = re.compile(r"(?i)\bupgrad|\bcabin\b|\bbags?\b")  # what basic economy may have
BUDGET = re.compile(
    r"(?i)(?:up ?to|at most|more than|exceeds?|maximum of|budget (?:is|of)|less than|under|within|limit (?:is|of))"
    r"\s*(?:my |a )?(?:budget of )?\$\s?(\d[\d,]*)"
)
CARD = re.compile(r"(?i)\b(?:ending (?:in|with)|card|visa|mastercard)\D{0,12}(\d{4})\b|\b(\d{4}) card\b")
CLAIMS = {
    "cancel_reservation": re.compile(r"(?i)\b(has|have) been (successfully )?cancel+ed"),
    "book_reservation": re.compile(r"(?i)\b(has|have) been (successfully )?booked"),
    "send_certificate": re.compile(r"(?i)\bcertificate\b.{0,60}\b(has|have) been (successfully )?(issued|sent|added)"),
    "update": re.compile(r"(?i)\b(has|have) been (successfully )?(updated|changed|upgraded|downgraded|modified)"),
}


@dataclass
class Write:
    """A write that succeeded, with what was known before it; `allowed` says whether policy allows a cancellation, and
    `paid` what it cost the user more than before."""

    name: str
    arguments: Mapping[str, Any]
    step: int
    reservation: Mapping[str, Any] | None
    cabin: str | None
    user: Mapping[str, Any] | None
    found: bool
    allowed: bool | None
    paid: float


@dataclass(kw_only=True)
class Desk:
    """What the tools answered, in order."""

    users: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    reservations: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    cabins: dict[str, str] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    flights: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    journeys: list[list[Mapping[str, Any]]] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    idle: bool = False

    @classmethod
    def of(cls, view: View) -> Desk:
        desk = cls()
        for call in view.all_calls:
            if call.failed or call.response is None or not isinstance(call.arguments, Mapping):
                continue
            result = _json(call.result)
            if call.name in WRITES:
                desk._write(call.name, call.arguments, call.step, result, view)
            if call.name == "get_user_details" and isinstance(result, Mapping):
                desk.users[str(call.arguments.get("user_id"))] = result
            elif call.name.startswith("search_") and isinstance(result, list):
                desk._searched(result, str(call.arguments.get("date", "")))
            elif isinstance(result, Mapping) and "reservation_id" in result:
                desk._reservation(call.name, call.arguments, result)
        desk.idle = not desk.writes and not (desk.reason_for_nothing(view) and does_what_was_confirmed(view))
        return desk

    def _write(self, name: str, arguments: Mapping[str, Any], step: int, result: Any, view: View) -> None:
        identity = str(arguments.get("reservation_id"))
        old = self.reservations.get(identity)
        user = self.users.get(str(arguments.get("user_id") or (old or {}).get("user_id")))
        found = all(_key(flight) in self.flights for flight in _list(arguments.get("flights")))
        allowed = self.may_cancel(identity, view) if name == "cancel_reservation" else None
        paid = _paid(result) - _paid(old) if isinstance(result, Mapping) else 0.0
        self.writes.append(Write(name, arguments, step, old, self.cabins.get(identity), user, found, allowed, paid))
        if name == "cancel_reservation":
            self.cancelled.add(identity)

    def _reservation(self, name: str, arguments: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        identity = str(result["reservation_id"])
        self.reservations[identity] = result
        if name == "update_reservation_flights":  # the desk's answer goes on naming the old cabin
            self.cabins[identity] = str(arguments.get("cabin"))
        else:
            self.cabins.setdefault(identity, str(result.get("cabin")))
        for flight in _list(result.get("flights")):
            self.flights.setdefault(_key(flight), flight)

    def _searched(self, found: list[Any], date: str) -> None:
        for journey in found:
            given = journey if isinstance(journey, list) else [journey]
            legs = [{"date": date, **leg} for leg in given if isinstance(leg, Mapping)]
            self.journeys.append(list(legs))
            self.flights.update((_key(leg), leg) for leg in legs)

    def may_cancel(self, identity: str, view: View) -> bool | None:
        """What the policy says of cancelling a reservation; None where it was never looked up."""
        reservation = self.reservations.get(identity)
        if reservation is None:
            return None
        if any(str(flight.get("date", "9")) < f"{NOW:%Y-%m-%d}" for flight in _list(reservation.get("flights"))):
            return False  # a part is flown
        booked = datetime.fromisoformat(str(reservation.get("created_at", "2000-01-01")))
        return bool(
            NOW - booked <= timedelta(hours=24)
            or "business" in (self.cabins.get(identity), reservation.get("cabin"))
            or (reservation.get("insurance") == "yes" and COVERED.search(view.user_text))
            or BY_AIRLINE.search(view.user_text)
        )

    def reason_for_nothing(self, view: View) -> bool:
        """Whether what the tools answered, or the user says himself, lets the agent leave all as it is."""
        words = view.user_text
        kept = _knows_from_user(view) or any(self.may_cancel(one, view) is False for one in self.reservations)
        fixed = "basic_economy" in self.cabins.values() and not OTHER_CHANGE.search(words)
        nobody = not TROUBLE.search(words) or (self.users and not any(map(self.eligible, self.users)))
        own = WITHDRAWS.search(words) or REFUSED.search(words) or not ERRAND.search(words)
        return bool(own or fixed or (CANCEL.search(words) and kept) or (COMPENSATION.search(words) and nobody))

    def eligible(self, user_id: str) -> bool:
        """Whether policy lets this user have a certificate."""
        return self.users.get(user_id, {}).get("membership") in {"silver", "gold"} or any(
            one.get("insurance") == "yes" or one.get("cabin") == "business"
            for one in self.reservations.values()
            if one.get("user_id") == user_id
        )


def knows_the_case(view: View) -> bool:
    """Who the user is, or what the reservation says, was looked up; or the user himself says what decides."""
    looked_up = view.results("get_user_details") or view.results("get_reservation_details")
    return bool(looked_up) or _knows_from_user(view)


def acts_or_has_a_reason(view: View) -> bool:
    """Something was written, or there is a reason in what the tools answered why not."""
    desk = Desk.of(view)
    return bool(desk.writes) or desk.reason_for_nothing(view)


def does_what_was_confirmed(view: View) -> bool:
    """After a yes to what the agent proposed, a write succeeds (after a yes to being handed over, that), unless the
    user withdraws."""
    for turn in view.trace.turns[1:]:
        later = "\n".join(map(_said, view.trace.turns[turn.index :]))
        offers = [step.message.text for step in view.steps if step.turn == turn.index - 1 and step.is_reply]
        if not (offers and OFFERS.search(offers[-1]) and YES.search(_said(turn))) or WITHDRAWS.search(later):
            continue
        calls = [call for call in view.all_calls if view.steps[call.step].turn >= turn.index]
        handed = any(call.name == HAND_OVER for call in calls)
        if not handed and not any(call.name in WRITES and not call.failed for call in calls):
            return False
    return True


def finishes_what_it_began(view: View) -> bool:
    """A write that the desk refused is made right (the last one of its kind succeeds), and the dialogue ends with words
    to the user, or with a human agent."""
    last = {call.name: call.failed for call in view.all_calls if call.name in WRITES}
    calls = {call.name for call in view.all_calls if call.step == len(view.steps) - 1}
    return bool(view.steps) and not any(last.values()) and (view.steps[-1].is_reply or HAND_OVER in calls)


def looks_at_all_when_all_are_meant(view: View) -> bool:
    """Where the user speaks of all flights or reservations, each one in the profile is looked at."""
    if not ALL_OF_THEM.search(view.user_text):
        return True
    desk = Desk.of(view)
    return all(one in desk.reservations for user in desk.users.values() for one in _list(user.get("reservations")))


def cancels_what_may_be(view: View) -> bool:
    """A reservation that the user asks to cancel, and that the policy lets go, is cancelled."""
    desk, refused = Desk.of(view), {False, None} if _knows_from_user(view) else {False}
    sentences = [one for one in re.split(r"[.!?\n]+", view.user_text) if CANCEL.search(one)]
    asked = {name for one in sentences for name in re.findall(r"\b(?=[A-Z0-9]*\d)[A-Z0-9]{6}\b", one)}
    return all(one in desk.cancelled or desk.may_cancel(one, view) in refused for one in asked)


def changes_the_passenger(view: View) -> bool:
    """Where another passenger is to fly, as policy allows, the passengers are updated."""
    asked = NEW_PASSENGER.search(re.sub(r"(?i)\bwithout chang\w+[^.!?\n]*", "", view.user_text))
    return not asked or any(write.name == "update_reservation_passengers" for write in Desk.of(view).writes)


def compensates_who_asks(view: View) -> bool:
    """Who complains of a delay or cancelling and asks for compensation is looked up, and offered what is allowed."""
    if not (TROUBLE.search(view.user_text) and COMPENSATION.search(view.user_text)):
        return True
    desk = Desk.of(view)
    if not desk.users or not desk.reservations:
        return _knows_from_user(view)
    offered = any(word in reply.casefold() for word in ("certificate", "voucher") for reply in view.replies)
    return offered or not any(map(desk.eligible, desk.users)) or any(w.name == "send_certificate" for w in desk.writes)


def confirmed_first(view: View) -> bool:
    """Every write follows a proposal of the agent's and an explicit yes or instruction of the user's."""
    desk = Desk.of(view)
    turns = [(view.steps[write.step].turn, write.step) for write in desk.writes]
    told = all(any(step.is_reply and step.turn < turn for step in view.steps[:at]) for turn, at in turns)
    agreed = all(CONSENTS.search(_said(view.trace.turns[turn])) for turn, _ in turns)
    return told and agreed and not desk.idle


def cancels_only_what_may_be(view: View) -> bool:
    """Cancelled is only what was booked within 24 hours, flies business, is insured, or the airline cancelled; never
    what is flown."""
    desk = Desk.of(view)
    return not desk.idle and all(write.allowed for write in desk.writes if write.name == "cancel_reservation")


def changes_only_what_may_be(view: View) -> bool:
    """Flights of basic economy stay as they are, bags are not taken away, passengers not added or dropped, and what is
    changed was looked at before."""
    desk = Desk.of(view)
    for write in filter(lambda one: one.name.startswith("update_"), desk.writes):
        old, new = write.reservation, write.arguments
        if old is None:
            return False
        before, after = ([_key(flight) for flight in _list(one.get("flights"))] for one in (old, new))
        wrong = {
            "update_reservation_flights": write.cabin == "basic_economy" and before != after,
            "update_reservation_baggages": _number(new.get("total_baggages")) < _number(old.get("total_baggages")),
            "update_reservation_passengers": len(_list(new.get("passengers"))) != len(_list(old.get("passengers"))),
        }
        if wrong[write.name]:
            return False
    return not desk.idle


def compensates_only_who_may_be(view: View) -> bool:
    """A certificate, 100 or 50 dollars a passenger, goes to those who ask and are members, insured or in business."""
    desk = Desk.of(view)
    sizes = {len(_list(one.get("passengers"))) for one in desk.reservations.values()}
    for write in filter(lambda one: one.name == "send_certificate", desk.writes):
        before = "\n".join(map(_said, view.trace.turns[: view.steps[write.step].turn + 1]))
        asked = TROUBLE.search(before) and COMPENSATION.search(before)
        right = _number(write.arguments.get("amount")) in {each * size for each in (50, 100) for size in sizes}
        if not (asked and right and desk.eligible(str(write.arguments.get("user_id")))):
            return False
    return not desk.idle


def charges_bags_by_allowance(view: View) -> bool:
    """Paid bags are those above the allowance of the membership, as looked up, and of the cabin, for every passenger;
    those paid for before stay paid."""
    desk = Desk.of(view)
    for write in desk.writes:
        if write.name not in {"book_reservation", "update_reservation_baggages"}:
            continue
        new, old = write.arguments, write.reservation or {}
        free = FREE_BAGS.get(str((write.user or {}).get("membership")), {}).get(str(new.get("cabin") or write.cabin))
        if free is None:
            return False  # charged without knowing the allowance
        passengers = len(_list((new if write.name == "book_reservation" else old).get("passengers")))
        over = max(0.0, _number(new.get("total_baggages")) - free * passengers)
        if _number(new.get("nonfree_baggages")) != max(over, _number(old.get("nonfree_baggages"))):
            return False
    return not desk.idle


def pays_as_allowed(view: View) -> bool:
    """Payment is by what a tool named: at most one certificate, one credit card and three gift cards, and no
    certificate for a change; where the user names a card by its last digits, by no other card."""
    named = {first or second for first, second in CARD.findall(view.user_text)}
    desk = Desk.of(view)
    for write in desk.writes:
        ids, known = _payments(write), (write.user or {}).get("payment_methods", {})
        most = {"credit_card": 1, "gift_card": 3, "certificate": int(write.name == "book_reservation")}
        over = any(sum(one.startswith(kind) for one in ids) > number for kind, number in most.items())
        others = {known.get(one, {}).get("last_four") for one in ids if one.startswith("credit_card")} - named
        if over or (named and others) or not all(view.told_by_tool(one, write.step) for one in ids):
            return False
    return not desk.idle


def keeps_to_the_budget(view: View) -> bool:
    """Where the user says up to how many dollars, no write costs more."""
    limits = [float(amount.replace(",", "")) for amount in BUDGET.findall(view.user_text)]
    desk = Desk.of(view)
    return not desk.idle and not (limits and any(write.paid > max(limits) for write in desk.writes))


def books_what_it_found(view: View) -> bool:
    """Every flight of a booking or a change was found by a search before, or is in the reservation, with its date."""
    desk = Desk.of(view)
    return not desk.idle and all(write.found for write in desk.writes)


def takes_the_cheapest_when_asked(view: View) -> bool:
    """Where the user asks for the cheapest flight, none of those found for the day and the places costs less, and
    flights with a stop were looked for, unless the user wants none."""
    desk = Desk.of(view)
    if not CHEAPEST.search(view.user_text):
        return not desk.idle
    for write in desk.writes:
        chosen = [desk.flights.get(_key(flight), {}) for flight in _list(write.arguments.get("flights"))]
        if not chosen or not all("prices" in leg for leg in chosen):
            continue
        if not NONSTOP.search(view.user_text) and not view.results("search_onestop_flight"):
            return False
        cabin = str(write.arguments.get("cabin"))
        day, start, end = chosen[0].get("date"), chosen[0].get("origin"), chosen[-1].get("destination")
        for found in filter(None, desk.journeys):
            same = (found[0].get("date"), found[0].get("origin"), found[-1].get("destination")) == (day, start, end)
            if same and _price(found, cabin) < _price(chosen, cabin):
                return False
    return not desk.idle


def claims_only_what_was_done(view: View) -> bool:
    """The user hears that something has been done only after the tool did it."""
    done: set[str] = set()
    writes = Desk.of(view).writes
    for number, step in enumerate(view.steps):
        done |= {write.name for write in writes if write.step == number}
        for name, pattern in CLAIMS.items():
            if step.is_reply and pattern.search(step.message.text) and not any(one.startswith(name) for one in done):
                return False
    return True


def _said(turn: Turn) -> str:
    return "\n".join(message.text for message in turn.user)


def _knows_from_user(view: View) -> bool:
    """Whether the user himself says which cabin it is, and that it is not insured."""
    words = view.user_text
    cabin = re.search(r"(?i)\b(basic economy|economy|business)\b", words)
    return bool(cabin and re.search(r"(?i)(don'?t|do not|didn'?t|did not|no|without)\b[^.!?\n]{0,20}insurance", words))


def _payments(write: Write) -> list[str]:
    ids = [str(one.get("payment_id")) for one in _list(write.arguments.get("payment_methods"))]
    return ids + ([str(write.arguments["payment_id"])] if "payment_id" in write.arguments else [])


def _paid(reservation: Mapping[str, Any] | None) -> float:
    return sum(_number(one.get("amount")) for one in _list((reservation or {}).get("payment_history")))


def _price(journey: list[Mapping[str, Any]], cabin: str) -> float:
    prices = [leg.get("available_seats", {}).get(cabin) and leg.get("prices", {}).get(cabin) for leg in journey]
    return sum(price or float("inf") for price in prices)


def _key(flight: Any) -> tuple[str, str]:
    return (str(flight.get("flight_number")), str(flight.get("date"))) if isinstance(flight, Mapping) else ("", "")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _json(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return None
