"""`cm2 run` and `cm2 train` on a real tiny model: an agent's rollouts become the rows that GRPO trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.cli.app import app
from cm2_agent.models.tokenizer import byte_tokenizer
from tests.cli_runner import CliRunner

pytestmark = pytest.mark.slow

AGENT = """
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from cm2_agent.models import LocalChatModel

model = LocalChatModel.load("policy", max_tokens=12)


@tool
def refund(order: int) -> str:
    "Refunds an order."
    raise AssertionError("a real tool was called")


async def answer(state):
    return {"messages": [await model.ainvoke(state["messages"])]}


def bare():
    return StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile()


graph = StateGraph(MessagesState).add_node("answer", answer).add_node("tools", ToolNode([refund]))
graph = graph.add_edge(START, "answer").compile()
"""
CHECKLIST = """
name: talk
items:
  - {id: told, check: {replied: true}, turn: 0}
  - {id: an_e, check: {reply_matches: "[a-m]"}, turn: 0, weight: 3}
  - {id: digit, check: {reply_matches: "[0-9]"}, turn: 0, weight: 2}
"""


def cm2(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--store", "sqlite:///cm2.db", "--json"])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return json.loads(result.stdout) if code == 0 else result.stderr


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a policy of two layers, an agent, tasks and a checklist; commands run in it."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.1,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "talk.yaml").write_text(CHECKLIST)
    (tmp_path / "tasks.jsonl").write_text('{"id": "a", "turns": ["hi"]}\n{"id": "b", "turns": ["order 7?"]}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_tasks_to_a_new_policy(desk: Path) -> None:
    ran = cm2(
        "run", "tasks.jsonl", "--agent", "agent.py:bare", "--group", "4", "--checklist", "talk.yaml", "--name", "r1"
    )
    assert (ran["dialogues"], ran["failed"], ran["scored"], ran["unscored"]) == (8, 0, 8, 0)
    again = cm2(
        "run", "tasks.jsonl", "--agent", "agent.py:bare", "--group", "4", "--checklist", "talk.yaml", "--name", "r1"
    )
    assert again == ran
    assert cm2("show")["total"] == 8
    health = cm2("doctor")
    assert health["calls"]["trainable"] == 8
    rows = cm2("train", "--rows-only", "--checklist", "talk.yaml")
    assert (rows["groups"], rows["rows"], rows["left_out"]) == (2, 8, {})
    assert "retokenised_rows" not in rows
    of_nobody = cm2("train", "--rows-only", "--checklist", "talk.yaml", "--agent-name", "sales")
    assert (of_nobody["rows"], of_nobody["left_out"]) == (0, {"no step of the agent sales": 8})
    trained = cm2("train", "--model", "policy", "--out", "next", "--steps", "1", "--learning-rate", "1e-3")
    assert trained["out"] == "next"
    assert trained["steps"] == 1
    assert trained["policy"]["before"] != trained["policy"]["after"]
    assert (desk / "next" / "model.safetensors").is_file()
    assert "is not a trained policy" in cm2("train", "--model", "policy", "--out", "policy", code=2)


def test_no_real_tool_runs_unless_it_is_named(desk: Path) -> None:
    told = cm2("run", "tasks.jsonl", "--agent", "agent.py:graph", "--checklist", "talk.yaml", code=2)
    assert "--allow-real refund" in told
    assert not (desk / "cm2.db").exists()
    assert (
        cm2("run", "tasks.jsonl", "--agent", "agent.py:graph", "--checklist", "talk.yaml", "--allow-real", "refund")[
            "dialogues"
        ]
        == 2
    )
