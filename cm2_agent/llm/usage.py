"""Usage: calls, tokens and US dollars, added up for whoever opened a meter.

A meter belongs to the task that opened it and to the tasks started within, so traces judged side by side are counted
separately."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from cm2_agent.types.json_values import JSON


@dataclass(kw_only=True)
class Usage:
    """Counts since the meter was opened.

    `calls` are all requests; `re_asks` those among them that asked again for what a reply lacked; `escalated` the items
    that went on to a stronger judge; `cached` the verdicts that were known already. `usd` is None as soon as the price
    of one call is not known. `estimated` are the calls whose tokens no reply reported."""

    calls: int = 0
    re_asks: int = 0
    escalated: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float | None = 0.0
    estimated: int = 0

    def add(
        self,
        *,
        calls: int = 0,
        re_asks: int = 0,
        escalated: int = 0,
        cached: int = 0,
        input_tokens: int = 0,
        output_tokens: int = 0,
        usd: float | None = 0.0,
        estimated: int = 0,
    ) -> None:
        """`usd` None: the price of these calls is not known."""
        self.calls += calls
        self.re_asks += re_asks
        self.escalated += escalated
        self.cached += cached
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        self.estimated += estimated
        self.usd = None if self.usd is None or usd is None else self.usd + usd

    def to_json(self) -> dict[str, JSON]:
        """The counts as `Score.usage` keeps them; empty where no judge was asked and nothing was known."""
        known = {name: value for name, value in self.__dict__.items() if name != "estimated" or value}
        return known if self.calls or self.cached else {}


_OPEN: ContextVar[tuple[Usage, ...]] = ContextVar("cm2_open_meters", default=())


@contextmanager
def metered() -> Iterator[Usage]:
    """Open a meter: everything noted within, by this task and the tasks it starts, is added to it (and to those around
    it).

    >>> with metered() as usage:
    ...     note(calls=1, input_tokens=900, output_tokens=80, usd=0.001)
    >>> usage.calls, usage.usd
    (1, 0.001)
    """
    usage = Usage()
    token = _OPEN.set((*_OPEN.get(), usage))
    try:
        yield usage
    finally:
        _OPEN.reset(token)


def note(
    *,
    calls: int = 0,
    re_asks: int = 0,
    escalated: int = 0,
    cached: int = 0,
    input_tokens: int = 0,
    output_tokens: int = 0,
    usd: float | None = 0.0,
    estimated: int = 0,
) -> None:
    """Add to every open meter. `RateLimits.spend` does so for calls, tokens and dollars; a judge the rest."""
    for usage in _OPEN.get():
        usage.add(
            calls=calls,
            re_asks=re_asks,
            escalated=escalated,
            cached=cached,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            usd=usd,
            estimated=estimated,
        )


__all__ = ["Usage", "metered", "note"]
