"""What a GRPO step on stored rows costs beside TRL's own trainer and a bare PyTorch loop, what it pads, and what memory
it takes.

    OMP_NUM_THREADS=1 python tests/bench/bench_grpo.py [--sizes 0.4,2,20] [--rounds 3] [--peak]

Prints one JSON line, in about 15 minutes on an idle core; without `20` among the sizes and without `--peak` in three.

- `steps`: by size in millions of parameters, CPU-ms of an optimizer step of ours, of TRL's GRPOTrainer fed with these
  rows (one override, logits of all positions) and of a loop that pads all rows together; and the ratios. The three take
  turns; medians count. Rows have 100 to 200 tokens, a third of them the model's. `around` is all that is not a step:
  loading, logprobs of the start, TRL's set-up, saving.
- `padding`: padded over real tokens of what passes through the model, in steps and when logprobs are taken, of these
  rows and of rows whose lengths differ by a factor of 50.
- `peak_mb`: the largest resident memory over two steps of 64 rollouts at 20 M parameters, above that before the first
  step, by the rows of a micro-batch: each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from cm2_agent.models.tokenizer import byte_tokenizer
from cm2_agent.trainers.collator import Sample, collate
from cm2_agent.trainers.dataset import build_dataset
from cm2_agent.trainers.grpo import GRPO
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace

STEPS, SIZE = 4, 8
# By millions of parameters: channels, layers, channels of the feed-forward layers, groups of 8 rollouts.
SIZES = {"0.4": (96, 3, 256, 12), "2": (192, 4, 512, 12), "20": (384, 12, 1056, 4)}
WORDS = 520


def policy(size: str) -> tuple[Any, Any]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer: Any = byte_tokenizer(f"word{number}" for number in range(WORDS))
    hidden, layers, feed, _ = SIZES[size]
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=hidden // 4,
            intermediate_size=feed,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            initializer_range=0.08,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    return model, tokenizer


def stored(vocabulary: int, groups: int, ragged: bool = False) -> list[Group]:
    """Groups of two-step rollouts of 100 to 200 tokens, or of 40 to 2,000; the ids are drawn, the logprobs near
    uniform: cost does not depend on either.
    """
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
        length = int(min(1900, 20 * rng.lognormvariate(1.5, 1.2))) if ragged else rng.randint(50, 80)
        first = call([rng.randrange(vocabulary) for _ in range(length)], 1)
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
        for g in range(groups)
    ]


def ours(groups: Sequence[Group], size: str, steps: int = STEPS, model: Any = None, **given: Any) -> list[float]:
    """CPU-ms of each step but the first, and of all that is no step."""
    loaded, tokenizer = policy(size)
    marks: list[float] = []
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "steps": steps,
            "rollouts_per_step": len(groups) * SIZE,
            "learning_rate": 1e-4,
            "ratio_band": None,
            **given,
        }
        trainer = GRPO(model or loaded, Path(folder) / "out", tokenizer=tokenizer, **settings)
        trainer.train(groups, progress=lambda *_: marks.append(time.process_time()))
    whole = time.process_time() - start
    each = [1e3 * (after - before) for before, after in pairwise(marks)]
    return [*each, 1e3 * whole - statistics.median(each or [0.0]) * steps]


def trls(groups: Sequence[Group], size: str) -> list[float]:
    """CPU-ms of each step but the first of TRL's GRPOTrainer, whose generation is replaced by the stored rows."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = policy(size)
    rows = [row for group in build_dataset(groups).groups for row in group.rows]
    samples = [Sample(row=row, advantages=row.token_advantages, old=row.mu) for row in rows]
    marks: list[float] = []

    class Marks(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.process_time())

    class Stored(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> dict[str, torch.Tensor]:
            return collate(samples, pad_id=tokenizer.pad_token_id)

    def no_reward(*args: Any, **kwargs: Any) -> list[float | None]:
        raise RuntimeError("rows were scored before")

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            max_steps=STEPS,
            learning_rate=1e-4,
            weight_decay=0.0,
            epsilon_high=0.28,
            per_device_train_batch_size=2,
            num_generations=2,
            bf16=False,
            activation_checkpointing=False,
            dataloader_pin_memory=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        prompts = Dataset.from_dict({"prompt": [""] * 64})
        trainer = Stored(
            model=model,
            reward_funcs=no_reward,
            args=config,
            train_dataset=prompts,
            processing_class=tokenizer,
            callbacks=[Marks()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [1e3 * (after - before) for before, after in pairwise(marks)]


def bare(groups: Sequence[Group], size: str) -> list[float]:
    """CPU-ms of each step but the first of a loop that knows nothing: right-padded rows, all logits, the same loss,
    AdamW.
    """
    model, _ = policy(size)
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
        times.append(1e3 * (time.process_time() - start))
    return times[1:]


def costs(size: str, rounds: int) -> dict[str, Any]:
    model, tokenizer = policy(size)
    groups = stored(len(tokenizer), SIZES[size][3])
    found: dict[str, list[float]] = {"ours": [], "trl": [], "bare": [], "around": []}
    for _ in range(rounds):
        *steps, around = ours(groups, size)
        found["ours"].append(statistics.median(steps))
        found["around"].append(around)
        found["trl"].append(statistics.median(trls(groups, size)))
        found["bare"].append(statistics.median(bare(groups, size)))

    def ratio(name: str) -> float:
        pairs = zip(found["ours"], found[name], strict=True)
        return round(statistics.median(own / other for own, other in pairs), 2)

    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "rows": len(groups) * SIZE,
        **{f"{name}_cpu_ms": round(statistics.median(values), 1) for name, values in found.items()},
        "to_trl": ratio("trl"),
        "to_bare": ratio("bare"),
    }


def padding(ragged: bool) -> dict[str, float]:
    """Padded over real tokens of one step and of the logprobs around it."""
    model, tokenizer = policy("0.4")
    groups = stored(len(tokenizer), 8, ragged)
    passed = {True: 0, False: 0}

    def note(module: Any, args: Any, kwargs: Any) -> None:
        passed[torch.is_grad_enabled()] += kwargs["input_ids"].numel()

    model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    ours(groups, "0.4", steps=1, model=model)
    real = sum(len(row.ids) - 1 for group in build_dataset(groups).groups for row in group.rows)
    # Logprobs are taken of all rows before training and, of these 64, after it.
    return {"step": round(passed[True] / real, 3), "logprobs": round(passed[False] / 2 / real, 3)}


def peak(rows: int) -> float:
    """MB of resident memory that two steps of 64 rollouts take, at most, above what was taken before the first."""
    model, tokenizer = policy("20")
    before: list[int] = []

    def note(*_: Any) -> None:
        if not before and torch.is_grad_enabled():
            before.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
            Path("/proc/self/clear_refs").write_text("5")  # the largest so far is forgotten

    model.base_model.register_forward_pre_hook(note)
    ours(stored(len(tokenizer), 8), "20", steps=2, model=model, args={"per_device_train_batch_size": rows})
    status = Path("/proc/self/status").read_text()
    most = int(status.split("VmHWM:")[1].split()[0]) * 1024
    return (most - before[0]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0.4,2,20", help="millions of parameters, of 0.4, 2 and 20")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each of the three")
    parser.add_argument("--peak", action="store_true", help="measure memory too")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak_of is not None:
        print(peak(options.peak_of))
        return
    sizes = [size for size in options.sizes.split(",") if size]
    if sizes:
        ours(stored(WORDS, 1), "0.4")  # what the first run of a process does is counted for none
    out: dict[str, Any] = {"bench": "grpo_step", "steps": {size: costs(size, options.rounds) for size in sizes}}
    out["padding"] = {"even": padding(False), "ragged": padding(True)}
    if options.peak:
        found = {}
        for rows in (64, 8):
            command = [sys.executable, __file__, "--peak-of", str(rows)]
            found[rows] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        out["peak_mb"] = {str(rows): round(value) for rows, value in found.items()}
        out["peak_ratio"] = round(found[8] / found[64], 3)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
