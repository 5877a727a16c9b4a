"""The lending desk: an app of its own, tasks held out by entity, and a checklist that pays what the library wants."""

import ast
import asyncio
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

import cm2_agent.benchmarks.lending_desk as package
from cm2_agent.benchmarks.lending_desk import app, catalog, demonstrations
from cm2_agent.benchmarks.lending_desk.catalog import BRANCHES, UnknownError, copies, open_catalog
from cm2_agent.benchmarks.lending_desk.demonstrations import STARTS, Clerk, Start
from cm2_agent.benchmarks.lending_desk.desk import lending_desk
from cm2_agent.benchmarks.lending_desk.tasks import ASKS, WORDINGS, draw_requests, heldout_tasks, training_tasks
from cm2_agent.quickstart import order_desk
from cm2_agent.quickstart import tasks as order_tasks
from cm2_agent.quickstart.app import TOOLS as ORDER_TOOLS
from cm2_agent.quickstart.pipeline import support_checklist
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse
from cm2_agent.types.run import Run
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace
from tests.tracing.apps import ScriptedModel

HERE = Path(str(package.__file__)).parent
DESK = lending_desk()
SCORER = ChecklistScorer(DESK.checklist)
FREE = next(copy for copy in copies("training") if copy.waiting == 0)
WANTED = next(copy for copy in copies("training") if copy.waiting)


@pytest.mark.parametrize("name", ["app.py", "catalog.py"])
def test_the_app_never_imports_this_project(name: str) -> None:
    for node in ast.walk(ast.parse((HERE / name).read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            if node.level:  # the app's own other file
                assert (node.level, node.module) == (1, "catalog")
                continue
            names = [str(node.module)]
        assert not any(one.split(".")[0] == "cm2_agent" for one in names)


def test_tools_work_on_the_dialogues_own_catalog() -> None:
    lines = [
        AIMessage("", tool_calls=[{"name": "find_copy", "args": {"barcode": FREE.barcode}, "id": "1"}]),
        AIMessage("", tool_calls=[{"name": "count_waiting", "args": {"title": FREE.title}, "id": "2"}]),
        AIMessage("", tool_calls=[{"name": "extend_loan", "args": {"barcode": FREE.barcode}, "id": "3"}]),
        AIMessage("", tool_calls=[{"name": "find_copy", "args": {"barcode": "none"}, "id": "4"}]),
        AIMessage("Done."),
    ]
    own = open_catalog()
    messages = serve(lines, own)
    answers = [message.text for message in messages if isinstance(message, ToolMessage)]
    assert answers == [
        f"{FREE.title}, shelf {FREE.shelf}, due {FREE.due}",
        "readers, waiting 0",
        f"extended, until {FREE.later}",
        app.NOT_FOUND,
    ]
    assert own.extended() == {FREE.barcode}
    assert open_catalog().extended() == set()
    assert own.find_copy(FREE.barcode).endswith(f"due {FREE.later}")


def test_an_agent_that_never_answers_is_stopped() -> None:
    call = AIMessage("", tool_calls=[{"name": "find_copy", "args": {"barcode": FREE.barcode}, "id": "1"}])
    messages = serve([call] * 9, open_catalog())
    assert sum(isinstance(message, AIMessage) for message in messages) == app.MAX_CALLS


def serve(lines: Sequence[BaseMessage], own: catalog.Catalog) -> list[BaseMessage]:
    graph: Any = app.build_graph(ScriptedModel(script=list(lines)))
    found = asyncio.run(graph.ainvoke({"messages": [HumanMessage("Hello")]}, context=own))
    return list(found["messages"])


def test_branches_are_fixed_and_share_nothing() -> None:
    training, heldout = copies("training"), copies("heldout")
    assert (len(training), len(heldout)) == (BRANCHES["training"], BRANCHES["heldout"])
    for branch in (training, heldout):
        assert len({copy.barcode for copy in branch}) == len({copy.title for copy in branch}) == len(branch)
        assert sum(copy.waiting == 0 for copy in branch) == len(branch) / 2
    assert not {copy.barcode for copy in training} & {copy.barcode for copy in heldout}
    assert not {copy.title for copy in training} & {copy.title for copy in heldout}
    with pytest.raises(UnknownError):
        open_catalog("training").copy(heldout[0].barcode)
    with pytest.raises(ValueError, match="no branch 'other'"):
        open_catalog("other")


def test_it_shares_nothing_with_the_quickstarts_tasks() -> None:
    ours, theirs = {tool.name for tool in app.TOOLS}, {tool.name for tool in ORDER_TOOLS}
    assert not ours & theirs
    assert not {item.id for item in DESK.checklist} & {item.id for item in support_checklist()}
    assert not set(catalog.NAMES) & set(order_desk.ITEMS)
    assert not set(catalog.LETTERS) & set(order_desk.SERIES)
    assert not wordings(WORDINGS) & wordings(order_tasks.WORDINGS)
    of_orders = {order.id for book in order_desk.BOOKS for order in order_desk.orders(book)}
    assert not of_orders & {copy.barcode for branch in BRANCHES for copy in copies(branch)}


def wordings(of: Any) -> set[str]:
    return {text for forms in of.values() for form in forms for text in form}


@pytest.mark.parametrize("turns", [1, 3, 6, 10])
def test_tasks_are_the_seeds_and_held_out_ones_share_no_entity_with_them(turns: int) -> None:
    training, heldout = training_tasks(0, turns, 40), heldout_tasks(0, turns, 40)
    assert training == training_tasks(0, turns, 40) != training_tasks(1, turns, 40)
    assert all(len(task.turns) == turns for task in (*training, *heldout))
    assert not {one for task in training for one in task.entities} & {one for task in heldout for one in task.entities}
    with pytest.raises(ValueError, match="turns 0"):
        training_tasks(0, 0, 1)


def test_demonstrations_never_read_what_is_held_out() -> None:
    text = json.dumps(demonstrations.demonstrations(300, 3, STARTS["full"], 0))
    text += "".join(task.model_dump_json() for task in training_tasks(0, 3, 100))
    text += (HERE / "lending.yaml").read_text() + (HERE / "checks.py").read_text()
    assert not [copy for copy in copies("heldout") if copy.barcode in text or f'"{copy.title}"' in text]


def test_every_wording_says_what_is_asked_as_the_checks_read_it() -> None:
    from cm2_agent.benchmarks.lending_desk.checks import _asked
    from cm2_agent.types.view import View

    for ask, forms in WORDINGS.items():
        for text in (text for form in forms for text in form):
            messages = (Message.of("user", text.format("QA/10")), Message.of("assistant", "Yes."))
            assert _asked(View.of(Trace.of(Run(id="x", messages=messages)), 0)) == ask


class Played:
    """A demonstration on a catalog of its own: its trace, its score and whether the reader was served."""

    def __init__(self, requests: Sequence[tuple[str, str]], messages: Sequence[str], clerk: Clerk) -> None:
        for (ask, barcode), message in zip(requests, messages, strict=True):
            clerk.hear(message)
            clerk.serve(ask, barcode)
        self.trace = trace_of(clerk.messages)
        task = Task(id="t", turns=tuple(messages), metadata={"branch": "training", "requests": list(requests)})
        self.score: Score = SCORER.score_sync(self.trace, task)
        self.served = DESK.verify(task, clerk.catalog, self.trace)["success"] == 1.0


def play(turns: int, skips: float, seed: int) -> Played:
    rng = random.Random(seed)
    requests, messages = draw_requests(copies("training"), turns, rng)
    return Played(requests, messages, Clerk(open_catalog(), rng, skips=skips))


def trace_of(messages: Sequence[dict[str, Any]]) -> Trace:
    return Trace.of(Run(id="demonstration", messages=tuple(converted(messages))))


def converted(messages: Sequence[dict[str, Any]]) -> Iterator[Message]:
    for number, message in enumerate(messages):
        if message["role"] == "tool":
            answer = ToolCallResponse(id=f"c{number - 1}", response=message["content"])
            yield Message(role="tool", parts=(answer,))
        else:
            calls = [
                ToolCall(
                    id=f"c{number}",
                    name=call["function"]["name"],
                    arguments=json.loads(call["function"]["arguments"]),
                )
                for call in message.get("tool_calls", ())
            ]
            yield Message.of(message["role"], message["content"], calls)


@settings(max_examples=60, deadline=None)
@given(turns=st.integers(1, 10), seed=st.integers(0, 10**9))
def test_a_careful_clerk_earns_everything_and_serves_the_reader(turns: int, seed: int) -> None:
    played = play(turns, 0.0, seed)
    assert played.score.reward == pytest.approx(1.0)
    assert played.served


@settings(max_examples=150, deadline=None)
@given(turns=st.integers(1, 4), skips=st.sampled_from([0.1, 0.3, 0.6]), seed=st.integers(0, 10**9))
def test_who_earns_everything_has_served_the_reader(turns: int, skips: float, seed: int) -> None:
    """The other way round it need not be: a needless look into the catalog harms nobody, and is not paid."""
    played = play(turns, skips, seed)
    assert played.score.reward is not None
    if played.score.reward > 1 - 1e-9:
        assert played.served


def test_who_skips_every_habit_earns_what_is_not_forbidden_alone() -> None:
    score = play(10, 1.0, 3).score
    assert {verdict.item for verdict in score.verdicts if verdict.pays} == {"extends_without_leave"}


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("copy", [FREE, WANTED], ids=["nobody waits", "somebody waits"])
def test_each_fact_of_a_reply_is_paid_by_itself(ask: str, copy: catalog.Copy) -> None:
    clerk = Clerk(open_catalog(), random.Random(0), skips=0.0)
    message = WORDINGS[ask][0][0].format(copy.barcode)
    Played([(ask, copy.barcode)], [message], clerk)
    reply = clerk.messages[-1]["content"]
    figures = list(re.finditer(r"(?<=shelf |. due |until |iting )\d+", reply))
    assert len(figures) == 2
    for place, figure in enumerate(figures):
        wrong = f"{reply[: figure.start()]}{int(figure[0]) + 1}{reply[figure.end() :]}"
        messages = [*clerk.messages[:-1], {"role": "assistant", "content": wrong}]
        score = SCORER.score_sync(trace_of(messages), Task(id="t", turns=(message,)))
        unpaid = {verdict.item for verdict in score.verdicts if not verdict.pays}
        assert unpaid == {("first_fact", "second_fact")[place]}


def test_to_extend_what_others_wait_for_or_before_counting_is_not_allowed() -> None:
    def paid(copy: catalog.Copy, *, counts: bool) -> set[str]:
        clerk = Clerk(open_catalog(), random.Random(0), skips=0.0)
        clerk.hear(message := f"May I keep {copy.barcode} longer?")
        clerk.call(clerk.catalog.find_copy, barcode=copy.barcode)
        if counts:
            clerk.call(clerk.catalog.count_waiting, title=copy.title)
        clerk.call(clerk.catalog.extend_loan, barcode=copy.barcode)
        clerk.say(f"Yes, until {copy.later}, shelf {copy.shelf}.")
        score = SCORER.score_sync(trace_of(clerk.messages), Task(id="t", turns=(message,)))
        return {verdict.item for verdict in score.verdicts if verdict.pays}

    every = {item.id for item in DESK.checklist}
    assert paid(FREE, counts=True) == every
    assert paid(WANTED, counts=True) == {"finds_the_copy"}
    assert paid(FREE, counts=False) == {"finds_the_copy"}


def test_a_start_is_shares() -> None:
    with pytest.raises(ValueError, match=r"sloppy 1\.2"):
        Start(sloppy=1.2, skips=0.5)


def test_sloppier_starts_show_fewer_right_turns() -> None:
    def right(start: Start) -> float:
        rng = random.Random(0)
        rewards = [
            turn.reward
            for seed in range(60)
            for turn in play(3, start.skips if rng.random() < start.sloppy else 0.0, seed).score.turns
        ]
        return sum(reward == pytest.approx(1.0) for reward in rewards) / len(rewards)

    shares = [right(STARTS[name]) for name in ("full", "none", "partial")]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.2
    assert shares[2] < 0.12
