"""`cm2 checklists write` against a real server on loopback: what it writes, how it resumes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.cli.app import app
from cm2_agent.rewards.authoring.writer import LABEL
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.store import SQLStore
from cm2_agent.types.checklist_yaml import load_checklist
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from cm2_agent.types.run_attributes import TASK_ID, TASK_VERSION
from cm2_agent.types.task import Task, load_tasks, save_tasks
from tests.cli_runner import CliRunner
from tests.judge_server import Fault, JudgeServer
from tests.rewards.talk import call, say, turn


def cm2(*arguments: str, code: int = 0) -> tuple[dict[str, Any], str]:
    result = CliRunner().invoke(app, ["checklists", "write", *arguments, "--json"])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return json.loads(result.stdout) if result.stdout else {}, result.stderr


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["checklists", "write", *arguments])
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    return result.stderr


def order(number: int, **attributes: Any) -> Run:
    found = call("get_order", {"arrives": "2026-05-20"}, order_id=number)
    messages: list[Message] = turn(f"Where is order {number}?", found, say(f"Order {number} arrives on 2026-05-20."))
    return Run(id=f"r{number}", thread=f"t{number}", messages=tuple(messages), started=number, attributes=attributes)


def items(number: int) -> str:
    lookup = {
        "id": "looks_up",
        "question": f"Is order {number} looked up?",
        "turn": 0,
        "check": {"called": "get_order", "with": {"order_id": number}},
        "evidence": [{"turn": 0, "step": 0, "from": "assistant.tool_calls", "snippet": "get_order"}],
    }
    tells = {
        "id": "tells_date",
        "question": "Is the date 2026-05-20 told?",
        "turn": 0,
        "focus_on": "assistant.reply",
        "evidence": [{"turn": 0, "step": 1, "from": "assistant.reply", "snippet": "arrives on 2026-05-20"}],
    }
    return json.dumps({"items": [lookup, tells]})


def written(*numbers: int) -> Sequence[Fault]:
    return [Fault(text=items(number)) for number in numbers]


@pytest.fixture
def store(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/cm2.db"
    with SQLStore(url) as opened:
        opened.save_runs([order(1), order(2), order(3)])
    return url


@pytest.mark.parametrize("status", [401, 402, 404])
def test_a_model_that_its_provider_refuses_ends_the_command(tmp_path: Path, store: str, status: int) -> None:
    out = tmp_path / "checklists.jsonl"
    with JudgeServer(faults=[Fault(status=status)] * 9) as server:
        named = ("--store", store, "--model", "stub", "--model-base-url", server.base_url, "--out", str(out))
        got, err = cm2(*named, "--concurrency", "1", code=1)
        assert server.calls == 1
    assert got == {}
    assert "the labelling model openai:stub is refused by its provider" in err
    assert str(status) in err


def test_tasks_with_checklists_that_score_their_own_reference(tmp_path: Path, store: str) -> None:
    out = tmp_path / "checklists.jsonl"
    with JudgeServer(faults=written(1, 2, 3)) as server:
        options = (
            "--store",
            store,
            "--model",
            "stub",
            "--model-base-url",
            server.base_url,
            "--out",
            str(out),
            "--concurrency",
            "1",
        )
        got, _ = cm2(*options)
        assert server.calls == 3
        again, _ = cm2(*options)
        assert server.calls == 3, "what is labelled is not asked again"
        assert all("response_format" not in body for body in server.bodies), "checklists are no verdicts"
    assert got == {
        "labelled": 3,
        "known": 0,
        "failed": 0,
        "items": 6,
        "checked": 3,
        "unchecked": 3,
        "rewritten": 0,
        "dropped": 0,
        "unlinked": 0,
        "corrupted": 9,
        "left": 0,
        "calls": 3,
        "out": str(out),
    }
    assert (again["labelled"], again["known"], again["calls"]) == (0, 3, 0)
    tasks = load_tasks(out)
    assert [task.id for task in tasks] == ["t1", "t2", "t3"]
    with SQLStore(store) as opened:
        assert [task.to_json() for task in opened.tasks()] == [task.to_json() for task in tasks]
        for task in tasks:
            reference = opened.trace(task.metadata[LABEL]["trace"])
            assert reference is not None
            (scored,) = ChecklistScorer().score_sync(reference, task).turns
            assert [verdict.value for verdict in scored.verdicts] == [True, None]


def test_a_judge_tries_the_questions(tmp_path: Path, store: str) -> None:
    with JudgeServer(faults=written(1)) as writer, JudgeServer() as judge:
        got, _ = cm2(
            "--store",
            store,
            "--model",
            "stub",
            "--model-base-url",
            writer.base_url,
            "--out",
            str(tmp_path / "lists"),
            "--traces",
            "t1",
            "--judge",
            "stub",
            "--judge-base-url",
            judge.base_url,
        )
        assert judge.calls == 2, "on the reference, and on the reference without its reply"
    assert (got["checked"], got["unchecked"], got["calls"]) == (2, 0, 3)
    checklist = load_checklist(tmp_path / "lists" / "t1.yaml")
    assert list(checklist.by_id) == ["looks_up", "tells_date"]


def test_a_budget_stops_cleanly_and_the_next_run_goes_on(tmp_path: Path, store: str) -> None:
    out = str(tmp_path / "c.jsonl")
    with JudgeServer(faults=written(1, 2, 3)) as server:
        options = (
            "--store",
            store,
            "--model",
            "stub",
            "--model-base-url",
            server.base_url,
            "--out",
            out,
            "--concurrency",
            "1",
        )
        got, told = cm2(*options, "--budget-calls", "2")
        assert (got["labelled"], got["left"], got["calls"]) == (2, 1, 2)
        assert "1 left: the judge's budget of 2 calls is spent" in told
        rest, _ = cm2(*options)
    assert (rest["labelled"], rest["known"]) == (1, 2)
    assert len(load_tasks(out)) == 3


def test_a_lost_output_is_written_again_from_the_store(tmp_path: Path, store: str) -> None:
    with JudgeServer(faults=written(1, 2, 3)) as server:
        options = ("--store", store, "--model", "stub", "--model-base-url", server.base_url, "--concurrency", "1")
        cm2(*options, "--out", str(tmp_path / "a.jsonl"))
        got, _ = cm2(*options, "--out", str(tmp_path / "b.jsonl"))
        assert server.calls == 3
    assert (got["labelled"], got["known"]) == (0, 3)
    assert (tmp_path / "b.jsonl").read_text() == (tmp_path / "a.jsonl").read_text()


def test_the_best_dialogue_of_a_task_is_its_reference_and_the_task_gets_a_new_version(
    tmp_path: Path, store: str
) -> None:
    task = Task(id="where", version=1, turns=("Where is order 4?",), entities=("order:4",))
    facts = {TASK_ID: "where", TASK_VERSION: 1}
    with SQLStore(store) as opened:
        opened.save_task(task)
        opened.save_runs([order(4, **facts), order(5, **facts)])
        opened.save_outcome("t4", "success", 0.0)
        opened.save_outcome("t5", "success", 1.0)
    file = save_tasks([task, Task(id="other", turns=("Hi",))], tmp_path / "tasks.jsonl")
    with JudgeServer(faults=written(5)) as server:
        got, told = cm2(
            "--store",
            store,
            "--model",
            "stub",
            "--model-base-url",
            server.base_url,
            "--tasks",
            str(file),
            "--out",
            str(tmp_path / "o.jsonl"),
        )
    assert got["labelled"] == 1
    assert "task other: no stored trace can be its reference" in told
    (labelled,) = load_tasks(tmp_path / "o.jsonl")
    assert (labelled.id, labelled.version, labelled.entities) == ("where", 2, ("order:4",))
    assert labelled.metadata[LABEL]["trace"] == "t5"
    own = labelled.own_checklist()
    assert own is not None
    assert (own.name, own.version) == ("where", 2)


def test_a_model_that_fails_leaves_no_checklist_and_exits_1(tmp_path: Path, store: str) -> None:
    out = tmp_path / "c.jsonl"
    with JudgeServer(faults=[Fault(text="no"), Fault(text="no"), *[Fault(status=400)] * 3]) as server:
        options = (
            "--store",
            store,
            "--model",
            "stub",
            "--model-base-url",
            server.base_url,
            "--out",
            str(out),
            "--concurrency",
            "1",
        )
        got, told = cm2(*options, code=1)
    assert (got["failed"], got["labelled"]) == (3, 0)
    assert "t1: not labelled" in told
    assert not out.exists()
    with SQLStore(store) as opened:
        assert opened.tasks() == []


def test_wrong_arguments(tmp_path: Path, store: str) -> None:
    model = ("--model", "test", "--store", store)
    assert "ends in .jsonl" in refused(*model, "--out", str(tmp_path / "x.txt"))
    assert "holds no trace nobody" in refused(*model, "--traces", "nobody", "--out", str(tmp_path / "x.jsonl"))
    save_tasks([Task(id="other", turns=("Hi",))], tmp_path / "tasks.jsonl")
    assert "no trace of the tasks" in refused(
        *model, "--tasks", str(tmp_path / "tasks.jsonl"), "--out", str(tmp_path / "x.jsonl")
    )
    assert "PROVIDER:MODEL" in refused("--model", "nobody:x", "--store", store, "--out", str(tmp_path / "x.jsonl"))
    assert "name one: --judge" in refused(*model, "--judge-base-url", "http://x", "--out", str(tmp_path / "x.jsonl"))
    assert not (tmp_path / "x.jsonl").exists()
