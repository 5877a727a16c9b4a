"""`QueueLedger`: what all workers of a reward may spend and how fast, in one row of the store."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, ColumnElement, Update, case, cast, func, null, select, update

from cm2_agent.errors import BudgetExhausted, StoreError
from cm2_agent.llm.limits import Reservation
from cm2_agent.store.work_tables import scoring_queues
from cm2_agent.workers.queue import NOW

if TYPE_CHECKING:
    from cm2_agent.store.engine import Database

_MINUTE = 60e9
_ROW = scoring_queues.c


class LedgerAway(BudgetExhausted):
    """The ledger cannot be reached: no call is made, and none has failed."""


class QueueLedger:
    """A reserve-then-settle ledger: a call counts by what it may cost before it is made, and by what it cost
    afterwards. What a killed worker had under way stays counted. The reserve is no less than the dearest call so far,
    so that calls which cost more than was estimated do not add up past the budget. `queue` is set once the reward's
    version is known."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self.queue: str | None = None
        self._owed: list[Mapping[str, Any]] = []

    def reserve(self, tokens: int, usd: float) -> Reservation:
        try:
            return self._reserve(tokens, usd)
        except StoreError as error:
            raise LedgerAway(f"the ledger of the judge's budget cannot be reached: {error}") from error

    def _reserve(self, tokens: int, usd: float) -> Reservation:
        self._settle_owed()
        with self._db.writing() as connection:
            query = select(scoring_queues, NOW.label("now")).where(_ROW.queue == self.queue)
            row = connection.execute(query.with_for_update()).one()
            if row.budget_calls is not None and row.calls >= row.budget_calls:
                raise BudgetExhausted(
                    f"the workers' budget of {row.budget_calls} calls is spent; raise it: cm2 work --budget-calls N"
                )
            reserved = usd
            if row.budget_usd is not None:
                reserved = max(usd, row.dearest_usd)
                _check(row.budget_usd, row.spent_usd, reserved)
            start, call, token = row.now, row.next_call, row.next_token
            if row.rpm is not None:
                start, call = max(start, call), max(call, row.now) + round(_MINUTE / row.rpm)
            if row.tpm is not None:
                start, token = max(start, token), max(token, row.now) + round(tokens * _MINUTE / row.tpm)
            booked = {"calls": row.calls + 1, "next_call": call, "next_token": token}
            spent = None if row.spent_usd is None else row.spent_usd + reserved
            connection.execute(self._update.values(**booked, spent_usd=spent))
        return Reservation(seconds=(start - row.now) / 1e9, tokens=tokens, usd=reserved)

    def settle(self, reservation: Reservation, tokens: int, usd: float | None) -> None:
        more = None if usd is None else usd - reservation.usd
        self._owe(0, more, usd or 0.0, max(0, tokens - reservation.tokens))

    def give_back(self, reservation: Reservation) -> None:
        self._owe(-1, -reservation.usd, 0.0, 0)

    def _owe(self, calls: int, more: float | None, usd: float, beyond: int) -> None:
        self._owed.append(
            {
                "calls": _ROW.calls + calls,
                "spent_usd": null() if more is None else _ROW.spent_usd + more,
                "dearest_usd": func.greatest(_ROW.dearest_usd, usd),
                **({} if beyond == 0 else {"next_token": _later(beyond)}),
            }
        )
        with suppress(StoreError):  # the next call settles it: until then it counts by its reserve
            self._settle_owed()

    def _settle_owed(self) -> None:
        if not self._owed:
            return
        owed = list(self._owed)
        with self._db.writing() as connection:
            for values in owed:
                connection.execute(self._update.values(**values))
        del self._owed[: len(owed)]

    @property
    def _update(self) -> Update:
        return update(scoring_queues).where(_ROW.queue == self.queue)


def _check(budget: float, spent: float | None, reserved: float) -> None:
    if spent is None:
        raise BudgetExhausted(
            f"the workers' budget of {budget:g} USD cannot be kept: a call was answered by a model without a known"
            " price; say it: cm2 work --price INPUT,OUTPUT"
        )
    if spent + reserved > budget or spent >= budget > 0:
        raise BudgetExhausted(
            f"the workers' budget of {budget:g} USD is spent ({spent:.4g} USD; one more call may not fit); raise it:"
            " cm2 work --budget-usd N"
        )


def _later(tokens: int) -> ColumnElement[Any]:
    """When the next tokens may be sent, after so many that had not been reserved."""
    wait = cast(tokens * _MINUTE / _ROW.tpm, BigInteger)
    return case((_ROW.tpm.is_(None), _ROW.next_token), else_=func.greatest(_ROW.next_token, NOW) + wait)


__all__ = ["LedgerAway", "QueueLedger"]
