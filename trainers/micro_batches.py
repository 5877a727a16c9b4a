"""How the rows of an optimizer step are cut into micro-batches (one forward and backward pass each), rows of like
length together, and what each of them counts in the loss of the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cm2_agent.errors import TrainError

FORWARD_ROWS = 16
"""Rows that pass through the model together, at most."""
PADDING = 1.15
"""Padded over real tokens of what passes through the model together, at most."""
TOTALS = frozenset({"cispo", "dapo", "vespo"})
"""TRL's loss types that it multiplies by the number of processes itself, since their gradients are averaged."""
ROW_MEANS = frozenset({"grpo", "sapo", "dr_grpo", "luspo"})
"""TRL's loss types that average over rows; the others average over tokens."""


def buckets(lengths: Sequence[int], *, rows: int = FORWARD_ROWS, tokens: int | None = None) -> list[list[int]]:
    """The indices of rows of these lengths, in buckets for one forward pass each, shortest first.

    A bucket has at most `rows` rows and `tokens` padded tokens (a longer row is alone), and all buckets together at
    most PADDING times their real tokens.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    even = [order[start : start + rows] for start in range(0, len(order), rows)]
    sizes = [padded(lengths, bucket) for bucket in even]
    if sum(sizes) <= PADDING * sum(lengths) and (tokens is None or max(sizes, default=0) <= tokens):
        return even
    found: list[list[int]] = []
    real = 0
    for index in order:
        length = lengths[index]
        wide = (len(found[-1]) + 1) * length if found else 0
        if (
            not found
            or len(found[-1]) == rows
            or wide > PADDING * (real + length)
            or (tokens is not None and wide > tokens)
        ):
            found.append([])
            real = 0
        found[-1].append(index)
        real += length
    return found


def padded(lengths: Sequence[int], bucket: Sequence[int]) -> int:
    """The tokens of a bucket when its rows are padded to the longest."""
    return len(bucket) * max(lengths[index] for index in bucket)


def padded_tokens(lengths: Sequence[int]) -> int:
    """The tokens that pass through the model for rows of these lengths, in buckets."""
    return sum(padded(lengths, bucket) for bucket in buckets(lengths))


@dataclass(frozen=True, kw_only=True)
class MicroBatches:
    """Limits of a micro-batch: at most `rows` rows and `tokens` padded tokens, None: no limit; and at most the
    `parts`-th part of the rows, rounded up. Their number is a multiple of `processes` where there are rows enough.

    A row is never cut: one of more than `tokens` tokens is a micro-batch of its own. `one_pass`: each is one bucket,
    which passes through the model at once; a sharded model is gathered once a pass, by all processes.

    >>> MicroBatches(rows=2).split([30, 10, 28, 10])
    [[2, 0], [1, 3]]
    """

    rows: int | None = None
    tokens: int | None = None
    parts: int = 1
    processes: int = 1
    one_pass: bool = False

    def split(self, lengths: Sequence[int]) -> list[list[int]]:
        """The indices of rows of these lengths by micro-batch, the longest first: what does not fit fails at once."""
        rows = min(self.rows or len(lengths), -(-len(lengths) // max(self.parts, self.processes)))
        if not self.one_pass and self._fits(lengths, range(len(lengths)), rows):
            return [list(range(len(lengths)))]
        found: list[list[int]] = []
        for bucket in buckets(lengths, rows=min(rows, FORWARD_ROWS), tokens=self.tokens)[::-1]:
            if found and not self.one_pass and self._fits(lengths, [*found[-1], *bucket], rows):
                found[-1] += bucket
            else:
                found.append(bucket)
        while len(found) % self.processes and len(widest := max(found, key=len)) > 1:
            place = found.index(widest)
            found[place : place + 1] = [widest[0::2], widest[1::2]]
        return found

    def _fits(self, lengths: Sequence[int], part: Sequence[int], rows: int) -> bool:
        return len(part) <= rows and (
            self.tokens is None or padded_tokens([lengths[index] for index in part]) <= self.tokens
        )

    @classmethod
    def of(cls, config: Any, *, args: Any, tokens: int | None, one_pass: bool = False) -> MicroBatches:
        """The limits that a GRPOConfig made of `args` asks for, and the others. The config is left with those of
        optimizer steps in one piece, for TRL would cut the rows in equal numbers and weigh the pieces by them.

        `per_device_train_batch_size` bounds the rows where `args` say it; `gradient_accumulation_steps` are the
        parts; `steps_per_generation` becomes the number of optimizer steps that share a
        batch. Raises TrainError where that is no whole number.
        """
        given = args if isinstance(args, Mapping) else vars(args) if args is not None else {}
        parts, batches = config.gradient_accumulation_steps, config.steps_per_generation
        if batches > parts and batches % parts:
            raise TrainError(
                f"steps_per_generation {batches} and gradient_accumulation_steps {parts}; expected a multiple of"
                " the second: the rows of rollouts_per_step rollouts are shared by a whole number of optimizer steps"
            )
        rows = given.get("per_device_train_batch_size")
        steps = max(1, batches // parts)
        config.gradient_accumulation_steps, config.steps_per_generation = 1, steps
        config.per_device_train_batch_size = config.num_generations = 2
        config.generation_batch_size = 2 * steps * config.world_size
        limit = None if rows is None else int(rows)
        return cls(rows=limit, tokens=tokens, parts=parts, processes=config.world_size, one_pass=one_pass)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Rows, trained tokens, and tokens in an entropy term: of a micro-batch, or of the optimizer step as a whole."""

    rows: int
    tokens: int
    entropy_tokens: int


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a micro-batch holds of its optimizer step. All processes together make a step, so its counts are theirs;
    one that is there again, so that all processes have as many, counts nothing.
    """

    own: Counts
    step: Counts
    processes: int = 1
    counts: bool = True

    def accumulation(self, loss_type: str) -> float:
        """What TRL's loss of the micro-batch is divided by, so that the losses of all add up to that of the step in
        one piece.
        """
        if not self.counts:
            return math.inf
        whole = self.step.rows / self.own.rows if loss_type in ROW_MEANS else self.step.tokens / self.own.tokens
        return whole if loss_type in TOTALS else whole / self.processes

    def entropy(self, loss_type: str) -> float:
        """What the weight of an entropy term is multiplied by, since TRL averages that over tokens whatever the loss
        type.
        """
        if not self.counts:
            return 0.0
        return self.accumulation(loss_type) * self.own.entropy_tokens / max(1, self.step.entropy_tokens)
