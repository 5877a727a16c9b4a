"""The tiny policy and its cold start: a Qwen3 of 0.4 M parameters that learns to copy, then imitates sloppy
demonstrations.

Simplified from real use: the vocabulary has a token for each word of the shop (and a byte for anything else), so that a
dialogue is some hundred tokens long. Nothing else knows that this model is small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from langchain_core.utils.function_calling import convert_to_openai_tool

from cm2_agent.models.tokenizer import word_tokenizer
from cm2_agent.quickstart.app import NOT_FOUND, SYSTEM, TOOLS
from cm2_agent.quickstart.config import CONFIG, Config
from cm2_agent.quickstart.demonstrations import demonstrations
from cm2_agent.quickstart.order_desk import ITEMS, SERIES, STATUSES
from cm2_agent.trainers.cold_start import copy_drill, imitate, save_small_policy, small_policy

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
    return word_tokenizer(
        demonstrations(120, 0.5, 0), tools=tools(), words=[*entities, *FRAMES], texts=[SYSTEM, NOT_FOUND]
    )


def drill_words() -> list[str]:
    """What the drill draws from. Without the signs between their parts no order id and no item is ever spelled."""
    return [*NUMBERS, *SERIES, *ITEMS, *STATUSES * 5]


def cold_start(seed: int, out: Path, progress: Progress | None = None, config: Config = CONFIG) -> Path:
    """Make the policy of this seed and save it, with its tokenizer, in the folder `out`; returns `out`.

    Takes about a minute on one core. The same seed gives the same weights on the same machine.
    """
    words, cold = tokenizer(), config.cold_start
    model = small_policy(words, seed=seed, **asdict(config.policy))
    copy_drill(
        model,
        words,
        drill_words(),
        steps=cold.drill_steps,
        batch=cold.drill_batch,
        length=cold.drill_words,
        learning_rate=cold.drill_lr,
        seed=seed,
        progress=progress,
    )
    imitate(
        model,
        words,
        demonstrations(cold.demonstrations, cold.sloppy, seed),
        tools=tools(),
        steps=cold.steps,
        batch=cold.batch,
        learning_rate=cold.lr,
        warmup=cold.warmup,
        seed=seed,
        progress=progress,
    )
    return save_small_policy(model, words, out)
