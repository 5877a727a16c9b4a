"""`cm2 tools check`, and what `cm2 run` is told of its environment, against simulators behind real HTTP."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cm2_agent import SQLStore, load_tasks, save_tasks
from cm2_agent.cli.app import app
from cm2_agent.graphs.backends.record import load_recording
from cm2_agent.graphs.backends.simulator_eval import SHOTS
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.task import RecordedCall, Task
from tests.benchmarks.tau2.simulators import Shown, credulous
from tests.chat_server import ChatServer
from tests.cli_runner import CliRunner

LOOK = ToolSpec(
    name="look", description="Look a key up.", parameters={"type": "object", "properties": {"key": {"type": "integer"}}}
)
OTHER = ToolSpec(
    name="find_page",
    description="Find a page.",
    parameters={"type": "object", "properties": {"page": {"type": "integer"}}},
)
MODULE = '''
"""An agent with one real tool, which says when it is called."""
from langchain_core.messages import AIMessage
from cm2_agent.graphs import FunctionTools, agent
from tests.tracing.apps import ScriptedModel, calls

def look(key: int) -> str:
    """Look a key up."""
    with open("called", "a") as file:
        file.write(f"{key}\\n")
    return f"real {key}"

graph = agent(ScriptedModel(script=[calls(1), AIMessage("done")]), FunctionTools(look))

class Desk:
    def __enter__(self):
        return {"open": True}
    def __exit__(self, *error):
        pass

def world(task):
    return Desk()

def verify(task, world, trace):
    return {"opened": float(world["open"])}
'''


def recorded(name: str, key: str, *numbers: int) -> list[RecordedCall]:
    return [
        RecordedCall(name=name, arguments={key: n}, result=json.dumps({key: n, "kind": "a", "size": 3}))
        for n in numbers
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.py").write_text(MODULE, encoding="utf-8")
    calls = (*recorded("look", "key", 1, 2), *recorded("find_page", "page", 5, 6))
    tasks = [Task(id=f"t{n}", turns=("Look 1 up.",), tools=(LOOK, OTHER), recorded=calls) for n in range(2)]
    save_tasks(tasks, tmp_path / "tasks.jsonl")
    save_tasks(
        [task.model_copy(update={"tools": (LOOK,), "recorded": calls[:2]}) for task in tasks], tmp_path / "own.jsonl"
    )
    return tmp_path


def cm2(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return json.loads(done.stdout.splitlines()[-1]) if code != 2 else done.stderr


def shown(url: str) -> str:
    """What cm2 show says of a store's first trace."""
    with SQLStore(url) as store:
        first = next(store.traces()).id
    return CliRunner().invoke(app, ["show", first, "--store", url]).stdout


def true_but_for_pages(body: dict[str, Any]) -> Any:
    shown = Shown.of(body)
    if shown.tool["name"] == "find_page":
        return {"result": {"page": 0, "kind": "b"}, "error": None}
    near = credulous(shown)["result"]
    return {"result": {**(json.loads(near) if isinstance(near, str) else near), **shown.arguments}, "error": None}


def test_tools_that_a_simulator_gets_wrong_are_named_and_get_other_few_shots(folder: Path) -> None:
    with ChatServer(true_but_for_pages) as server:
        arguments = [
            "tools",
            "check",
            "tasks.jsonl",
            "--simulator",
            "stub",
            "--simulator-base-url",
            server.base_url,
            "--price",
            "1,1",
        ]
        found = cm2(*arguments, "--write", "again.jsonl", code=1)
        assert found["calls"] == 8
        assert server.calls == found["usage"]["calls"] == 8 * 2 + 4
        assert found["usage"]["usd"] > 0
        asked = server.calls
        assert cm2(*arguments, "--threshold", "0", "--once", "--most", "1")["calls"] == 2
        assert server.calls == asked + 2
    assert found["below"] == ["find_page"]
    assert found["tools"]["look"]["fields"]["mean"] == 1.0
    assert found["tools"]["look"]["consistent"]["mean"] == 1.0
    assert found["tools"]["find_page"]["exact"]["mean"] == 0.0
    assert found["reselected"].keys() == {"find_page"}
    again = load_tasks(folder / "again.jsonl")
    assert [task.metadata[SHOTS] for task in again] == [{"find_page": [2, 3]}] * 2


def test_a_budget_ends_the_check(folder: Path) -> None:
    with ChatServer(true_but_for_pages) as server:
        arguments = ["tools", "check", "tasks.jsonl", "--simulator", "stub", "--simulator-base-url", server.base_url]
        assert "price" in cm2(*arguments, "--budget-usd", "1", code=2)
        assert "budget" in cm2(*arguments, "--budget-usd", "0.000001", "--price", "1000,1000", code=2)
    assert server.calls == 0


def test_a_run_records_replays_and_simulates(folder: Path) -> None:
    run = ["run", "own.jsonl", "--agent", "shop.py:graph", "--context", "shop.py:world", "--verify", "shop.py:verify"]
    done = cm2(
        *run, "--tools", "record", "--record", "calls.jsonl", "--allow-real", "look", "--store", "sqlite:///real.db"
    )
    assert done["tool_calls"] == {"record": 2}
    assert [call.result for call in load_recording(folder / "calls.jsonl")] == ["real 1", "real 1"]
    with SQLStore("sqlite:///real.db") as store:
        assert [trace.outcomes for trace in store.traces()] == [{"opened": 1.0}] * 2
    (folder / "called").unlink()
    save_tasks([Task(id="bare", turns=("Look 1 up.",))], folder / "bare.jsonl")
    bare = cm2(
        "run", "bare.jsonl", *run[2:], "--tools", "replay", "--recording", "calls.jsonl", "--store", "sqlite:///bare.db"
    )
    assert (bare["tool_calls"], bare["failed"]) == ({"replay": 1}, 0)
    replayed = cm2(*run, "--tools", "replay", "--store", "sqlite:///replayed.db")
    assert replayed["tool_calls"] == {"replay": 2}
    with ChatServer(lambda body: {"result": "invented", "error": None}) as server:
        named = [
            "--simulator",
            "stub",
            "--simulator-base-url",
            server.base_url,
            "--name",
            "one",
            "--faults",
            "truncated=1",
        ]
        simulated = cm2(*run, "--tools", "look=simulate", *named, "--store", "sqlite:///simulated.db")
        assert (simulated["tool_calls"], simulated["simulated"]["calls"]) == ({"simulate": 2}, server.calls)
    assert re.search(r"simulated +\S* ?\[injected: truncated\]", shown("sqlite:///simulated.db"))
    assert re.search(r"replayed +\{\"key\": 1", shown("sqlite:///replayed.db"))
    with SQLStore("sqlite:///simulated.db") as store:
        tools = [tool for trace in store.traces() for run_ in trace.runs for tool in run_.tools]
        assert {(tool.backend, tool.fault) for tool in tools} == {("simulate", "truncated")}
        assert all("invented".startswith(tool.result) and tool.result != "invented" for tool in tools)
    assert not (folder / "called").exists()


RUN = ("run", "own.jsonl", "--agent", "shop.py:graph")


def test_a_simulator_that_its_provider_refuses_ends_the_run(folder: Path) -> None:
    with ChatServer(lambda body: {"result": "x", "error": None}, serves=()) as server:
        named = ("--tools", "look=simulate", "--simulator", "stub", "--simulator-base-url", server.base_url)
        result = CliRunner().invoke(app, [*RUN, *named, "--store", "sqlite:///refused.db"])
    assert result.exit_code == 1, result.stderr
    assert "is refused by its provider" in result.stderr
    assert "`stub` does not exist" in result.stderr
    with SQLStore("sqlite:///refused.db") as store:
        assert list(store.traces()) == [], "what could not be simulated is no failure of the agent's, and is run again"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((*RUN,), "--allow-real look"),
        ((*RUN, "--tools", "imagined"), "expected one of real, record, replay, simulate, hybrid"),
        ((*RUN, "--tools", "loook=replay"), "names loook, but the graph's tools are look"),
        ((*RUN, "--tools", "replay", "--tools", "look=replay"), "one BACKEND for all tools, or NAME=BACKEND"),
        ((*RUN, "--tools", "hybrid"), "--simulator MODEL"),
        ((*RUN, "--tools", "record", "--allow-real", "look"), "--record FILE"),
        ((*RUN, "--tools", "replay", "--budget-usd", "1"), "--budget-usd needs a model"),
        ((*RUN, "--tools", "replay", "--faults", "fire=1"), "fire=1"),
        (
            (*RUN, "--tools", "replay", "--simulator", "stub", "--simulator-base-url", "localhost"),
            "expected the server's URL",
        ),
        ((*RUN, "--tools", "replay", "--model", "x"), "one of --agent"),
        (("run", "own.jsonl"), "one of --agent"),
        ((*RUN, "--tools", "replay", "--context", "shop.py:nothing"), "has no 'nothing'"),
        (
            ("run", "tasks.jsonl", "--agent", "shop.py:graph", "--tools", "replay"),
            "find_page, which the graph does not have",
        ),
        (("run", "twice.jsonl", "--agent", "shop.py:graph", "--tools", "replay"), "tool named twice: look"),
        ((*RUN, "--tools", "replay", "--recording", "old.jsonl"), "a recording of a newer version, 99"),
        (
            (*RUN, "--tools", "hybrid", "--simulator", "test", "--budget-usd", "1"),
            "the price of 'test:test' is not known",
        ),
        (("tools", "check", "none.jsonl", "--simulator", "test"), "no recorded calls to hold out"),
    ],
)
def test_what_cannot_be_run_is_told_and_changes_nothing(folder: Path, arguments: tuple[str, ...], problem: str) -> None:
    look = asdict(LOOK)
    (folder / "twice.jsonl").write_text(
        json.dumps({"id": "t", "turns": ["x"], "tools": [look, look]}) + "\n", encoding="utf-8"
    )
    (folder / "none.jsonl").write_text(json.dumps({"id": "t", "turns": ["x"]}) + "\n", encoding="utf-8")
    (folder / "old.jsonl").write_text(json.dumps({"format": "cm2.recording", "version": 99}) + "\n", encoding="utf-8")
    before = sorted(path.name for path in folder.iterdir() if path.suffix != ".pyc" and path.name != "__pycache__")
    assert problem in cm2(*arguments, code=2)
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == before
