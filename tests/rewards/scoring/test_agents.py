"""Items of one agent in a dialogue of several: checks, replies, judge, dependencies, and the hash of a checklist."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from cm2_agent.errors import ChecklistError
from cm2_agent.rewards.judges.client import ServedAnswer
from cm2_agent.rewards.judges.prompt import Transcript, item_line
from cm2_agent.rewards.judges.reply import ItemAnswer, Quote
from cm2_agent.rewards.judges.verdicts import Problem, to_verdict
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.checklist_yaml import dump_checklist, read_checklist
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.score import Verdict
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View
from tests.tracing.apps import ScriptedModel, calls, look
from tests.tracing.conftest import Watched, watched

__all__ = ["watched"]


def step(agent: str | None, text: str = "", tool: str | None = None, **args: object) -> tuple[str | None, Message]:
    return agent, Message.of(
        "assistant", text, [ToolCall(id=f"{agent}-{tool}", name=tool, arguments=args)] if tool else []
    )


def dialogue(*steps: tuple[str | None, Message]) -> Trace:
    messages = [Message.of("user", "Cancel my order 7.")]
    calls = []
    for number, (agent, message) in enumerate(steps):
        calls.append(ModelCall(span_id=str(number), output=message, message=len(messages), agent=agent))
        messages.append(message)
        for call in message.tool_calls:
            answer = ToolCallResponse(id=call.id, response=f"{call.name} of A7", error=call.name == "broken")
            messages.append(Message(role="tool", parts=(answer,)))
    return Trace.of(Run(id="r", messages=tuple(messages), calls=tuple(calls)))


TEAM = dialogue(
    step("triage", tool="look", id=7),
    step("sales", tool="cancel", order="A7"),
    step("triage", "One moment, please."),
    step("sales", tool="broken"),
    step("sales", "It is cancelled."),
)


def test_a_view_of_one_agent() -> None:
    view = View.of(TEAM, agent="sales")
    assert [call.name for call in view.all_calls] == ["cancel", "broken"]
    assert [one.number for one in view.steps] == [1, 3, 4]
    assert view.replies == ("It is cancelled.",)
    assert view.called("cancel", with_={"order": {"from": "tool"}}), "another agent's tool told it"
    assert not view.called("look")
    assert view.called("cancel", before="reply")
    assert View.of(TEAM, agent="nobody").steps == ()
    assert len(View.of(TEAM).steps) == 5
    assert [call.name for call in View.of(TEAM).calls(agent="triage")] == ["look"]
    assert View(trace=TEAM, turn=0, seen=3, agent="sales").replies == ()


def test_items_of_one_agent_are_scored_by_its_steps() -> None:
    checklist = Checklist(
        Item("sales_cancels", check={"called": "cancel"}, agent="sales"),
        Item("triage_cancels", check={"called": "cancel"}, agent="triage"),
        Item("sales_replies", check={"replied": True}, agent="sales"),
        Item("anybody_replies", check={"replied": True}),
        Item("triage_is_clean", check={"no_tool_error": True}, agent="triage"),
        Item("sales_is_clean", check={"no_tool_error": True}, agent="sales"),
        Item("two_steps", check=lambda view: len(view.steps) == 2, agent="triage"),
        name="team",
    )
    score = ChecklistScorer(checklist).score_sync(TEAM)
    assert {one.item: (one.value, one.step) for one in score.verdicts} == {
        "sales_cancels": (True, 2),
        "triage_cancels": (False, None),
        "sales_replies": (True, 5),
        "anybody_replies": (True, 3),
        "triage_is_clean": (True, 5),
        "sales_is_clean": (False, None),
        "two_steps": (True, 3),
    }


def test_a_judge_reads_whose_step_it_is() -> None:
    shown = Transcript(trace=TEAM)
    agents = [json.loads(line).get("agent") for line in shown.window(None).text.split("\n")]
    assert agents == [None, "triage", "triage", "sales", "sales", "triage", "sales", "sales", "sales"]
    alone = Transcript(trace=dialogue(step("desk", "Hello."))).window(None).text
    assert "agent" not in alone
    assert json.loads(item_line(Item("a", "Is it polite?", agent="sales")))["only_steps_of_agent"] == "sales"
    assert "agent" not in item_line(Item("a", "Is it polite?"))


def test_a_quote_of_another_agents_step_proves_nothing() -> None:
    shown = Transcript(trace=TEAM)
    quote = Quote(step=3, part="assistant.reply", quote="One moment, please.")
    answered = ServedAnswer(answer=ItemAnswer(id="a", analysis="", verdict="yes", evidence=quote), served="judge")
    assert isinstance(
        to_verdict(Item("a", "Is it polite?", agent="triage"), answered, shown, shown.window(None)), Verdict
    )
    wrong = to_verdict(Item("a", "Is it polite?", agent="sales"), answered, shown, shown.window(None))
    assert isinstance(wrong, Problem)
    assert wrong.text == "step 3 is not one of the agent sales, whose steps alone the item is about"


def test_the_key_in_yaml_and_the_hash() -> None:
    plain, of_sales = (
        Checklist(Item("a", check={"replied": True}, agent=agent), name="c") for agent in (None, "sales")
    )
    assert "agent" not in json.dumps(plain.to_json())
    assert plain.hash != of_sales.hash
    text = dump_checklist(of_sales)
    assert "agent: sales" in text
    assert read_checklist(text).items[0].agent == "sales"
    with pytest.raises(ChecklistError, match="agent"):
        Item("a", check={"replied": True}, agent="")


def test_items_of_different_agents_may_depend_on_each_other() -> None:
    first = Item("first", check={"called": "look"}, agent="triage")
    Checklist(first, Item("second", check={"called": "look"}, agent="sales", depends_on=["first"]), name="c")
    with pytest.raises(ChecklistError, match="same check"):
        Checklist(first, Item("second", check={"called": "look"}, agent="triage", depends_on=["first"]), name="c")


def test_a_sub_agent_inside_a_tool_is_judged_by_what_it_did_there(watched: Watched) -> None:
    """Its calls are off the main line, and count at the step whose tool ran it."""
    inner: Any = create_agent(ScriptedModel(script=[calls(1), AIMessage("It is 42, I promise.")]), [look], name="alice")

    @tool
    def ask_alice(question: str) -> str:
        """Ask alice."""
        return str(inner.invoke({"messages": [("user", question)]})["messages"][-1].content)

    asked = AIMessage("", tool_calls=[{"name": "ask_alice", "args": {"question": "what?"}, "id": "1"}])
    outer = ScriptedModel(script=[calls(2), asked, AIMessage("It is 42.")])
    graph: Any = create_agent(outer, [look, ask_alice], name="boss").with_config(callbacks=[watched.handler])
    graph.invoke({"messages": [("user", "hi")]})
    trace = Trace.of(watched.run)
    view = View.of(trace, 0, agent="alice")
    assert [(call.name, call.arguments, call.step, call.status) for call in view.all_calls] == [
        ("look", {"key": 1}, 1, "ok")
    ]
    assert view.results("look") == ("value 1",)
    assert [step.message.text for step in view.steps] == ["", "It is 42, I promise."]
    assert View(trace=trace, turn=0, seen=1, agent="alice").steps == ()
    assert [step.agent for step in trace.steps] == ["boss"] * 3
    checklist = Checklist(
        Item("alice_looks", check={"called": "look"}, agent="alice"),
        Item("boss_looks", check={"called": "look", "with": {"key": 2}}, agent="boss"),
        Item("alice_promises", check={"reply_matches": "promise"}, agent="alice", kind="avoid", turn="trace"),
        Item("anybody_promises", check={"reply_matches": "promise"}, kind="avoid"),
        name="team",
    )
    score = ChecklistScorer(checklist).score_sync(trace)
    assert {one.item: (one.value, one.step) for one in score.verdicts} == {
        "alice_looks": (True, 2),
        "boss_looks": (True, 1),
        "alice_promises": (False, None),
        "anybody_promises": (True, 3),
    }
