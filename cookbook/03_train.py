"""Train: collect groups of rollouts with a small model, score them, and train it with GRPO on what is stored.

The model is a transformer of 0.1 M parameters with random weights, so that nothing is downloaded and the recipe ends in
a minute: at first it says random bytes. The checklist asks for plain letters. Nothing below knows how small it is: put
the folder or name of a model of yours in its place, a real checklist, and the agent of `cm2_agent.graphs` with your
tools.

You should see: mean reward 0.48 -> 0.95
"""

from __future__ import annotations

import argparse
import asyncio

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from cm2_agent import GRPO, Checklist, Item, LocalChatModel, SQLStore, Task, run
from cm2_agent.graphs import agent
from cm2_agent.models import END, PAD, byte_tokenizer

checklist = Checklist(
    Item("speaks", check={"replied": True}),
    Item("a_letter", check={"reply_matches": "[a-z]"}),
    Item("three_letters", check={"reply_matches": "[a-z]{3}"}, weight=2),
    name="letters",
)
tasks = [
    Task(id=f"greeting-{number}", turns=(f"Say something, {name}.",))
    for number, name in enumerate(["Ann", "Ben", "Cy", "Dee"])
]


def tiny_model(folder: str) -> str:
    """A model with random weights and the bundled byte-level tokenizer, saved as transformers saves every model."""
    torch.manual_seed(0)
    words = byte_tokenizer()
    vocabulary = words.get_vocab()
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        initializer_range=0.1,
        tie_word_embeddings=True,
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[PAD],
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


async def collect(path: str, store: SQLStore) -> float:
    """Run the agent 16 times a task; every rollout is traced, stored and scored. Returns the mean reward."""
    graph = agent(LocalChatModel.load(path, max_tokens=8), tools=[])
    rewards = []
    async for _, score in run(graph, tasks, group=16, checklist=checklist, store=store, lockstep=True):
        if score is not None and score.reward is not None:
            rewards.append(score.reward)
    return sum(rewards) / len(rewards)


def main(steps: int) -> None:
    torch.set_num_threads(1)
    store = SQLStore("sqlite:///train.db")
    path = tiny_model("policy-0")
    before = after = asyncio.run(collect(path, store))
    for step in range(1, steps + 1):
        version = LocalChatModel.load(path).model_version
        groups = store.groups(checklist=checklist, policy=version)
        path = str(GRPO(path, f"policy-{step}", steps=4, learning_rate=5e-3, seed=step).train(groups))
        after = asyncio.run(collect(path, store))
        print(f"policy {step}: mean reward {after:.2f}")
    print(f"mean reward {before:.2f} -> {after:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Collect, score, train, a few times over.")
    parser.add_argument("--steps", type=int, default=6, help="how often the loop is gone through")
    main(parser.parse_args().steps)
