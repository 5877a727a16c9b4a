"""The check functions that the turns of one trace left open: asked at once, each with a limit of time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from cm2_agent.types.checklist_item import CheckFunction, Item
from cm2_agent.types.trace import Trace

from ..judges.judge_pass import JudgeAttempt, Slot
from .applicability import PENDING
from .check_limits import DISABLED, CheckLimits
from .check_threads import CheckCall, CheckStop, run_calls, run_calls_async
from .checks import FAILED, failed, run_check
from .isolated_trace import IsolatedTrace
from .scored_turn import CheckedTurn
from .shaping import ItemColumn

_CHANGED = ItemColumn(
    value=None,
    reason="check changed its view",
    cause="content",
    explanation="the check changed the view that it was given; a check may look at it and nothing else",
)


def ask_functions(
    trace: Trace, turns: Sequence[CheckedTurn], limits: CheckLimits, attempt: JudgeAttempt | None = None
) -> None:
    """Fill the columns of the turns whose functions are still to be asked, and those that hang on an item which is
    known to be false or NULL by then. Blocks until all functions have answered or were stopped. `attempt` is the one
    that is under way within a pass over traces (judge_pass.py)."""
    calls = _calls(trace, turns, attempt)
    run_calls([call for _, call in calls], limits)
    _note(attempt, calls)
    for turn in turns:
        turn.close()


async def ask_functions_async(
    trace: Trace, turns: Sequence[CheckedTurn], limits: CheckLimits, attempt: JudgeAttempt | None = None
) -> None:
    """The same without blocking the event loop."""
    calls = _calls(trace, turns, attempt)
    await run_calls_async([call for _, call in calls], limits)
    _note(attempt, calls)
    for turn in turns:
        turn.close()


def _calls(trace: Trace, turns: Iterable[CheckedTurn], attempt: JudgeAttempt | None) -> list[tuple[Slot, CheckCall]]:
    """What is to be asked. A check is not asked that raises for the trace's sake, as earlier attempts have shown: its
    column is filled."""
    lent = _LentTrace(trace)
    calls = []
    for turn in turns:
        for at, (item, check) in enumerate(zip(turn.turn.items, turn.turn.checks, strict=True)):
            if check is None or turn.columns[at] is not PENDING:
                continue
            slot = (id(check), turn.turn.turn, item.id)
            if attempt is not None and slot in attempt.blamed:
                why = str(replace(attempt.blamed[slot], who="the check"))
                turn.columns[at] = ItemColumn(value=None, reason=FAILED, cause="content", explanation=why)
                continue
            ask = partial(lent.ask, check, item, turn.turn.turn, turn.steps)
            calls.append((slot, CheckCall(ask=ask, function=check, item=item.id, columns=turn.columns, at=at)))
    return calls


def _note(attempt: JudgeAttempt | None, calls: Iterable[tuple[Slot, CheckCall]]) -> None:
    """In a pass: which checks answered, and which raised."""
    if attempt is None:
        return
    for slot, call in calls:
        column = call.columns[call.at]
        if column is not None and column.reason != DISABLED:
            attempt.note_check(slot, failed=column.reason == FAILED and column.cause == "infrastructure")


class _LentTrace:
    """The copy of a trace that its functions are given. What one of them changed in it is thrown away with the copy,
    and its verdict is NULL."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._copy: IsolatedTrace | None = None

    def ask(self, function: CheckFunction, item: Item, turn: int | None, steps: int) -> ItemColumn:
        """In the thread of the checks."""
        copy, self._copy = self._copy, None  # one that is stopped on the way leaves none behind
        if copy is None:
            copy = IsolatedTrace(self._trace)
        try:
            column = run_check(function, item, copy, turn, steps)
            unchanged = copy.is_unchanged
        except CheckStop:
            raise
        except BaseException as error:  # SystemExit and the like end the check and nothing else
            return failed(error)
        if not unchanged:
            return _CHANGED
        self._copy = copy
        return column


__all__ = ["ask_functions", "ask_functions_async"]
