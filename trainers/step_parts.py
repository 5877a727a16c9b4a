"""The parts of an optimizer step: micro-batches with what each counts, shared out among processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .collator import Sample
from .micro_batches import Counts, MicroBatches, Share
from .processes import share


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """The samples of one forward and backward pass, and their share in the optimizer step."""

    samples: Sequence[Sample]
    share: Share
    rows: int | None = None
    """How many rows it is filled up to: as many as those of the other processes have, since TRL gathers by row."""


def cut(samples: Sequence[Sample], limits: MicroBatches, processes: int) -> list[Part]:
    """The parts of a step on these samples, of all processes together."""
    lengths = [len(one.row.ids) for one in samples]
    parts = [[samples[index] for index in part] for part in limits.split(lengths)]
    step = _counts(samples)
    return [Part(samples=part, share=Share(own=_counts(part), step=step, processes=processes)) for part in parts]


def own_parts(parts: Sequence[Part], processes: int) -> list[Part]:
    """The parts of this process; what is there again, so that all have as many, counts nothing."""
    if processes == 1:
        return list(parts)
    again = replace(parts[-1], share=replace(parts[-1].share, counts=False))
    every = [*parts, *[again] * (-len(parts) % processes)]
    filled = []
    for start in range(0, len(every), processes):
        together = every[start : start + processes]
        rows = max(len(part.samples) for part in together)
        filled += [
            replace(part, rows=rows, share=replace(part.share, own=replace(part.share.own, rows=rows)))
            for part in together
        ]
    return share(filled)


def above_threshold(parts: Sequence[Part], counts: Sequence[int]) -> list[Part]:
    """The parts with their numbers of tokens of high entropy."""
    return [
        replace(
            part,
            share=replace(
                part.share,
                own=replace(part.share.own, entropy_tokens=count),
                step=replace(part.share.step, entropy_tokens=sum(counts)),
            ),
        )
        for part, count in zip(parts, counts, strict=True)
    ]


def _counts(samples: Sequence[Sample]) -> Counts:
    tokens = sum(one.row.trained for one in samples)
    return Counts(rows=len(samples), tokens=tokens, entropy_tokens=tokens)
