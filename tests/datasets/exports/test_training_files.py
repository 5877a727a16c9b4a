"""Exports for training load in `datasets`, and TRL renders them with a chat template as the dialogues were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.cli.app import app
from cm2_agent.datasets.exports.files import write_lines
from cm2_agent.importers import Imported, read_recordings, recording_format
from cm2_agent.models import byte_tokenizer
from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message, Reasoning, Text, ToolCall, ToolCallResponse, ToolSpec
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.run_attributes import ROLLOUT, TASK_ID
from cm2_agent.types.score import Score
from tests.cli_runner import CliRunner

TOOLS = (
    ToolSpec(name="get_order", description="An order.", parameters={"type": "object", "required": ["id"]}),
    ToolSpec(name="refund", parameters={"type": "object", "properties": {"sum": {"type": "number"}}}),
)
PROMPT = Message.of("system", "You are a desk.")
USER = Message.of("user", "Where is order 7?")


def rollout(number: int, reward: float | None, reply: str, *, task: str = "t") -> tuple[Run, Score]:
    """A dialogue with a call and a reply; the arguments of no two calls have the same keys."""
    call = ToolCall(id="c", name="get_order", arguments={"id": 7, f"key{number}": [number]})
    looked = Message(role="assistant", parts=(Reasoning(content="Look it up."), Text(content="One moment."), call))
    answer = Message(role="tool", parts=(ToolCallResponse(id="c", response={"status": "shipped"}),))
    messages = (USER, looked, answer, Message.of("assistant", reply))
    calls = tuple(
        ModelCall(span_id=f"s{at}", input=(PROMPT, USER), message=at, tools=TOOLS[: number + 1]) for at in (1, 3)
    )
    facts = {TASK_ID: task, ROLLOUT: number}
    run = Run(id=f"{task}{number}", messages=messages, calls=calls, attributes=facts, user="ann" if number else "bob")
    return run, Score(trace_id=run.id, reward_version="v1", reward=reward)


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'cm2.db'}"
    with SQLStore(url) as store:
        for run, score in (
            rollout(0, 1.0, "It was shipped."),
            rollout(1, 0.0, "No idea."),
            rollout(2, None, "Soon."),
            rollout(0, 0.5, "Here.", task="even"),
            rollout(1, 0.5, "There.", task="even"),
        ):
            store.save_dialogue([run], score)
    return url


def export(url: str, file: Path, *options: str) -> tuple[dict[str, Any], str]:
    result = CliRunner().invoke(app, ["export", str(file), "--store", url, *options, "--json"])
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


def refused(url: str, file: Path, *options: str) -> str:
    result = CliRunner().invoke(app, ["export", str(file), "--store", url, *options])
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    return result.stderr


def rows(file: Path, cache: Path) -> list[dict[str, Any]]:
    from datasets import load_dataset

    found = load_dataset("json", data_files=str(file), split="train", cache_dir=str(cache))
    return [dict(row) for row in found]


def test_sft_loads_and_renders_as_the_dialogues_were(url: str, tmp_path: Path) -> None:
    from trl.data_utils import apply_chat_template, is_conversational

    file = tmp_path / "sft.jsonl"
    assert export(url, file, "--format", "sft", "--reward-at-least", "0.5")[0] == {"exported": 3, "file": str(file)}
    written = [json.loads(line) for line in file.read_text().splitlines()]
    loaded = rows(file, tmp_path / "cache")
    tokenizer = byte_tokenizer()
    for row, record in zip(loaded, written, strict=True):
        assert is_conversational(row)
        assert row["messages"][0] == {"role": "system", "content": "You are a desk."}
        tools = json.loads(row["tools"])
        text = apply_chat_template({"messages": row["messages"]}, tokenizer, tools=tools)["text"]
        assert text == tokenizer.apply_chat_template(record["messages"], tools=tools, tokenize=False)
        assert "null" not in text
        assert text.count('"required"') == 1
        assert "One moment." in text
        assert '"status": "shipped"' in text.replace('":"', '": "')


def test_chats_load_and_render(url: str, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    export(url, file, "--format", "chat")
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(type(call["function"]["arguments"]) is str for call in written[0]["messages"][2]["tool_calls"])
    for row, record in zip(rows(file, tmp_path / "cache"), written, strict=True):
        text = byte_tokenizer().apply_chat_template(row["messages"], tools=record["tools"], tokenize=False)
        assert text == byte_tokenizer().apply_chat_template(record["messages"], tools=record["tools"], tokenize=False)
        assert "You are a desk." in text


def test_dpo_loads_and_renders_and_counts_groups_without_a_pair(url: str, tmp_path: Path) -> None:
    from trl.data_utils import apply_chat_template

    file = tmp_path / "dpo.jsonl"
    result, said = export(url, file, "--format", "dpo")
    assert result == {"exported": 1, "groups": 2, "without_pair": 1, "file": str(file)}
    assert "1 of 2 groups had no pair" in said
    (row,) = rows(file, tmp_path / "cache")
    tools = json.loads(row.pop("tools"))
    text = apply_chat_template(row, byte_tokenizer(), tools=tools)
    assert "You are a desk." in text["prompt"]
    assert "Where is order 7?" in text["prompt"]
    assert "It was shipped." in text["chosen"]
    assert "No idea." in text["rejected"]
    assert [entry["role"] for entry in row["chosen"]] == ["assistant", "tool", "assistant"]
    assert recording_format(file).name == "dpo"
    with SQLStore(url) as store:
        hashes = {trace.content_hash for id in ("t0", "t1") if (trace := store.trace(id)) is not None}
    back = [one.trace.content_hash for one in read_recordings(None, file) if isinstance(one, Imported)]
    assert (set(back), len(back)) == (hashes, 2)
    assert export(url, file, "--format", "dpo", "--user", "ann")[0]["exported"] == 0
    assert "at-least is nan" in refused(url, file, "--reward-at-least", "nan")
    assert "above 0, at most 1" in refused(url, file, "--format", "dpo", "--margin", "0")


def test_what_a_format_leaves_out_is_said_once_and_counted(url: str, tmp_path: Path) -> None:
    _, said = export(url, tmp_path / "chat.jsonl", "--format", "chat")
    assert "chat does not carry" not in said
    with SQLStore(url) as store:
        run = Run(id="late", messages=(USER, Message.of("assistant", "<think>x</think>y")), started=7)
        store.save_run(Run(id="empty", messages=(USER,)))
        store.save_run(run)
    _, said = export(url, tmp_path / "chat.jsonl", "--format", "chat")
    assert "chat does not carry: 1 texts that hold tags of thinking, times (of 1 traces); docs/how-to" in said
    result, said = export(url, tmp_path / "sft.jsonl", "--format", "sft")
    assert (result["exported"], result["skipped"]) == (6, 1)
    assert "sft holds every dialogue, whatever its reward" in said
    assert "rewards (of 4 traces), tasks (of 5 traces), times (of 1 traces)" in said


def test_a_file_is_whole_or_as_it_was_and_stdout_is_a_dash(url: str, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_text("before")
    with SQLStore(url) as store:
        store.save_run(Run(id="x", messages=(USER,), attributes={"plan": 1}))

    def breaks_off() -> Iterator[dict[str, Any]]:
        yield {"messages": []}
        raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        write_lines(file, breaks_off())
    assert file.read_text() == "before"
    assert "cannot write" in refused(url, tmp_path / "no" / "chat.jsonl", "--format", "chat")
    assert "name a file" in refused(url, Path("-"), "--format", "parquet")
    assert "both write to stdout" in refused(url, Path("-"), "--json")
    assert "type --format dpo" in refused(url, file, "--margin", "0.5")
    assert sorted(path.name for path in tmp_path.iterdir() if "chat" in path.name) == ["chat.jsonl"]
    shown = CliRunner().invoke(app, ["export", "-", "--store", url, "--format", "chat", "--metadata", "plan=1"])
    assert [json.loads(line)["messages"][0]["content"] for line in shown.stdout.splitlines()] == ["Where is order 7?"]
    assert "exported: 1" in shown.stderr


def test_what_is_exported_as_cm2_is_the_same_store_elsewhere(url: str, tmp_path: Path) -> None:
    for name in ("cm2", "parquet"):
        file, other = tmp_path / f"out.{name}", f"sqlite:///{tmp_path / name}-copy.db"
        export(url, file, "--format", name)
        for expected in ({"imported": 5, "duplicates": 0}, {"imported": 0, "duplicates": 5}):
            result = CliRunner().invoke(app, ["import", str(file), "--store", other, "--json"])
            found = json.loads(result.stdout.splitlines()[-1])
            assert found == {"format": "cm2", "skipped": 0, **expected}, result.stderr
        with SQLStore(url) as one, SQLStore(other) as two:
            assert list(one.scored_traces()) == list(two.scored_traces())
