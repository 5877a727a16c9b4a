"""The tools of one dialogue: which backend answers each of them, what was answered, and what failed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any
from weakref import WeakKeyDictionary

from langchain_core.tools import BaseTool, ToolException

from cm2_agent.errors import CM2Error, ToolError
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.protocols import FaultInjector, ReplayBackend, ToolBackend
from cm2_agent.types.secrets import error_text
from cm2_agent.types.task import Task
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest

from ..crashes import may_repeat, note_reproduced
from .record import CallRecorder
from .tool_backends import ResolvedBackend, ToolChoice, check_backends, resolved, short_names

REPLAYING = frozenset({"replay", "hybrid"})
SIMULATING = frozenset({"simulate", "hybrid"})
TOOLS = "cm2_tools"
"""The name under which a run's `Backends` stand in LangGraph's configurable, or in a runtime context of the user's
own."""


class Backends:
    """The tools of one dialogue: which backend answers each of them, what was answered, and what failed.

    `failure` is the first error that was not the agent's doing: it makes the dialogue's reward NULL, even where the
    graph caught the error and went on.

    Args:
        chosen: One backend for all tools, or `{tool: backend}` (a tool that is not named is real): a short form
            ("real", "record", "replay", "simulate", "hybrid"), a `ToolBackend`, or a function.
        replay: What the short forms "replay" and "hybrid" replay.
        simulator: Who answers under the short forms "simulate" and "hybrid".
        recorder: Where the short form "record" writes calls down.
        faults: Makes some calls fail.
        specs: What the task says of its tools, beyond what the tools say themselves.
        task: The dialogue's task; each `ToolRequest` carries it.

    Raises:
        ToolError: A backend does not exist, or a short form lacks what it needs.

    >>> from cm2_agent.graphs import Backends
    >>> backends = Backends({"get_order": "real"})
    >>> backends.backend("get_order"), backends.failure
    ('real', None)
    """

    def __init__(
        self,
        chosen: ToolChoice = "real",
        *,
        replay: ReplayBackend | None = None,
        simulator: ToolBackend | None = None,
        recorder: CallRecorder | None = None,
        faults: FaultInjector | None = None,
        specs: Iterable[ToolSpec] = (),
        task: Task | None = None,
    ) -> None:
        check_backends(chosen)
        named = short_names(chosen)
        for backends, given, what in (
            (REPLAYING, replay, "recorded calls to replay"),
            (SIMULATING, simulator, "a simulator"),
            (frozenset({"record"}), recorder, "a recorder"),
        ):
            if named & backends and given is None:
                raise ToolError(
                    f"the backend {'/'.join(sorted(named & backends))} was chosen without {what}; give it one"
                )
        self.chosen: ToolChoice = chosen
        self.replay, self.simulator, self.recorder, self.faults = replay, simulator, recorder, faults
        self.task = task
        self.log = CallLog()
        self.failure: Exception | None = None
        self._resolved: dict[str, ResolvedBackend] = {}
        self._specs = {spec.name: spec for spec in specs}
        self._known: dict[str, ToolSpec] = {}
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Lock]] = WeakKeyDictionary()

    def backend(self, name: str) -> str:
        """The name of the backend that was chosen for a tool."""
        return self.resolved(name).name

    def resolved(self, name: str) -> ResolvedBackend:
        """The backend that was chosen for a tool."""
        found = self._resolved.get(name)
        if found is None:
            choice: Any = self.chosen.get(name, "real") if isinstance(self.chosen, Mapping) else self.chosen
            found = self._resolved[name] = self._short(choice) if isinstance(choice, str) else resolved(choice)
        return found

    def _short(self, name: str) -> ResolvedBackend:
        if name not in SIMULATING | REPLAYING:
            return ResolvedBackend(name=name, answers_as=name, recorder=self.recorder if name == "record" else None)
        answering = self.replay if name == "replay" else self.simulator
        assert answering is not None
        return ResolvedBackend(
            name=name,
            answers_as="replay" if name == "replay" else "simulate",
            ask=answering.answer,
            find=self.replay.find if name in REPLAYING and self.replay is not None else None,
        )

    def spec(self, tool: BaseTool) -> ToolSpec:
        """The tool as the model sees it, with what the task says of its results and effects."""
        known = self._known.get(tool.name)
        if known is None:
            from ..tools.specs import spec_of

            known, of_task = spec_of(tool), self._specs.get(tool.name)
            if of_task is not None:
                output = of_task.output if of_task.output is not None else known.output
                reads = of_task.reads if of_task.reads is not None else known.reads
                known = replace(known, output=output, reads=reads)
            self._known[tool.name] = known
        return known

    def draw(self, request: ToolRequest) -> str | None:
        """The fault to inject into this call, None for none."""
        return None if self.faults is None else self.faults.draw(request, self.log)

    def fault_before(self, request: ToolRequest, fault: str | None) -> ToolAnswer | None:
        """The answer of a call that fails before any tool is asked."""
        if fault in ("timeout", "error") and self.faults is not None:
            return self.faults.faulty(fault, request, None)
        return None

    def fault_after(self, request: ToolRequest, fault: str | None, answer: ToolAnswer) -> ToolAnswer:
        """The answer as the fault leaves it."""
        return answer if fault is None or self.faults is None else self.faults.faulty(fault, request, answer)

    def replayed(self, request: ToolRequest) -> ToolAnswer | None:
        """The recorded answer, where the tool's backend replays and has one."""
        return self.resolved(request.tool.name).found(request, self.log)

    async def answer(self, request: ToolRequest) -> ToolAnswer:
        """What the tool's backend answers, written to the log. Its failure is noted as the dialogue's and raised; a
        ToolException is the answer of a tool that failed. Of parallel calls that are the same, the second waits, so
        that it gets the answer of the first."""
        backend = self.resolved(request.tool.name)
        locks = self._locks.setdefault(asyncio.get_running_loop(), {})
        async with locks.setdefault(request.key, asyncio.Lock()):
            answer = self.replayed(request)
            if answer is None:
                try:
                    answer = await backend.answer(request, self.log)
                except ToolException as error:
                    answer = ToolAnswer(content=str(error), error=True, backend=backend.answers_as)
                except CM2Error as error:
                    self.fail(error)
                    raise
                except Exception as error:  # a backend of the user's own
                    failure = ToolError(
                        f"the backend {backend.answers_as!r} of tool {request.tool.name!r} failed:"
                        f" {type(error).__name__}: {error_text(error, 300)}"
                    )
                    if may_repeat(error) and await self._fails_again(backend, request, error):
                        note_reproduced(failure)
                    raise self.fail(failure) from error
            self.log.add(request, answer)
        return answer

    async def _fails_again(self, backend: ResolvedBackend, request: ToolRequest, error: Exception) -> bool:
        """Whether the same call fails in the same way, so that it is the agent's doing."""
        try:
            await backend.answer(request, self.log)
        except Exception as again:  # whatever it is
            return type(again) is type(error)
        return False

    def state(self) -> JSON:
        """The dialogue's calls and their answers, as JSON: another process's backends go on from there by `restore`."""
        entries = self.log.entries
        return {
            "tools": {entry.request.tool.name: asdict(entry.request.tool) for entry in entries},
            "entries": [
                {"tool": entry.request.tool.name, "arguments": dict(entry.request.arguments), **asdict(entry.answer)}
                for entry in entries
            ],
        }

    def restore(self, state: JSON) -> None:
        """Go on from another object's `state`."""
        tools = {name: ToolSpec(**tool) for name, tool in state["tools"].items()}
        for entry in state["entries"]:
            answer = dict(entry)
            request = ToolRequest(tool=tools[answer.pop("tool")], arguments=answer.pop("arguments"), task=self.task)
            self.log.add(request, ToolAnswer(**answer))

    def fail(self, error: Exception) -> Exception:
        """Remember the first failure that was not the agent's doing; the error comes back, to be raised."""
        if self.failure is None:
            self.failure = error
        return error

    def record_real(self, request: ToolRequest, answer: ToolAnswer, seconds: float = 0.0) -> None:
        """The tool itself answered (or a fault in its place): the log knows it from now on, and the recorder where that
        is the backend."""
        self.log.add(request, answer)
        recorder = self.resolved(request.tool.name).recorder
        if answer.backend == "record" and recorder is not None:
            recorder.add(request, answer, seconds)


__all__ = ["REPLAYING", "SIMULATING", "TOOLS", "Backends"]
