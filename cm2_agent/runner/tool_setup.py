"""The tools of a run: which backend answers each of them, for every task and dialogue."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from cm2_agent.errors import TaskError, ToolError
from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.protocols import ToolBackend
from cm2_agent.types.run_attributes import FAULTS, SIMULATOR, TOOL_BACKENDS
from cm2_agent.types.task import RecordedCall, Task

if TYPE_CHECKING:
    from cm2_agent.graphs.backends.backends import Backends
    from cm2_agent.graphs.backends.faults import Faults
    from cm2_agent.graphs.backends.record import CallRecorder
    from cm2_agent.graphs.backends.simulation_cache import SimulationCache
    from cm2_agent.graphs.backends.tool_backends import BackendChoice, ToolChoice
    from cm2_agent.redaction.redactor import Redactor
    from cm2_agent.store import SQLStore

Simulator: TypeAlias = "str | Any | Callable[[Task], ToolBackend]"
"""A model's name, a pydantic-ai or LangChain chat model, or a function that makes a task's simulator."""


@dataclass(frozen=True, kw_only=True)
class ToolSetup:
    """What `run(…)` was given about tools: `chosen` are backend objects, one for all tools or `{tool: backend}`. Each
    graph is switched once."""

    chosen: BackendChoice | Mapping[str, BackendChoice]
    allow_real: tuple[str, ...]
    faults: Faults | None = None
    _graphs: dict[int, tuple[Any, Any, dict[str, str]]] = field(default_factory=dict)

    def graph(self, graph: Any) -> Any:
        """The graph, switched. Raises ToolError where it has tools that may not run, or `tools` names one it does not
        have."""
        return self._prepared(graph)[1]

    def attributes(self, task: Task, graph: Any) -> dict[str, JSON]:
        """What the traces of a task say of their tools: rollouts that differ in it are never compared."""
        labels = self._prepared(graph)[2]
        named: dict[str, JSON] = {TOOL_BACKENDS: canonical_json(labels)}
        versions_of = {name: _simulator_version(self._choice(name), task) for name in labels}
        simulators = {name: version for name, version in versions_of.items() if version is not None}
        if simulators:
            versions = sorted(set(simulators.values()))
            named[SIMULATOR] = versions[0] if len(versions) == 1 else canonical_json(simulators)
        if self.faults is not None:
            named[FAULTS] = self.faults.version
        return named

    def backends(self, task: Task) -> Backends:
        """The backends of one dialogue."""
        from cm2_agent.graphs.backends.backends import Backends

        faults = None if self.faults is None else self.faults.for_task(task.id)
        return Backends(self.chosen, specs=task.tools, faults=faults, task=task)

    def check(self, task: Task, graph: Any) -> None:
        """Raises TaskError for a task that names tools which its graph does not have, and what the task's simulator
        raises where it cannot be made (a budget in dollars for a model whose price nobody knows)."""
        known = self._prepared(graph)[2]
        unknown = sorted({tool.name for tool in task.tools} - set(known))
        if unknown and known:
            raise TaskError(
                f"task {task.id!r} names the tools {', '.join(unknown)}, which the graph does not have; its tools are "
                f"{', '.join(known)}. Leave them out of the task, or run an agent that has them"
            )

        self.attributes(task, graph)

    def _choice(self, name: str) -> Any:
        from cm2_agent.graphs.backends.tool_backends import Real

        return self.chosen.get(name, Real()) if isinstance(self.chosen, Mapping) else self.chosen

    def _prepared(self, graph: Any) -> tuple[Any, Any, dict[str, str]]:
        if id(graph) not in self._graphs:
            from cm2_agent.graphs.backends.tool_backends import resolved
            from cm2_agent.graphs.interception.discovery import require_allowed
            from cm2_agent.graphs.interception.tool_node import switched

            names = sorted(require_allowed(graph, self.allow_real, self.chosen))
            labels = {name: resolved(self._choice(name)).label for name in names}
            self._graphs[id(graph)] = (graph, switched(graph), labels)  # holding the graph keeps its identity its own
        return self._graphs[id(graph)]


def tool_setup(
    tools: ToolChoice,
    *,
    allow_real: Iterable[str] = (),
    simulator: Simulator | None = None,
    recording: Iterable[RecordedCall] = (),
    recorder: CallRecorder | None = None,
    faults: Faults | None = None,
    seed: int = 0,
    store: SQLStore | None = None,
    redact: Redactor | None = None,
) -> ToolSetup:
    """What `run(…, tools=, simulator=, …)` means. Raises ToolError where a backend lacks what it needs."""
    from cm2_agent.graphs.backends.tool_backends import check_backends, short_names

    check_backends(tools)
    named = short_names(tools)
    if named & {"simulate", "hybrid"} and simulator is None:
        raise ToolError(
            f"tools={tools!r} simulates, but no simulator was given; name a model: simulator='openai-chat:gpt-5-mini',"
            " or on the command line --simulator MODEL"
        )
    if "record" in named and recorder is None:
        raise ToolError(
            "tools='record' without a file to record into; give recorder=CallRecorder('calls.jsonl'), or --record FILE"
        )
    bind = _binding(simulator, tuple(recording), recorder, seed, store, redact)
    chosen = {name: bind(one) for name, one in tools.items()} if isinstance(tools, Mapping) else bind(tools)
    return ToolSetup(chosen=chosen, allow_real=tuple(allow_real), faults=faults)


def _binding(
    simulator: Simulator | None,
    recording: tuple[RecordedCall, ...],
    recorder: CallRecorder | None,
    seed: int,
    store: SQLStore | None,
    redact: Redactor | None,
) -> Callable[[Any], Any]:
    """What makes the backend objects of one run: short forms become objects, and simulators get the run's seed, cache
    and redactor. A recording may be of any dialogue, so no simulator is shown it."""
    from cm2_agent.graphs.backends.replay import Replay
    from cm2_agent.graphs.backends.simulate import Simulate
    from cm2_agent.graphs.backends.simulation_cache import MemorySimulations
    from cm2_agent.graphs.backends.tool_backends import Hybrid, Real, Record

    @functools.cache
    def cache() -> SimulationCache:
        return MemorySimulations() if store is None else store.simulation_cache()

    bound: dict[int, tuple[Any, Any]] = {}

    def bind(choice: Any) -> Any:
        if isinstance(choice, str):
            return short_forms[choice]
        if id(choice) not in bound:  # one simulator for two tools stays one
            made = choice
            if isinstance(choice, Simulate):
                made = choice.with_defaults(seed=seed, cache=cache(), redact=redact)
            elif isinstance(choice, Hybrid):
                made = Hybrid(choice.replay, bind(choice.simulated))
            bound[id(choice)] = (choice, made)
        return bound[id(choice)][1]

    replay = Replay(recording)
    short_forms: dict[str, Any] = {"real": Real(), "replay": replay}
    if recorder is not None:
        short_forms["record"] = Record(recorder)
    if simulator is not None:
        simulate = bind(Simulate(simulator))
        short_forms |= {"simulate": simulate, "hybrid": Hybrid(replay, simulate)}
    return bind


def _simulator_version(choice: Any, task: Task) -> str | None:
    """What simulates a tool of the task; None where nothing of ours does."""
    from cm2_agent.graphs.backends.simulate import Simulate, SimulatedTools
    from cm2_agent.graphs.backends.tool_backends import Hybrid

    simulated = choice.simulated if isinstance(choice, Hybrid) else choice
    if isinstance(simulated, Simulate):
        simulated = simulated.of(task)
    elif not isinstance(simulated, SimulatedTools):
        return None
    return str(getattr(simulated, "version", type(simulated).__qualname__))


__all__ = ["Simulator", "ToolSetup", "tool_setup"]
