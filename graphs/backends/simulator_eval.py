"""How true a simulator (any `ToolBackend`) is to the tools it stands for: recorded calls asked again with their answers
held out.

For each recorded call the simulator knows the task's other recorded calls (never one that is the same call) and, as its
state, those that came before. Two answers are drawn, so that consistency is measured too."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from rapidfuzz import fuzz

from cm2_agent.analysis.bootstrap import Interval, mean_interval
from cm2_agent.errors import BudgetExhausted, CM2Error, ToolError
from cm2_agent.types.json_values import JSON, canonical_json, scalars
from cm2_agent.types.messages import Message, ToolSpec
from cm2_agent.types.protocols import ToolBackend
from cm2_agent.types.task import RecordedCall, Task
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest

from .replay import replayed
from .simulate_prompt import SHOTS
from .tool_backends import answer_of

_ALIKE = 80.0
"""From this similarity on (0 to 100, numbers and quoted words left out) two error messages are of one form."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """One recorded call, asked again. Shares are in [0, 1]; None: not to be said. `failed`: the simulator gave no
    usable answer."""

    task: str
    tool: str
    position: int
    valid: bool
    exact: bool
    fields: float
    error_form: bool | None
    consistent: bool | None
    failed: str | None = None


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """What was found of one tool: means with 95 % intervals over tasks. `fields` is F1 of the answer's leaves: path and
    value."""

    tool: str
    calls: int
    failed: int
    valid: tuple[float, Interval]
    exact: tuple[float, Interval]
    fields: tuple[float, Interval]
    error_form: tuple[float, Interval] | None
    consistent: tuple[float, Interval] | None


async def held_out(
    tasks: Sequence[Task],
    simulate: Callable[[Task], ToolBackend],
    *,
    twice: bool = True,
    most: int | None = None,
    concurrency: int = 16,
    tools: frozenset[str] | None = None,
) -> AsyncIterator[Held]:
    """Each recorded call of the tasks, asked again, as they come. `simulate` makes the simulator of a task that lacks
    the call; it must not remember (a cache would make the second answer the first). `most`: so many of a tool at most,
    spread over the tasks; `tools`: these alone. Raises ToolError where nothing is recorded, BudgetExhausted."""
    jobs = _chosen(tasks, most, tools)
    if not jobs:
        raise ToolError("the tasks have no recorded calls to hold out; expected such as cm2 tasks from-traces writes")
    free = asyncio.Semaphore(concurrency)

    async def one(task: Task, position: int) -> Held:
        async with free:
            return await _held(task, position, simulate, twice)

    running = [asyncio.create_task(one(task, position)) for task, position in jobs]
    try:
        for done in asyncio.as_completed(running):
            yield await done
    finally:
        for left in running:
            left.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def fidelity(found: Sequence[Held]) -> list[Fidelity]:
    """The findings by tool, in the order of their names."""
    by_tool: dict[str, list[Held]] = {}
    for held in found:
        by_tool.setdefault(held.tool, []).append(held)
    return [_fidelity(tool, by_tool[tool]) for tool in sorted(by_tool)]


def reselected(task: Task, found: Sequence[Held], tools: frozenset[str], shots: int = 8) -> Task:
    """The task whose few-shots of these tools are its own misses first: what the simulator gets wrong is what it has to
    be shown."""
    chosen = dict(task.metadata.get(SHOTS) or {})
    for tool in tools:
        own_misses = sorted(
            (held for held in found if held.task == task.id and held.tool == tool),
            key=lambda held: (held.fields, held.position),
        )
        known = {held.position for held in own_misses}
        rest = [number for number, call in enumerate(task.recorded) if call.name == tool and number not in known]
        if own_misses:
            chosen[tool] = [*(held.position for held in own_misses), *rest][:shots]
    return task.model_copy(update={"metadata": {**task.metadata, SHOTS: chosen}})


def _chosen(tasks: Sequence[Task], most: int | None, tools: frozenset[str] | None) -> list[tuple[Task, int]]:
    """Task by task in turn, so that a limit does not leave all but the first tasks out."""
    by_task = [
        [(task, number) for number, call in enumerate(task.recorded) if tools is None or call.name in tools]
        for task in tasks
    ]
    counted: Counter[str] = Counter()
    chosen = []
    for rank in range(max(map(len, by_task), default=0)):
        for task, number in (jobs[rank] for jobs in by_task if rank < len(jobs)):
            name = task.recorded[number].name
            if most is None or counted[name] < most:
                counted[name] += 1
                chosen.append((task, number))
    return chosen


async def _held(task: Task, position: int, simulate: Callable[[Task], ToolBackend], twice: bool) -> Held:
    recorded = task.recorded[position]
    call = _call(task, recorded)
    remaining = [number for number, other in enumerate(task.recorded) if _call(task, other).key != call.key]
    left = _without(task, remaining)
    log = CallLog()
    for number in remaining:
        if number < position:
            other = task.recorded[number]
            log.add(_call(task, other), replayed(other))
    answers: list[ToolAnswer] = []
    for _ in range(2 if twice else 1):
        simulator = simulate(left)  # one that cannot be made at all is the caller's mistake
        try:
            answers.append(answer_of(await simulator.answer(call, log), "simulate"))
        except BudgetExhausted:
            raise
        except CM2Error as error:
            return Held(
                task=task.id,
                tool=recorded.name,
                position=position,
                valid=False,
                exact=False,
                fields=0.0,
                error_form=None,
                consistent=None,
                failed=str(error)[:300],
            )
    expected, answered = replayed(recorded), answers[0]
    others = [replayed(other) for other in left.recorded if other.name == recorded.name]
    return Held(
        task=task.id,
        tool=recorded.name,
        position=position,
        valid=_valid(call.tool, answered, others),
        exact=answered.error == expected.error and _told(answered) == _told(expected),
        fields=0.0 if answered.error != expected.error else _f1(_told(answered), _told(expected)),
        error_form=_same_form(answered, expected),
        consistent=None if len(answers) < 2 else _told(answers[1]) == _told(answered),
    )


def _without(task: Task, remaining: Sequence[int]) -> Task:
    """The task with these recorded calls alone, its chosen few-shots renumbered."""
    places = {old: new for new, old in enumerate(remaining)}
    shots = {
        tool: [places[old] for old in chosen if old in places]
        for tool, chosen in (task.metadata.get(SHOTS) or {}).items()
    }
    metadata = {**task.metadata, **({SHOTS: shots} if shots else {})}
    return task.model_copy(
        update={"recorded": tuple(task.recorded[number] for number in remaining), "metadata": metadata}
    )


def _call(task: Task, recorded: RecordedCall) -> ToolRequest:
    tool = next((tool for tool in task.tools if tool.name == recorded.name), None) or ToolSpec(name=recorded.name)
    words = tuple(Message.of("user", turn) for turn in task.turns)
    return ToolRequest(tool=tool, arguments=recorded.arguments, messages=words)


def _parsed(answer: ToolAnswer) -> JSON:
    if not isinstance(answer.content, str):
        return answer.content
    try:
        return json.loads(answer.content)
    except (ValueError, RecursionError):
        return answer.content


def _valid(tool: ToolSpec, answered: ToolAnswer, others: Sequence[ToolAnswer]) -> bool:
    """Whether the answer has the declared schema; where none is declared, the JSON type that recorded answers have, and
    no key that none of them has. An error has a form of its own."""
    if answered.error:
        return True
    value = _parsed(answered)
    if tool.output is not None:
        try:
            return bool(Draft202012Validator(dict(tool.output)).is_valid(value))
        except SchemaError:
            return False
    known = [_parsed(other) for other in others if not other.error]
    if not known:
        return True
    if type(value) not in {type(other) for other in known}:
        return False
    if isinstance(value, Mapping):
        return set(value) <= {key for other in known if isinstance(other, Mapping) for key in other}
    return True


_Told: TypeAlias = Counter[tuple[tuple[str, ...], str]]


def _told(answer: ToolAnswer) -> _Told:
    """The scalars of an answer under their paths; items of a list share theirs, so that their order does not matter."""
    return Counter((path, _spelled(value)) for path, value in scalars(_parsed(answer)))


def _spelled(value: JSON) -> str:
    """As JSON, numbers as floats."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return canonical_json(float(value)) if math.isfinite(value) else repr(value)
    return canonical_json(value)


def _f1(answered: _Told, expected: _Told) -> float:
    return 2 * (answered & expected).total() / (answered.total() + expected.total())


def _same_form(answered: ToolAnswer, expected: ToolAnswer) -> bool | None:
    """Whether errors are told as errors, and in the tool's own form; None where both are answers."""
    if not answered.error and not expected.error:
        return None
    if answered.error != expected.error:
        return False
    return fuzz.ratio(_form(answered), _form(expected)) >= _ALIKE


def _form(answer: ToolAnswer) -> str:
    """The message without what differs from call to call: numbers and quoted words."""
    text = answer.content if isinstance(answer.content, str) else canonical_json(answer.content)
    return re.sub(r"'[^']{0,200}'|\"[^\"]{0,200}\"|\w*\d\w*", "#", text[:2000])


def _fidelity(tool: str, found: Sequence[Held]) -> Fidelity:
    def share(values: Sequence[tuple[str, float | bool | None]]) -> tuple[float, Interval] | None:
        answered = [(task, float(value)) for task, value in values if value is not None]
        return mean_interval([value for _, value in answered], [task for task, _ in answered]) if answered else None

    def every(name: str) -> tuple[float, Interval]:
        measured = share([(held.task, getattr(held, name)) for held in found])
        assert measured is not None
        return measured

    return Fidelity(
        tool=tool,
        calls=len(found),
        failed=sum(held.failed is not None for held in found),
        valid=every("valid"),
        exact=every("exact"),
        fields=every("fields"),
        error_form=share([(held.task, held.error_form) for held in found]),
        consistent=share([(held.task, held.consistent) for held in found]),
    )


__all__ = ["SHOTS", "Fidelity", "Held", "fidelity", "held_out", "reselected"]
