"""A plain PyTorch loop with the loss of docs/method.md §6, written without a look at the trainer, and what its tests
share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cm2_agent.trainers.collator import Sample
from cm2_agent.trainers.dataset import build_dataset
from cm2_agent.trainers.micro_batches import MicroBatches
from cm2_agent.trainers.rows import Row
from cm2_agent.trainers.trl_trainer import StoredGRPOTrainer
from cm2_agent.types.group import Group
from cm2_agent.types.trace import Trace

SGD = {"optim": "sgd", "max_grad_norm": 0.0}
Sampler = Callable[..., list[Group]]


def logprobs_of(model: Any, row: Row, temperature: float = 1.0) -> torch.Tensor:
    """log π of a row's model tokens by one unpadded forward pass over all logits."""
    ids = torch.tensor([row.ids])
    logps = torch.log_softmax(model(input_ids=ids).logits[0].double() / temperature, dim=-1)
    places = [place for span in row.spans for place in range(span.start, span.stop)]
    return logps[torch.tensor(places) - 1, ids[0, places]]


def plain_loop(
    model: Any,
    rows: Sequence[Row],
    *,
    importance_weighting: str,
    steps: int,
    lr: float,
    beta: float = 0.0,
    temperature: float = 1.0,
) -> list[float]:
    """The loss of docs/method.md §6 on all rows at once, `steps` steps of SGD, written without a look at the trainer;
    returns the losses."""
    mu = [torch.tensor([v for span in row.spans for v in span.logprobs or ()], dtype=torch.float64) for row in rows]
    advantage = [
        torch.tensor([span.advantage for span in row.spans for _ in range(len(span))], dtype=torch.float64)
        for row in rows
    ]
    with torch.no_grad():
        prox = [logprobs_of(model, row, temperature) for row in rows]
    tokens = sum(len(values) for values in mu)
    losses = []
    for _ in range(steps):
        loss = torch.zeros((), dtype=torch.float64)
        for row, m, a, p in zip(rows, mu, advantage, prox, strict=True):
            now = logprobs_of(model, row, temperature)
            weight = torch.exp(p - m).clamp(max=2.0) if importance_weighting == "decoupled" else torch.ones_like(m)
            ratio = torch.exp(now - (p if importance_weighting == "decoupled" else m))
            clipped = ratio.clamp(0.8, 1.28)
            if importance_weighting == "direct":
                ratio = ratio.clamp(max=2.0)
            token = -weight * torch.min(ratio * a, clipped * a)
            kl = (
                torch.exp(p - now) - (p - now) - 1
            ) * ratio  # unbiased for actions of the old policy (DeepSeek-V3.2), TRL's default
            loss = loss + (token + beta * kl).sum()
        loss = loss / tokens
        model.zero_grad()
        torch.autograd.backward(loss)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= lr * parameter.grad
        losses.append(float(loss.detach()))
    return losses


def rows_of_groups(groups: Sequence[Group]) -> list[Row]:
    return [row for group in build_dataset(groups).groups for row in group.rows]


def trained(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def apart(left: Any, right: Any) -> float:
    """The largest difference between two models' parameters."""
    return max(float((a - b).detach().abs().max()) for a, b in zip(left.parameters(), right.parameters(), strict=True))


def shifted(groups: Sequence[Group], by: float) -> list[Group]:
    """The groups with every stored logprob shifted, as of a policy whose name is not this one's."""

    def trace(one: Trace) -> Trace:
        return replace(
            one,
            runs=tuple(
                replace(
                    run,
                    calls=tuple(
                        replace(
                            call, logprobs=tuple(value + by for value in call.logprobs or ()), model_version="older"
                        )
                        for call in run.calls
                    ),
                )
                for run in one.runs
            ),
        )

    return [
        replace(
            group,
            key={**group.key, "policy": "older"},
            rollouts=tuple(replace(one, trace=trace(one.trace)) for one in group.rollouts),
        )
        for group in groups
    ]


def claimed_by(trace: Trace, version: str) -> Trace:
    return replace(
        trace,
        runs=tuple(
            replace(run, calls=tuple(replace(call, model_version=version) for call in run.calls)) for run in trace.runs
        ),
    )


def stripped(group: Group, **changed: Any) -> Group:
    def calls(trace: Trace) -> Trace:
        return replace(
            trace,
            runs=tuple(replace(run, calls=tuple(replace(call, **changed) for call in run.calls)) for run in trace.runs),
        )

    return replace(group, rollouts=tuple(replace(one, trace=calls(one.trace)) for one in group.rollouts))


def trainer_of(
    model: Any,
    tokenizer: Any,
    batches: list[list[Sample]],
    folder: Path,
    micro_batches: MicroBatches | None = None,
    **args: Any,
) -> StoredGRPOTrainer:
    from datasets import Dataset
    from trl import GRPOConfig

    settings = {
        "output_dir": str(folder),
        "max_steps": len(batches),
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "epsilon_high": 0.28,
        "per_device_train_batch_size": 2,
        "num_generations": 2,
        "beta": 0.0,
        "bf16": False,
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        **SGD,
        **args,
    }
    prompts = Dataset.from_dict({"prompt": [""] * 64})
    return StoredGRPOTrainer(
        batches=iter(batches),
        micro_batches=micro_batches,
        model=model,
        args=GRPOConfig(**settings),
        processing_class=tokenizer,
        train_dataset=prompts,
    )


def ready(rows: Sequence[Row]) -> list[Sample]:
    return [Sample(row=row, advantages=row.token_advantages, old=row.mu) for row in rows]
