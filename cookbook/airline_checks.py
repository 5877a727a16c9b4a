"""Checks for an airline desk, used by `airline.yaml`: what its written policy allows is worked out from what the tools
answered. Each is a function of a view over the whole dialogue; nothing here knows a task's reference solution."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cm2_agent import View

NOW = datetime(2024, 5, 15, 15)  # "The current time is 2024-05-15 15:00:00 EST."
WRITES = {
    *("book_reservation", "cancel_reservation", "send_certificate"),
    *(f"update_reservation_{part}" for part in ("baggages", "flights", "passengers")),
}
FREE_BAGS = {  # free checked bags a passenger, by membership and cabin
    "regular": {"basic_economy": 0, "economy": 1, "business": 2},
    "silver": {"basic_economy": 1, "economy": 2, "business": 3},
    "gold": {"basic_economy": 2, "economy": 3, "business": 3},
}
YES = re.compile(
    r"(?i)\b(yes|yeah|yep|sure|confirm\w*|proceed|go ahead|please do|sounds good|that works|ok|okay|correct|agree)\b"
)
ASKS_FOR_COMPENSATION = re.compile(r"(?i)\b(compensat\w*|voucher|certificate|reimburs\w*|make up for|gesture)\b")
CANCEL = re.compile(r"(?i)\bcancel(l?ing|lation)?\b")
PROPOSES = re.compile(r"(?i)\b(proceed|confirm)\b")
WITHDRAWS = re.compile(
    r"(?i)\b(never ?mind|hold off|changed my mind|not proceed|(beyond|above|over|outside) my budget|leave it)\b"
)
COMPLAINT = re.compile(r"(?i)\b(delay\w*|cancel+ed|cancel+ation)\b")
BY_AIRLINE = re.compile(r"(?i)\bairline (has )?cancel+ed|cancel+ed by the airline|flight (was|got|has been) cancel+ed")
CARD = re.compile(r"(?i)\b(?:ending (?:in|with)|card|visa|mastercard)\D{0,12}(\d{4})\b|\b(\d{4}) card\b")
CLAIMS = {
    "cancel_reservation": re.compile(r"(?i)\b(has|have) been (successfully )?cancel+ed"),
    "book_reservation": re.compile(r"(?i)\b(has|have) been (successfully )?booked"),
    "send_certificate": re.compile(r"(?i)\bcertificate\b.{0,60}\b(has|have) been (successfully )?(issued|sent|added)"),
    "update": re.compile(r"(?i)\b(has|have) been (successfully )?(updated|changed|upgraded|modified)"),
}


@dataclass
class Write:
    """A write that succeeded, with what was known before it; `allowed` says whether policy allows a cancellation."""

    name: str
    arguments: Mapping[str, Any]
    step: int
    reservation: Mapping[str, Any] | None
    cabin: str | None
    user: Mapping[str, Any] | None
    found: bool
    allowed: bool | None


@dataclass(kw_only=True)
class Desk:
    """What the tools told, in order."""

    users: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    reservations: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    cabins: dict[str, str] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    flights: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    journeys: list[list[Mapping[str, Any]]] = field(default_factory=list)
    due: bool = False
    writes: list[Write] = field(default_factory=list)

    @classmethod
    def of(cls, view: View) -> Desk:
        desk = cls()
        for call in view.all_calls:
            if call.failed or call.response is None or not isinstance(call.arguments, Mapping):
                continue
            result = _json(call.result)
            if call.name in WRITES:
                desk._write(call.name, call.arguments, call.step, view)
            if call.name == "get_user_details" and isinstance(result, Mapping):
                desk.users[str(call.arguments.get("user_id"))] = result
            elif call.name.startswith("search_") and isinstance(result, list):
                desk._searched(result, str(call.arguments.get("date", "")))
            elif isinstance(result, Mapping) and "reservation_id" in result:
                desk._reservation(call.name, call.arguments, result)
        left = any(desk.may_cancel(identity, view) for identity in _asked_to_cancel(view))
        desk.due = left or not does_what_was_confirmed(view)
        return desk

    def _write(self, name: str, arguments: Mapping[str, Any], step: int, view: View) -> None:
        identity = str(arguments.get("reservation_id"))
        reservation = self.reservations.get(identity)
        user = self.users.get(str(arguments.get("user_id") or (reservation or {}).get("user_id")))
        found = all(_key(flight) in self.flights for flight in _list(arguments.get("flights")))
        allowed = self.may_cancel(identity, view) if name == "cancel_reservation" else None
        cabin = self.cabins.get(identity)
        self.writes.append(Write(name, arguments, step, reservation, cabin, user, found, allowed))
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
            legs = [
                {"date": date, **leg}
                for leg in (journey if isinstance(journey, list) else [journey])
                if isinstance(leg, Mapping)
            ]
            self.journeys.append(list(legs))
            for leg in legs:
                self.flights[_key(leg)] = leg

    @property
    def idle(self) -> bool:
        """Whether nothing was written although the user had confirmed it, or asked for what the policy lets go."""
        return not self.writes and self.due

    def membership(self, user: Mapping[str, Any] | None) -> str | None:
        return None if user is None else str(user.get("membership"))

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
            or reservation.get("insurance") == "yes"
            or BY_AIRLINE.search(view.user_text)
        )


def looked_up(view: View) -> bool:
    """Who the user is, or what the reservation says, was looked up."""
    return bool(view.results("get_user_details") or view.results("get_reservation_details"))


def one_thing_at_a_time(view: View) -> bool:
    """One tool call at a time, and no words to the user beside it."""
    return all(
        len(message.tool_calls) <= 1 and not (message.tool_calls and message.text.strip()) for message in view.messages
    )


def confirmed_first(view: View) -> bool:
    """Every write follows the details told to the user and an explicit yes."""
    desk = Desk.of(view)
    for write in desk.writes:
        turn = view.steps[write.step].turn
        said = "\n".join(message.text for message in view.trace.turns[turn].user)
        told = [step.message.text for step in view.steps[: write.step] if step.is_reply and step.turn < turn]
        if not told or not YES.search(said):
            return False
    return not desk.idle


def looks_before_it_writes(view: View) -> bool:
    """A reservation is looked up before it is changed, and a user's profile before a booking or a payment is made from
    it."""
    desk = Desk.of(view)
    for write in desk.writes:
        if "reservation_id" in write.arguments and write.reservation is None:
            return False
        if (
            "payment_id" in write.arguments or write.name in {"book_reservation", "send_certificate"}
        ) and write.user is None:
            return False
    return not desk.idle


def cancels_only_what_may_be(view: View) -> bool:
    """Cancelled is only what was booked within 24 hours, flies business, is insured, or the airline cancelled; never
    what is flown."""
    desk = Desk.of(view)
    return not desk.idle and all(write.allowed for write in desk.writes if write.name == "cancel_reservation")


def cancels_what_may_be(view: View) -> bool:
    """A reservation that the user asks to cancel, and that the policy lets go, is cancelled."""
    desk = Desk.of(view)
    return all(
        identity in desk.cancelled or desk.may_cancel(identity, view) is False for identity in _asked_to_cancel(view)
    )


def changes_only_what_may_be(view: View) -> bool:
    """Flights of basic economy stay as they are, origin and destination too; bags are not taken away, passengers not
    added or dropped."""
    desk = Desk.of(view)
    for write in desk.writes:
        old, new = write.reservation, write.arguments
        if old is None or not write.name.startswith("update_"):
            continue
        before, after = ([_key(flight) for flight in _list(one.get("flights"))] for one in (old, new))
        if write.name == "update_reservation_flights" and write.cabin == "basic_economy" and before != after:
            return False
        if write.name == "update_reservation_baggages" and _number(new.get("total_baggages")) < _number(
            old.get("total_baggages")
        ):
            return False
        if write.name == "update_reservation_passengers" and len(_list(new.get("passengers"))) != len(
            _list(old.get("passengers"))
        ):
            return False
    return not desk.idle


def charges_bags_by_allowance(view: View) -> bool:
    """Paid bags are those above the allowance of the membership and the cabin, for every passenger."""
    desk = Desk.of(view)
    for write in desk.writes:
        if write.name not in {"book_reservation", "update_reservation_baggages"}:
            continue
        level = desk.membership(write.user)
        cabin = str(write.arguments.get("cabin") or write.cabin)
        passengers = len(
            _list((write.arguments if write.name == "book_reservation" else write.reservation or {}).get("passengers"))
        )
        if level not in FREE_BAGS or cabin not in FREE_BAGS[level]:
            return False  # charged without knowing the allowance
        over = max(0, _number(write.arguments.get("total_baggages")) - FREE_BAGS[level][cabin] * passengers)
        if _number(write.arguments.get("nonfree_baggages")) != over:
            return False
    return not desk.idle


def pays_as_allowed(view: View) -> bool:
    """Payment is from the profile: at most one certificate, one credit card and three gift cards, and no certificate
    for a change."""
    desk = Desk.of(view)
    for write in desk.writes:
        ids = _payments(write)
        owned = (write.user or {}).get("payment_methods", {})
        count = {kind: sum(one.startswith(kind) for one in ids) for kind in ("certificate", "credit_card", "gift_card")}
        if any(one not in owned for one in ids) or count["credit_card"] > 1 or count["gift_card"] > 3:
            return False
        if count["certificate"] > (1 if write.name == "book_reservation" else 0):
            return False
    return not desk.idle


def pays_with_the_named_card(view: View) -> bool:
    """Where the user names a card by its last digits, no other card is charged."""
    named = {first or second for first, second in CARD.findall(view.user_text)}
    desk = Desk.of(view)
    for write in desk.writes:
        for identity in _payments(write):
            if named and identity.startswith("credit_card"):
                card = (write.user or {}).get("payment_methods", {}).get(identity, {})
                if card.get("last_four") not in named:
                    return False
    return not desk.idle


def books_what_it_found(view: View) -> bool:
    """Every flight of a booking or a change was found by a search before, or is in the reservation, with its date."""
    desk = Desk.of(view)
    return not desk.idle and all(write.found for write in desk.writes)


def takes_the_cheapest_when_asked(view: View) -> bool:
    """Where the user asks for the cheapest flight, none of those found for the day and the places costs less."""
    if not re.search(r"(?i)\b(cheapest|lowest[- ]price|lowest fare|least expensive)\b", view.user_text):
        return True
    desk = Desk.of(view)
    for write in desk.writes:
        chosen = [desk.flights.get(_key(flight)) for flight in _list(write.arguments.get("flights"))]
        cabin = str(write.arguments.get("cabin"))
        if not chosen or any(leg is None or "prices" not in leg for leg in chosen):
            continue
        legs = [leg for leg in chosen if leg is not None]
        rivals = [journey for journey in desk.journeys if journey and _route(journey) == _route(legs)]
        if any(_price(journey, cabin) < _price(legs, cabin) for journey in rivals):
            return False
    return not desk.idle


def compensates_only_who_may_be(view: View) -> bool:
    """A certificate, 100 or 50 dollars a passenger, goes to those who ask and are members, insured or in business."""
    desk = Desk.of(view)
    for write in desk.writes:
        if write.name != "send_certificate":
            continue
        offers = [step for step in view.steps if step.is_reply and "certificate" in step.message.text.casefold()]
        offered = (offers or [view.steps[write.step]])[0]
        before = "\n".join(message.text for turn in view.trace.turns[: offered.turn + 1] for message in turn.user)
        sizes = {len(_list(one.get("passengers"))) for one in desk.reservations.values()}
        if not (COMPLAINT.search(before) and ASKS_FOR_COMPENSATION.search(before)) or not _eligible(desk, write.user):
            return False
        if _number(write.arguments.get("amount")) not in {each * size for each in (50, 100) for size in sizes}:
            return False
    return not desk.idle


def compensates_who_asks(view: View) -> bool:
    """Who complains of a delay or cancelling and asks for compensation is looked up, and offered what is allowed."""
    if not (COMPLAINT.search(view.user_text) and ASKS_FOR_COMPENSATION.search(view.user_text)):
        return True
    desk = Desk.of(view)
    if not desk.users or not desk.reservations:
        return False
    if not any(_eligible(desk, user) for user in desk.users.values()):
        return True
    offered = any("certificate" in reply.casefold() or "voucher" in reply.casefold() for reply in view.replies)
    return offered or any(write.name == "send_certificate" for write in desk.writes)


def does_what_was_confirmed(view: View) -> bool:
    """After a yes to what the agent proposed, it writes or hands over to a human, unless the user withdraws."""
    for turn in _confirmations(view):
        later = [call.name for call in view.all_calls if view.steps[call.step].turn >= turn]
        if not any(name in WRITES or name == "transfer_to_human_agents" for name in later):
            return False
    return True


def claims_only_what_was_done(view: View) -> bool:
    """The user is told that something has been done only after the tool did it."""
    done: set[str] = set()
    writes = Desk.of(view).writes
    for number, step in enumerate(view.steps):
        done |= {write.name for write in writes if write.step == number}
        for name, pattern in CLAIMS.items():
            if step.is_reply and pattern.search(step.message.text) and not any(one.startswith(name) for one in done):
                return False
    return True


def _confirmations(view: View) -> list[int]:
    """The turns in which the user says yes to what the agent proposed to do and does not take it back later."""
    found = []
    for turn in view.trace.turns[1:]:
        said = "\n".join(message.text for message in turn.user)
        later = "\n".join(message.text for one in view.trace.turns[turn.index :] for message in one.user)
        proposed = [step.message.text for step in view.steps if step.turn == turn.index - 1 and step.is_reply]
        if proposed and PROPOSES.search(proposed[-1]) and YES.search(said) and not WITHDRAWS.search(later):
            found.append(turn.index)
    return found


def _asked_to_cancel(view: View) -> set[str]:
    """The reservations that stand in a sentence of the user's about cancelling."""
    sentences = re.split(r"[.!?\n]+", view.user_text)
    return {
        name for one in sentences if CANCEL.search(one) for name in re.findall(r"\b(?=[A-Z0-9]*\d)[A-Z0-9]{6}\b", one)
    }


def _eligible(desk: Desk, user: Mapping[str, Any] | None) -> bool:
    return desk.membership(user) in {"silver", "gold"} or any(
        one.get("insurance") == "yes" or one.get("cabin") == "business" for one in desk.reservations.values()
    )


def _payments(write: Write) -> list[str]:
    ids = [str(one.get("payment_id")) for one in _list(write.arguments.get("payment_methods"))]
    return ids + ([str(write.arguments["payment_id"])] if "payment_id" in write.arguments else [])


def _route(journey: list[Mapping[str, Any]]) -> tuple[Any, Any, Any]:
    return journey[0].get("date"), journey[0].get("origin"), journey[-1].get("destination")


def _price(journey: list[Mapping[str, Any]], cabin: str) -> float:
    seats = [leg for leg in journey if leg.get("available_seats", {}).get(cabin)]
    prices = [leg.get("prices", {}).get(cabin) for leg in seats] + [None] * (len(journey) - len(seats))
    return sum(price if isinstance(price, int | float) else float("inf") for price in prices)


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
