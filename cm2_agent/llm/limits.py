"""RateLimits: how much a language model may be asked: calls at a time, requests and tokens a minute, a budget."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from cm2_agent.errors import BudgetExhausted, JudgeError
from cm2_agent.llm.usage import Usage, note

_MINUTE = 60.0


class Reservation(NamedTuple):
    """A call that a ledger has allowed: the seconds until it may start, and what it holds for it."""

    seconds: float
    tokens: int
    usd: float


class Ledger(Protocol):
    """A budget and a rate that processes share, such as a row of a database."""

    def reserve(self, tokens: int, usd: float) -> Reservation:
        """Room for one call that may take so much. Raises BudgetExhausted where it is not allowed."""
        ...

    def settle(self, reservation: Reservation, tokens: int, usd: float | None) -> None:
        """The call took so much; None where its price is not known. Raises nothing."""
        ...

    def give_back(self, reservation: Reservation) -> None:
        """The call was not made. Raises nothing."""
        ...


@dataclass
class _Slot:
    """One call that was allowed: what it has reserved, until it is spent or its slot is left."""

    calls: int
    usd: float
    tokens: int
    reservation: Reservation | None = None


class RateLimits:
    """Holds calls back, and refuses them when the budget does not allow one more.

    A call that is under way counts by its estimate, so that many at a time do not overshoot. One object may serve
    several judges, simulators and users, threads and event loops.

    Args:
        concurrency: Calls at a time (1 or more).
        rpm: Requests a minute, held by spacing, so that no minute has more; None for no limit.
        tpm: Tokens a minute, in and out, likewise.
        budget_usd: US dollars that may be spent in all; a model without a known price is refused then.
        budget_calls: Calls that may be made in all.
        of: Who asks, as errors name it.
        ledger: Holds rate and budget in their place, for all processes that share it.
        clock: The monotonic clock to go by, in seconds.
        sleep: How to wait a number of seconds.

    >>> import asyncio
    >>> from cm2_agent.llm import RateLimits
    >>> async def ask(limits):
    ...     async with limits.slot(estimated_tokens=900):
    ...         limits.spend(input_tokens=820, output_tokens=60, usd=0.0003)
    >>> limits = RateLimits(budget_calls=1)
    >>> asyncio.run(ask(limits))
    >>> asyncio.run(ask(limits))
    Traceback (most recent call last):
    ...
    cm2_agent.errors.BudgetExhausted: the judge's budget of 1 calls is spent (1 calls made); what was not \
asked by then stays open. Raise the budget and run again: nothing is asked twice
    """

    def __init__(
        self,
        *,
        concurrency: int = 64,
        rpm: float | None = None,
        tpm: float | None = None,
        budget_usd: float | None = None,
        budget_calls: int | None = None,
        of: str = "judge",
        ledger: Ledger | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Raises JudgeError where a limit is not a number that could be held."""
        for name, value, least in (
            ("concurrency", concurrency, 1),
            ("budget_usd", budget_usd, 0),
            ("budget_calls", budget_calls, 0),
        ):
            if value is not None and not value >= least:
                raise JudgeError(f"{name} is {value}; expected {least} or more")
        for name, value in (("rpm", rpm), ("tpm", tpm)):
            if value is not None and not value > 0:
                raise JudgeError(f"{name} is {value}; expected more than 0 a minute, or None for no limit")
        self.concurrency, self.rpm, self.tpm = concurrency, rpm, tpm
        self.budget_usd, self.budget_calls = budget_usd, budget_calls
        self.of, self.ledger = of, ledger
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._free = concurrency
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        self._next = {"rpm": float("-inf"), "tpm": float("-inf")}
        self._reserved_calls = 0
        self._reserved_usd = 0.0
        self._unpriced: str | None = None
        self._spent = Usage()

    @property
    def calls(self) -> int:
        """Requests made so far, failed ones too."""
        return self._spent.calls

    @property
    def input_tokens(self) -> int:
        return self._spent.input_tokens

    @property
    def output_tokens(self) -> int:
        return self._spent.output_tokens

    @property
    def spent_usd(self) -> float | None:
        """US dollars so far; None where the price of a call is not known."""
        return self._spent.usd

    @property
    def usage(self) -> Usage:
        """A copy of everything counted so far."""
        with self._lock:
            return Usage(**self._spent.__dict__)

    def check(self, estimated_usd: float | None = 0.0) -> None:
        """Raises BudgetExhausted where one more call is not allowed; `estimated_usd` is what it may cost, None where
        nobody knows."""
        with self._lock:
            self._check(estimated_usd)

    def refuse_unpriced(self, model: str) -> None:
        """Raises JudgeError where there is a budget in dollars: for a model that has no known price."""
        if self.budget_usd is not None:
            raise JudgeError(
                f"the budget is {self.budget_usd:g} USD, but the price of {model!r} is not known, so it could not be"
                " kept; say the price (Price(input=…, output=…) in USD a million tokens, --price INPUT,OUTPUT), or"
                " give a budget in calls"
            )

    @asynccontextmanager
    async def slot(self, estimated_tokens: int = 0, estimated_usd: float | None = None) -> AsyncIterator[None]:
        """Room for one call: waits for a free place and for the minute's share, and reserves the call in the budget.

        Raises BudgetExhausted, before the call, where it is not allowed. Within, say by `spend` what it took.
        """
        self.check(self._estimate(estimated_usd))
        await self._enter()
        try:
            reservation = self._reserved(estimated_tokens, estimated_usd)
            slot = self._reserve(estimated_tokens, estimated_usd)
            slot.reservation = reservation
            token = _SLOT.set((*_SLOT.get(), (self, slot)))
            try:
                wait = self._book(estimated_tokens) if reservation is None else reservation.seconds
                if wait > 0:
                    await self._sleep(wait)
                yield
            finally:
                _SLOT.reset(token)
                self._give_back(slot)
        finally:
            self._leave()

    def spend(
        self,
        *,
        calls: int = 1,
        input_tokens: int = 0,
        output_tokens: int = 0,
        usd: float | None = 0.0,
        re_asks: int = 0,
        escalated: int = 0,
        cached: int = 0,
        estimated: int = 0,
    ) -> None:
        """Count what was spent, as `Usage` has it; `usd` None where the price is not known: then a budget in dollars
        allows no further call."""
        counts: dict[str, Any] = {
            "calls": calls,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "usd": usd,
            "re_asks": re_asks,
            "escalated": escalated,
            "cached": cached,
            "estimated": estimated,
        }
        slot = next((slot for limits, slot in reversed(_SLOT.get()) if limits is self), None)
        with self._lock:
            self._spent.add(**counts)
            if slot is not None:
                self._release(slot)
                beyond = input_tokens + output_tokens - slot.tokens
                if self.tpm is not None and beyond > 0:
                    self._next["tpm"] = max(self._next["tpm"], self._clock()) + beyond * _MINUTE / self.tpm
                slot.tokens = max(0, -beyond)
        if self.ledger is not None and slot is not None and slot.reservation is not None:
            reservation, slot.reservation = slot.reservation, None
            self.ledger.settle(reservation, input_tokens + output_tokens, usd)
        note(**counts)

    def _estimate(self, given: float | None) -> float:
        """What the next call may cost: as given, else what a call has cost so far."""
        if given is not None:
            return given
        return (self._spent.usd or 0.0) / self._spent.calls if self._spent.calls else 0.0

    def _reserved(self, tokens: int, usd: float | None) -> Reservation | None:
        return None if self.ledger is None else self.ledger.reserve(tokens, self._estimate(usd))

    def _check(self, estimated_usd: float | None) -> None:
        if self.ledger is not None:
            return
        made = self._spent.calls
        if self.budget_calls is not None and made + self._reserved_calls + 1 > self.budget_calls:
            raise self._exhausted(f"of {self.budget_calls} calls is spent ({made} calls made)")
        if self.budget_usd is None:
            return
        if self._spent.usd is None:
            raise self._exhausted(
                f"of {self.budget_usd:g} USD cannot be kept: a call was answered by a model without a known price"
            )
        expected = self._spent.usd + self._reserved_usd + (estimated_usd or 0.0)
        if expected > self.budget_usd or self._spent.usd >= self.budget_usd > 0:
            raise self._exhausted(
                f"of {self.budget_usd:g} USD is spent ({self._spent.usd:.4g} USD in {made} calls; one more may not fit)"
            )

    def _exhausted(self, what: str) -> BudgetExhausted:
        return BudgetExhausted(
            f"the {self.of}'s budget {what}; what was not asked by then stays open. Raise the budget and run again:"
            " nothing is asked twice"
        )

    def _reserve(self, tokens: int, usd: float | None) -> _Slot:
        with self._lock:
            expected = self._estimate(usd)
            self._check(expected)
            self._reserved_calls += 1
            self._reserved_usd += expected
            return _Slot(calls=1, usd=expected, tokens=tokens)

    def _release(self, slot: _Slot) -> None:
        self._reserved_calls -= slot.calls
        self._reserved_usd = self._reserved_usd - slot.usd if self._reserved_calls else 0.0
        slot.calls, slot.usd = 0, 0.0

    def _give_back(self, slot: _Slot) -> None:
        with self._lock:
            self._release(slot)
        if self.ledger is not None and slot.reservation is not None:
            self.ledger.give_back(slot.reservation)

    def _book(self, tokens: int) -> float:
        """Take the next place in the minute; how many seconds until it comes."""
        with self._lock:
            now = self._clock()
            starts = now
            for name, rate, amount in (("rpm", self.rpm, 1), ("tpm", self.tpm, tokens)):
                if rate is not None and amount:
                    start = max(self._next[name], now)
                    self._next[name] = start + amount * _MINUTE / rate
                    starts = max(starts, start)
            return starts - now

    async def _enter(self) -> None:
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return
            loop = asyncio.get_running_loop()
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.append((loop, turn))
        try:
            await turn
        except asyncio.CancelledError:
            with self._lock:
                waiting = (loop, turn) in self._waiting
                if waiting:
                    self._waiting.remove((loop, turn))
            if not waiting:  # the place was handed over while the task was being cancelled: pass it on
                self._leave()
            raise

    def _leave(self) -> None:
        """Hand the place to who waits longest, in whatever loop; one whose loop is closed has gone."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._free += 1
                    return
                loop, turn = self._waiting.popleft()
            try:
                loop.call_soon_threadsafe(_wake, turn)
                return
            except RuntimeError:
                continue


_SLOT: ContextVar[tuple[tuple[RateLimits, _Slot], ...]] = ContextVar("cm2_slots", default=())


def _wake(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)


__all__ = ["BudgetExhausted", "Ledger", "RateLimits", "Reservation"]
