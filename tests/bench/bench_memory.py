"""What memory a process of GRPO takes: by arithmetic, and by the meter at the size of SmolLM2-135M.

    OMP_NUM_THREADS=1 python tests/bench/bench_memory.py                   # about 15 minutes on an idle core
    python tests/bench/bench_memory.py --predict 8b --gpus 8 --tokens 8192  # arithmetic alone, at once

Prints one JSON line. `ways`: all weights or a LoRA adapter (r = 16, every linear layer), in one process and in two that
shard the model (FSDP2 over gloo, as cookbook/fsdp2.yaml asks for), of a model in bfloat16 with random weights:

- `predicted` are the parts of `predict`, in MB, and `held_predicted` those that last: weights, masters, gradients and
  the optimizer's moments;
- `held` is what tensors of these kinds take when the second optimizer step begins, counted in that process;
- `peak` is the largest resident memory of two steps above that before the model was loaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from cm2_agent.trainers.trained_logits import LOGITS_AT_ONCE

TOP = Path(__file__).resolve().parents[2]
RANK = 16
MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder's sizes, as in its config.json."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed: int
    vocabulary: int
    tied: bool

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    @property
    def linears(self) -> list[tuple[int, int]]:
        """In- and outputs of a layer's linear maps: q, k, v, o, gate, up, down."""
        kv = self.kv_heads * self.head
        square, feed = (self.hidden, self.hidden), (self.hidden, self.feed)
        return [square, (self.hidden, kv), (self.hidden, kv), square, feed, feed, (self.feed, self.hidden)]

    @property
    def layer(self) -> int:
        """Weights of a layer."""
        return sum(one * other for one, other in self.linears) + 2 * self.hidden

    @property
    def ends(self) -> int:
        """Weights outside the layers: embeddings, head, last norm."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def weights(self) -> int:
        return self.layers * self.layer + self.ends

    @property
    def adapter(self) -> int:
        """Weights of a LoRA adapter on every linear map of the layers."""
        return self.layers * sum(RANK * (one + other) for one, other in self.linears)


SHAPES = {
    "135m": Shape(hidden=576, layers=30, heads=9, kv_heads=3, feed=1536, vocabulary=49_152, tied=True),
    "8b": Shape(hidden=4096, layers=32, heads=32, kv_heads=8, feed=14_336, vocabulary=128_256, tied=False),
}
HELD = ("weights", "masters", "gradients", "moments")


def predict(
    shape: Shape, *, lora: bool, processes: int, tokens: int, trained: int, recompute: bool = False
) -> dict[str, float]:
    """Bytes of a process by what they are for, of a model in bfloat16; `processes` above 1 shard it.

    Args:
        shape: the model's.
        lora: an adapter is trained, and not the weights themselves.
        processes: how many share the model (FSDP2); data-parallel ones each take what one takes.
        tokens: of the largest micro-batch, padding included.
        trained: those among them whose logits are made.
        recompute: activation checkpointing.
    """
    n, m, parts = shape.weights, shape.adapter, processes
    if lora:
        held = {"weights": 2 * n / parts, "masters": 4 * m, "gradients": 4 * m, "moments": 8 * m}
    elif parts == 1:
        held = {"weights": 2 * n, "masters": 4 * n, "gradients": 4 * n, "moments": 8 * n}
    else:  # the shards are the masters
        held = {"weights": 0, "masters": 4 * n / parts, "gradients": 4 * n / parts, "moments": 8 * n / parts}
    # A layer keeps for the way back: two norms in float32 and bfloat16, queries, keys, values and what attention gives,
    # and four times the feed-forward width; with an adapter, the inputs of its maps in float32 too.
    a_layer = 24 * shape.hidden + 8 * shape.feed + ((24 * shape.hidden + 4 * shape.feed) if lora else 0)
    inputs = 2 * shape.hidden * shape.layers
    gathered = reduced = 0.0
    if parts > 1:
        gathered = 2 * shape.ends + 2 * 2 * shape.layer  # this layer and the next
        reduced = 0 if lora else 6 * max(shape.ends, shape.layer)  # bfloat16, and float32 on its way
    return {
        **held,
        "activations": tokens * (inputs + a_layer if recompute else a_layer * shape.layers),
        "logits": 5 * 4 * min(LOGITS_AT_ONCE, trained * shape.vocabulary),  # of one chunk, and what is made of them
        "gathered": gathered,
        "reduced": reduced,
    }


def rounded(parts: Mapping[str, float]) -> dict[str, int]:
    return {name: round(value / MB) for name, value in parts.items() if value}


def model_folder(folder: Path) -> Path:
    """A model of SmolLM2-135M's shape with random weights, in bfloat16, and a tokenizer of as many tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from cm2_agent.models import byte_tokenizer

    shape = SHAPES["135m"]
    tokenizer = byte_tokenizer(f"word{number}" for number in range(shape.vocabulary - len(byte_tokenizer())))
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def resident(line: str = "VmRSS") -> int:
    return int(Path("/proc/self/status").read_text().split(f"{line}:")[1].split()[0]) * 1024


def own(tensor: Any) -> Any:
    """This process's part of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def kept(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """The parameters of the models at hand, and what the optimizer has: masters, gradients and moments."""
    from transformers import PreTrainedModel

    for one in gc.get_objects():
        if issubclass(type(one), PreTrainedModel):  # asks no object for its class
            yield from one.parameters()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter
            if parameter.grad is not None:
                yield parameter.grad
            yield from (value for value in optimizer.state[parameter].values() if torch.is_tensor(value))


def measure(folder: Path, out: Path, lora: bool) -> dict[str, float]:
    """Bytes held and at the peak of this process, over two steps on eight rollouts of 100 to 200 tokens."""
    from cm2_agent import GRPO
    from tests.bench.bench_grpo import policy, stored

    torch.set_num_threads(1)
    small, tokenizer = policy("0.4")
    small.bfloat16().save_pretrained(out / "small")
    tokenizer.save_pretrained(out / "small")
    settings: dict[str, Any] = {"steps": 2, "ratio_band": None, "rollouts_per_step": 8, "tokens_per_micro_batch": 512}
    settings |= {"args": {"use_cpu": True}, "peft_config": {"r": RANK, "lora_alpha": RANK} if lora else None}
    # All code is loaded, and the processes have met.
    GRPO(str(out / "small"), out / "first", **settings).train(stored(700, 1))
    held: list[int] = []

    def count(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        storages = {(part := own(one).untyped_storage()).data_ptr(): part.nbytes() for one in kept(optimizer)}
        held.append(sum(storages.values()))

    handle = register_optimizer_step_pre_hook(count)
    gc.collect()
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # the largest so far is forgotten
    GRPO(str(folder), out / "second", **settings).train(stored(SHAPES["135m"].vocabulary, 1))
    handle.remove()
    return {"held": held[-1], "peak": resident("VmHWM") - before}


def compared(folder: Path, lora: bool, processes: int) -> dict[str, Any]:
    """Predicted and measured MB, of the process that takes most."""
    from cm2_agent.trainers.dataset import build_dataset
    from cm2_agent.trainers.micro_batches import MicroBatches, padded_tokens
    from tests.bench.bench_grpo import stored

    rows = [row for group in build_dataset(stored(700, 1)).groups for row in group.rows]
    lengths = [len(row.ids) for row in rows]
    cut = MicroBatches(tokens=512, processes=processes, one_pass=processes > 1).split(lengths)
    largest = max(cut, key=lambda part: padded_tokens([lengths[index] for index in part]))
    tokens = padded_tokens([lengths[index] for index in largest])
    trained = sum(rows[index].trained for index in largest)
    predicted = predict(SHAPES["135m"], lora=lora, processes=processes, tokens=tokens, trained=trained)
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "tests.bench.bench_memory", "--measure", str(folder), "--out", out]
        if processes > 1:
            launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
            command[2:3] = [*launcher, command[2]]
        # Blocks of 64 kB and more go back to the system when they are freed.
        env = {**os.environ, "PYTHONPATH": str(TOP), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
        if processes > 1:
            env |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
        done = subprocess.run(
            [*command, *(["--lora"] if lora else [])], cwd=TOP, env=env, check=True, stdout=subprocess.PIPE, text=True
        )
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"held"')]
    return {
        "tokens": tokens,
        "trained_tokens": trained,
        "predicted": rounded(predicted),
        "held_predicted": round(sum(predicted[name] for name in HELD) / MB),
        "held": round(max(one["held"] for one in found) / MB),
        "peak_predicted": round(sum(predicted.values()) / MB),
        "peak": round(max(one["peak"] for one in found) / MB),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict", choices=SHAPES, help="arithmetic alone, for a model of this size")
    parser.add_argument("--gpus", type=int, default=8, help="processes that share the model")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a micro-batch, a third of them trained")
    parser.add_argument("--ways", default="full,lora,full/2,lora/2", help="what is measured; /2: in two processes")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--lora", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        place = options.out / os.environ.get("RANK", "0")
        print(json.dumps(measure(options.measure, place, options.lora)) + "\n", end="", flush=True)
        return
    if options.predict is not None:
        shape, tokens = SHAPES[options.predict], options.tokens
        found = {}
        for name, lora, processes in (("full", False, options.gpus), ("lora", True, 1), ("lora", True, options.gpus)):
            for recompute in (False, True):
                parts = predict(
                    shape, lora=lora, processes=processes, tokens=tokens, trained=tokens // 3, recompute=recompute
                )
                word = f"{name}/{processes}{' recomputed' if recompute else ''}"
                found[word] = {**rounded(parts), "sum": round(sum(parts.values()) / MB)}
        print(json.dumps({"bench": "memory", "weights": shape.weights, "adapter": shape.adapter, "mb": found}))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(Path(folder))
        ways = {
            way: compared(model, way.startswith("lora"), int(way.partition("/")[2] or 1))
            for way in options.ways.split(",")
        }
    print(json.dumps({"bench": "memory", "weights": SHAPES["135m"].weights, "ways": ways}))


if __name__ == "__main__":
    main()
