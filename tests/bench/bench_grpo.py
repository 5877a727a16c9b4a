"""What a GRPO step on stored rows costs over a bare PyTorch loop with the same loss, at the size of the quickstart's
policy.

    OMP_NUM_THREADS=1 python tests/bench/bench_grpo.py

Prints one JSON line: CPU-ms per optimizer step of our trainer and of the loop on the same rows (96 of 100-200 tokens, a
third of them the model's), the ratio, and the CPU-ms of everything around the steps (loading, logprobs of the start,
TRL's set-up, saving). One run is given away first; then the two alternate, and the medians count."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from cm2_agent.models.tokenizer import byte_tokenizer
from cm2_agent.trainers.grpo import GRPO
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace

STEPS, GROUPS, SIZE = 8, 12, 8


def policy(words: int) -> tuple[Any, Any]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer: Any = byte_tokenizer(f"word{number}" for number in range(words))
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=24,
            intermediate_size=256,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=0.08,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    return model, tokenizer


def stored(vocabulary: int) -> list[Group]:
    """Groups of two-step rollouts of 100 to 200 tokens; the ids are drawn, the logprobs near uniform: cost does not
    depend on either."""
    rng = random.Random(0)

    def call(prompt: list[int], number: int) -> ModelCall:
        ids = [rng.randrange(vocabulary) for _ in range(rng.randint(16, 32))]
        return ModelCall(
            span_id=f"{number}",
            prompt_ids=tuple(prompt),
            completion_ids=tuple(ids),
            logprobs=(-6.66,) * len(ids),
            message=number,
            sampling={"temperature": 1.0, "logprobs": "processed"},
        )

    def trace(name: str) -> Trace:
        first = call([rng.randrange(vocabulary) for _ in range(rng.randint(50, 80))], 1)
        grown = [*(first.prompt_ids or ()), *(first.completion_ids or ())]
        second = call([*grown, *(rng.randrange(vocabulary) for _ in range(rng.randint(20, 40)))], 2)
        said = (Message.of("user", "q"), Message.of("assistant", "a"), Message.of("assistant", "b"))
        return Trace.of(Run(id=name, messages=said, calls=(first, second)))

    return [
        Group(
            key={"task": str(g), "policy": None, "reward": "bench"},
            rollouts=tuple(
                Rollout(trace=one, score=Score(trace_id=one.id, reward_version="bench", reward=rng.random()))
                for one in (trace(f"{g}-{i}") for i in range(SIZE))
            ),
        )
        for g in range(GROUPS)
    ]


def ours(groups: list[Group]) -> tuple[float, float]:
    """CPU-ms a step, and CPU-ms of the rest."""
    model, tokenizer = policy(520)
    marks: list[float] = []
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "steps": STEPS,
            "rollouts_per_step": GROUPS * SIZE,
            "learning_rate": 1e-4,
            "ratio_band": None,
        }
        trainer = GRPO(model, Path(folder) / "out", tokenizer=tokenizer, **settings)
        trainer.train(groups, progress=lambda *_: marks.append(time.process_time()))
    whole = time.process_time() - start
    steps = [after - before for before, after in pairwise(marks)]
    each = statistics.median(steps)
    return 1e3 * each, 1e3 * (whole - each * STEPS)


def bare(groups: list[Group]) -> float:
    """CPU-ms a step of a loop that knows nothing: right-padded rows, all logits, the same loss, AdamW."""
    model, _ = policy(520)
    rows = []
    for group in groups:
        mean = sum(rollout.score.reward or 0.0 for rollout in group.rollouts) / SIZE
        for rollout in group.rollouts:
            first, second = rollout.trace.calls
            ids = [*(second.prompt_ids or ()), *(second.completion_ids or ())]
            mask = [0] * len(ids)
            for one in (first, second):
                begin = len(one.prompt_ids or ())
                mask[begin : begin + len(one.completion_ids or ())] = [1] * len(one.completion_ids or ())
            rows.append((ids, mask, (rollout.score.reward or 0.0) - mean))
    width = max(len(ids) for ids, _, _ in rows)
    ids_BT = torch.tensor([ids + [0] * (width - len(ids)) for ids, _, _ in rows])
    mask_BT = torch.tensor([mask + [0] * (width - len(mask)) for _, mask, _ in rows])[:, 1:].float()
    seen_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _, _ in rows])
    advantages_B1 = torch.tensor([[a] for _, _, a in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    old: torch.Tensor | None = None
    times = []
    for _ in range(STEPS):
        start = time.process_time()
        logits = model(input_ids=ids_BT, attention_mask=seen_BT).logits[:, :-1]
        logps = torch.log_softmax(logits, -1).gather(-1, ids_BT[:, 1:, None]).squeeze(-1)
        old = logps.detach() if old is None else old
        ratio = (logps - old).exp()
        loss = (
            -(torch.min(ratio * advantages_B1, ratio.clamp(0.8, 1.28) * advantages_B1) * mask_BT).sum() / mask_BT.sum()
        )
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    torch.set_num_threads(1)
    model, tokenizer = policy(520)
    groups = stored(len(tokenizer))
    ours(groups)
    pairs = [(ours(groups), bare(groups)) for _ in range(3)]
    step = statistics.median(pair[0][0] for pair in pairs)
    plain = statistics.median(pair[1] for pair in pairs)
    print(
        json.dumps(
            {
                "bench": "grpo_step",
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "rows": GROUPS * SIZE,
                "step_cpu_ms": round(step, 1),
                "bare_step_cpu_ms": round(plain, 1),
                "ratio": round(step / plain, 2),
                "around_cpu_ms": round(statistics.median(pair[0][1] for pair in pairs), 1),
            }
        )
    )


if __name__ == "__main__":
    main()
