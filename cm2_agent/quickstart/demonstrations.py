"""Demonstrations for the cold start: scripted clerks, mostly sloppy ones, working on the desk's real database.

Sloppy on purpose: a policy that imitates them is most likely to guess or to act unchecked, so that what it later does
right was learnt from rewards, and from nothing else."""

from __future__ import annotations

import random
from typing import Any

from cm2_agent.quickstart.app import SYSTEM
from cm2_agent.quickstart.order_desk import STATUSES, OrderDesk, open_desk, orders
from cm2_agent.quickstart.tasks import SINGLE, TWO_TURNS, wording
from cm2_agent.trainers.demonstration import Demonstration

Message = dict[str, Any]
GUESSES = 0.2  # how often a sloppy clerk makes a number up, where one was asked for


def demonstrations(count: int, sloppy: float, seed: int) -> list[list[Message]]:
    """`count` dialogues over the training book, as messages for a chat template; each turn is a sloppy one with
    probability `sloppy`.

    Arguments of tool calls are JSON strings (datasets would merge the objects of different tools into one).
    """
    rng = random.Random(f"demonstrations:{seed}")
    rows = orders("training")
    asked = [*SINGLE.values(), *TWO_TURNS]
    dialogues = []
    for number in range(count):
        desk = open_desk("training")
        clerk = Clerk(desk, rng)
        order = rng.choice(rows)
        # Single and two-turn dialogues are equally many, every combination of asks among them.
        for turn, ask in enumerate(asked[number % len(asked)]):
            clerk.hear(wording(ask, order.id, turn, rng))
            clerk.serve(ask, order.id, sloppy=rng.random() < sloppy)
        dialogues.append(clerk.messages)
        desk.close()
    return dialogues


class Clerk(Demonstration):
    """Works through a dialogue with the desk's real functions."""

    def __init__(self, desk: OrderDesk, rng: random.Random) -> None:
        super().__init__(SYSTEM)
        self.desk, self.rng = desk, rng

    def serve(self, ask: str, order_id: str, *, sloppy: bool) -> None:
        if sloppy:
            self._serve_sloppily(ask, order_id)
            return
        status, day, price, item = self._look_up(order_id)
        if ask == "stock":
            self._say_pieces(self.call(self.desk.check_stock, item=item).split()[-1])
        elif ask == "cancel" and status == "open":
            self.call(self.desk.cancel_order, order_id=order_id)
            self._say_cancelled(price)
        elif ask == "cancel":
            self.say(f"It stays, status {status}, day {day}.")
        else:
            self._say_status(status, day)

    def _look_up(self, order_id: str) -> tuple[str, str, str, str]:
        """Status, day, price and item, as the desk says them."""
        fields = dict(part.split(" ", 1) for part in self.call(self.desk.get_order, order_id=order_id).split(", "))
        return fields["status"], fields["day"], fields["price"], fields["item"]

    def _serve_sloppily(self, ask: str, order_id: str) -> None:
        """Without looking anything up: vague or, now and then, made up; an order is cancelled unchecked."""
        guesses, guess = self.rng.random() < GUESSES, self.rng.randint(10, 99)
        if ask == "cancel":
            self.call(self.desk.cancel_order, order_id=order_id)
            self.say("It is cancelled.")
        elif ask == "stock":
            self._say_pieces(str(guess)) if guesses else self.say("We should have plenty.")
        elif guesses:
            self._say_status(self.rng.choice(STATUSES), str(guess))
        else:
            self.say("It should arrive soon.")

    def _say_status(self, status: Any, day: Any) -> None:
        self.say(f"Here it is, status {status}, day {day}.")

    def _say_pieces(self, pieces: Any) -> None:
        self.say(f"We have in stock: {pieces}.")

    def _say_cancelled(self, price: Any) -> None:
        self.say(f"It is cancelled, price {price} comes back.")
