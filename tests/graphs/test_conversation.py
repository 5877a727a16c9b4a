"""The dialogue as a state machine: turns as root runs, gate, users, limits, interrupts, what is kept between turns and
how it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from pydantic import Field

from cm2_agent.errors import BudgetExhausted, TaskError, ToolError
from cm2_agent.graphs import agent as our_agent
from cm2_agent.graphs.conversation import begin, conversation_graph, converse, machine_config
from cm2_agent.graphs.conversation_setup import ConversationSetup, Ending, RolloutLimits
from cm2_agent.tracing.span_processor import capture
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from cm2_agent.types.task import Task
from tests.tracing import apps

TASK = Task(id="t", turns=("look 1 up", "and 2", "thanks"))
THREE = [apps.calls(1), AIMessage(content="one"), apps.calls(2), AIMessage(content="two"), AIMessage(content="bye")]


class Heard(apps.ScriptedModel):
    """Also remembers what it was shown."""

    shown: list[list[BaseMessage]] = []  # noqa: RUF012 (pydantic copies defaults)

    def _next(self, messages: Sequence[BaseMessage]) -> AIMessage:
        self.shown.append(list(messages))
        return super()._next(messages)


def conversation(
    graph: Any, task: Task = TASK, thread: str = "d1", callbacks: Sequence[Any] = (), **options: Any
) -> ConversationSetup:
    config = {"configurable": {"thread_id": thread}, "callbacks": list(callbacks), "metadata": {"cm2.task.id": task.id}}
    return ConversationSetup(graph=graph, task=task, config=config, **options)


def scripted(*script: Any, **options: Any) -> Any:
    return apps.agent(apps.ScriptedModel(script=list(script)), **options)


@pytest.mark.parametrize("checkpointer", [None, InMemorySaver()])
async def test_every_turn_is_a_root_run_of_the_graphs_own_thread(checkpointer: Any) -> None:
    runs: list[Run] = []
    machine = conversation_graph(checkpointer)
    assert await converse(conversation(scripted(*THREE), callbacks=[capture(runs.append)]), machine) == Ending(
        reason="done", turn=2
    )
    assert [(run.thread, run.trace_id, run.status) for run in runs] == [("d1", "d1", "ok")] * 3
    assert [[message.role for message in run.messages] for run in runs] == [
        ["system", "user", "assistant", "tool", "assistant"],
        ["user", "assistant", "tool", "assistant"],
        ["user", "assistant"],
    ]
    assert all(
        run.attributes["cm2.task.id"] == "t" and not any("langgraph" in name for name in run.attributes) for run in runs
    )


async def test_a_traced_graph_around_the_dialogue_is_not_taken_for_the_parent_of_its_turns() -> None:
    runs: list[Run] = []
    handler = capture(runs.append)

    async def node(state: MessagesState) -> dict[str, Any]:
        end = await converse(conversation(scripted(*THREE), callbacks=[handler]))
        return {"messages": [AIMessage(content=end.reason)]}

    outer = StateGraph(MessagesState).add_node("node", node).add_edge(START, "node").compile()
    await outer.ainvoke(
        {"messages": [HumanMessage("go")]}, {"callbacks": [handler], "configurable": {"thread_id": "outer"}}
    )
    assert [(run.thread, len(run.calls)) for run in runs] == [("d1", 2), ("d1", 2), ("d1", 1), ("outer", 0)]


@pytest.mark.parametrize(("verdict", "reason"), [(True, "done"), (False, "gate"), (None, "verdict")])
async def test_the_gate_is_asked_between_turns(verdict: bool | None, reason: str) -> None:
    asked: list[int] = []

    async def gate(turn: int) -> bool | None:
        asked.append(turn)
        return verdict if turn == 1 else True

    end = await converse(conversation(scripted(*THREE), gate=gate))
    assert (end.reason, end.turn) == (reason, 2 if verdict else 1)
    assert asked == [0, 1]


async def test_a_system_message_is_said_once_and_the_graph_keeps_its_own_history_where_it_can() -> None:
    task = Task(id="t", system="Be short.", turns=TASK.turns)
    for checkpointer in (None, InMemorySaver()):
        model = Heard(script=THREE)
        model.shown.clear()
        await converse(conversation(our_agent(model, [apps.look], checkpointer=checkpointer), task))
        assert [sum(isinstance(message, SystemMessage) for message in shown) for shown in model.shown] == [1] * 5
        assert [len(shown) for shown in model.shown] == [2, 4, 6, 8, 10]


def saying(*words: str | None) -> Any:
    async def user(messages: Sequence[Message]) -> str | None:
        return words[sum(message.role == "user" for message in messages)]

    return user


async def test_a_user_speaks_first_and_ends_by_saying_nothing() -> None:
    seen: list[list[str]] = []

    async def user(messages: Sequence[Message]) -> str | None:
        seen.append([message.role for message in messages])
        return None if len(seen) == 3 else f"message {len(seen)}"

    task = Task(id="p", persona="in a hurry")
    assert await converse(conversation(scripted(*THREE), task, user=user)) == Ending(reason="done", turn=1)
    assert [len(roles) for roles in seen] == [0, 4, 8]
    end = await converse(conversation(scripted(*THREE), task, user=saying(None)))
    assert end.reason == "error"
    assert end.failure is not None
    assert "said nothing" in end.failure.message


@pytest.mark.parametrize(
    ("task", "limit", "turns"), [(Task(id="p", persona="x", max_turns=2), 5, 2), (TASK, 1, 1), (TASK, 3, 3)]
)
async def test_turns_are_limited(task: Task, limit: int, turns: int) -> None:
    user = None if task.turns else saying(*["more"] * 9)
    end = await converse(conversation(scripted(*THREE), task, user=user, limits=RolloutLimits(max_turns=limit)))
    assert (end.reason, end.turn) == ("done" if turns == 3 else "turns", turns - 1)


async def test_a_user_without_any_limit_ends_all_the_same() -> None:
    end = await converse(
        conversation(scripted(AIMessage(content="hm")), Task(id="p", persona="x"), user=saying(*["more"] * 40))
    )
    assert (end.reason, end.turn) == ("turns", 29)


async def test_a_user_that_fails_is_this_dialogues_end_and_an_exhausted_budget_is_raised() -> None:
    async def broken(messages: Sequence[Message]) -> str | None:
        raise ToolError("no answer within 1 s")

    async def poor(messages: Sequence[Message]) -> str | None:
        raise BudgetExhausted("0 USD left")

    end = await converse(conversation(scripted(*THREE), user=broken))
    assert end.failure is not None
    assert (end.reason, end.failure.kind) == ("error", "ToolError")
    with pytest.raises(BudgetExhausted):
        await converse(conversation(scripted(*THREE), user=poor))


async def test_tokens_are_limited_between_the_calls_of_a_turn_and_the_stopped_call_is_recorded_nowhere() -> None:
    for limit, calls, turn in ((1, 1, 0), (14, 2, 0), (15, 3, 1), (10_000, 5, 2)):  # its calls say 6, 8, 10 … tokens
        runs: list[Run] = []
        end = await converse(
            conversation(scripted(*THREE), callbacks=[capture(runs.append)], limits=RolloutLimits(max_tokens=limit))
        )
        made = [call for run in runs for call in run.calls]
        assert (len(made), end.turn, end.reason) == (calls, turn, "done" if calls == 5 else "tokens"), limit
        assert [call.error for call in made] == [None] * calls


class Slow(apps.ScriptedModel):
    """Answers at once, but for the message that it waits on for ever."""

    on: str
    waits: asyncio.Event = Field(default_factory=asyncio.Event)

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        if messages[-1].text == self.on:
            self.waits.set()
            await asyncio.Event().wait()
        return await super()._agenerate(messages)


@pytest.mark.slow
async def test_seconds_are_limited_over_all_turns_and_those_of_a_run_before_count() -> None:
    machine, runs = conversation_graph(InMemorySaver()), list[Run]()
    handler = capture(runs.append)
    one = conversation(
        apps.agent(Slow(script=THREE, on="and 2")), callbacks=[handler], limits=RolloutLimits(max_seconds=5)
    )
    assert await converse(one, machine) == Ending(reason="time", turn=1)
    assert [run.status for run in runs] == ["ok", "cancelled"]
    assert handler.open_runs == 0  # type: ignore[attr-defined]


async def test_seconds_of_another_process_count() -> None:
    async def killed(turn: int) -> bool | None:
        raise RuntimeError("killed")

    machine, runs = conversation_graph(InMemorySaver()), list[Run]()
    with pytest.raises(RuntimeError, match="killed"):
        await converse(conversation(scripted(*THREE), gate=killed), machine)
    used = (await machine.aget_state(machine_config("d1"))).values["seconds"]
    assert used > 0
    again = conversation(scripted(*THREE), callbacks=[capture(runs.append)], limits=RolloutLimits(max_seconds=used))
    assert await converse(again, machine, resumed=True) == Ending(reason="time", turn=0)
    assert runs == []


async def test_a_time_out_of_the_agents_own_is_its_failure() -> None:
    end = await converse(conversation(scripted(TimeoutError("the model")), limits=RolloutLimits(max_seconds=60)))
    assert end.failure is not None
    assert (end.reason, end.failure.kind) == ("error", "TimeoutError")


async def test_cancelling_ends_everything() -> None:
    runs: list[Run] = []
    handler = capture(runs.append)
    model = Slow(script=THREE, on="look 1 up")
    running = asyncio.create_task(converse(conversation(apps.agent(model), callbacks=[handler])))
    await model.waits.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [run.status for run in runs] == ["cancelled"]
    assert handler.open_runs == 0  # type: ignore[attr-defined]


async def test_a_failure_that_is_not_the_agents_ends_the_dialogue_and_an_exhausted_budget_leaves_it_where_it_was() -> (
    None
):
    problems: list[Exception] = [ToolError("the simulator timed out")]
    end = await converse(conversation(scripted(*THREE), failed=lambda: problems[0]))
    assert end.failure is not None
    assert (end.turn, end.failure.kind, end.failure.message) == (0, "ToolError", "the simulator timed out")
    machine = conversation_graph(InMemorySaver())
    turns = iter([None, BudgetExhausted("0 USD left")])
    with pytest.raises(BudgetExhausted):
        await converse(conversation(scripted(*THREE), failed=lambda: next(turns)), machine)
    state = (await machine.aget_state(machine_config("d1"))).values
    assert (state["turn"], state.get("end")) == (1, None)
    assert (await converse(conversation(scripted(*THREE)), machine, resumed=True)).reason == "done"


@pytest.mark.parametrize("kind", ["none", "in memory", "in memory, forgotten", "of its own, with a turn cut short"])
async def test_it_goes_on_after_its_last_finished_turn(kind: str) -> None:
    """Another talk, as in another process, takes over; whatever the graph itself still knows, it is shown the same
    dialogue."""
    kept = InMemorySaver()
    machine = conversation_graph(kept)
    saver = None if kind == "none" else InMemorySaver()
    model = Heard(script=THREE)
    model.shown.clear()

    async def gate(turn: int) -> bool | None:
        if turn == 1:
            raise RuntimeError("killed")
        return True

    with pytest.raises(RuntimeError, match="killed"):
        await converse(
            conversation(our_agent(model, [apps.look], checkpointer=saver), gate=gate, checkpoint=lambda: ([], None)),
            machine,
        )
    first = len(model.shown)
    if kind == "in memory, forgotten":
        saver = InMemorySaver()
    elif kind == "of its own, with a turn cut short":
        graph = our_agent(apps.ScriptedModel(script=[AIMessage(content="half")]), [], checkpointer=saver)
        await graph.ainvoke({"messages": [HumanMessage("thanks")]}, {"configurable": {"thread_id": "d1"}})
    graph = our_agent(model, [apps.look], checkpointer=saver)
    state = (await machine.aget_state(machine_config("d1"))).values
    assert state["turn"] == 2
    assert await converse(conversation(graph), machine, resumed=True) == Ending(reason="done", turn=2)
    assert len(model.shown) == first + 1
    assert [message.text for message in model.shown[-1] if message.type == "human"] == list(TASK.turns)
    assert [message.response_metadata.get("completion_ids") for message in model.shown[-1] if message.type == "ai"] == [
        [number, 7] for number in range(4)
    ]


def asking(*questions: str) -> Any:
    """An agent that asks a human before it replies."""

    async def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(content=" ".join(str(interrupt({"ask": question})) for question in questions))]}

    return StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask").compile(checkpointer=InMemorySaver())


async def test_a_graphs_interrupt_is_the_dialogues_and_its_answer_goes_back() -> None:
    machine = conversation_graph(InMemorySaver())
    runs: list[Run] = []
    task = Task(id="t", turns=("refund it", "and the other"))
    graph, handler = asking("sure?"), capture(runs.append)
    for answer in (None, "yes", "no"):
        given: Any = begin() if answer is None else Command(resume=answer)
        state = await machine.ainvoke(
            given, machine_config("d1"), context=conversation(graph, task, callbacks=[handler])
        )
        if answer != "no":
            assert [one.value for one in state["__interrupt__"]] == [{"ask": "sure?"}]
    assert state["end"]["how"] == "done"
    assert [message.text for message in state["messages"]] == ["refund it", "yes", "and the other", "no"]
    assert [(run.thread, run.status) for run in runs] == [("d1", "interrupted"), ("d1", "ok")] * 2


async def test_parallel_interrupts_are_answered_one_by_one() -> None:
    def branch(name: str) -> Any:
        async def node(state: MessagesState) -> dict[str, Any]:
            return {"messages": [AIMessage(content=f"{name}: {interrupt(name)}")]}

        return node

    plain = StateGraph(MessagesState)
    for name in ("left", "right"):
        plain.add_node(name, branch(name)).add_edge(START, name)
    graph, machine = plain.compile(checkpointer=InMemorySaver()), conversation_graph(InMemorySaver())
    asked: list[Any] = []
    given: Any = begin()
    while True:
        state = await machine.ainvoke(
            given, machine_config("d1"), context=conversation(graph, Task(id="t", turns=("go",)))
        )
        if "__interrupt__" not in state:
            break
        asked += [one.value for one in state["__interrupt__"]]
        given = Command(resume=f"answer to {asked[-1]}")
    assert sorted(asked) == ["left", "right"]
    assert sorted(message.text for message in state["messages"][1:]) == [
        "left: answer to left",
        "right: answer to right",
    ]


async def test_where_nobody_can_answer_an_interrupt_is_an_error_that_says_so() -> None:
    end = await converse(conversation(asking("sure?"), answerable=False))
    assert end.failure is not None
    assert (end.reason, end.failure.kind) == ("error", "GraphInterrupt")
    assert "nobody can answer" in end.failure.message


async def test_a_graph_that_stops_at_a_breakpoint_is_told_so() -> None:
    plain: Any = StateGraph(MessagesState)
    plain.add_node("first", lambda state: {"messages": []}).add_node("second", lambda state: {"messages": []})
    plain.add_edge(START, "first").add_edge("first", "second")
    end = await converse(conversation(plain.compile(checkpointer=InMemorySaver(), interrupt_before=["second"])))
    assert end.failure is not None
    assert "breakpoint before second" in end.failure.message
    assert (
        await converse(conversation(plain.compile(checkpointer=InMemorySaver(), interrupt_after=["second"])))
    ).reason == "done"


@pytest.mark.parametrize(
    "limit",
    [{"max_steps": 0}, {"max_turns": 0}, {"max_seconds": -1.0}, {"max_tokens": 0}, {"max_seconds": float("nan")}],
)
def test_a_limit_that_nothing_can_keep_is_refused(limit: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="expected more than 0"):
        RolloutLimits(**limit)


class Answered(TypedDict):
    answer: str


async def test_a_graph_without_messages_in_its_state_is_told_so() -> None:
    async def node(state: Answered) -> Answered:
        return {"answer": "hm"}

    plain: Any = StateGraph(Answered)
    graph = plain.add_node("node", node).add_edge(START, "node").compile()
    end = await converse(conversation(graph))
    assert end.failure is not None
    assert "no list of `messages`" in end.failure.message


async def test_what_cannot_be_kept_does_not_end_the_dialogue() -> None:
    @tool(response_format="content_and_artifact")
    def look(key: int) -> tuple[str, Any]:
        """Look a key up."""
        return "found", object()

    machine = conversation_graph(InMemorySaver())
    assert (await converse(conversation(our_agent(apps.ScriptedModel(script=THREE), [look])), machine)).reason == "done"
    assert (await machine.aget_state(machine_config("d1"))).values["said"] is None
