"""TraceFailures: whether a judge's or a check's failures follow a trace, or strike any at random (docs/method.md §4).

A judge that times out, or whose reply cannot be read, may do so by chance; a trace may also bring it about. It did
where the judge fails on it in each of K attempts that lie between attempts at other traces, and chance is excluded:
q^K < 0.001, with q the upper 95 % bound (Clopper–Pearson) of the rate at which it failed on the others in that time.

The rate is that of first attempts, and of attempts that were made to see whether the judge answers at all. Second
attempts are made where the first failed, so they would count a trace that breaks the judge several times."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from functools import lru_cache

from cm2_agent.analysis.rates import upper

ATTEMPTS = 3
"""K: attempts that must have failed, other traces judged between."""
CHANCE = 0.001
"""The chance at which K failures in a row are taken for the trace's doing."""
LEVEL = 0.95
"""Of the one-sided bound of the other traces' failure rate."""


@dataclass(frozen=True, kw_only=True)
class Blame:
    """Why a failure of `who` is the trace's: `failures` of `attempts` at other traces failed, `bound` is q."""

    failures: int
    attempts: int
    bound: float
    who: str = "the judge"

    def __str__(self) -> str:
        return (
            f"{self.who} failed in all {ATTEMPTS} attempts, and in {self.failures} of {self.attempts} at other traces"
            f" meanwhile (at most {self.bound:.2g} with 95 %)"
        )


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """One attempt at a trace: how many attempts of the pass had ended when it began and when it ended, and what
    failed."""

    trace: str
    began: int
    ended: int
    failed: frozenset[Hashable]
    counts: bool
    """Whether the rate of failures is taken over it."""


@dataclass(kw_only=True)
class TraceFailures:
    """The attempts of one pass over traces, in the order in which they ended. A trace is an id, what fails in it any
    hashable value (a turn's item).

    >>> failures = TraceFailures()
    >>> for number in range(40):
    ...     failures.end(f"t{number}", began=failures.begin())
    >>> for _ in range(3):  # "bad" fails, another trace does not
    ...     for trace, failed in (("bad", {"item"}), ("t0", ())):
    ...         failures.end(trace, failed, began=failures.begin())
    >>> print(failures.blamed("bad")["item"])
    the judge failed in all 3 attempts, and in 0 of 40 at other traces meanwhile (at most 0.072 with 95 %)
    """

    _all: list[_Attempt] = field(default_factory=list)
    _of: dict[str, list[_Attempt]] = field(default_factory=dict)

    def begin(self) -> int:
        """An attempt begins: what `end` is given as `began`."""
        return len(self._all)

    def end(self, trace: str, failed: Collection[Hashable] = (), *, began: int, probe: bool = False) -> None:
        """An attempt at the trace has ended, and failed at these. A `probe` was made to see whether the judge
        answers, and says so also where it is not the first at its trace."""
        own = self._of.setdefault(trace, [])
        attempt = _Attempt(
            trace=trace,
            began=began,
            ended=len(self._all) + 1,
            failed=frozenset(failed),
            counts=probe or not own,
        )
        self._all.append(attempt)
        own.append(attempt)

    def attempts(self, trace: str) -> int:
        """Attempts at the trace that have ended."""
        return len(self._of.get(trace, ()))

    def is_followed(self, trace: str) -> bool:
        """Whether the judge has answered on another trace since the last attempt at this one."""
        own = self._of.get(trace)
        return own is not None and self._answered(trace, own[-1].ended, len(self._all))

    def failing(self, trace: str) -> frozenset[Hashable]:
        """What has failed in every attempt so far."""
        own = self._of.get(trace)
        return frozenset.intersection(*(attempt.failed for attempt in own)) if own else frozenset()

    def has_answered(self, trace: str) -> bool:
        """Whether there was an attempt at the trace, and nothing failed in all of them."""
        return trace in self._of and not self.failing(trace)

    def others(self, trace: str) -> tuple[int, int]:
        """(failures, attempts) at the other traces."""
        counted = [attempt for attempt in self._all if attempt.counts and attempt.trace != trace]
        return sum(bool(attempt.failed) for attempt in counted), len(counted)

    def may_be_blamed(self, trace: str, *, more: int = 0) -> bool:
        """Whether the others' failure rate is low enough for the trace to be blamed; `more` attempts at others are
        taken to succeed."""
        failures, attempts = self.others(trace)
        return upper_bound(failures, attempts + more) ** ATTEMPTS < CHANCE

    def blamed(self, trace: str) -> dict[Hashable, Blame]:
        """What failed for the trace's sake, each with the reason; nothing before K attempts, or where the judge did not
        answer on another trace after each of them."""
        own, units = self._of.get(trace, []), self.failing(trace)
        if len(own) < ATTEMPTS or not units:
            return {}
        ends = [*(attempt.began for attempt in own[1:]), len(self._all)]
        if not all(self._answered(trace, attempt.ended, end) for attempt, end in zip(own, ends, strict=True)):
            return {}
        failures, attempts = self.others(trace)
        bound = upper_bound(failures, attempts)
        if bound**ATTEMPTS >= CHANCE:
            return {}
        return dict.fromkeys(units, Blame(failures=failures, attempts=attempts, bound=bound))

    def _answered(self, trace: str, start: int, end: int) -> bool:
        """Whether an attempt at another trace succeeded, of those that were the pass's `start`th to `end`th to end."""
        return any(not attempt.failed and attempt.trace != trace for attempt in self._all[start:end])


@lru_cache(maxsize=4096)
def upper_bound(failures: int, attempts: int) -> float:
    """q: the upper bound of a failure rate of which so much was seen.

    >>> round(upper_bound(0, 29), 4), round(upper_bound(0, 28), 4), upper_bound(0, 0)
    (0.0981, 0.1015, 1.0)
    """
    return upper(failures, attempts, alpha=1 - LEVEL)


__all__ = ["ATTEMPTS", "CHANCE", "LEVEL", "Blame", "TraceFailures", "upper_bound"]
