"""Items that apply by the task's own messages, from the rollout to the store and to the screen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from cm2_agent import Checklist, Item, Redactor, Score, Task, Trace, run, score_traces
from cm2_agent.cli.app import app
from cm2_agent.errors import ChecklistError
from cm2_agent.rewards import ChecklistScorer
from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from tests.cli_runner import CliRunner
from tests.tracing import apps

STRICT = Item("looks_up", check={"called": "look"}, when={"user_matches": "look"}, required_for_next_turn=True)
REPLIES = Item("replies", check={"replied": True})
CHECKLIST = Checklist(STRICT, REPLIES, name="by-message")
TASK = Task(id="t", turns=("look 1 up", "I am ada@x.org", "look 2 up"))


def shapes(score: Score) -> list[Any]:
    return [(turn.turn, [(one.item, one.weight) for one in turn.verdicts]) for turn in score.turns]


@pytest.mark.parametrize("redact", [None, Redactor(key=b"k")])
async def test_rollouts_are_scored_on_the_same_items_however_they_end(tmp_path: Path, redact: Redactor | None) -> None:
    script = [
        apps.calls(1),
        AIMessage(content="one"),
        AIMessage(content="I see"),
        AIMessage(content="No"),
    ]
    agent = apps.agent(apps.ScriptedModel(script=script))
    with SQLStore(f"sqlite:///{tmp_path}/cm2.db") as store:
        results = run(agent, [TASK], checklist=CHECKLIST, store=store, allow_real=["look", "ask_human"], redact=redact)
        done = [(trace, score) async for trace, score in results if score is not None]
        gated = run(
            apps.agent(apps.ScriptedModel(script=[AIMessage(content="No")])),
            [TASK],
            checklist=CHECKLIST,
            store=store,
            allow_real=["look", "ask_human"],
            redact=redact,
        )
        done += [(trace, score) async for trace, score in gated if score is not None]
        both = [(0, [("looks_up", 0.5), ("replies", 0.5)])]
        want = [*both, (1, [("replies", 1.0)]), (2, both[0][1])]
        assert [shapes(score) for _, score in done] == [want, want]
        assert [len(trace.turns) for trace, _ in done] == [3, 1], "the gate asks for it where it applies"
        assert [score.reward for _, score in done] == [pytest.approx((1 + 1 + 0.5) / 3), pytest.approx(0.5 / 3)]
        assert ("ada@x.org" in json.dumps([trace.to_json() for trace, _ in done])) == (redact is None)
        assert isinstance(done[0][0].attributes["cm2.task.messages"], list), "which spans without content leave out"
        # without the task at hand the trace says the same
        alone = [result async for result in score_traces([trace for trace, _ in done], CHECKLIST)]
        assert [shapes(score) for _, score in alone] == [want, want]
        stored = [store.score(trace.id) for trace, _ in done]
        assert [(one.lower, one.reward) for one in stored if one is not None] == [
            (score.lower, score.reward) for _, score in done
        ]


async def test_a_task_to_which_nothing_applies_is_refused() -> None:
    agent = apps.agent(apps.ScriptedModel(script=[AIMessage(content="No")]))
    with pytest.raises(ChecklistError, match="looks_up apply to other messages than its user's"):
        run(agent, [Task(id="t", turns=("Hello",))], checklist=Checklist(STRICT), allow_real=["look", "ask_human"])


def test_live_items_that_do_not_apply_are_shown_and_counted_as_such(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cm2.db"
    said = ("look 1 up", "Here", "Thanks!", "Bye")
    messages = tuple(Message.of("assistant" if place % 2 else "user", text) for place, text in enumerate(said))
    checklist = Checklist(
        Item("looks_up", check={"called": "look"}, when={"user_matches": "look"}),
        Item("says_bye", check={"reply_matches": "Bye"}, depends_on=[{"item": "looks_up", "soft": 0.25}]),
        name="live",
    )
    trace = Trace.of(Run(id="r", thread="t", messages=messages))
    score = ChecklistScorer(checklist).score_sync(trace)
    assert (score.reward, score.lower) == (0.125, 0.0625)
    assert score.upper == pytest.approx(0.5)
    with SQLStore(url) as store:
        store.save_run(trace.runs[0])
        store.save_checklist(checklist)
        store.save_score(score)
        assert store.score("t") == score
        health = store.health()
    assert (health["verdicts"], health["null_verdicts"]) == (4, {})
    shown = CliRunner().invoke(app, ["show", "t", "--store", url]).stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert ["1", "looks_up", "n/a", "", "0.000", "", "not applicable"] in rows
    assert ["", "says_bye", "passed", "0.25", "1.000", "1", ""] in rows
    report = json.loads(CliRunner().invoke(app, ["report", "--store", url, "--json"]).stdout)
    rates = {rate["name"]: rate for rate in report["items"]}
    assert (rates["looks_up"]["n"], rates["looks_up"]["inapplicable"], rates["looks_up"]["nulls"]) == (1, 1, 0)
    assert report["null_causes"] == {}
    text = CliRunner().invoke(app, ["report", "--store", url]).stdout
    assert "of 1, 1 not applicable" in text
