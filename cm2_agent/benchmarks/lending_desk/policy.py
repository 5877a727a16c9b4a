"""The tiny policy of the lending desk and its cold start: it learns to copy, then imitates clerks of some start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.utils.function_calling import convert_to_openai_tool

from cm2_agent.benchmarks.lending_desk.app import NOT_FOUND, SYSTEM, TOOLS
from cm2_agent.benchmarks.lending_desk.catalog import LETTERS, NAMES
from cm2_agent.benchmarks.lending_desk.demonstrations import CAREFUL, STARTS, Start, demonstrations
from cm2_agent.benchmarks.training_desk import Progress
from cm2_agent.models.tokenizer import word_tokenizer
from cm2_agent.trainers.cold_start import copy_drill, imitate, save_small_policy, small_policy

DIGITS = [str(number) for number in range(10)]
NUMBERS = [str(number) for number in range(10, 100)]
# The fixed parts of tool calls and results, a token each.
FRAMES = [
    '{"name": "',
    '", "arguments": {"barcode": "',
    '", "arguments": {"title": "',
    '"}}',
    " vol. ",
    ", shelf ",
    ", due ",
    ", waiting ",
    ", until ",
]
FACTS = FRAMES[-4:]


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """The steps of a cold start: copy drill, a short apprenticeship with careful clerks, so that what is right can be
    done at all, and then imitation of the start's own clerks, so that it seldom is."""

    drill_steps: int = 300
    careful_steps: int = 300
    careful_learning_rate: float = 4e-3
    demonstrations: int = 1200
    steps: int = 120
    batch: int = 16
    learning_rate: float = 1e-3


def tools() -> list[dict[str, Any]]:
    """The desk's tools as a chat template gets them."""
    return [convert_to_openai_tool(tool) for tool in TOOLS]


def tokenizer() -> Any:
    """The byte-level tokenizer with a token for each word of the library; the same for every seed and start."""
    names = [tool.name for tool in TOOLS]
    shown = demonstrations(200, 3, STARTS["full"], 0)
    entities = [*NUMBERS, *DIGITS, *LETTERS, *NAMES, *names]
    words = [*entities, *FRAMES, "readers", "extended", "unknown"]
    return word_tokenizer(shown, tools=tools(), words=words, texts=[SYSTEM, NOT_FOUND])


def drill_words() -> list[str]:
    """What the drill draws from: figures and what stands before them, and the parts of barcodes and titles. Without the
    signs between their parts none of these is ever spelled."""
    return [*NUMBERS, *DIGITS, *LETTERS, *NAMES, *FACTS * 8]


def cold_start(
    out: Path,
    *,
    turns: int,
    start: Start,
    seed: int,
    size: ColdStart | None = None,
    progress: Progress | None = None,
) -> Path:
    """Make the policy of this seed for dialogues of `turns` turns and save it, with its tokenizer, in the folder `out`;
    returns `out`. The same arguments give the same weights on the same machine."""
    words, steps = tokenizer(), size or ColdStart()
    model = small_policy(words, seed=seed, context=2048)
    copy_drill(model, words, drill_words(), steps=steps.drill_steps, seed=seed, progress=progress)
    careful = demonstrations(steps.demonstrations, min(turns, 3), CAREFUL, seed)
    own = demonstrations(steps.demonstrations, turns, start, seed)
    for shown, count, rate in (
        (careful, steps.careful_steps, steps.careful_learning_rate),
        (own, steps.steps, steps.learning_rate),
    ):
        imitate(
            model,
            words,
            shown,
            tools=tools(),
            steps=count,
            batch=steps.batch,
            learning_rate=rate,
            seed=seed,
            progress=progress,
        )
    return save_small_policy(model, words, out)
