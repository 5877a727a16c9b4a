"""The tools of a run: which backend answers whom, for every dialogue its own. It introduces tasks, simulators,
recorders and the switch to each other; apart from the runner, which conducts the dialogues."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from cm2_agent.errors import TaskError, ToolError
from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.run_attributes import FAULTS, SIMULATOR, TOOL_BACKENDS
from cm2_agent.types.task import RecordedCall, Task

if TYPE_CHECKING:
    from cm2_agent.graphs.backends.backends import Answering, Backend, Backends
    from cm2_agent.graphs.backends.faults import Faults
    from cm2_agent.graphs.backends.record import Recorder
    from cm2_agent.graphs.backends.replay import ReplayTools
    from cm2_agent.store import SQLStore

Simulator: TypeAlias = "str | Any | Callable[[Task], Answering]"
"""A model's name, a pydantic-ai or LangChain chat model, or a function that makes a task's simulator."""


@dataclass(frozen=True, kw_only=True)
class Tooling:
    """What `run(…)` was told of tools. `simulate` makes a task's simulator; `recording` is replayed beside a task's own
    recorded calls, and never shown to a simulator: it may be of anybody. Graphs are switched once each."""

    chosen: Backend | Mapping[str, Backend]
    allow_real: tuple[str, ...]
    simulate: Callable[[Task], Answering] | None = None
    recording: tuple[RecordedCall, ...] = ()
    recorder: Recorder | None = None
    faults: Faults | None = None
    _graphs: dict[int, tuple[Any, Any, dict[str, str]]] = field(default_factory=dict)
    _simulators: dict[tuple[str, int], Answering] = field(default_factory=dict)
    _replays: dict[tuple[str, int], ReplayTools] = field(default_factory=dict)

    def graph(self, graph: Any) -> Any:
        """The graph, switched. Raises ToolError where it has tools that may not run, or `tools` names one it does not
        have."""
        return self._prepared(graph)[1]

    def attributes(self, task: Task, graph: Any) -> dict[str, JSON]:
        """What the traces of a task say of their tools: rollouts that differ in it are never compared."""
        from cm2_agent.graphs.backends.backends import SIMULATING

        backends = self._prepared(graph)[2]
        said: dict[str, JSON] = {TOOL_BACKENDS: canonical_json(backends)}
        if SIMULATING & set(backends.values()):
            said[SIMULATOR] = str(getattr(self._simulator(task), "version", type(self._simulator(task)).__qualname__))
        if self.faults is not None:
            said[FAULTS] = self.faults.version
        return said

    def backends(self, task: Task) -> Backends:
        """The backends of one dialogue."""
        from cm2_agent.graphs.backends.backends import REPLAYING, SIMULATING, Backends

        named = {self.chosen} if isinstance(self.chosen, str) else set(self.chosen.values())
        return Backends(
            self.chosen,
            specs=task.tools,
            recorder=self.recorder,
            faults=None if self.faults is None else self.faults.for_task(task.id),
            replay=self._replay(task) if named & REPLAYING else None,
            simulator=self._simulator(task) if named & SIMULATING else None,
        )

    def check(self, task: Task, graph: Any) -> None:
        """Raises TaskError for a task that names tools which its graph does not have, and what the task's simulator
        raises where it cannot be made (a budget in dollars for a model whose price nobody knows)."""
        known = self._prepared(graph)[2]
        unknown = sorted({tool.name for tool in task.tools} - set(known))
        if unknown and known:
            raise TaskError(
                f"task {task.id!r} names the tools {', '.join(unknown)}, which the graph does not have; its tools are "
                f"{', '.join(sorted(known))}. Leave them out of the task, or run an agent that has them"
            )

        self.attributes(task, graph)

    def _prepared(self, graph: Any) -> tuple[Any, Any, dict[str, str]]:
        if id(graph) not in self._graphs:
            from cm2_agent.graphs.interception.discovery import refuse_unnamed
            from cm2_agent.graphs.interception.tool_node import switched

            chosen = self.chosen
            names = sorted(refuse_unnamed(graph, self.allow_real, chosen))
            said: dict[str, str] = {
                name: chosen if isinstance(chosen, str) else chosen.get(name, "real") for name in names
            }
            self._graphs[id(graph)] = (graph, switched(graph), said)  # holding the graph keeps its identity its own
        return self._graphs[id(graph)]

    def _simulator(self, task: Task) -> Answering:
        key = (task.id, task.version)
        if key not in self._simulators:
            assert self.simulate is not None  # checked when the tooling was made
            self._simulators[key] = self.simulate(task)
        return self._simulators[key]

    def _replay(self, task: Task) -> ReplayTools:
        from cm2_agent.graphs.backends.replay import ReplayTools

        key = (task.id, task.version)
        if key not in self._replays:
            self._replays[key] = ReplayTools((*task.recorded, *self.recording), task.tools)
        return self._replays[key]


def tooling(
    tools: Backend | Mapping[str, Backend],
    *,
    allow_real: Iterable[str] = (),
    simulator: Simulator | None = None,
    recording: Iterable[RecordedCall] = (),
    recorder: Recorder | None = None,
    faults: Faults | None = None,
    seed: int = 0,
    store: SQLStore | None = None,
) -> Tooling:
    """What `run(…, tools=, simulator=, …)` means. Raises ToolError where a backend lacks what it needs."""
    from cm2_agent.graphs.backends.backends import SIMULATING, check_backends

    check_backends(tools)
    named = {tools} if isinstance(tools, str) else set(tools.values())
    if named & SIMULATING and simulator is None:
        raise ToolError(
            f"tools={tools!r} simulates, but no simulator was given; name a model: simulator='openai-chat:gpt-5-mini',"
            " or on the command line --simulator MODEL"
        )
    if "record" in named and recorder is None:
        raise ToolError(
            "tools='record' without a file to record into; give recorder=Recorder('calls.jsonl'), or --record FILE"
        )
    return Tooling(
        chosen=tools,
        allow_real=tuple(allow_real),
        recording=tuple(recording),
        recorder=recorder,
        faults=faults,
        simulate=None if simulator is None else _simulating(simulator, seed, store),
    )


def _simulating(simulator: Simulator, seed: int, store: SQLStore | None) -> Callable[[Task], Answering]:
    from langchain_core.language_models import BaseChatModel
    from pydantic_ai.models import Model

    if not isinstance(simulator, str | Model | BaseChatModel):
        if not callable(simulator):
            raise ToolError(
                f"the simulator is a {type(simulator).__name__}; expected a model, its name, or a function of a task"
            )
        return cast("Callable[[Task], Answering]", simulator)
    from cm2_agent.graphs.backends.simulate import SimulatedTools
    from cm2_agent.graphs.backends.simulations import MemorySimulations
    from cm2_agent.llm.providers import language_model

    model = language_model(simulator, "simulator")
    cache = MemorySimulations() if store is None else store.simulation_cache()
    return lambda task: SimulatedTools(model, task=task, seed=seed, cache=cache)


__all__ = ["Simulator", "Tooling", "tooling"]
