"""A guarded graph lets through what its strict items allow, and what it rejected is stored beside what it let
through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command

from cm2_agent import SQLStore, watch
from cm2_agent.errors import ChecklistError, GuardError
from cm2_agent.online.guard import guard
from cm2_agent.online.watch import flush
from cm2_agent.trainers.preference_pairs import dpo_pairs
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.run_attributes import GUARD, GUARD_OUTCOME
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View
from tests.tracing.apps import ScriptedModel, agent, asks, calls

RULES = Checklist(
    Item(
        "no_promise",
        "Does the reply promise a refund?",
        check={"reply_matches": "(?i)refund"},
        kind="avoid",
        required_for_next_turn=True,
    ),
    Item("polite", "Does the reply say please?", check={"reply_matches": "(?i)please"}, weight=3),
    Item("kind", "Is it kind?", required_for_next_turn=True),
    name="rules",
)
PROMISE, GOOD, BEST = "You get a refund.", "It was shipped.", "It was shipped, please wait."


class Script(ScriptedModel):
    """Says the next entry at each call, and keeps what it was shown."""

    shown: list[Any] = []  # noqa: RUF012

    def _next(self, messages: Sequence[BaseMessage]) -> AIMessage:
        self.shown.append([message.text for message in messages])
        said = self.script[min(len(self.shown), len(self.script)) - 1]
        return AIMessage(said.content, tool_calls=said.tool_calls, response_metadata={"model_name": "scripted"})


def script(*said: str | AIMessage) -> Script:
    return Script(script=[AIMessage(one) if isinstance(one, str) else one for one in said], shown=[])


async def ask(graph: Any, words: str = "Where is it?", how: str = "ainvoke", **config: Any) -> list[str]:
    given = {"messages": [HumanMessage(words)]}
    state = await graph.ainvoke(given, config) if how == "ainvoke" else graph.invoke(given, config)
    return [message.text for message in state["messages"]]


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
async def test_what_breaks_nothing_passes(how: str) -> None:
    model = script(GOOD)
    assert await ask(guard(agent(model), RULES), how=how) == ["Where is it?", GOOD]
    assert len(model.shown) == 1


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
async def test_block(how: str) -> None:
    model = script(calls(7), PROMISE)
    said = await ask(guard(agent(model), RULES, blocked="I may not say."), how=how)
    assert said == ["Where is it?", "", "value 7", "I may not say."]
    with pytest.raises(GuardError, match="no_promise"):
        await ask(guard(agent(script(PROMISE)), RULES, blocked=None), how=how)


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
async def test_retry_is_told_what_failed_and_the_dialogue_never_shows_it(how: str) -> None:
    model = script(PROMISE, PROMISE, GOOD)
    graph = guard(agent(model), RULES, on_violation="retry", n=2)
    assert await ask(graph, how=how) == ["Where is it?", GOOD]
    first, second, third = model.shown
    assert not any("Does the reply promise a refund?" in text for text in first)
    assert "no_promise: Does the reply promise a refund? (it must not)" in second[-1]
    assert len(third) == len(second)  # the notes do not pile up, and the rejected replies are not shown as said
    stubborn = script(PROMISE)
    assert (await ask(guard(agent(stubborn), RULES, on_violation="retry", n=2, blocked="No."), how=how))[-1] == "No."
    assert len(stubborn.shown) == 3


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
async def test_best_of(how: str) -> None:
    model = script(PROMISE + " Please!", GOOD, BEST, GOOD)
    assert await ask(guard(agent(model), RULES, on_violation="best_of", n=4), how=how) == ["Where is it?", BEST]
    assert len(model.shown) == 4
    assert len({tuple(shown) for shown in model.shown}) == 1


async def test_a_checkpointer_keeps_the_dialogue_without_what_was_rejected() -> None:
    model = script(PROMISE, GOOD, BEST)
    graph = guard(agent(model, checkpointer=InMemorySaver()), RULES, on_violation="retry")
    config = {"thread_id": "t1"}
    assert await ask(graph, configurable=config) == ["Where is it?", GOOD]
    assert await ask(graph, "And now?", configurable=config) == ["Where is it?", GOOD, "And now?", BEST]
    assert (await graph.aget_state({"configurable": config})).values["messages"][1].text == GOOD
    assert model.shown[2][-3:] == ["Where is it?", GOOD, "And now?"]


@dataclass
class Desk:
    number: int


class Counting(MessagesState):
    """A state with a reducer of its own."""

    log: Annotated[list[str], lambda old, new: old + new]
    last: str


async def test_other_state_is_that_of_the_turn_let_through_and_context_is_passed_on() -> None:
    seen: list[Any] = []

    async def speak(state: Counting, runtime: Runtime[Desk]) -> dict[str, Any]:
        seen.append(runtime.context)
        text = PROMISE if len(seen) == 1 else GOOD
        return {"messages": [AIMessage(text)], "log": [f"attempt {len(seen)}"], "last": text}

    graph = StateGraph(Counting, context_schema=Desk)
    graph.add_node("speak", speak)
    graph.add_edge(START, "speak")
    guarded = guard(graph.compile(), RULES, on_violation="retry")
    state = await guarded.ainvoke({"messages": [HumanMessage("Hi")], "log": ["before"]}, context=Desk(1))
    assert state["log"] == ["before", "attempt 2"]
    assert state["last"] == GOOD
    assert seen == [Desk(1), Desk(1)]


async def test_streams_of_updates_show_what_was_let_through_alone() -> None:
    graph = guard(agent(script(PROMISE, GOOD)), RULES, on_violation="retry")
    updates = [update async for update in graph.astream({"messages": [HumanMessage("Hi")]}, stream_mode="updates")]
    assert [message.text for update in updates for message in update["guarded"]["messages"]] == [GOOD]


async def test_a_node_that_asks_a_human_is_asked_again_from_the_turns_start() -> None:
    model = script(asks("May I?"), asks("May I?"), GOOD)
    graph = guard(agent(model, checkpointer=InMemorySaver()), RULES, on_violation="retry")
    config: Any = {"configurable": {"thread_id": "t1"}}
    waiting = await graph.ainvoke({"messages": [HumanMessage("Hi")]}, config)
    assert waiting["__interrupt__"][0].value == "May I?"
    state = await graph.ainvoke(Command(resume="yes"), config)
    assert [message.text for message in state["messages"]] == ["Hi", "", "human said yes", GOOD]
    assert len(model.shown) == 3


async def test_an_item_that_cannot_be_checked_breaks_nothing() -> None:
    def fails(view: View) -> bool:
        raise LookupError("a check that cannot tell")

    graph = guard(agent(script(GOOD)), Checklist(Item("fails", check=fails, required_for_next_turn=True)))
    assert (await ask(graph))[-1] == GOOD


@pytest.mark.parametrize(
    ("question", "replies"), [("Where is it?", GOOD), ("What of my refund?", "You get a refund. No, you cannot.")]
)
async def test_an_item_that_does_not_apply_breaks_nothing(question: str, replies: str) -> None:
    refuses = Item(
        "refuses", check={"reply_matches": "cannot"}, when={"user_matches": "refund"}, required_for_next_turn=True
    )
    either = Item("either", any_of=["refuses", "polite"], required_for_next_turn=True)
    rules = Checklist(refuses, Item("polite", check={"replied": True}), either, name="rules")
    graph = guard(agent(script(GOOD, replies)), rules, on_violation="retry", n=1)
    assert (await ask(graph, question))[-1] == replies


async def test_what_does_not_apply_is_worth_nothing_to_a_guard() -> None:
    """Of several attempts the one that did more is taken, not the one that fewer items apply to."""
    kind = Item("kind", check={"reply_matches": "please"}, when={"reply_matches": "shipped"})
    never = Item("never", check={"reply_matches": "refund"}, kind="avoid", required_for_next_turn=True)
    rules = Checklist(kind, never, name="rules")
    graph = guard(agent(script("Hm.", BEST)), rules, on_violation="best_of", n=2)
    assert (await ask(graph))[-1] == BEST


async def test_a_turn_that_no_check_gets_through_is_broken() -> None:
    """Else a turn that breaks the check would pass where one that fails it honestly is blocked."""

    def deep(view: View) -> bool:
        return deep(view)

    rules = Checklist(Item("deep", check=deep, required_for_next_turn=True), name="deep")
    model = script(GOOD)
    assert (await ask(guard(agent(model), rules, blocked="Blocked.")))[-1] == "Blocked."
    retried = script(GOOD)
    await ask(guard(agent(retried), rules, on_violation="retry", n=1, blocked="Blocked."))
    assert any("deep: this turn could not be checked (check failed)" in text for text in retried.shown[-1])


async def test_watched_it_stores_one_run_a_turn_and_pairs_for_dpo(tmp_path: Path) -> None:
    store = SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}")
    model = script(calls(7), PROMISE, calls(7), GOOD, BEST)
    graph = watch(guard(agent(model, checkpointer=InMemorySaver()), RULES, on_violation="retry"), RULES, store=store)
    await ask(graph, configurable={"thread_id": "t1"})
    await ask(graph, "And now?", configurable={"thread_id": "t1"})
    assert flush(300)
    trace = store.trace("t1")
    assert trace is not None
    said = [(message.role, message.text) for message in trace.messages if message.role != "system"]
    turn = [("user", "Where is it?"), ("assistant", ""), ("tool", ""), ("assistant", GOOD)]
    assert said == [*turn, ("user", "And now?"), ("assistant", BEST)]
    assert [call.message is not None for call in trace.calls] == [False, False, True, True, True]
    assert {tool.name for run in trace.runs for tool in run.tools} == {"look"}
    first, second = trace.runs
    assert first.attributes[GUARD_OUTCOME] == "accepted"
    assert [one["failed"] for one in first.attributes[GUARD]] == [["no_promise"]]
    assert GUARD not in second.attributes
    (pair,) = dpo_pairs(store.traces())
    assert [message["role"] for message in pair["prompt"]] == ["system", "user"]
    assert [message.get("content") for message in pair["chosen"]] == ["", "value 7", GOOD]
    assert [message.get("content") for message in pair["rejected"]] == ["", "value 7", PROMISE]
    assert pair["rejected"][0]["tool_calls"][0]["function"] == {"name": "look", "arguments": {"key": 7}}


async def test_blocked_turns_are_no_pairs(tmp_path: Path) -> None:
    store = SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}")
    graph = watch(guard(agent(script(PROMISE)), RULES, blocked="No."), store=store)
    await ask(graph)
    assert flush(300)
    (trace,) = store.traces()
    assert isinstance(trace, Trace)
    assert trace.attributes[GUARD_OUTCOME] == "blocked"
    assert [message.text for message in trace.messages if message.role == "assistant"] == ["No."]
    assert trace.attributes[GUARD][0]["messages"][0]["parts"][0]["content"] == PROMISE
    assert list(dpo_pairs([trace])) == []


def test_what_is_refused(tmp_path: Path) -> None:
    graph = agent(script(GOOD))
    with pytest.raises(ChecklistError, match="both strict and programmatic"):
        guard(
            graph,
            Checklist(Item("kind", "Is it kind?", required_for_next_turn=True), Item("says", check={"replied": True})),
        )
    with pytest.raises(GuardError, match="guard first"):
        guard(watch(graph, store=f"sqlite:///{tmp_path / 'cm2.db'}"), RULES)
    with pytest.raises(GuardError, match="n of 1 or more"):
        guard(graph, RULES, on_violation="retry", n=0)
    with pytest.raises(GuardError, match="expected a compiled graph"):
        guard(object(), RULES)


@pytest.mark.parametrize(
    "order", [("about a thousand, sorry", "It costs 5"), ("It costs 5", "about a thousand, sorry")]
)
async def test_an_answer_that_breaks_a_check_is_not_the_best_one(order: tuple[str, str]) -> None:
    def small(view: View) -> bool:
        return int((view.reply or "").split()[-1]) < 100  # raises on anything but a number

    rules = Checklist(
        Item("small", check=small, required_for_next_turn=True),
        Item("sorry", check={"reply_matches": "sorry"}, weight=5),
    )
    graph = guard(agent(script(*order)), rules, on_violation="best_of", n=2)
    assert (await ask(graph))[-1] == "It costs 5"
