"""`cm2 tasks from-traces` on SQLite and PostgreSQL: real dialogues become tasks that load, replay and share nothing
with held-out ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.cli.app import app
from cm2_agent.graphs.backends.replay import ReplayTools
from cm2_agent.rewards.authoring.writer import LABEL
from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from cm2_agent.types.task import Task, load_tasks
from cm2_agent.types.tool_calls import CallLog, ToolRequest
from tests.cli_runner import CliRunner
from tests.importers.recordings import dialogues, recordings, saved
from tests.judge_server import Fault, JudgeServer
from tests.rewards.talk import call, say, turn


def cm2(*arguments: str) -> tuple[dict[str, Any], str]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


def compile_(out: Path, url: str, *arguments: str) -> tuple[dict[str, Any], str]:
    return cm2("tasks", "from-traces", str(out), "--store", url, *arguments)


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["tasks", "from-traces", *arguments])
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    return result.stderr


def desk(url: str, folder: Path) -> str:
    """tau-bench's dialogues, scored by their own tasks' checklists."""
    cm2("import", "tau-bench", str(dialogues(folder)), "--store", url, "--checklists")
    cm2("score", "--store", url)
    return url


@pytest.mark.slow
def test_tau_bench_from_recordings_to_held_out_tasks(store_url: str, tmp_path: Path) -> None:
    desk(store_url, tmp_path)
    out, held = tmp_path / "train.jsonl", tmp_path / "held.jsonl"
    got, _ = compile_(out, store_url)
    whole = load_tasks(out)
    with SQLStore(store_url, create=False) as store:
        total = int(store.health()["traces"])
        stored = {trace.id: trace for trace in store.traces()}
        scores = {trace_id: store.score(trace_id) for trace_id in stored}
    assert got["tasks"] + got["duplicates"] + sum(got["left_out"].values()) == total
    assert got["without_checklist"] == 0
    assert len(whole) == got["tasks"]
    before = out.read_bytes()
    assert compile_(out, store_url)[0] == got
    assert out.read_bytes() == before, "again, the same file"
    for task in whole:
        score, trace = scores[task.metadata["trace"]], stored[task.metadata["trace"]]
        assert score is not None
        own = task.own_checklist()
        assert own is not None
        if own.name == trace.task_id:  # nothing was replaced in it
            assert own.hash == score.checklist
        assert task.metadata["score"] == score.reward
        assert len(task.turns) == len(trace.turns)
        assert task.outcome == trace.outcomes["official_reward"]
    assert "@example.com" not in out.read_text(encoding="utf-8").replace("@redacted.example.com", "")
    chosen = ["--fraction", "0.4", "--ignore-entity", "flight", "--entity", "*_id", "--entity", "*_number"]
    if "CM2_TEST_DATA" not in os.environ:  # our own six are all of one customer, with one reservation and one card
        chosen += ["--ignore-above", "0.3"]
    split, _ = compile_(out, store_url, "--held-out", str(held), *chosen)
    train, apart = load_tasks(out), load_tasks(held)
    assert (len(train), len(apart)) == (split["tasks"], split["held_out"])
    assert len(train) + len(apart) == got["tasks"]
    assert apart
    assert not {entity for task in train for entity in task.entities} & {
        entity for task in apart for entity in task.entities
    }
    with SQLStore(store_url, create=False) as store:
        store.save_tasks([*whole, *train, *apart])  # other content, another id


def test_every_recorded_call_replays(tmp_path: Path) -> None:
    """The dialogue's calls, made again in their order, are answered as they were (method.md §7)."""
    compile_(tmp_path / "t.jsonl", desk(f"sqlite:///{tmp_path / 'cm2.db'}", tmp_path))
    replayed = 0
    for task in load_tasks(tmp_path / "t.jsonl"):
        tools = {tool.name: tool for tool in task.tools}
        replay, log = ReplayTools(task.recorded, task.tools), CallLog()
        for recorded in task.recorded:
            asked = ToolRequest(tool=tools[recorded.name], arguments=recorded.arguments)
            answer = replay.find(asked, log)
            assert answer is not None
            log.add(asked, answer)
            assert answer.content == (recorded.result if recorded.error is None else recorded.error)
            assert answer.error == (recorded.error is not None)
            replayed += 1
    assert replayed >= 9


@pytest.fixture
def small(tmp_path: Path) -> str:
    """Four dialogues: two of the same words, one that failed, one with an e-mail address."""
    url = f"sqlite:///{tmp_path}/small.db"
    with SQLStore(url) as store:
        store.save_runs([order(1, 7), order(2, 8, words="where IS my  order?"), order(3, 9, words="I am Ada@X.org")])
        store.save_run(order(4, 9, status="error"))
    return url


def order(number: int, order_id: int, *, words: str = "Where is my order?", **fields: Any) -> Run:
    found = call("get_order", '{"status": "sent"}', order_id=order_id)
    messages: list[Message] = turn(words, found, say("It was sent."))
    return Run(id=f"r{number}", thread=f"t{number}", messages=tuple(messages), started=number * 10**18, **fields)


def test_what_is_left_out_is_told(small: str, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    got, told = compile_(out, small)
    assert got == {
        "tasks": 2,
        "held_out": 0,
        "duplicates": 1,
        "left_out": {"ended as error": 1},
        "replaced": {"email": 1},
        "entities": 2,
        "components": 2,
        "largest_component": 1,
        "ignored_entities": 0,
        "without_checklist": 2,
        "out": str(out),
    }
    assert "t4: no task: ended as error" in told
    assert "with no better score; skipped" in told
    assert "2 tasks have no checklist" in told
    first, second = load_tasks(out)
    assert (first.metadata["trace"], first.entities) == ("t1", ("order:7",))
    assert len(first.recorded) == 1, "the duplicate's answers are not its own"
    assert second.turns[0].startswith("I am u")
    assert compile_(out, small, "--keep-personal-data")[0]["replaced"] == {}
    assert load_tasks(out)[1].turns == ("I am Ada@X.org",)


def test_the_key_is_the_owner_s(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> str:
        compile_(tmp_path / "t.jsonl", small)
        return load_tasks(tmp_path / "t.jsonl")[1].turns[0]

    without = said()
    with SQLStore(small) as store:
        store.save_run(order(5, 11, words="Another one"))
    assert said() == without, "later dialogues change nothing"
    monkeypatch.setenv("CM2_REDACTION_KEY", "0123456789abcdef")
    mine = said()
    assert mine != without
    assert said() == mine
    monkeypatch.setenv("CM2_REDACTION_KEY", "short")
    assert "expected a secret of 16 or more" in refused(str(tmp_path / "t.jsonl"), "--store", small)


def test_selection_from_the_command_line(small: str, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    times = ("--since", "2001-09-10", "--until", "2050-01-01T00:00+02:00")  # the second of four, 10¹⁸ ns apart
    assert compile_(out, small, *times, "--tool", "get_order")[0]["left_out"] == {"not chosen by the options": 3}
    assert [task.metadata["trace"] for task in load_tasks(out)] == ["t2"]
    assert compile_(out, small, "--limit", "1")[0]["left_out"] == {"ended as error": 1, "over the limit": 1}
    yaml = tmp_path / "c.yaml"
    yaml.write_text("name: kind\nitems:\n  - id: looks\n    check: {called: get_order}\n", encoding="utf-8")
    assert compile_(out, small, "--checklist", str(yaml))[0]["without_checklist"] == 0
    assert [own.name for task in load_tasks(out) if (own := task.own_checklist()) is not None] == ["kind", "kind"]


def test_wrong_use_changes_nothing(small: str, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    out.write_text("kept", encoding="utf-8")
    given = (str(out), "--store", small)
    assert "name two files" in refused(*given, "--held-out", str(out))
    assert "no score (4)" in refused(*given, "--min-score", "0.5")
    assert "expected a date" in refused(*given, "--since", "yesterday")
    assert "expected a share" in refused(*given, "--held-out", str(tmp_path / "h.jsonl"), "--fraction", "1.5")
    assert "no task can be held out" in refused(*given, "--held-out", str(tmp_path / "h.jsonl"), "--fraction", "0.1")
    assert "holds no scores" in refused(*given, "--reward", "nothing")
    assert "give one of them" in refused(*given, "--label", "m", "--checklist", "c.yaml")
    assert "no traces" in refused(str(out), "--store", f"sqlite:///{_empty(tmp_path)}")
    assert out.read_text(encoding="utf-8") == "kept"
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".jsonl", ".part")) == ["t.jsonl"]


def _empty(folder: Path) -> Path:
    SQLStore(f"sqlite:///{folder}/empty.db").close()
    return folder / "empty.db"


ITEMS = {
    "items": [
        {
            "id": "looks_up",
            "question": "Is the order looked up?",
            "turn": 0,
            "check": {"called": "get_order"},
            "evidence": [{"turn": 0, "step": 0, "from": "assistant.tool_calls", "snippet": "get_order"}],
        }
    ]
}


def test_labelled_now_by_a_model_that_sees_no_personal_data(small: str, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    with JudgeServer(faults=[Fault(text=json.dumps(ITEMS))] * 2) as server:
        options = ("--label", "stub", "--label-base-url", server.base_url, "--concurrency", "1")
        got, _ = compile_(out, small, *options)
        assert (got["tasks"], got["without_checklist"], server.calls) == (2, 0, 2)
        assert "ada@x.org" not in json.dumps(server.bodies).lower()
        before = out.read_bytes()
        assert compile_(out, small, *options)[0] == got
        assert server.calls == 2, "what the file has is not asked for again"
        assert out.read_bytes() == before
    tasks = load_tasks(out)
    assert [task.metadata[LABEL]["trace"] for task in tasks] == ["t1", "t3"]
    assert all(own is not None and own.by_id.keys() == {"looks_up"} for own in (task.own_checklist() for task in tasks))


def test_labelling_stops_at_its_budget_and_goes_on(small: str, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    with JudgeServer(faults=[Fault(text=json.dumps(ITEMS))] * 2) as server:
        options = ("--label", "stub", "--label-base-url", server.base_url, "--concurrency", "1", "--budget-calls", "1")
        got, _ = compile_(out, small, *options)
        assert (got["tasks"], got["left_out"]["not labelled: the budget is spent"]) == (1, 1)
        assert compile_(out, small, *options)[0]["tasks"] == 2
        assert server.calls == 2


def test_recordings_of_our_own(tmp_path: Path) -> None:
    """The six small recordings, wherever the large file is not to be had."""
    url = f"sqlite:///{tmp_path}/six.db"
    cm2("import", "tau-bench", str(saved(tmp_path)), "--store", url)
    got, _ = compile_(tmp_path / "t.jsonl", url)
    assert got["tasks"] + got["duplicates"] == len(recordings())
    tasks: list[Task] = load_tasks(tmp_path / "t.jsonl")
    assert all("user:ada_1" in task.entities for task in tasks)
    assert got["components"] == 1
