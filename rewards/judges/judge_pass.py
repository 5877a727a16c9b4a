"""JudgePass: what a judge answered, and where it failed, while traces are scored one after another.

Traces at which it failed are scored again later in the pass: what it had answered of them is known then, and a failure
that follows the trace (trace_failures.py) becomes the trace's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from .trace_failures import Blame, TraceFailures

Slot = tuple[int, int | None, str]
"""A judge (by its identity), a turn (None: the closing block) and an item's id."""


@dataclass(kw_only=True)
class JudgeAttempt:
    """One attempt at judging one trace. `known` are answers of earlier attempts (the scorer's columns), `blamed` the
    failures that are the trace's; `answered` and `failed` are what this one brings."""

    known: Mapping[Slot, Any]
    blamed: Mapping[Slot, Blame]
    answered: dict[Slot, Any] = field(default_factory=dict)
    failed: set[Slot] = field(default_factory=set)
    asked: bool = False

    def note(self, slot: Slot, answer: Any, *, failed: bool, asked: bool) -> None:
        """`asked`: a model was, as nothing was known of it from a cache."""
        self.asked |= asked or failed
        if failed:
            self.failed.add(slot)
        else:
            self.answered[slot] = answer


class JudgePass:
    """The attempts of one pass by trace id; `failures` has what they came to."""

    def __init__(self) -> None:
        self.failures = TraceFailures()
        self._answers: dict[str, dict[Slot, Any]] = {}
        self._blamed: dict[str, dict[Slot, Blame]] = {}

    @contextmanager
    def attempt(self, traces: Sequence[str], *, anew: bool = False) -> Iterator[None]:
        """Score these traces within: it is an attempt at each. With `anew` nothing that is known of them is looked up,
        or kept: the judge is asked, to see whether it answers."""
        made: dict[str, JudgeAttempt] = {}
        for trace in traces:
            known: Mapping[Slot, Any] = {} if anew else self._answers.get(trace, {})
            made[trace] = JudgeAttempt(known=known, blamed={} if anew else self._blamed.get(trace, {}))
        began = self.failures.begin()
        one, other = _OPEN.set(made), _ANEW.set(anew)
        try:
            yield
        finally:
            _OPEN.reset(one)
            _ANEW.reset(other)
        for trace, attempt in made.items():
            if not attempt.asked:
                continue
            self.failures.end(trace, attempt.failed, began=began, probe=anew)
            if anew:
                continue
            if attempt.failed:
                self._answers.setdefault(trace, {}).update(attempt.answered)
            else:
                self._answers.pop(trace, None)

    def is_failing(self, trace: str) -> bool:
        """Whether the judge has failed at the trace in every attempt so far."""
        return bool(self.failures.failing(trace)) and trace not in self._blamed

    def blame(self, trace: str) -> bool:
        """Whether its failures follow the trace; scored again, they are its own."""
        found: dict[Slot, Blame] = self.failures.blamed(trace)  # type: ignore[assignment]  # the slots that went in
        if found:
            self._blamed[trace] = found
        return bool(found)


def attempt_at(trace: str) -> JudgeAttempt | None:
    """The attempt that is under way at the trace; None outside a pass."""
    return _OPEN.get().get(trace)


def is_asked_anew() -> bool:
    """Whether caches are to be left alone, since it is tried whether the judge answers."""
    return _ANEW.get()


_NONE: Mapping[str, JudgeAttempt] = {}
_OPEN: ContextVar[Mapping[str, JudgeAttempt]] = ContextVar("cm2_judge_attempts", default=_NONE)
_ANEW: ContextVar[bool] = ContextVar("cm2_judge_asked_anew", default=False)


__all__ = ["JudgeAttempt", "JudgePass", "Slot", "attempt_at", "is_asked_anew"]
