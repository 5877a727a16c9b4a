"""What the trainer is fed: the samples of each optimizer step, pass after pass, in whole groups.

A pass is shuffled into loads, π_prox is taken when a load begins, and a load is shuffled again into steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

from .collator import Sample
from .dataset import GroupRows
from .off_policy import truncated_weights
from .rows import Floats, Row

if TYPE_CHECKING:
    from .grpo import GRPO

T = TypeVar("T")
Logprobs: TypeAlias = Mapping[int, Floats]
"""log π of a row's model tokens, by the `id` of the row."""


class SampleBatches:
    """The samples of one load of TRL's ("generation batch") after the other, without end.

    Args:
        groups: what is trained on.
        grpo: its seed, and how many rollouts a load and a step have.
        start: log π of all rows before training.
        now: gives those of rows as the policy is when it is called.
        reference: with a KL term, those of the reference policy as it is when it is called.
        compared: whether samples carry the recorded logprobs too.
    """

    def __init__(
        self,
        groups: Sequence[GroupRows],
        grpo: GRPO,
        *,
        start: Logprobs,
        now: Callable[[Sequence[Row]], Logprobs],
        reference: Callable[[Sequence[Row]], Logprobs] | None,
        compared: bool = False,
    ) -> None:
        self._groups, self._grpo, self._compared = groups, grpo, compared
        self._start, self._now, self._reference = start, now, reference
        self.drawn = 0
        """How many batches were drawn."""
        self._prox: Logprobs = start
        self._rows: list[Row] = []
        self._steps: Iterator[list[GroupRows]] = iter(())
        self._loads = enumerate(forever(self._pass))

    def __iter__(self) -> Iterator[list[Sample]]:
        return self

    def __next__(self) -> list[Sample]:
        step = next(self._steps, None)
        if step is None:
            number = self._load()
            if number and self._grpo.rollouts_per_load is not None:
                self._prox = self._now(self._rows)
            step = next(self._steps)
        self.drawn += 1
        rows = [row for group in step for row in group.rows]
        reference = None if self._reference is None else self._reference(rows)
        return [_sample(row, self._prox, reference, self._grpo, compared=self._compared) for row in rows]

    def pass_sizes(self) -> Iterator[int]:
        """How many batches pass 0, 1, 2 … has."""
        number = 0
        epoch = 0
        while True:
            loads = self._pass(epoch)
            yield sum(len(self._split(load, number + place)) for place, load in enumerate(loads))
            number, epoch = number + len(loads), epoch + 1

    @property
    def prox(self) -> Floats | None:
        """log π_prox of the load that is being drawn, one row after the other; None where it is that of the start."""
        if self._prox is self._start:
            return None
        return np.concatenate([self._prox[id(row)] for row in self._rows])

    def go_on(self, drawn: int, prox: Floats | None) -> None:
        """Go on after so many batches, with the `prox` that was taken when the load of the last one began.

        Raises ValueError where it has another number of tokens.
        """
        while self.drawn < drawn:
            if next(self._steps, None) is None:
                self._load()
            else:
                self.drawn += 1
        if prox is not None:
            ends = np.cumsum([row.trained for row in self._rows])
            if prox.shape != (ends[-1],):
                raise ValueError(f"{prox.shape} values of π_prox; expected {int(ends[-1])}")
            parts = np.split(prox, ends[:-1])
            self._prox = {id(row): part for row, part in zip(self._rows, parts, strict=True)}

    def _load(self) -> int:
        number, load = next(self._loads)
        self._rows = [row for group in load for row in group.rows]
        self._steps = iter(self._split(load, number))
        return number

    def _pass(self, epoch: int) -> list[list[GroupRows]]:
        if self._grpo.rollouts_per_load is None:
            return [list(self._groups)]
        return shuffled_batches(self._groups, self._grpo.rollouts_per_load, seed=self._grpo.seed, epoch=epoch)

    def _split(self, load: Sequence[GroupRows], number: int) -> list[list[GroupRows]]:
        return shuffled_batches(load, self._grpo.rollouts_per_step, seed=self._grpo.seed, epoch=number)


def _sample(row: Row, prox: Logprobs, reference: Logprobs | None, grpo: GRPO, *, compared: bool) -> Sample:
    ref, mu = None if reference is None else reference[id(row)], row.mu if compared else None
    if grpo.importance_weighting == "direct":
        return Sample(row=row, advantages=row.token_advantages, old=row.mu, ref=ref, mu=mu)
    weights = truncated_weights(prox[id(row)], row.mu, grpo.max_weight)
    return Sample(row=row, advantages=row.token_advantages * weights, old=prox[id(row)], ref=ref, mu=mu)


def shuffled_batches(groups: Sequence[GroupRows], target: int, *, seed: int, epoch: int) -> list[list[GroupRows]]:
    """One pass: the groups in a shuffled order, in batches of about `target` rollouts; none is left out.

    Groups stay whole, since advantages are centred within a group. The batches are as even as the groups allow, so
    that no step is a small remainder.
    """
    sizes = [len(group.rollouts) for group in groups]
    order = list(range(len(groups)))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    total = sum(sizes)
    number = max(1, -(-total // target))
    batches: list[list[GroupRows]] = [[] for _ in range(number)]
    done = 0
    for index in order:
        # By the middle of the group: each batch gets the groups whose rollouts mostly fall into its share of the line.
        batches[min(number - 1, int((done + sizes[index] / 2) * number / total))].append(groups[index])
        done += sizes[index]
    return [batch for batch in batches if batch]


def forever(one_pass: Callable[[int], Sequence[T]]) -> Iterator[T]:
    """The elements of pass 0, 1, 2 … without end."""
    epoch = 0
    while True:
        yield from one_pass(epoch)
        epoch += 1
