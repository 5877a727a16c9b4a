"""A task of tau2 as a Task: the user's messages, what has to be done, and the desk's answers to the reference."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from cm2_agent.benchmarks.tau2.world import World
from cm2_agent.errors import TaskError
from cm2_agent.importers.gold_actions import GoldAction, compile_gold
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.task import RecordedCall, Task

User: TypeAlias = Literal["scripted", "persona"]
CONFIRMATION = "Yes, please go ahead."
MAX_TURNS = 30
"""How many messages a simulated user may write."""
_KINDS = {"users": "user", "reservations": "reservation", "orders": "order"}


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A task of tau2's, and its reference played once on a fresh desk."""

    domain: str
    tau2_task: Any
    """tau2's own Task."""
    recorded: tuple[RecordedCall, ...]
    """The reference's calls with the desk's answers."""
    entities: tuple[str, ...]

    @classmethod
    def play(cls, domain: str, tau2_task: Any, world: World) -> Scenario:
        """Play the reference in a fresh world. Raises TaskError for a task that starts from a state of its own."""
        if tau2_task.initial_state is not None:
            raise TaskError(
                f"tau2's {domain} task {tau2_task.id!r} starts from a state of its own, which this desk does not set"
            )
        actions = tau2_task.evaluation_criteria.actions or ()
        recorded = tuple(RecordedCall(name=one.name, arguments=one.arguments, **_answer(world, one)) for one in actions)
        return cls(
            domain=domain, tau2_task=tau2_task, recorded=recorded, entities=_entities(tau2_task, recorded, world)
        )


def task_of(scenario: Scenario, policy: str, tools: Sequence[ToolSpec], *, user: User, confirmations: int) -> Task:
    """The Task of a scenario. A write of the reference that the desk refused leaves no mark, so it is not asked for."""
    if user not in ("scripted", "persona"):
        raise TaskError(f"user={user!r}; expected 'scripted' or 'persona'")
    if confirmations < 0:
        raise TaskError(f"confirmations={confirmations}; expected 0 or more")
    tau2_task, name = scenario.tau2_task, f"tau2-{scenario.domain}-{scenario.tau2_task.id}"
    outputs = list(tau2_task.evaluation_criteria.communicate_info or ())
    done = [GoldAction(name=call.name, kwargs=call.arguments) for call in scenario.recorded if call.error is None]
    scripted = user == "scripted"
    return Task(
        id=name,
        system=policy,
        turns=(_opening(tau2_task), *[CONFIRMATION] * confirmations) if scripted else (),
        persona=None if scripted else str(tau2_task.user_scenario),
        max_turns=None if scripted else MAX_TURNS,
        tools=tuple(tools),
        recorded=scenario.recorded,
        checklist=compile_gold(done, outputs, name=name, writes=[tool.name for tool in tools if tool.reads is False]),
        entities=scenario.entities,
        outcome={"actions": [action.model_dump(mode="json") for action in done], "outputs": outputs},
        metadata={"source": "tau2", "desk": scenario.domain, "tau2": tau2_task.id},
    )


def _answer(world: World, action: Any) -> dict[str, str]:
    content, error = world.call(action.name, action.arguments)
    return {"error" if error else "result": content}


def _opening(tau2_task: Any) -> str:
    instructions = tau2_task.user_scenario.instructions
    if isinstance(instructions, str):
        return instructions.strip()
    parts = (instructions.reason_for_call, instructions.known_info, instructions.task_instructions)
    return "\n\n".join(part.strip() for part in parts if part and part.strip(" .\n"))


def _entities(tau2_task: Any, recorded: Sequence[RecordedCall], world: World) -> tuple[str, ...]:
    """The customers, reservations and orders that a scenario names or its reference touches, with those whom they
    belong to."""
    words = set(re.findall(r"[#\w]+", str(tau2_task.user_scenario)))
    for call in recorded:
        words.update(_strings(dict(call.arguments)))
        if isinstance(call.result, str):
            words.add(call.result)
    found = set()
    for table, kind in _KINDS.items():
        rows = world.table(table)
        for word in words & set(rows):
            found.add(f"{kind}:{word}")
            if kind != "user":
                found.add(f"user:{rows[word].user_id}")
    return tuple(sorted(found))


def _strings(value: JSON) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


__all__ = ["CONFIRMATION", "Scenario", "User", "task_of"]
