"""The tiny policy and its cold start: a Qwen3 of 0.4 M parameters that learns to copy, then imitates sloppy
demonstrations.

Simplified from real use: the vocabulary has a token for each word of the shop (and a byte for anything else), so that a
dialogue is some hundred tokens long. Nothing else knows that this model is small."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from langchain_core.utils.function_calling import convert_to_openai_tool

from cm2_agent.models.tokenizer import byte_tokenizer
from cm2_agent.quickstart.app import NOT_FOUND, SYSTEM, TOOLS
from cm2_agent.quickstart.config import CONFIG, Config
from cm2_agent.quickstart.demonstrations import demonstrations
from cm2_agent.quickstart.order_desk import ITEMS, SERIES, STATUSES

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and how many there are."""

NUMBERS = [str(number) for number in range(10, 200)]
# The fixed parts of tool calls and results, a token each.
FRAMES = [
    '{"name": "',
    '", "arguments": {"order_id": "',
    '", "arguments": {"item": "',
    '"}}',
    "item ",
    " #",
    ", status ",
    ", day ",
    ", price ",
    " in stock: ",
    "done",
]


def tools() -> list[dict[str, Any]]:
    """The desk's tools as a chat template gets them."""
    return [convert_to_openai_tool(tool) for tool in TOOLS]


def tokenizer() -> Any:
    """The byte-level tokenizer with a token for each word of the shop; the same for every seed."""
    names = [tool.name for tool in TOOLS]
    entities = [*NUMBERS, *SERIES, *ITEMS, *STATUSES, *names]
    spoken = [m["content"] for d in demonstrations(120, 0.5, 0) for m in d if m["role"] in ("user", "assistant")]
    found = {word for text in spoken for word in re.findall(r" ?[A-Za-z]+", text) if word.strip() not in entities}
    texts = [SYSTEM, NOT_FOUND, *(json.dumps(tool, ensure_ascii=False) for tool in tools())]
    roles = ["system\n", "user\n", "assistant\n", "tool\n"]
    return byte_tokenizer([*entities, *FRAMES, *roles, *texts, *sorted(found)])


def cold_start(seed: int, out: Path, progress: Progress | None = None, config: Config = CONFIG) -> Path:
    """Make the policy of this seed and save it, with its tokenizer, in the folder `out`; returns `out`.

    Takes about a minute on one core. The same seed gives the same weights on the same machine.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    words, size = tokenizer(), config.policy
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words),
            hidden_size=size.hidden,
            intermediate_size=size.ffn,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            head_dim=size.head_dim,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=size.init_std,
            bos_token_id=None,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    drill(model, words, seed, config, progress)
    imitate(model, words, seed, config, progress)
    model.generation_config.eos_token_id = words.eos_token_id
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    words.save_pretrained(out)
    return out


def drill(model: Any, words: Any, seed: int, config: Config, progress: Progress | None) -> None:
    """Teach copying: random numbers, item names and statuses, written twice; the loss is on the second time.

    Without it no id is ever copied: the demonstrations alone are too few for a fresh model to find out that it can.
    """
    cold = config.cold_start
    steps = cold.drill_steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=cold.drill_lr, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 10, (steps - step) / steps * 1.5, 1.0)
    )
    model.train()
    for step, half in enumerate(_drill_batches(words, seed, config)):
        ids = torch.cat([half, half], dim=1)  # (B, 2L)
        logits = model(input_ids=ids).logits[:, half.shape[1] - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), half.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress("copy drill", step + 1, steps)


def _drill_batches(words: Any, seed: int, config: Config) -> Iterator[torch.Tensor]:
    """Batches (B, L) of token ids. Without the signs between their parts no order id and no item is ever spelled."""
    rng, cold = random.Random(f"drill:{seed}"), config.cold_start
    pool = [*NUMBERS, *SERIES, *ITEMS, *STATUSES * 5]
    for _ in range(cold.drill_steps):
        rows = [words.convert_tokens_to_ids(rng.choices(pool, k=cold.drill_words)) for _ in range(cold.drill_batch)]
        yield torch.tensor(rows)


def imitate(model: Any, words: Any, seed: int, config: Config, progress: Progress | None) -> None:
    """TRL's SFTTrainer on the demonstrations, with the loss on the assistant's tokens only."""
    import tempfile

    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    cold = config.cold_start

    class Report(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if progress is not None:
                progress("imitating demonstrations", state.global_step, cold.steps)

    disable_progress_bar()
    # As TRL wants conversations; tools are JSON, since datasets would merge their schemas into one.
    shown = json.dumps(tools(), ensure_ascii=False)
    dialogues = demonstrations(cold.demonstrations, cold.sloppy, seed)
    rows = Dataset.from_list([{"messages": dialogue, "tools": shown} for dialogue in dialogues])
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            processing_class=words,
            train_dataset=rows,
            callbacks=[Report()],
            args=SFTConfig(
                output_dir=scratch,
                max_steps=cold.steps,
                per_device_train_batch_size=cold.batch,
                learning_rate=cold.lr,
                lr_scheduler_type="cosine",
                warmup_steps=cold.warmup,
                adam_beta2=0.98,
                weight_decay=0.0,
                assistant_only_loss=True,
                max_length=None,
                seed=seed,
                data_seed=seed,
                use_cpu=True,
                bf16=False,
                activation_checkpointing=False,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
        )
        trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is for the result
        trainer.train()
