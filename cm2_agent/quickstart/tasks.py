"""What customers of the sample desk ask for: the generated training tasks, and the held-out ones, which share no order
and no item with them.

Held-out tasks come from an order book of their own (`order_desk.BOOKS`), which nothing but these tasks reads.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from cm2_agent.quickstart.app import SYSTEM
from cm2_agent.quickstart.order_desk import Order, orders
from cm2_agent.types.task import Task

# How customers put it: {} is the order id. The second form is for a later message, about the order already spoken of.
WORDINGS = {
    "status": (
        ["Where is order {}?", "What about order {}?", "When will order {} arrive?"],
        ["Where is it?", "When will it arrive?"],
    ),
    "stock": (
        ["How many of order {} are in stock?", "Is what I bought with order {} in stock?"],
        ["And how many are in stock?", "Is it in stock?"],
    ),
    "cancel": (
        ["Please cancel order {} if it is open.", "Cancel order {} unless it left."],
        ["Please cancel it if it is open.", "Cancel it unless it left."],
    ),
}
# What one customer asks for, message by message; the name is the kind that results are reported by.
SINGLE = {"status": ("status",), "stock": ("stock",), "cancel": ("cancel",)}
TWO_TURNS = (("status", "cancel"), ("status", "stock"), ("stock", "cancel"))
KINDS = (*SINGLE, "two_turns")


def training_tasks(seed: int) -> list[Task]:
    """600 tasks, one an order of the training book, a quarter of them with two user turns; the order is the seed's."""
    return _tasks("training", seed)


def heldout_tasks(seed: int) -> list[Task]:
    """240 tasks over orders and items that no training task, demonstration or checklist ever reads; 60 have two user
    turns."""
    return _tasks("heldout", seed)


def wording(ask: str, order_id: str, turn: int, rng: random.Random) -> str:
    """One way to ask for it, as the customer's message number `turn` (0-based)."""
    return rng.choice(WORDINGS[ask][min(turn, 1)]).format(order_id)


def _tasks(book: str, seed: int) -> list[Task]:
    rng = random.Random(f"tasks:{book}:{seed}")
    rows = list(orders(book))
    rng.shuffle(rows)
    return [_task(book, order, *_asks(number), seed, rng) for number, order in enumerate(rows)]


def _asks(number: int) -> tuple[str, Sequence[str]]:
    """Kinds take turns, so that exactly a quarter of any multiple of 12 has two user turns."""
    kind = KINDS[number % 4]
    return kind, SINGLE[kind] if kind in SINGLE else TWO_TURNS[number // 4 % 3]


def _task(book: str, order: Order, kind: str, asks: Sequence[str], seed: int, rng: random.Random) -> Task:
    return Task(
        id=f"{book}-{seed}-{order.id}",
        system=SYSTEM,
        turns=tuple(wording(ask, order.id, turn, rng) for turn, ask in enumerate(asks)),
        entities=(f"order:{order.id}", f"item:{order.item}"),
        metadata={"kind": kind, "asks": list(asks), "order_id": order.id, "book": book},
    )
