"""Which backend answers a tool's calls in a run, and what one dialogue's backends have been through; apart from the switch, which only
asks here."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

from cm2_agent.graphs.tools.journal import Answer, Call, Journal

Backend: TypeAlias = Literal["real", "record", "replay", "simulate", "hybrid"]
BACKENDS: tuple[Backend, ...] = ("real", "record", "replay", "simulate", "hybrid")
INVENTED = frozenset({"replay", "simulate"})
"""What a span says of an answer that came from no real tool."""


class Answering(Protocol):
    """Answers calls in place of a tool, for one dialogue. Raises ToolError where it fails for its own reasons.

    >>> class Shipped:
    ...     async def answer(self, call, journal):
    ...         return Answer(content="shipped", backend="simulate")
    """

    async def answer(self, call: Call, journal: Journal) -> Answer: ...


class Injecting(Protocol):
    """Decides, before a call is answered, whether a fault is injected into it, and makes the faulty answer (`faults.Faults` is ours)."""

    def draw(self, call: Call, journal: Journal) -> str | None: ...

    def faulty(self, fault: str, answer: Answer | None) -> Answer: ...


__all__ = ["BACKENDS", "INVENTED", "Answering", "Backend", "Injecting"]
