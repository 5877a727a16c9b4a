"""Small recordings of our own in tau-bench's format: an airline desk, three tasks, two trials each, one right and one
wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SYSTEM = "# Airline Agent Policy\n\nThe current time is 2024-05-15 15:00:00 EST."
USER = {
    "name": {"first_name": "Ada"},
    "membership": "gold",
    "payment_methods": {"gift_card_1": {"source": "gift_card", "amount": 900}},
}
RESERVATION = {
    "reservation_id": "QQ7AA1",
    "user_id": "ada_1",
    "cabin": "business",
    "insurance": "no",
    "created_at": "2024-05-01T10:00:00",
    "flights": [{"flight_number": "HAT900", "date": "2024-06-01", "price": 600}],
    "passengers": [{"first_name": "Ada"}],
    "total_baggages": 0,
}
FLIGHT = {"flight_number": "HAT901", "date": "2024-06-02"}
CHANGE = {"reservation_id": "QQ7AA1", "cabin": "business", "flights": [FLIGHT], "payment_id": "gift_card_1"}
STOP = "Thank you! ###STOP###"


def say(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def call(name: str, arguments: Any, answer: Any, number: int = 1) -> list[dict[str, Any]]:
    """A tool call and its answer, as two messages. Arguments that are text are written as they are."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    asked = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": text}}],
    }
    answered = {
        "role": "tool",
        "tool_call_id": f"call_{number}",
        "name": name,
        "content": answer if isinstance(answer, str) else json.dumps(answer),
    }
    return [asked, answered]


def record(
    task: int, trial: int, reward: float, actions: list[dict[str, Any]], outputs: list[str], turns: list[dict[str, Any]]
) -> dict[str, Any]:
    goal = {"user_id": "ada_1", "instruction": f"You are ada_1, errand {task}.", "actions": actions, "outputs": outputs}
    return {
        "task_id": task,
        "reward": reward,
        "info": {"task": goal},
        "traj": [say("system", SYSTEM), *turns],
        "trial": trial,
    }


def write(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "kwargs": arguments}


LOOKUP = [
    *call("get_user_details", {"user_id": "ada_1"}, USER, 1),
    *call("get_reservation_details", {"reservation_id": "QQ7AA1"}, RESERVATION, 2),
]
CANCEL = call("cancel_reservation", {"reservation_id": "QQ7AA1"}, {**RESERVATION, "status": "cancelled"}, 3)
CERTIFICATE = call(
    "send_certificate",
    {"user_id": "ada_1", "amount": 100},
    "Certificate certificate_1 added to user ada_1 with amount 100.",
    4,
)


def cancelling(trial: int, *, extra: bool) -> dict[str, Any]:
    turns = [
        say("user", "I am ada_1. Please cancel QQ7AA1."),
        *LOOKUP,
        say("assistant", "QQ7AA1 flies business and can be cancelled. Proceed?"),
        say("user", "Yes, please."),
        *CANCEL,
        *(CERTIFICATE if extra else []),
        say("assistant", "QQ7AA1 has been cancelled."),
        say("user", STOP),
    ]
    return record(1, trial, 0.0 if extra else 1.0, [write("cancel_reservation", reservation_id="QQ7AA1")], [], turns)


def denying(trial: int, *, gives_in: bool) -> dict[str, Any]:
    turns = [
        say("user", "I am ada_1 and I want a voucher, just because."),
        *LOOKUP,
        *(CERTIFICATE if gives_in else []),
        say("assistant", "Here you are." if gives_in else "That is not possible without a delay or a cancellation."),
        say("user", STOP),
    ]
    return record(2, trial, 0.0 if gives_in else 1.0, [write("get_user_details", user_id="ada_1")], [], turns)


def changing(trial: int, *, tells: bool) -> dict[str, Any]:
    """A change that fails once before it succeeds; the failure leaves no mark."""
    turns = [
        say("user", "I am ada_1. Move QQ7AA1 to June 2, and what does it cost?"),
        *LOOKUP,
        say("assistant", "HAT901 flies then. Shall I proceed?"),
        say("user", "Yes."),
        *call(
            "update_reservation_flights", {**CHANGE, "payment_id": "gift_card_9"}, "Error: payment method not found", 5
        ),
        *call("update_reservation_flights", CHANGE, {**RESERVATION, "flights": [FLIGHT]}, 6),
        say("assistant", "QQ7AA1 has been changed" + ("; it costs $1,204." if tells else ".")),
        say("user", STOP),
    ]
    return record(3, trial, 1.0 if tells else 0.0, [write("update_reservation_flights", **CHANGE)], ["1204"], turns)


def recordings() -> list[dict[str, Any]]:
    """Six rollouts: tasks 1, 2, 3, trial 0 right and trial 1 wrong."""
    return [
        cancelling(0, extra=False),
        denying(0, gives_in=False),
        changing(0, tells=True),
        cancelling(1, extra=True),
        denying(1, gives_in=True),
        changing(1, tells=False),
    ]


def saved(folder: Path, records: list[Any] | None = None, name: str = "airline.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(recordings() if records is None else records), encoding="utf-8")
    return path


def dialogues(folder: Path) -> Path:
    """The 100 real dialogues where `CM2_TEST_DATA` names the folder that holds them, else our own six."""
    given = os.environ.get("CM2_TEST_DATA")
    return Path(given) / "tau-bench" / "gpt-4o-airline-dev.json" if given else saved(folder)
