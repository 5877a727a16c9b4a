"""`QueueLedger`: what all workers of a reward may spend and how fast, in one row of the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sqlalchemy import text

from cm2_agent.errors import BudgetExhausted, StoreError
from cm2_agent.llm.limits import Reservation
from cm2_agent.workers.queue import NOW

if TYPE_CHECKING:
    from cm2_agent.store.engine import Database

_MINUTE = 60e9


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
        self._owed: list[Mapping[str, float | None]] = []

    def reserve(self, tokens: int, usd: float) -> Reservation:
        try:
            return self._reserve(tokens, usd)
        except StoreError as error:
            raise LedgerAway(f"the ledger of the judge's budget cannot be reached: {error}") from error

    def _reserve(self, tokens: int, usd: float) -> Reservation:
        query = text(
            f"SELECT budget_usd, budget_calls, rpm, tpm, calls, spent_usd, dearest_usd, next_call, next_token, {NOW} AS now"
            " FROM scoring_queues WHERE queue = :queue FOR UPDATE"
        )
        self._settle_owed()
        with self._db.writing() as connection:
            row = connection.execute(query, {"queue": self.queue}).one()
            if row.budget_calls is not None and row.calls >= row.budget_calls:
                raise BudgetExhausted(
                    f"the workers' budget of {row.budget_calls} calls is spent; raise it: cm2 work --budget-calls N"
                )
            reserved = usd
            if row.budget_usd is not None:
                reserved = max(usd, row.dearest_usd)
                self._check(row.budget_usd, row.spent_usd, reserved)
            start = row.now
            call, token = row.next_call, row.next_token
            if row.rpm is not None:
                start = max(start, call)
                call = max(call, row.now) + round(_MINUTE / row.rpm)
            if row.tpm is not None:
                start = max(start, token)
                token = max(token, row.now) + round(tokens * _MINUTE / row.tpm)
            connection.execute(
                text(
                    "UPDATE scoring_queues SET calls = calls + 1, spent_usd = spent_usd + :usd, next_call = :call,"
                    " next_token = :token WHERE queue = :queue"
                ),
                {"usd": reserved, "call": call, "token": token, "queue": self.queue},
            )
        return Reservation(seconds=(start - row.now) / 1e9, tokens=tokens, usd=reserved)

    @staticmethod
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

    def settle(self, reservation: Reservation, tokens: int, usd: float | None) -> None:
        more = None if usd is None else usd - reservation.usd
        self._owed.append({"calls": 0, "more": more, "usd": usd or 0.0, "tokens": max(0, tokens - reservation.tokens)})
        self._try_to_settle()

    def give_back(self, reservation: Reservation) -> None:
        self._owed.append({"calls": -1, "more": -reservation.usd, "usd": 0.0, "tokens": 0})
        self._try_to_settle()

    def _try_to_settle(self) -> None:
        try:
            self._settle_owed()
        except StoreError:  # the next call settles it: until then it counts by its reserve
            pass

    def _settle_owed(self) -> None:
        if not self._owed:
            return
        statement = text(
            "UPDATE scoring_queues SET calls = calls + CAST(:calls AS bigint),"
            " spent_usd = spent_usd + CAST(:more AS double precision),"
            " dearest_usd = greatest(dearest_usd, CAST(:usd AS double precision)),"
            " next_token = CASE WHEN tpm IS NULL OR CAST(:tokens AS bigint) = 0 THEN next_token ELSE"
            f" greatest(next_token, {NOW}) + (CAST(:tokens AS bigint) * {_MINUTE:.0f} / tpm)::bigint END"
            " WHERE queue = :queue"
        )
        owed = list(self._owed)
        with self._db.writing() as connection:
            for row in owed:
                connection.execute(statement, {**row, "queue": self.queue})
        del self._owed[: len(owed)]


__all__ = ["LedgerAway", "QueueLedger"]
