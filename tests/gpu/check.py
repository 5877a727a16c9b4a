"""Collect, LoRA-GRPO in bfloat16 and the CPU's loss again, on the machine's first GPU: what runs, how fast, in how much
memory.

    bash tests/gpu/run.sh            # on a machine with a GPU; 8 minutes at most
    bash tests/gpu/run.sh --small    # the same steps on a CPU, on a model that fits a test

The model has the shape of Qwen3-0.6B and random weights, so nothing is downloaded and nothing is learnt. Prints one
JSON line; exits 1 where one of its `checks` is false. No GPU was at hand when it was written: it was run with --small
alone."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cm2_agent import GRPO, Checklist, Item, LocalChatModel, SQLStore, Task, run
from cm2_agent.graphs import agent
from cm2_agent.models import byte_tokenizer

TOLERANCE = 1e-4
"""Between a step's loss on the GPU and on the CPU, in float32."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a model, and how much of it all."""

    shape: Mapping[str, Any]
    words: int
    """Tokens of the vocabulary beside bytes and tags."""
    tasks: int
    group: int
    max_tokens: int
    steps: int
    rank: int


# Qwen3-0.6B: 0.6e9 weights, of which 0.16e9 are the tied embeddings of 151,936 tokens.
FULL = Size(
    shape={
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
    },
    words=151_936 - 267,
    tasks=8,
    group=8,
    max_tokens=128,
    steps=3,
    rank=16,
)
SMALL = Size(
    shape={
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 64,
    },
    words=100,
    tasks=2,
    group=4,
    max_tokens=12,
    steps=2,
    rank=2,
)
# A random model writes words of the vocabulary, w0 to w151668, as they come: some of these hold of some replies.
DIGITS = Checklist(
    *(Item(f"digits_{digits}", check={"reply_matches": digits}) for digits in ("7", "77", "123", "00")), name="digits"
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a model that fits a test, on the CPU")
    parser.add_argument("--loss", metavar="FOLDER", help=argparse.SUPPRESS)  # what this program asks of itself
    asked = parser.parse_args(arguments)
    if asked.loss is not None:
        print(json.dumps(losses(Path(asked.loss))))
        return 0
    if not asked.small and not torch.cuda.is_available():
        print("torch sees no GPU here; give --small for a dry run on the CPU", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="cm2-gpu-") as folder:
        result = check(Path(folder), SMALL if asked.small else FULL, "cpu" if asked.small else "cuda")
    print(json.dumps(result))
    return 0 if all(result["checks"].values()) else 1


def check(folder: Path, size: Size, device: str) -> dict[str, Any]:
    started = time.perf_counter()
    parameters = save_model(folder / "model", size, torch.bfloat16, device)
    say(f"a model of {parameters / 1e9:.2f} billion weights", started)
    store = SQLStore(f"sqlite:///{folder / 'cm2.db'}")
    with Meter(device) as sampling:
        model = LocalChatModel.load(folder / "model", max_tokens=size.max_tokens, model_options={"device_map": device})
        traces = asyncio.run(collect(model, size, store))
        version = model.model_version
        del model
    calls = [call for trace in traces for call in trace.calls]
    sampled = sum(len(call.completion_ids or ()) for call in calls)
    say(f"{len(calls)} calls, {sampled} tokens sampled", started)
    groups = store.groups(checklist=DIGITS, policy=version)
    trainer = GRPO(
        model=folder / "model",
        out=folder / "policy",
        peft_config={"r": size.rank, "lora_alpha": 2 * size.rank, "target_modules": "all-linear"},
        steps=size.steps,
        rollouts_per_step=size.tasks * size.group,
        learning_rate=1e-4,
    )
    with Meter(device) as training:
        out = trainer.train(groups)
    report: Any = trainer.report
    say(f"{report['steps']} steps of LoRA-GRPO", started)
    with Meter(device) as reading:
        tuned = LocalChatModel.load(out, max_tokens=size.max_tokens, model_options={"device_map": device})
        answer = tuned.invoke("Say a number.")
    on_cpu, here = losses_of(folder, device)
    say("the loss on the CPU, and here", started)
    rows = sum(len(call.prompt_ids or ()) + len(call.completion_ids or ()) for call in calls)
    return {
        "device": torch.cuda.get_device_name(0) if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "weights": parameters,
        "dtype": "bfloat16",
        "sampling": {**sampling.figures, "tokens": sampled, "tokens_per_s": sampled / sampling.seconds},
        "training": {
            **training.figures,
            "steps": report["steps"],
            "tokens_a_step": rows,
            "tokens_per_s": rows * report["steps"] / training.seconds,
            "recomputed": report["recomputed"],
        },
        "reading": reading.figures,
        "losses": {"cpu": on_cpu, "here": here},
        "seconds": time.perf_counter() - started,
        "checks": {
            "every call can be trained on": all(call.untrainable is None for call in calls),
            "a group has something to learn": report["informative_groups"] > 0,
            "the sampler's logprobs were given again": report["recomputed"] is not None,
            "the adapter from disk is what was trained": tuned.model_version == report["policy"]["after"] != version,
            "it answers on the device": bool(answer.response_metadata["completion_ids"]),
            "the loss is the CPU's": len(on_cpu) == len(here) > 0
            and all(abs(one - other) <= TOLERANCE for one, other in zip(on_cpu, here, strict=True)),
        },
    }


async def collect(model: Any, size: Size, store: SQLStore) -> list[Any]:
    tasks = [Task(id=f"t{number}", turns=(f"Say a number, friend {number}.",)) for number in range(size.tasks)]
    results = run(agent(model, tools=[]), tasks, group=size.group, checklist=DIGITS, store=store)
    return [trace async for trace, _ in results]


def save_model(folder: Path, size: Size, dtype: torch.dtype, device: str) -> int:
    """A model of random weights, drawn on the device; how many there are."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = byte_tokenizer(f"w{number} " for number in range(size.words))
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        initializer_range=0.05,  # wide enough that the words differ in likelihood
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **size.shape,
    )
    with torch.device(device):
        model: Any = Qwen3ForCausalLM(config)
    model = model.to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def losses_of(folder: Path, device: str) -> tuple[list[float], list[float]]:
    """The losses of two steps of full GRPO in float32 on the same stored rollouts: on the CPU, and on the device.

    A GPU's in a process of its own, since accelerate settles on a device once."""
    place = folder / "loss"
    save_model(place / "model", SMALL, torch.float32, "cpu")
    model = LocalChatModel.load(place / "model", max_tokens=SMALL.max_tokens)
    asyncio.run(collect(model, SMALL, SQLStore(f"sqlite:///{place / 'cm2.db'}")))

    def elsewhere(**environment: str) -> list[float]:
        words = [sys.executable, "-m", "tests.gpu.check", "--loss", str(place)]
        env = {**os.environ, **environment}
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=env)
        found: list[float] = json.loads(done.stdout.splitlines()[-1])
        return found

    return elsewhere(CUDA_VISIBLE_DEVICES=""), elsewhere() if device == "cuda" else losses(place)


def losses(place: Path) -> list[float]:
    """The loss of each step on the rollouts stored in `place`."""
    store = SQLStore(f"sqlite:///{place / 'cm2.db'}")
    with tempfile.TemporaryDirectory() as out:
        trainer = GRPO(
            model=place / "model",
            out=Path(out) / "policy",
            steps=2,
            rollouts_per_step=SMALL.tasks * SMALL.group,
            learning_rate=1e-3,
        )
        trainer.train(store.groups(checklist=DIGITS))
    history: Any = trainer.report["history"]
    return [step["loss"] for step in history if "loss" in step]


class Meter:
    """Seconds, and the most memory in use meanwhile, in GiB: the GPU's, or the process's."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds = self.gib = 0.0

    def __enter__(self) -> Meter:
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._start
        used = (
            torch.cuda.max_memory_allocated()
            if self.device == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        self.gib = used / 2**30

    @property
    def figures(self) -> dict[str, float]:
        return {"seconds": self.seconds, "gib": self.gib}


def say(what: str, started: float) -> None:
    print(f"{time.perf_counter() - started:6.1f} s  {what}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
