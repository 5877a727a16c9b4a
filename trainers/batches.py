"""What the trainer is fed: the samples of each optimizer step, pass after pass, in whole groups.

A pass is shuffled into loads, π_prox is taken when a load begins, and a load is shuffled again into steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from .collator import Sample
from .dataset import GroupRows
from .off_policy import truncated_weights
from .rows import Floats, Row

if TYPE_CHECKING:
    from .grpo import GRPO

T = TypeVar("T")
Logprobs: TypeAlias = Mapping[int, Floats]
"""log π of a row's model tokens, by the `id` of the row."""


def sample_batches(
    groups: Sequence[GroupRows],
    grpo: GRPO,
    *,
    start: Logprobs,
    now: Callable[[Sequence[Row]], Logprobs],
    reference: bool,
) -> Iterator[list[Sample]]:
    """The samples of one optimizer step after the other, without end.

    `start` are log π of all rows before training, `now` gives those of rows as the policy is when it is called; with
    `reference` the samples carry `start` for a KL term.
    """

    def loads(epoch: int) -> list[list[GroupRows]]:
        if grpo.rollouts_per_load is None:
            return [list(groups)]
        return shuffled_batches(groups, grpo.rollouts_per_load, seed=grpo.seed, epoch=epoch)

    for number, load in enumerate(forever(loads)):
        rows = [row for group in load for row in group.rows]
        prox = start if number == 0 or grpo.rollouts_per_load is None else now(rows)
        steps = shuffled_batches(load, grpo.rollouts_per_step, seed=grpo.seed, epoch=number)
        samples = {id(row): _sample(row, prox, start if reference else None, grpo) for row in rows}
        for step in steps:
            yield [samples[id(row)] for group in step for row in group.rows]


def _sample(row: Row, prox: Logprobs, reference: Logprobs | None, grpo: GRPO) -> Sample:
    ref = None if reference is None else reference[id(row)]
    if grpo.importance_weighting == "direct":
        return Sample(row=row, advantages=row.token_advantages, old=row.mu, ref=ref)
    weights = truncated_weights(prox[id(row)], row.mu, grpo.max_weight)
    return Sample(row=row, advantages=row.token_advantages * weights, old=prox[id(row)], ref=ref)


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
