"""Our rewards in others' trainers: each adapter is called as its trainer calls it, and TRL trains one real step."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.errors import JudgeError, TraceError
from cm2_agent.integrations.reward_functions import (
    art_group_reward,
    art_reward,
    run_now,
    trace_of_chat,
    trl_reward,
    verifiers_reward,
    verl_reward,
)
from cm2_agent.rewards.components.component import RewardComponent
from cm2_agent.rewards.components.outcome import outcome
from cm2_agent.rewards.components.stack import Stack, multiply
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import ToolCall
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

LETTERS = Checklist(
    Item("speaks", check={"replied": True}),
    Item("hello", check={"reply_matches": "(?i)hello"}, weight=3),
    name="letters",
)
JUDGED = Checklist(Item("kind", "Is it kind?"), name="judged")
TOOLS: list[dict[str, Any]] = [
    {"role": "user", "content": "Where is order 7?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "get_order", "arguments": '{"order_id": 7}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "shipped"},
    {"role": "assistant", "content": "Hello, it was shipped."},
]


def longest(traces: list[Trace]) -> list[float]:
    lengths = [len(trace.messages[-1].text) for trace in traces]
    return [length / max(lengths) for length in lengths]


RELATIVE = Stack(RewardComponent(longest, name="longest", version="1", of_group=True))


def answered(task: Task | None, trace: Trace) -> bool | None:
    return None if task is None else str(task.outcome) in trace.messages[-1].text


def test_a_chat_becomes_a_trace() -> None:
    trace = trace_of_chat(TOOLS[:1], TOOLS[1:], task=Task(id="t1", version=2, turns=("Where is order 7?",)))
    assert (trace.task_id, trace.attributes["cm2.task.version"], trace.attributes["cm2.task.turns"]) == ("t1", 2, 1)
    (turn,) = trace.turns
    assert turn.steps[0].message.tool_calls == (ToolCall(id="c1", name="get_order", arguments={"order_id": 7}),)
    assert turn.steps[0].responses[0].response == "shipped"
    texts = trace_of_chat("Where is order 7?", "Hello")
    assert [(message.role, message.text) for message in texts.messages] == [
        ("user", "Where is order 7?"),
        ("assistant", "Hello"),
    ]
    assert (
        texts.id
        == trace_of_chat("Where is order 7?", "Hello").id
        != trace_of_chat("Where is order 7?", "Hello", number=1).id
    )
    with pytest.raises(TraceError, match="message 1"):
        trace_of_chat("Hi", [{"role": "robot", "content": "Hello"}])


def test_trl_calls_it_with_columns_and_gets_none_for_null() -> None:
    reward = trl_reward(Stack(LETTERS))
    prompts = [[{"role": "user", "content": "Hi"}]] * 3
    completions = [[{"role": "assistant", "content": text}] for text in ("Hello", "Go away", "")]
    assert reward(prompts=prompts, completions=completions, completion_ids=[[1]] * 3, trainer_state=object()) == [
        1.0,
        0.25,
        0.0,
    ]
    assert reward(prompts=["Hi"] * 2, completions=["Hello", "No"]) == [1.0, 0.25]
    assert trl_reward(ChecklistScorer(JUDGED))(prompts=["Hi"], completions=["Hello"]) == [None]
    with pytest.raises(TraceError, match="one prompt a completion"):
        reward(prompts=["Hi"], completions=[])


def test_trl_groups_are_scored_together_and_rows_make_tasks() -> None:
    prompts, completions = ["a", "a", "b", "b"], ["x", "xxxx", "xx", "x"]
    assert trl_reward(RELATIVE)(prompts=prompts, completions=completions) == [0.25, 1.0, 1.0, 0.5]

    def task(row: Any) -> Task:
        return Task(id=row["name"], outcome=row["answer"])

    reward = trl_reward(Stack(outcome(answered)), task=task)
    found = reward(
        prompts=["a", "a"], completions=["It is 4", "It is 5"], name=["t", "t"], answer=[4, 4], trainer_state=object()
    )
    assert found == [1.0, 0.0]
    assert trl_reward(Stack(outcome(answered)))(prompts=["a"], completions=["It is 4"]) == [None]


async def test_it_works_where_an_event_loop_runs() -> None:
    assert trl_reward(Stack(LETTERS))(prompts=["Hi"], completions=["Hello"]) == [1.0]
    with pytest.raises(ValueError, match="within"):
        run_now(_failing())


async def _failing() -> None:
    await asyncio.sleep(0)
    raise ValueError("within")


@pytest.mark.slow
def test_trl_trains_a_step_and_leaves_null_out(tmp_path: Path) -> None:
    """A real GRPOTrainer with a real tiny model: the reward it logs is ours, NULLs have no share in it."""
    import torch
    from datasets import Dataset
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from cm2_agent.models.tokenizer import byte_tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    words: Any = byte_tokenizer()
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words),
            intermediate_size=64,
            initializer_range=0.1,
            tie_word_embeddings=True,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
            bos_token_id=None,
            **sizes,
        )
    )
    before = model.model.embed_tokens.weight.detach().clone()
    seen: list[float | None] = []

    def spread(trace: Trace) -> float | None:
        text = trace.messages[-1].text
        value = None if len(seen) == 1 else (sum(map(ord, text)) % 100) / 100
        seen.append(value)
        return value

    config = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        max_steps=1,
        logging_steps=1,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        bf16=False,
        seed=0,
        disable_tqdm=True,
    )
    rows = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": f"Say hello, {name}"}]} for name in ("Ann", "Ben")]
    )
    trainer = GRPOTrainer(
        model, reward_funcs=[trl_reward(Stack(spread))], args=config, train_dataset=rows, processing_class=words
    )
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "rewards/cm2_reward/mean" in entry)
    known = [value for value in seen if value is not None]
    assert len(seen) == 4
    assert len(known) == 3
    assert logged["rewards/cm2_reward/mean"] == pytest.approx(sum(known) / 3, abs=1e-6)
    assert len(set(known)) == 1 or not torch.equal(before, model.model.embed_tokens.weight)
    assert not math.isnan(float(model.model.embed_tokens.weight.detach().sum()))


async def test_a_verifiers_rubric_calls_it_by_name() -> None:
    reward = verifiers_reward(Stack(LETTERS))
    assert reward.__name__ == "cm2_reward"
    called: dict[str, Any] = {
        "prompt": TOOLS[:1],
        "completion": TOOLS[1:],
        "answer": "shipped",
        "state": {},
        "task": "desk",
        "info": {},
        "parser": None,
    }
    assert await reward(**called) == 1.0
    checked = verifiers_reward(Stack(outcome(answered)), task=lambda fields: Task(id="t", outcome=fields["answer"]))
    assert await checked(**called) == 1.0
    assert await checked(**{**called, "answer": "lost"}) == 0.0
    with pytest.raises(JudgeError, match="no reward: verdicts"):
        await verifiers_reward(ChecklistScorer(JUDGED))(**called)


def test_verl_calls_it_without_keywords() -> None:
    reward = verl_reward(
        Stack(LETTERS, multiply(outcome(answered))), task=lambda fields: Task(id="t", outcome=fields["ground_truth"])
    )
    assert reward("desk", "Hello, it was shipped.", "shipped", {"prompt": "Where is order 7?", "index": 3}) == {
        "score": 1.0,
        "cm2/checklist": 1.0,
        "cm2/answered": 1.0,
    }
    assert reward(data_source="desk", solution_str="Hello", ground_truth="lost", extra_info=None)["score"] == 0
    with pytest.raises(JudgeError, match="must not be trained on"):
        verl_reward(ChecklistScorer(JUDGED))("desk", "Hello", None, {"prompt": "Hi"})


async def test_art_calls_it_with_a_trajectory() -> None:
    assert await art_reward(Stack(LETTERS))(TOOLS) == 1.0
    assert await art_reward(Stack(outcome(answered)))(TOOLS, Task(id="t", outcome="shipped")) == 1.0
    group = [[TOOLS[0], {"role": "assistant", "content": text}] for text in ("xx", "xxxx")]
    assert await art_group_reward(RELATIVE)(group) == [0.5, 1.0]
    assert await art_group_reward(ChecklistScorer(JUDGED))(group) == [None, None]
    with pytest.raises(JudgeError, match="no reward"):
        await art_reward(ChecklistScorer(JUDGED))(TOOLS)
