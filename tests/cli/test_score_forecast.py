"""`cm2 score --dry-run`: the forecast is what scoring then takes, and neither judge nor store notices it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cm2_agent import Checklist, Item, Task
from cm2_agent.store import SQLStore
from cm2_agent.types.checklist_item import ChecklistModel
from tests.cli.test_app_loop import as_json, cm2
from tests.judge_server import JudgeServer
from tests.rewards.talk import call, say, trace, turn

CHECKLIST = """
name: asked
version: 1
items:
  - {id: helpful, question: "Did the assistant answer?"}
  - {id: grounded, question: "Is the answer in a tool result?", focus_on: tool.content}
  - {id: looked, check: {called: get}}
"""
DIALOGUES, TURNS = 4, 2


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/cm2.db"
    with SQLStore(url) as opened:
        for number in range(DIALOGUES):
            said = [
                turn(
                    f"Where is order {number}{at}?",
                    call("get", "It comes on May 3.", id=number, at=at),
                    say("It comes on May 3."),
                )
                for at in range(TURNS)
            ]
            opened.save_runs(trace(*said, id=f"t{number}").runs)
    return url


@pytest.fixture
def command(tmp_path: Path, server: JudgeServer, store: str) -> tuple[str, ...]:
    path = tmp_path / "asked.yaml"
    path.write_text(CHECKLIST, encoding="utf-8")
    named = ("--judge", "stub", "--judge-base-url", server.base_url, "--price", "1,10")
    return ("score", str(path), *named, "--store", store)


WHEN = """
name: asked
version: 1
items:
  - {id: helpful, question: "Did the assistant answer?"}
  - {id: sorry, question: "Did it say sorry?", when: "Did something fail?"}
  - {id: looked, check: {called: get}, when: "Is there an order?"}
"""


def test_the_second_call_of_questions_that_may_not_apply_is_counted(
    command: tuple[str, ...], server: JudgeServer, store: str
) -> None:
    Path(command[1]).write_text(WHEN, encoding="utf-8")
    found = as_json(*command, "--dry-run")
    assert (found["calls"], found["questions"]) == (2 * DIALOGUES * TURNS, 4 * DIALOGUES * TURNS)
    assert as_json(*command)["scored"] == DIALOGUES
    assert server.calls == found["calls"], "the server says yes to each question, so that all apply"


def test_the_forecast_is_what_scoring_takes(command: tuple[str, ...], server: JudgeServer, store: str) -> None:
    found = as_json(*command, "--dry-run")
    assert server.calls == 0
    assert as_json("doctor", "--store", store)["scores"] == 0
    assert (found["calls"], found["questions"], found["traces"]) == (
        DIALOGUES * TURNS,
        2 * DIALOGUES * TURNS,
        DIALOGUES,
    )
    assert (found["judge"], found["known"]) == ("openai:stub", 0)
    assert found["usd"] == pytest.approx((found["input_tokens"] + 10 * found["output_tokens"]) / 1e6)
    (own,) = found["checklists"].items()
    assert (own[0], own[1]["calls"], own[1]["traces"]) == ("asked@1", found["calls"], DIALOGUES)
    assert any("come on top" in what for what in found["unknown"])
    taken = as_json(*command)["judge"]
    assert taken["calls"] == found["calls"]
    shown = sum(len(message["content"]) for body in server.bodies for message in body["messages"])
    assert found["input_tokens"] == pytest.approx(shown / 4, rel=0.02)
    assert as_json(*command, "--dry-run")["calls"] == 0, "what is scored is not scored again"


def test_what_is_known_already_is_not_counted(command: tuple[str, ...], server: JudgeServer) -> None:
    part = as_json(*command, "--budget-calls", "5", "--concurrency", "1")
    found = as_json(*command, "--dry-run")
    assert found["calls"] == DIALOGUES * TURNS - 5
    assert found["traces"] == DIALOGUES - part["scored"]
    assert found["known"] + found["questions"] == 2 * TURNS * found["traces"]
    assert as_json(*command)["judge"]["calls"] == found["calls"]
    assert as_json(*command, "--again", "--dry-run")["calls"] == DIALOGUES * TURNS, "a second opinion asks all"


def test_votes_and_steps_are_counted(command: tuple[str, ...]) -> None:
    once = as_json(*command, "--dry-run")
    assert as_json(*command, "--dry-run", "--votes", "3")["calls"] == 3 * once["calls"]
    assert as_json(*command, "--dry-run", "--protocol", "per_step")["calls"] > once["calls"]


def test_each_tasks_own_checklist_is_counted_by_itself(store: str, server: JudgeServer) -> None:
    question = Item("polite", "Is the reply polite?")
    written = [Checklist(question, name=name).to_json() for name in ("first", "second")]
    tasks = [Task(id=one["name"], turns=("Hi",), checklist=ChecklistModel.model_validate(one)) for one in written]
    with SQLStore(store) as opened:
        opened.save_tasks(tasks)
        for number, name in enumerate(("first", "second", "second")):
            said = trace(
                turn("Hi", say(f"Hello, number {number}!")), id=f"of-{number}", cm2_task_id=name, cm2_task_version=1
            )
            opened.save_runs(said.runs)
    found = as_json(
        "score", "--judge", "stub", "--judge-base-url", server.base_url, "--price", "0,0", "--store", store, "--dry-run"
    )
    counts = {name: (one["traces"], one["calls"]) for name, one in found["checklists"].items()}
    assert counts == {"first@1": (1, 1), "second@1": (2, 2), "no checklist": (DIALOGUES, 0)}
    assert found["usd"] == 0


def test_what_nobody_knows_is_said(command: tuple[str, ...], store: str) -> None:
    unpriced = [one for one in command if one not in ("--price", "1,10")]
    out, err = cm2(*unpriced, "--dry-run")
    assert "usd: unknown" in out
    assert "not known: the price of openai:stub" in err
    assert "asked@1" in err
    assert json.loads(cm2(*unpriced, "--dry-run", "--json")[0])["usd"] is None
    _, err = cm2(*command, "--dry-run", "--budget-usd", "0.0001")
    assert "the forecast passes the budget of 0.0001 USD" in err
    _, err = cm2(*command[:2], "--store", store, "--dry-run", code=2)
    assert "--dry-run forecasts what a judge is asked; name one" in err
