"""From recorded production dialogues to GRPO rows: imported, scored, compiled into tasks with personal data replaced,
run again in groups against replay and a simulator, and read back as groups that can be trained on. Policy and simulator
are scripted, behind real HTTP."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from cm2_agent import SQLStore, load_tasks
from cm2_agent.cli.app import app
from cm2_agent.types.task import Task
from tests.benchmarks.tau2.simulators import Shown, credulous
from tests.chat_server import ChatServer, Fault
from tests.cli_runner import CliRunner
from tests.importers.recordings import dialogues, saved
from tests.importers.recordings import recordings as own_recordings
from tests.openai_protocol import STANDARD, VLLM


def cm2(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, (done.stderr[-3000:], done.exception)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def apart(record: dict[str, Any]) -> dict[str, Any]:
    """Our own recordings are all of one customer; each task gets one of its own."""
    text, number = json.dumps(record), record["task_id"]
    for name in ("ada_1", "QQ7AA1", "gift_card_1"):
        text = text.replace(name, f"{name}{number}")
    changed: dict[str, Any] = json.loads(text)
    return changed


class Policy:
    """Makes a task's recorded calls, evenly over its turns; now and then it forgets the rest of a turn's, or spells an
    argument wrong. Says which tokens it read and wrote, as vLLM does."""

    def __init__(self, tasks: list[Task]) -> None:
        self.tasks = {task.turns[0]: task for task in tasks}
        self.random = random.Random(7)

    def __call__(self, body: dict[str, Any]) -> Fault:
        messages = body["messages"]
        users = [number for number, message in enumerate(messages) if message["role"] == "user"]
        task = self.tasks[messages[users[0]]["content"]]
        turn, done = len(users) - 1, (len(messages) - users[-1] - 1) // 2
        share = [
            call for number, call in enumerate(task.recorded) if number * len(task.turns) // len(task.recorded) == turn
        ]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": f"That is done, and here is number {self.random.randrange(1000)}.",
        }
        if done < len(share) and self.random.random() < 0.85:
            arguments = dict(share[done].arguments)
            if arguments and self.random.random() < 0.15:
                name = self.random.choice(sorted(arguments))
                arguments[name] = f"{arguments[name]}x" if isinstance(arguments[name], str) else arguments[name]
            function = {"name": share[done].name, "arguments": json.dumps(arguments)}
            call = {"id": f"c{len(messages)}", "type": "function", "function": function}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        prompt = [ord(letter) for letter in json.dumps(messages)][-40:]
        written = [self.random.randrange(100, 200) for _ in range(5)]
        logprobs: dict[str, Any] = {
            "content": [{"token": "t", "logprob": -0.5, "bytes": None, "top_logprobs": []} for _ in written]
        }
        choice = {"index": 0, "finish_reason": "stop", "message": message, "token_ids": written, "logprobs": logprobs}
        completion = {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": "policy-v1",
            "choices": [choice],
            "prompt_token_ids": prompt,
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": 5, "total_tokens": len(prompt) + 5},
        }
        return Fault(body=json.dumps(completion))


@pytest.mark.slow
def test_production_dialogues_reach_grpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CM2_REDACTION_KEY", "the same placeholders, and so the same tasks, each time")
    recordings = (
        dialogues(tmp_path)
        if "CM2_TEST_DATA" in os.environ
        else saved(tmp_path, [apart(one) for one in own_recordings()])
    )
    store = ["--store", f"sqlite:///{tmp_path / 'prod.db'}"]
    imported = cm2("import", "tau-bench", str(recordings), "--checklists", *store)
    cm2("score", *store)
    nobodys = ["--ignore-entity", "flight", "--ignore-entity", "reservation:hathat"]
    chosen = [*nobodys, "--min-score", "0.5", "--limit", "18"]
    compiled = cm2(
        "tasks",
        "from-traces",
        "train.jsonl",
        "--held-out",
        "held.jsonl",
        "--fraction",
        "0.5",
        *chosen,
        *store,
    )
    train, held = load_tasks(tmp_path / "train.jsonl"), load_tasks(tmp_path / "held.jsonl")
    assert compiled["tasks"] == len(train) > 0
    assert compiled["held_out"] == len(held) > 0
    assert len(train) + len(held) + compiled["duplicates"] <= imported["imported"]
    shared = {one for task in train for one in task.entities} & {one for task in held for one in task.entities}
    assert shared <= {one for one in shared if one.startswith("flight:")} | {"reservation:hathat"}

    answering = Policy(train)
    with (
        ChatServer(answering, serves=("policy",), knows=STANDARD | VLLM) as policy,
        ChatServer(lambda body: credulous(Shown.of(body))) as simulator,
    ):
        own = ["--store", f"sqlite:///{tmp_path / 'rollouts.db'}"]
        arguments = [
            "run",
            "train.jsonl",
            "--model",
            "policy",
            "--base-url",
            policy.base_url,
            "--token-ids",
            "--tools",
            "hybrid",
            "--simulator",
            "stub",
            "--simulator-base-url",
            simulator.base_url,
            "--price",
            "0,0",
            "--group",
            "8",
            "--name",
            "r1",
        ]
        done = cm2(*arguments, *own)
        asked = simulator.calls
        again = cm2(*arguments, *own)
    assert done["dialogues"] == 8 * len(train)
    assert (
        done["failed"] == done["unscored"] <= 3
    )  # a simulator made of rules may contradict itself, and is no judge of the agent then
    assert done["tool_calls"].keys() == {"replay", "simulate"}  # and nothing real
    assert done["tool_calls"]["replay"] > done["tool_calls"]["simulate"] > 0
    assert done["simulated"]["calls"] == asked > 0
    assert (again["dialogues"], again["mean_reward"], simulator.calls) == (
        done["dialogues"],
        done["mean_reward"],
        asked,
    )

    rows = cm2("train", "--rows-only", "--backend", "hybrid", *own)
    assert rows["groups"] == len(train)
    assert rows["informative_groups"] > 0
    assert rows["trained_tokens"] > 0
    assert sum(rows["left_out"].values()) == done["failed"]
    with SQLStore(own[1]) as opened:
        traces = list(opened.traces())
        assert len(traces) == done["dialogues"]
        assert {trace.failure.kind for trace in traces if trace.failure is not None} <= {"ToolError"}
        assert opened.groups(backends=["real"]) == []
        (tools,) = {json.dumps(group.key["simulator"]) for group in opened.groups()}
        assert "stub" in tools
