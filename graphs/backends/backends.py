"""Which backend answers a tool's calls in a run, and what one dialogue's backends have been through; apart from the
switch, which only asks here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, Literal, Protocol, TypeAlias
from weakref import WeakKeyDictionary

from langchain_core.tools import BaseTool

from cm2_agent.errors import CM2Error, ToolError
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import ToolSpec

from .calls import Answer, Call, Journal

Backend: TypeAlias = Literal["real", "record", "replay", "simulate", "hybrid"]
BACKENDS: tuple[Backend, ...] = ("real", "record", "replay", "simulate", "hybrid")
INVENTED = frozenset({"replay", "simulate"})
"""What a span says of an answer that came from no real tool."""
REPLAYING = frozenset({"replay", "hybrid"})
SIMULATING = frozenset({"simulate", "hybrid"})
TOOLS = "cm2_tools"
"""The name under which a run's `Backends` stand in LangGraph's configurable, or in a runtime context of the user's
own."""


class Answering(Protocol):
    """Answers calls in place of a tool, for one dialogue. Raises ToolError where it fails for its own reasons.

    >>> class Shipped:
    ...     async def answer(self, call, journal):
    ...         return Answer(content="shipped", backend="simulate")
    """

    async def answer(self, call: Call, journal: Journal) -> Answer: ...


class Replaying(Answering, Protocol):
    """An Answering that knows beforehand which calls it can answer: None where it cannot."""

    def find(self, call: Call, journal: Journal) -> Answer | None: ...


class Injecting(Protocol):
    """Decides, before a call is answered, whether a fault is injected into it, and makes the faulty answer
    (`faults.Faults` is ours)."""

    def draw(self, call: Call, journal: Journal) -> str | None: ...

    def faulty(self, fault: str, call: Call, answer: Answer | None) -> Answer: ...


class Recording(Protocol):
    """Writes real calls down (`recording.Recorder` is ours)."""

    def add(self, call: Call, answer: Answer, seconds: float) -> None: ...


class Backends:
    """The tools of one dialogue: which backend answers whom, what was answered, and what failed.

    `chosen` is one backend for all tools, or `{tool: backend}` (a tool that is not named is real). `replay`,
    `simulator`, `recorder` and `faults` are this dialogue's; `specs` what the task says of its tools, beyond what the
    tools say themselves. `failure` is the first error that was not the agent's doing: it makes the dialogue's reward
    NULL, even where the graph caught the error and went on.

    Raises ToolError for a backend that does not exist, or one that lacks what it needs.
    """

    def __init__(
        self,
        chosen: Backend | Mapping[str, Backend] = "real",
        *,
        replay: Replaying | None = None,
        simulator: Answering | None = None,
        recorder: Recording | None = None,
        faults: Injecting | None = None,
        specs: Iterable[ToolSpec] = (),
    ) -> None:
        check_backends(chosen)
        named: set[str] = {chosen} if isinstance(chosen, str) else set(chosen.values())
        for backends, given, what in (
            (REPLAYING, replay, "recorded calls to replay"),
            (SIMULATING, simulator, "a simulator"),
            (frozenset({"record"}), recorder, "a recorder"),
        ):
            if named & backends and given is None:
                raise ToolError(
                    f"the backend {'/'.join(sorted(named & backends))} was chosen without {what}; give it one"
                )
        self.chosen: Backend | Mapping[str, Backend] = chosen
        self.replay, self.simulator, self.recorder, self.faults = replay, simulator, recorder, faults
        self.journal = Journal()
        self.failure: Exception | None = None
        self._specs = {spec.name: spec for spec in specs}
        self._known: dict[str, ToolSpec] = {}
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Lock]] = WeakKeyDictionary()

    def backend(self, name: str) -> Backend:
        """What was chosen for a tool."""
        return self.chosen if isinstance(self.chosen, str) else self.chosen.get(name, "real")

    def spec(self, tool: BaseTool) -> ToolSpec:
        """The tool as the model sees it, with what the task says of its results and effects."""
        known = self._known.get(tool.name)
        if known is None:
            from ..tools.specs import spec_of

            known, told = spec_of(tool), self._specs.get(tool.name)
            if told is not None:
                output = told.output if told.output is not None else known.output
                reads = told.reads if told.reads is not None else known.reads
                known = replace(known, output=output, reads=reads)
            self._known[tool.name] = known
        return known

    def draw(self, call: Call) -> str | None:
        """The fault to inject into this call, None for none."""
        return None if self.faults is None else self.faults.draw(call, self.journal)

    def before(self, call: Call, fault: str | None) -> Answer | None:
        """The answer of a call that fails before any tool is asked."""
        if fault in ("timeout", "error") and self.faults is not None:
            return self.faults.faulty(fault, call, None)
        return None

    def after(self, call: Call, fault: str | None, answer: Answer) -> Answer:
        """The answer as the fault leaves it."""
        return answer if fault is None or self.faults is None else self.faults.faulty(fault, call, answer)

    def replayed(self, call: Call) -> Answer | None:
        """The recorded answer, where replay was chosen and has one."""
        if self.replay is None or self.backend(call.tool.name) not in REPLAYING:
            return None
        return self.replay.find(call, self.journal)

    async def invented(self, call: Call) -> Answer:
        """What replay or the simulator answers, which the journal then knows. A failure of theirs is noted and raised.
        Of parallel calls that are the same, the second waits, so that it hears what the first heard."""
        answering = self.replay if self.backend(call.tool.name) == "replay" else self.simulator
        locks = self._locks.setdefault(asyncio.get_running_loop(), {})
        async with locks.setdefault(call.key, asyncio.Lock()):
            answer = self.replayed(call)
            if answer is None:
                assert answering is not None
                try:
                    answer = await answering.answer(call, self.journal)
                except CM2Error as error:
                    self.note(error)
                    raise
            self.journal.add(call, answer)
        return answer

    def state(self) -> JSON:
        """What the dialogue's calls were and how they were answered, as JSON: another process's backends go on from it
        by `restore`."""
        entries = self.journal.entries
        return {
            "tools": {entry.call.tool.name: asdict(entry.call.tool) for entry in entries},
            "entries": [
                {"tool": entry.call.tool.name, "arguments": dict(entry.call.arguments), **asdict(entry.answer)}
                for entry in entries
            ],
        }

    def restore(self, state: JSON) -> None:
        """Take up what `state` told."""
        tools = {name: ToolSpec(**tool) for name, tool in state["tools"].items()}
        for entry in state["entries"]:
            told = dict(entry)
            self.journal.add(Call(tool=tools[told.pop("tool")], arguments=told.pop("arguments")), Answer(**told))

    def note(self, error: Exception) -> Exception:
        """Keep the first failure that was not the agent's doing; the error comes back, to be raised."""
        if self.failure is None:
            self.failure = error
        return error

    def told(self, call: Call, answer: Answer, seconds: float = 0.0) -> None:
        """A call was answered otherwise: the journal knows it from now on, and the recorder where that is the
        backend."""
        self.journal.add(call, answer)
        if answer.backend == "record" and self.recorder is not None:
            self.recorder.add(call, answer, seconds)


def check_backends(chosen: Any) -> None:
    """Raises ToolError for what names no backend."""
    values = [chosen] if isinstance(chosen, str) else list(chosen.values()) if isinstance(chosen, Mapping) else [chosen]
    for value in values:
        if value not in BACKENDS:
            raise ToolError(
                f"tools={chosen!r} names the backend {value!r}; expected one of {', '.join(BACKENDS)}, or {{tool:"
                " backend}"
            )


__all__ = [
    "BACKENDS",
    "TOOLS",
    "Answering",
    "Backend",
    "Backends",
    "Injecting",
    "Recording",
    "Replaying",
    "check_backends",
]
