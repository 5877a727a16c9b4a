"""`--redact` of score, run and checklists write: what servers receive and files hold, with real servers on loopback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.cli.redaction import SECRET
from cm2_agent.datasets import Redactor
from cm2_agent.store import SQLStore
from cm2_agent.types.run import Run
from tests.chat_server import ChatServer
from tests.cli.test_app_loop import as_json, cm2
from tests.judge_server import JudgeServer
from tests.rewards.talk import call, say, turn

MAIL, KEY = "ada@x.org", "a key of the tests, long enough"
PLACEHOLDER = Redactor(key=KEY.encode()).redact(MAIL)
CHECKLIST = """
name: asked
items:
  - {id: tells, question: "Was the address told?"}
  - {id: sends, check: {called: send, with: {to: "ada@x.org"}}}
"""
AGENT = f'''
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition


@tool
def send(to: str) -> str:
    "Send a letter."
    raise AssertionError("a real tool was called")


def answer(state):
    last = state["messages"][-1]
    if last.type == "human":
        call = {{"name": "send", "args": {{"to": "{MAIL}"}}, "id": "1", "type": "tool_call"}}
        return {{"messages": [AIMessage("", tool_calls=[call])]}}
    return {{"messages": [AIMessage("It went to {MAIL}.")]}}


graph = StateGraph(MessagesState).add_node("answer", answer).add_node("tools", ToolNode([send]))
graph = graph.add_edge(START, "answer").add_conditional_edges("answer", tools_condition).add_edge("tools", "answer")
graph = graph.compile()
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(SECRET, KEY)
    (tmp_path / "asked.yaml").write_text(CHECKLIST, encoding="utf-8")
    (tmp_path / "redacted_agent.py").write_text(AGENT, encoding="utf-8")
    task = {"id": "t", "turns": [f"Write to {MAIL}"], "metadata": {"of": MAIL}}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task) + "\n", encoding="utf-8")
    return tmp_path


def stored_dialogue() -> None:
    said = turn(f"Write to {MAIL}", call("send", "sent", to=MAIL), say(f"I wrote to {MAIL}."))
    with SQLStore("sqlite:///cm2.db") as store:
        store.save_run(Run(id="r", thread="t", messages=tuple(said)))


def judged(server: ChatServer) -> tuple[str, ...]:
    return ("--judge", "stub", "--judge-base-url", server.base_url, "--price", "0,0")


def test_score_shows_the_judge_no_personal_data() -> None:
    stored_dialogue()
    with JudgeServer() as server:
        plain = as_json("score", "asked.yaml", *judged(server))
        redacted = as_json("score", "asked.yaml", *judged(server), "--redact")
        shown = [json.dumps(body) for body in server.bodies]
    assert MAIL in shown[0]
    assert MAIL not in shown[1]
    assert PLACEHOLDER in shown[1]
    assert plain["mean_reward"] == redacted["mean_reward"] == 1.0
    with SQLStore("sqlite:///cm2.db") as store:
        versions = sorted(store.reward_versions(), key=len)
    assert [version.count(";redacted") for version in versions] == [0, 1], "verdicts on other words have a version"


def test_run_stores_judges_and_simulates_without_personal_data(folder: Path) -> None:
    sent = {"result": f"sent to {PLACEHOLDER}", "error": None}
    with JudgeServer() as server, ChatServer(lambda body: sent) as simulator:
        options = ("--agent", "redacted_agent.py:graph", "--checklist", "asked.yaml", "--tools", "simulate", "--redact")
        model = ("--simulator", "stub", "--simulator-base-url", simulator.base_url)
        found = as_json("run", "tasks.jsonl", *options, *model)
        again = as_json("run", "tasks.jsonl", *options, *model)
        files = b"".join(path.read_bytes() for path in folder.glob("cm2.db*"))
        with SQLStore("sqlite:///cm2.db") as store:
            scores = list(store.scores())
        as_json("score", "asked.yaml", *judged(server), "--redact")
        shown = json.dumps([*server.bodies, *simulator.bodies])
    assert found["dialogues"] == again["dialogues"] == 1
    assert found["failed"] == again["failed"] == 0
    assert found["tool_calls"] == {"simulate": 1}
    assert MAIL not in shown
    assert PLACEHOLDER in shown
    assert MAIL.encode() not in files
    assert PLACEHOLDER.encode() in files
    with SQLStore("sqlite:///cm2.db") as store:
        (task,) = store.tasks()
        traces = list(store.traces())
    assert task.turns == (f"Write to {PLACEHOLDER}",)
    assert {verdict.item: verdict.value for verdict in scores[0].verdicts}["sends"] is True, "checks are redacted alike"
    assert {trace.runs[0].tools[0].arguments["to"] for trace in traces} == {PLACEHOLDER}


def test_checklists_are_written_from_redacted_references(folder: Path) -> None:
    stored_dialogue()
    item = {
        "id": "sends",
        "question": "Is the letter sent?",
        "turn": 0,
        "check": {"called": "send", "with": {"to": PLACEHOLDER}},
        "evidence": [{"turn": 0, "step": 0, "from": "assistant.tool_calls", "snippet": "send"}],
    }
    with ChatServer(lambda body: {"items": [item]}) as server:
        model = ("--model", "stub", "--model-base-url", server.base_url)
        out, _ = cm2("checklists", "write", *model, "--out", "out.jsonl", "--redact", "--json")
        shown = json.dumps(server.bodies)
    assert json.loads(out)["labelled"] == 1
    assert MAIL not in shown
    assert PLACEHOLDER in shown
    written = (folder / "out.jsonl").read_text(encoding="utf-8")
    assert MAIL not in written
    assert PLACEHOLDER in written


def test_a_key_that_is_too_short_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stored_dialogue()
    monkeypatch.setenv(SECRET, "short")
    _, complaint = cm2("score", "asked.yaml", "--redact", code=2)
    assert "expected a secret of 16 or more" in complaint


def test_without_a_key_the_same_tasks_give_the_same_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET)
    options: tuple[Any, ...] = ("--agent", "redacted_agent.py:graph", "--tools", "replay", "--redact")
    for _ in range(2):  # the second run would be refused if the stored task differed
        as_json("run", "tasks.jsonl", *options)
    with SQLStore("sqlite:///cm2.db") as store:
        (task,) = store.tasks()
    assert MAIL not in task.turns[0]
    assert task.turns[0] != f"Write to {PLACEHOLDER}"
