"""Replay where the call was recorded, simulation where it was not; apart from both, since either works alone."""

from __future__ import annotations

from .backends import Answering, Replaying
from .calls import Answer, Call, Journal


class HybridTools:
    """Asks `replay` first, and `simulated` what replay has no recording of. `Answer.backend` says which of the two
    answered.

    >>> from cm2_agent.graphs.backends.replay import ReplayTools
    >>> class Invented:
    ...     async def answer(self, call, journal):
    ...         return Answer(content="pending", backend="simulate")
    >>> tools = HybridTools(ReplayTools([]), Invented())
    """

    def __init__(self, replay: Replaying, simulated: Answering) -> None:
        self.replay, self.simulated = replay, simulated

    def find(self, call: Call, journal: Journal) -> Answer | None:
        """The recorded answer, None where there is none."""
        return self.replay.find(call, journal)

    async def answer(self, call: Call, journal: Journal) -> Answer:
        """Raises ToolError where the simulator fails."""
        found = self.find(call, journal)
        return found if found is not None else await self.simulated.answer(call, journal)


__all__ = ["HybridTools"]
