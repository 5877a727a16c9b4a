"""Fidelity: what a simulator was not shown is asked of it; perfect, silent, lying and forgetful simulators get the
figures they deserve."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.errors import BudgetExhausted, ToolError
from cm2_agent.graphs.backends.simulator_eval import SHOTS, Held, fidelity, held_out, reselected
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.protocols import ToolBackend
from cm2_agent.types.task import RecordedCall, Task
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest

GET = ToolSpec(
    name="get_order",
    parameters={"type": "object", "properties": {"order_id": {"type": "integer"}}},
    output={"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]},
)
CANCEL = ToolSpec(name="cancel_order", parameters={"type": "object", "properties": {"order_id": {"type": "integer"}}})
TRUE = {1: {"status": "open", "price": 30}, 2: {"status": "sent", "price": 5}, 3: {"status": "open", "price": 7}}


def recorded(order: int) -> RecordedCall:
    return RecordedCall(name="get_order", arguments={"order_id": order}, result=json.dumps(TRUE[order]))


def task(name: str, *orders: int) -> Task:
    missing = RecordedCall(name="cancel_order", arguments={"order_id": 99}, error="Error: order 99 not found")
    return Task(id=name, turns=("Where is it?",), tools=(GET, CANCEL), recorded=(*map(recorded, orders), missing))


TASKS = [task("a", 1, 2), task("b", 2, 3)]


class Says:
    """A simulator made of a function of its task, the call and the log; `seen` holds what each was shown."""

    def __init__(
        self,
        say: Callable[[Task, ToolRequest, CallLog], ToolAnswer | str],
        seen: list[tuple[Task, ToolRequest, CallLog]],
        mine: Task,
    ) -> None:
        self.say, self.seen, self.mine = say, seen, mine

    async def answer(self, call: ToolRequest, log: CallLog) -> ToolAnswer:
        self.seen.append((self.mine, call, log))
        said = self.say(self.mine, call, log)
        return said if isinstance(said, ToolAnswer) else ToolAnswer(content=said, backend="simulate")


def simulate(
    say: Callable[[Task, ToolRequest, CallLog], ToolAnswer | str], seen: Any = None
) -> Callable[[Task], ToolBackend]:
    kept = [] if seen is None else seen
    return lambda mine: Says(say, kept, mine)


def truth(mine: Task, call: ToolRequest, log: CallLog) -> ToolAnswer | str:
    if call.tool.name == "cancel_order":
        return ToolAnswer(content=f"Error: order {call.arguments['order_id']} not found", error=True)
    return json.dumps(dict(reversed(TRUE[call.arguments["order_id"]].items())))


async def found(say: Any, tasks: Any = TASKS, **options: Any) -> list[Held]:
    return [held async for held in held_out(tasks, simulate(say), **options)]


async def test_a_true_simulator_has_every_figure_at_one() -> None:
    cancel, get = fidelity(await found(truth))
    assert (cancel.tool, cancel.calls, get.tool, get.calls) == ("cancel_order", 2, "get_order", 4)
    assert [share[0] for share in (get.valid, get.exact, get.fields)] == [1.0, 1.0, 1.0]
    assert (get.error_form, cancel.error_form is not None and cancel.error_form[0]) == (None, 1.0)
    assert get.consistent is not None
    assert get.consistent[0] == 1.0
    assert get.exact[1][0] < 1.0  # four calls are not certainty


async def test_the_answer_is_held_out_wherever_it_was_recorded() -> None:
    seen: list[tuple[Task, ToolRequest, CallLog]] = []
    shown, calls = {SHOTS: {"get_order": [0, 2]}}, (recorded(1), recorded(1), recorded(2))
    twice = Task(id="t", turns=("x",), tools=(GET,), recorded=calls, metadata=shown)
    _ = [held async for held in held_out([twice], simulate(truth, seen), twice=False)]
    for mine, call, log in seen:
        keys = {json.dumps(dict(other.arguments)) for other in mine.recorded}
        assert json.dumps(dict(call.arguments)) not in keys
        assert all(entry.request.key != call.key for entry in log.entries)
    shots = {call.arguments["order_id"]: mine.metadata[SHOTS]["get_order"] for mine, call, _ in seen}
    assert shots == {1: [0], 2: [0]}  # renumbered to what is left


async def test_the_state_is_what_was_recorded_before() -> None:
    seen: list[tuple[Task, ToolRequest, CallLog]] = []
    _ = [held async for held in held_out([TASKS[0]], simulate(truth, seen), twice=False)]
    before = {
        call.arguments["order_id"]: [entry.request.arguments["order_id"] for entry in log.entries]
        for _, call, log in seen
    }
    assert before == {1: [], 2: [1], 99: [1, 2]}


async def test_wrong_fields_schemas_and_errors_are_told_apart() -> None:
    def lies(mine: Task, call: ToolRequest, log: CallLog) -> ToolAnswer | str:
        if call.tool.name == "cancel_order":
            return "cancelled"
        return {1: json.dumps({"status": "open", "price": 31}), 2: json.dumps({"price": 5}), 3: "[]"}[
            call.arguments["order_id"]
        ]

    held = {(one.task, one.position): one for one in await found(lies)}
    assert held["a", 0].fields == 0.5
    assert held["a", 0].valid
    assert not held["a", 0].exact
    assert held["a", 1].fields == pytest.approx(2 / 3)
    assert not held["a", 1].valid  # status is required
    assert not held["b", 1].valid
    assert held["a", 2].error_form is False
    assert held["a", 2].fields == 0.0


async def test_an_error_of_another_form_is_no_match() -> None:
    def rude(mine: Task, call: ToolRequest, log: CallLog) -> ToolAnswer | str:
        if call.tool.name == "cancel_order":
            return ToolAnswer(content="HTTP 500: the database is on fire", error=True)
        return truth(mine, call, log)

    cancel, get = fidelity(await found(rude))
    assert cancel.error_form is not None
    assert cancel.error_form[0] == 0.0
    assert get.error_form is None


async def test_a_forgetful_simulator_is_inconsistent_and_one_that_fails_is_counted() -> None:
    said: list[int] = []

    def forgets(mine: Task, call: ToolRequest, log: CallLog) -> ToolAnswer | str:
        if call.tool.name == "cancel_order":
            raise ToolError("the simulator timed out")
        said.append(1)
        return json.dumps({"status": f"open {len(said)}"})

    cancel, get = fidelity(await found(forgets))
    assert get.consistent is not None
    assert get.consistent[0] == 0.0
    assert (cancel.failed, cancel.fields[0], cancel.valid[0]) == (2, 0.0, 0.0)


async def test_misses_become_the_few_shots() -> None:
    def weak(mine: Task, call: ToolRequest, log: CallLog) -> ToolAnswer | str:
        return json.dumps({"status": "?"}) if call.arguments["order_id"] == 3 else truth(mine, call, log)

    held = await found(weak)
    again = reselected(TASKS[1], held, frozenset({"get_order"}), shots=1)
    assert again.metadata[SHOTS] == {"get_order": [1]}
    assert again.recorded == TASKS[1].recorded
    assert reselected(TASKS[0], held, frozenset()).metadata[SHOTS] == {}


async def test_a_limit_is_spread_over_the_tasks() -> None:
    held = await found(truth, most=2, tools=frozenset({"get_order"}), twice=False)
    assert sorted((one.task, one.position) for one in held) == [("a", 0), ("b", 0)]
    assert {one.consistent for one in held} == {None}


async def test_nothing_recorded_and_an_exhausted_budget_are_said() -> None:
    with pytest.raises(ToolError, match="no recorded calls to hold out"):
        await found(truth, [Task(id="t", turns=("x",))])

    def broke(mine: Task, call: ToolRequest, log: CallLog) -> ToolAnswer | str:
        raise BudgetExhausted("spent")

    with pytest.raises(BudgetExhausted):
        await found(broke)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(said=values, true=values)
async def test_shares_stay_shares_and_the_truth_is_exact(said: Any, true: Any) -> None:
    tool = ToolSpec(name="get_thing")
    call = RecordedCall(name="get_thing", arguments={"n": 1}, result=json.dumps(true))
    mine = Task(id="t", turns=("x",), tools=(tool,), recorded=(call,))
    (told,) = await found(lambda *_: json.dumps(said), [mine], twice=False)
    (same,) = await found(lambda *_: json.dumps(true), [mine], twice=False)
    assert 0.0 <= told.fields <= 1.0
    assert told.exact == (told.fields == 1.0)
    assert (same.fields, same.exact, same.valid) == (1.0, True, True)
