"""`cm2 train --algorithm sft|rft|dpo`: what of a store is learnt from, of text-only traces of one project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.cli.app import app
from cm2_agent.models.tokenizer import byte_tokenizer
from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.score import Score
from tests.cli_runner import CliRunner

REPLIES = {"a": 1.0, "b": 0.4, "c": None}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model, and a production store: two projects, no tasks, some scores, text alone."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_tokenizer()
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
    Qwen3ForCausalLM(Qwen3Config(**sizes, **heads)).save_pretrained("tiny")
    tokenizer.save_pretrained("tiny")
    for project in ("mine", "theirs"):
        with SQLStore("sqlite:///cm2.db", project=project) as store:
            for name, reward in REPLIES.items():
                shown = (Message.of("system", "Be brief."), Message.of("user", "Hi"))
                call = ModelCall(span_id=name, message=1, input=shown, finish_reason="stop")
                messages = (Message.of("user", "Hi"), Message.of("assistant", name))
                store.save_run(Run(id=f"{project}-{name}", messages=messages, calls=(call,)))
                if reward is not None:
                    store.save_score(Score(trace_id=f"{project}-{name}", reward_version="r:1", reward=reward))
    return tmp_path


def train(*arguments: str) -> tuple[int, dict[str, Any], str]:
    result = CliRunner().invoke(
        app, ["train", "--model", "tiny", "--out", "new", "--steps", "1", "--json", *arguments], catch_exceptions=False
    )
    return result.exit_code, json.loads(result.stdout or "{}"), result.stderr


def test_all_traces_of_a_project_need_no_group_and_no_score(here: Path) -> None:
    code, report, error = train("--algorithm", "sft", "--project", "mine")
    assert code == 0, error
    assert (report["rollouts"], report["rows"], report["left_out"]) == (3, 3, {})
    assert report["rows_from"] == {"ids": 0, "words": 3, "words_because": {"no token ids": 3}}
    assert report["masked_tokens"] > 3 * len("Be brief.")
    code, report, error = train("--algorithm", "sft")
    assert code == 2
    assert "no group was given, nor a trace" in error


def test_rollouts_above_a_score_need_no_group(here: Path) -> None:
    code, report, error = train("--algorithm", "rft", "--project", "mine", "--set", "select=0.5")
    assert code == 0, error
    assert (report["rollouts"], report["left_out"]) == (1, {"below the score asked for": 1})


def test_preferences_of_groups_and_of_a_guard(here: Path) -> None:
    with SQLStore("sqlite:///cm2.db", project="mine") as store:
        for name, reward in (("x", 1.0), ("y", 0.0)):
            attributes = {"cm2.task.id": "t", "cm2.task.version": 1, "cm2.group": "g"}
            messages = (Message.of("user", "Hi"), Message.of("assistant", name))
            store.save_run(Run(id=name, messages=messages, attributes=attributes))
            store.save_score(Score(trace_id=name, reward_version="r:1", reward=reward))
        said = [Message.of("assistant", "No!").to_json()]
        attempt = {"attempt": "1", "failed": ["polite"], "worth": 0.0, "messages": said}
        attributes = {"cm2.guard.rejected": [attempt], "cm2.guard.outcome": "accepted"}
        messages = (Message.of("user", "Hi"), Message.of("assistant", "Hello."))
        store.save_run(Run(id="guarded", messages=messages, attributes=attributes))
    code, report, error = train("--algorithm", "dpo", "--project", "mine", "--set", "beta=0.2")
    assert code == 0, error
    assert (report["groups"], report["pairs"], report["mean_margin"]) == (1, 1, 1.0)
    code, report, error = train("--algorithm", "dpo", "--project", "mine", "--set", "pairs=guard", "--overwrite")
    assert code == 0, error
    assert (report["groups"], report["pairs"]) == (0, 1)
    assert report["pairs_from"] == {"ids": 0, "words": 1, "words_because": {"turns of a guard": 1}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--algorithm", "sft", "--min-kappa", "0.7"), "takes all traces, whatever their scores"),
        (("--algorithm", "sft", "--require-certificate"), "takes all traces, whatever their scores"),
        (("--algorithm", "rft", "--require-certificate", "--set", "select=0.5"), "it has no certificate"),
        (("--algorithm", "rft"), "no group was given"),
        (("--algorithm", "rft", "--set", "select=all"), "'all' chooses nothing"),
        (("--algorithm", "sft", "--policy", "p"), "no group was given, nor a trace"),
        (("--algorithm", "sft", "--backend", "real"), "no group was given, nor a trace"),
    ],
)
def test_what_cannot_be_chosen_is_refused(here: Path, arguments: tuple[str, ...], message: str) -> None:
    code, _, error = train(*arguments, "--project", "mine")
    assert code == 2
    assert message in " ".join(error.split())
    assert not Path("new").exists()
