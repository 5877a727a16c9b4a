"""Real small parts for the trainers' tests: a tiny Qwen3, and groups of dialogues that it sampled itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cm2_agent.models.tokenizer import byte_tokenizer
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace

REWARD = "checklist:1"


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def policy(tokenizer: Any) -> Callable[..., Any]:
    """policy(seed): a Qwen3 of two layers and 32 channels, its weights drawn from the seed."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(1)

    def make(seed: int = 0, **settings: Any) -> Any:
        torch.manual_seed(seed)
        sizes = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "intermediate_size": 64,
            "max_position_embeddings": 512,
            "initializer_range": 0.1,
        }
        return Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                tie_word_embeddings=True,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **{**sizes, **settings},
            )
        )

    return make


@pytest.fixture(scope="session")
def sample(tokenizer: Any) -> Callable[..., list[Group]]:
    """sample(model, groups, size): groups of two-turn dialogues sampled from the model, with random rewards and true
    logprobs.

    `version` is the policy's name on record (default: the model's fingerprint, that is the truth); `stale` is the
    standard deviation of noise on the logprobs, as if another policy had sampled; the lengths of completions differ.
    """
    from cm2_agent.models.generation import Generator, Request, Sampling
    from cm2_agent.models.local import fingerprint

    def make(
        model: Any,
        groups: int = 3,
        size: int = 4,
        *,
        turns: int = 2,
        temperature: float = 1.0,
        version: str | None = None,
        stale: float = 0.0,
        tokens: int = 8,
        batch: int = 256,
        **shape: Any,
    ) -> list[Group]:
        name = version or fingerprint(model)
        generator = Generator(model, pad_id=tokenizer.pad_token_id, max_batch=batch)
        rng = random.Random(7)
        found = []
        for number in range(groups):
            prompts = [
                tokenizer.encode(f"<|im_start|>user\nWhere is order {number}?<|im_end|>\n<|im_start|>assistant\n")
                for _ in range(size)
            ]
            runs: list[list[Run]] = [[] for _ in range(size)]
            for turn in range(turns):
                requests = [
                    Request(
                        prompt_ids=prompt,
                        sampling=Sampling(temperature=temperature, max_tokens=tokens + index % 3, **shape),
                        stop_ids=frozenset([tokenizer.eos_token_id]),
                        seed=(number, index, turn),
                    )
                    for index, prompt in enumerate(prompts)
                ]
                for index, generation in enumerate(generator.run(requests)):
                    assert not isinstance(generation, Exception)
                    call = ModelCall(
                        span_id=f"{number}-{index}-{turn}",
                        model_version=name,
                        prompt_ids=tuple(prompts[index]),
                        completion_ids=tuple(generation.completion_ids),
                        logprobs=tuple(
                            min(value + rng.gauss(0, stale), -1e-3) if stale else value for value in generation.logprobs
                        ),
                        sampling={
                            "temperature": temperature,
                            "logprobs": "processed",
                            "top_p": 1.0,
                            "top_k": 0,
                            **shape,
                        },
                        message=1,
                    )
                    said = (Message.of("user", "Where is it?"), Message.of("assistant", ""))
                    runs[index].append(
                        Run(
                            id=f"run-{number}-{index}-{turn}", thread=f"t{number}-{index}", messages=said, calls=(call,)
                        )
                    )
                    prompts[index] = [
                        *prompts[index],
                        *generation.completion_ids,
                        *tokenizer.encode("\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"),
                    ]
            rollouts = tuple(
                Rollout(
                    trace=Trace(id=f"t{number}-{index}", runs=tuple(listed)),
                    score=Score(trace_id=f"t{number}-{index}", reward_version=REWARD, reward=round(rng.random(), 3)),
                )
                for index, listed in enumerate(runs)
            )
            found.append(Group(key={"task": f"task-{number}", "policy": name, "reward": REWARD}, rollouts=rollouts))
        return found

    return make


@pytest.fixture(scope="session")
def rewarded() -> Callable[..., Group]:
    """rewarded(group, rewards): the group with these rewards."""

    def make(group: Group, rewards: list[float | None], **score: Any) -> Group:
        return replace(
            group,
            rollouts=tuple(
                replace(one, score=replace(one.score, reward=reward, **score))
                for one, reward in zip(group.rollouts, rewards, strict=True)
            ),
        )

    return make
