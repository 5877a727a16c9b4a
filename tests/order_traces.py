"""Recorded dialogues of an order desk, right ones and ones that fail in known ways; shared by tests and benchmarks of
certificates. Each is of a task of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, timedelta
from itertools import cycle, islice

from cm2_agent import Message, Run, Trace
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import ToolCall, ToolCallResponse
from cm2_agent.types.run_attributes import TASK_ID

FIRST = date(2026, 1, 3)


class Order:
    """One order: its number, the day on which it arrives, another day, and what is said and done about it."""

    def __init__(self, number: int) -> None:
        self.id = 1000 + number
        self.arrives = FIRST + timedelta(days=3 * number % 700)
        self.other = self.arrives + timedelta(days=40)
        self._calls = 0

    def asks(self) -> Message:
        return Message.of("user", f"Where is order {self.id}?")

    def call(self, name: str, answer: JSON, *, error: bool = False, **arguments: object) -> list[Message]:
        self._calls += 1
        call = ToolCall(id=f"c{self._calls}", name=name, arguments=dict(arguments))
        part = ToolCallResponse(id=call.id, response=answer, error=error)
        return [Message.of("assistant", "", [call]), Message(role="tool", parts=(part,))]

    def looked_up(self) -> list[Message]:
        answer = {"status": "shipped", "arrives": str(self.arrives)}
        return self.call("get_order", answer, order_id=self.id)

    def says(self, text: str) -> Message:
        return Message.of("assistant", text)


Dialogue = Callable[[Order], list[Message]]


def right(order: Order) -> list[Message]:
    return [order.asks(), *order.looked_up(), order.says(f"Thanks for waiting. It arrives on {order.arrives}.")]


def invented(order: Order) -> list[Message]:
    return [order.asks(), order.says(f"It arrives on {order.other}.")]


def wrong_date(order: Order) -> list[Message]:
    return [order.asks(), *order.looked_up(), order.says(f"It arrives on {order.other}.")]


def failed_call(order: Order) -> list[Message]:
    failed = order.call("get_order", "error: no such order", error=True, order_id="?")
    return [order.asks(), *failed, order.says(f"It arrives on {order.other}.")]


def vague(order: Order) -> list[Message]:
    return [order.asks(), *order.looked_up(), order.says("Your parcel is on its way to you.")]


def silent(order: Order) -> list[Message]:
    return [order.asks(), *order.looked_up()]


def too_late(order: Order) -> list[Message]:
    return [order.asks(), order.says("Let me see."), *order.looked_up(), order.says("It is under way.")]


def many_calls(order: Order) -> list[Message]:
    calls = [message for _ in range(9) for message in order.looked_up()]
    return [order.asks(), *calls, order.says("It is on its way.")]


def early_write(order: Order) -> list[Message]:
    return [order.asks(), *order.call("cancel_order", "cancelled", order_id=order.id), order.says("It is cancelled.")]


def internals(order: Order) -> list[Message]:
    return [
        order.asks(),
        *order.looked_up(),
        order.says("Traceback (most recent call last): KeyError. <tool_call> It is on its way."),
    ]


def same_call_again(order: Order) -> list[Message]:
    failed = [m for _ in range(2) for m in order.call("get_order", "error: not found", error=True, order_id=order.id)]
    return [order.asks(), *failed, order.says("There is no answer from the shop.")]


def claims(order: Order) -> list[Message]:
    return [order.asks(), *order.looked_up(), order.says("I have sent you a confirmation by e-mail.")]


def promises(order: Order) -> list[Message]:
    return [order.asks(), *order.looked_up(), order.says("You will surely get a full refund and a voucher.")]


def cancelled_unasked(order: Order) -> list[Message]:
    cancelled = order.call("cancel_order", "cancelled", order_id=order.id)
    says = order.says(f"It would have arrived on {order.arrives}, and is cancelled.")
    return [order.asks(), *order.looked_up(), *cancelled, says]


def repeated_then_found(order: Order) -> list[Message]:
    failed = [m for _ in range(2) for m in order.call("get_order", "error: not found", error=True, order_id="?")]
    return [order.asks(), *failed, *order.looked_up(), order.says(f"It arrives on {order.arrives}.")]


def hidden_failure(order: Order) -> list[Message]:
    failed = order.call("cancel_order", "error: out of service", error=True, order_id=order.id)
    return [order.asks(), *order.looked_up(), *failed, order.says(f"I have moved it for you to {order.other}.")]


FAILING: tuple[Dialogue, ...] = (
    invented,
    wrong_date,
    failed_call,
    vague,
    silent,
    too_late,
    many_calls,
    early_write,
    internals,
)
EVERY = (*FAILING, same_call_again, claims, promises)
"""Those that a judge alone can tell, too."""
JUDGED = (*EVERY, cancelled_unasked, repeated_then_found, hidden_failure)
"""With those in which only a judge tells what a library's checks leave open."""


def traces_of(kinds: tuple[Dialogue, ...], n: int, *, first: int = 0, tasks: int | None = None) -> Iterator[Trace]:
    """So many traces of these kinds in turn, with the outcome `right`; of so many tasks, by default as many."""
    for number, kind in enumerate(islice(cycle(kinds), n), first):
        task = number if tasks is None else number % tasks
        run = Run(
            id=f"{kind.__name__}-{number}",
            messages=tuple(kind(Order(number))),
            attributes={TASK_ID: f"order-{task}"},
        )
        yield Trace(id=run.id, runs=(run,), outcomes={"right": float(kind is right)})
