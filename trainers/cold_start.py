"""Cold start: a small policy from nothing, which copies what it reads and imitates demonstrations.

A fresh model of some 0.4 M parameters learns within a minute of CPU time to call the tools of a small environment: it
drills copying, since a few hundred dialogues do not teach it that it can copy an id, and then imitates. It is a policy
to try an environment, a checklist or a trainer with, from the first rollout to the last step.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cm2_agent.errors import TrainError, require_extra
from cm2_agent.models.tokenizer import word_tokenizer

if TYPE_CHECKING:
    import torch

require_extra("train", "Trainers", "torch", "transformers", "trl", "accelerate", "datasets")

Dialogue: TypeAlias = Sequence[Mapping[str, Any]]
"""The messages of a chat template, as a `Demonstration` has them."""
Report: TypeAlias = Callable[[str, int, int], object]
"""Called with what is being done, how many steps are done, and how many there are."""


def cold_start(
    out: str | Path,
    dialogues: Sequence[Dialogue],
    *,
    tools: Iterable[Any] = (),
    words: Sequence[str] = (),
    texts: Sequence[str] = (),
    drill_steps: int = 120,
    steps: int = 300,
    seed: int = 0,
    progress: Report | None = None,
) -> Path:
    """Make a small policy that copies and imitates, and save it with its tokenizer in the folder `out`; returns `out`.

    It is `word_tokenizer`, `small_policy`, `copy_drill` and `imitate` with their defaults. The same seed gives the same
    weights on the same machine.

    Args:
        out: a folder that does not exist yet, or is empty.
        dialogues: demonstrations, as messages.
        tools: what the dialogues' calls are of: LangChain tools, functions, or their schemas.
        words: what the policy has to copy (ids, names, numbers): a token each, drilled.
        texts: what is read often and as a whole: a token each, as the system messages are anyway.
        drill_steps: optimizer steps of the copy drill, 0 or more.
        steps: optimizer steps of imitation, at least 1.
        seed: of the weights, the drill and the order of the dialogues.
        progress: called with what is being done, the steps done, and how many there are.

    Raises:
        TrainError: no dialogue, a folder that holds something, a number of steps that cannot be meant.

    >>> import tempfile
    >>> from cm2_agent.trainers import Demonstration, cold_start
    >>> shown = Demonstration()
    >>> shown.hear("Which level is car 7 on?")
    >>> shown.say("It is on level 3.")
    >>> path = cold_start(tempfile.mkdtemp(), [shown.messages], words=["7", "3"], drill_steps=1, steps=1)
    >>> (path / "model.safetensors").exists(), (path / "tokenizer.json").exists()
    (True, True)
    """
    out = Path(out)
    if not dialogues:
        raise TrainError("no dialogue was given; expected demonstrations, some hundred of them")
    if out.exists() and any(out.iterdir()):
        raise TrainError(f"out {str(out)!r} holds something; name a folder that does not exist yet, or remove it first")
    if drill_steps < 0 or steps < 1:
        raise TrainError(f"drill_steps {drill_steps} and steps {steps}; expected 0 or more, and at least 1")
    schemas = _schemas(tools)
    tokenizer = word_tokenizer(dialogues, tools=schemas, words=words, texts=texts)
    model = small_policy(tokenizer, seed=seed)
    if words and drill_steps:
        copy_drill(model, tokenizer, words, steps=drill_steps, seed=seed, progress=progress)
    imitate(model, tokenizer, dialogues, tools=schemas, steps=steps, seed=seed, progress=progress)
    return save_small_policy(model, tokenizer, out)


def small_policy(
    tokenizer: Any,
    *,
    seed: int = 0,
    hidden: int = 96,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 24,
    ffn: int = 256,
    init_std: float = 0.08,
    context: int = 1024,
) -> Any:
    """A fresh Qwen3 for a tokenizer: by default about 0.4 M parameters with a vocabulary of 800.

    Args:
        tokenizer: a transformers tokenizer with an end and a padding token.
        seed: of the weights (torch's global seed is set).
        hidden: channels.
        layers: decoder layers.
        heads: attention heads.
        kv_heads: heads of keys and values; divides `heads`.
        head_dim: channels a head, even.
        ffn: channels of the feed-forward layers.
        init_std: standard deviation of the weights; that of large models, 0.02, lets so small a one learn too slowly.
        context: how many tokens it reads at most.

    >>> from cm2_agent.models import byte_tokenizer
    >>> from cm2_agent.trainers import small_policy
    >>> round(small_policy(byte_tokenizer()).num_parameters() / 1e6, 2)
    0.33
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=ffn,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            initializer_range=init_std,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def copy_drill(
    model: Any,
    tokenizer: Any,
    words: Sequence[str],
    *,
    steps: int = 120,
    batch: int = 16,
    length: int = 20,
    learning_rate: float = 6e-3,
    seed: int = 0,
    progress: Report | None = None,
) -> None:
    """Teach a model to copy: random words, written twice; the loss is on the second time.

    Without it no id is ever copied: demonstrations alone are too few for a fresh model to find out that it can.

    Args:
        model: a transformers causal language model, trained in place.
        tokenizer: its tokenizer, in which each word is one token.
        words: what is drawn from; a word that stands there five times is drawn five times as often.
        steps: optimizer steps.
        batch: sequences an optimizer step.
        length: words a sequence, before they are repeated.
        learning_rate: of AdamW, after ten steps of warm-up, falling in the last third.
        seed: of the words.
        progress: called with "copy drill", the steps done, and how many there are.

    Raises:
        TrainError: no word, or one that is no single token.

    >>> from cm2_agent.models import byte_tokenizer
    >>> from cm2_agent.trainers import copy_drill, small_policy
    >>> tokenizer, done = byte_tokenizer(["lamp", "sofa"]), []
    >>> model = small_policy(tokenizer, hidden=32, layers=1, ffn=32)
    >>> copy_drill(model, tokenizer, ["lamp", "sofa"], steps=2, progress=lambda what, step, of: done.append(step))
    >>> done
    [1, 2]
    """
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 10, (steps - step) / steps * 1.5, 1.0)
    )
    model.train()
    for step, half in enumerate(drill_batches(tokenizer, words, steps=steps, batch=batch, length=length, seed=seed)):
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


def drill_batches(
    tokenizer: Any, words: Sequence[str], *, steps: int, batch: int, length: int, seed: int
) -> Iterator[torch.Tensor]:
    """`steps` batches (batch, length) of token ids. Raises TrainError where a word is no single token."""
    import torch

    long = [word for word in dict.fromkeys(words) if len(tokenizer.encode(word, add_special_tokens=False)) != 1]
    if not words or long:
        raise TrainError(
            f"{'no word' if not words else f'word {long[0]!r} is not one token of the tokenizer'}; expected words that"
            " the tokenizer has a token for each (word_tokenizer(…, words=…))"
        )
    rng = random.Random(f"drill:{seed}")
    for _ in range(steps):
        rows = [tokenizer.convert_tokens_to_ids(rng.choices(words, k=length)) for _ in range(batch)]
        yield torch.tensor(rows)


def imitate(
    model: Any,
    tokenizer: Any,
    dialogues: Sequence[Dialogue],
    *,
    tools: Iterable[Any] = (),
    steps: int = 300,
    batch: int = 16,
    learning_rate: float = 4e-3,
    warmup: int = 20,
    seed: int = 0,
    progress: Report | None = None,
) -> None:
    """TRL's SFTTrainer on dialogues, with the loss on the assistant's tokens alone, as the template marks them.

    Args:
        model: a transformers causal language model, trained in place.
        tokenizer: its tokenizer; the chat template has generation marks, as `byte_tokenizer`'s does.
        dialogues: demonstrations, as messages.
        tools: what the dialogues' calls are of: LangChain tools, functions, or their schemas.
        steps: optimizer steps.
        batch: dialogues an optimizer step.
        learning_rate: on a cosine after the warm-up.
        warmup: optimizer steps of linear warm-up.
        seed: of the order of the dialogues.
        progress: called with "imitating demonstrations", the steps done, and how many there are.

    >>> from cm2_agent.models import byte_tokenizer
    >>> from cm2_agent.trainers import Demonstration, imitate, small_policy
    >>> shown, tokenizer = Demonstration(), byte_tokenizer()
    >>> shown.hear("Hi")
    >>> shown.say("Hello.")
    >>> imitate(small_policy(tokenizer, hidden=32, layers=1, ffn=32), tokenizer, [shown.messages], steps=1)
    """
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class StepsDone(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if progress is not None:
                progress("imitating demonstrations", state.global_step, steps)

    disable_progress_bar()
    # As TRL wants conversations; tools are JSON, since datasets would merge their schemas into one.
    shown = json.dumps(_schemas(tools), ensure_ascii=False)
    rows = Dataset.from_list([{"messages": list(dialogue), "tools": shown} for dialogue in dialogues])
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=rows,
            callbacks=[StepsDone()],
            args=SFTConfig(
                output_dir=scratch,
                max_steps=steps,
                per_device_train_batch_size=batch,
                learning_rate=learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=warmup,
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


def save_small_policy(model: Any, tokenizer: Any, out: Path) -> Path:
    """Save a model that stops at its tokenizer's end token, with the tokenizer, in a folder; returns it."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def _schemas(tools: Iterable[Any]) -> list[dict[str, Any]]:
    """The tools as a chat template gets them."""
    from langchain_core.utils.function_calling import convert_to_openai_tool

    return [tool if isinstance(tool, dict) else convert_to_openai_tool(tool) for tool in tools]
