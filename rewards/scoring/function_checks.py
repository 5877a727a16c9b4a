"""The check functions that one trace needs: collected over its turns, asked at once, each with a limit of time."""

from __future__ import annotations

from functools import partial

from cm2_agent.types.checklist_item import CheckFunction, Item
from cm2_agent.types.trace import Trace

from .check_limits import CheckLimits
from .check_threads import CheckCall, CheckStop, run_calls, run_calls_async
from .checks import failed, run_check
from .isolated_trace import IsolatedTrace
from .shaping import ItemColumn

PENDING = ItemColumn(value=None, reason="check failed", cause="infrastructure", explanation="the check was not asked")
"""Stands in a column until the function has answered."""
_CHANGED = ItemColumn(
    value=None,
    reason="check changed its view",
    cause="content",
    explanation="the check changed the view that it was given; a check may look at it and nothing else",
)


class FunctionChecks:
    """The functions to ask about a trace. `add` notes one, `run` or `run_async` asks them all and fills their columns.

    They are given a copy of the trace. What one of them changed in it is thrown away with the copy, and its verdict is
    NULL."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._copy: IsolatedTrace | None = None
        self._calls: list[CheckCall] = []
        self._places: list[tuple[list[ItemColumn | None], int]] = []

    def add(
        self, function: CheckFunction, item: Item, turn: int | None, columns: list[ItemColumn | None], at: int
    ) -> None:
        """Ask the function about a scope; the answer goes into the columns at this place."""
        self._calls.append(CheckCall(partial(self._ask, function, item, turn), function, item.id))
        self._places.append((columns, at))

    def run(self, limits: CheckLimits) -> None:
        """Blocks until all have answered or were stopped."""
        if self._calls:
            self._fill(run_calls(self._calls, limits))

    async def run_async(self, limits: CheckLimits) -> None:
        """The same without blocking the event loop."""
        if self._calls:
            self._fill(await run_calls_async(self._calls, limits))

    def _fill(self, found: list[ItemColumn]) -> None:
        for (columns, at), column in zip(self._places, found, strict=True):
            columns[at] = column

    def _ask(self, function: CheckFunction, item: Item, turn: int | None) -> ItemColumn:
        """In the thread of the checks."""
        copy, self._copy = self._copy, None  # one that is stopped on the way leaves none behind
        if copy is None:
            copy = IsolatedTrace(self._trace)
        try:
            column = run_check(function, item, copy, turn)
            unchanged = copy.is_unchanged
        except CheckStop:
            raise
        except BaseException as error:  # SystemExit and the like end the check and nothing else
            return failed(error)
        if not unchanged:
            return _CHANGED
        self._copy = copy
        return column


__all__ = ["PENDING", "FunctionChecks"]
