"""JudgePass: what a judge answered, and where it or a check failed, while traces are scored one after another.

Traces at which one failed are scored again later in the pass: what the judge had answered of them is known then, and a
failure that follows the trace (trace_failures.py) becomes the trace's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from .trace_failures import Blame, TraceFailures

NOT_ASKED = "not asked"
"""The reason of a verdict in a forecast, which asks nobody: what waits for it is asked about all the same."""
Source = int
"""What may fail: a judge or a check function, by its identity."""
Slot = tuple[Source, int | None, str]
"""A source, a turn (None: the closing block) and an item's id."""


@dataclass(kw_only=True)
class JudgeAttempt:
    """One attempt at scoring one trace. `known` are the judge's answers of earlier attempts (the scorer's columns),
    `blamed` the failures that are the trace's; `answered` and `failed` are what this one brings, `asked` is who was
    asked. Without `judged` the judge is left alone: it is tried whether a check answers."""

    known: Mapping[Slot, Any]
    blamed: Mapping[Slot, Blame]
    answered: dict[Slot, Any] = field(default_factory=dict)
    failed: set[Slot] = field(default_factory=set)
    asked: set[Source] = field(default_factory=set)
    checks: set[Source] = field(default_factory=set)
    judged: bool = True

    def note(self, slot: Slot, answer: Any, *, failed: bool, asked: bool) -> None:
        """Of a judge. `asked`: a model was, as nothing was known of it from a cache."""
        if failed:
            self.failed.add(slot)
        else:
            self.answered[slot] = answer
        if asked or failed:
            self.asked.add(slot[0])

    def note_check(self, slot: Slot, *, failed: bool) -> None:
        """A check was asked, and raised or answered. It is asked anew in each attempt, so the answer is not kept."""
        self.asked.add(slot[0])
        self.checks.add(slot[0])
        if failed:
            self.failed.add(slot)


class JudgePass:
    """The attempts of one pass by trace id; `failures` has what they came to, of each judge and check by itself."""

    def __init__(self) -> None:
        self.failures: defaultdict[Source, TraceFailures] = defaultdict(TraceFailures)
        self.checks: set[Source] = set()
        self._answers: dict[str, dict[Slot, Any]] = {}
        self._blamed: dict[str, dict[Slot, Blame]] = {}

    @contextmanager
    def attempt(self, traces: Sequence[str], *, anew: bool = False, judged: bool = True) -> Iterator[None]:
        """Score these traces within: it is an attempt at each. With `anew` nothing that is known of them is looked up,
        or kept: the judge is asked, to see whether it answers; without `judged`, the checks alone."""
        made: dict[str, JudgeAttempt] = {}
        for trace in traces:
            known: Mapping[Slot, Any] = {} if anew else self._answers.get(trace, {})
            made[trace] = JudgeAttempt(known=known, blamed={} if anew else self._blamed.get(trace, {}), judged=judged)
        began = {source: failures.begin() for source, failures in self.failures.items()}
        one, other = _OPEN.set(made), _ANEW.set(anew)
        try:
            yield
        finally:
            _OPEN.reset(one)
            _ANEW.reset(other)
        for trace, attempt in made.items():
            self.checks |= attempt.checks
            for source in attempt.asked:
                failed = {slot for slot in attempt.failed if slot[0] == source}
                self.failures[source].end(trace, failed, began=began.get(source, 0), probe=anew)
            if anew or not attempt.asked:
                continue
            if attempt.failed:
                self._answers.setdefault(trace, {}).update(attempt.answered)
            else:
                self._answers.pop(trace, None)

    def failing(self, trace: str) -> list[Source]:
        """The judges and checks that have failed at the trace in every attempt so far."""
        return [source for source, failures in self.failures.items() if failures.failing(trace)]

    def is_failing(self, trace: str) -> bool:
        """Whether one of them has, and it is not known yet to be the trace's doing."""
        return trace not in self._blamed and bool(self.failing(trace))

    def blame(self, trace: str) -> bool:
        """Whether its failures follow the trace; scored again, they are its own."""
        found: dict[Slot, Blame] = {}
        for source in self.failing(trace):
            found.update(self.failures[source].blamed(trace))  # type: ignore[arg-type]  # the slots that went in
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


__all__ = ["NOT_ASKED", "JudgeAttempt", "JudgePass", "Slot", "Source", "attempt_at", "is_asked_anew"]
