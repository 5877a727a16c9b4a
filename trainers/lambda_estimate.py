"""λ̂ of a round: how much of what V̂ leaves unexplained after a turn the turn's own behaviour tells.

With λ = 0 that part is the bias, with λ = 1 the rest is noise. ρ² is the share of it: the cross-fitted R² of
Σ_{k≥1} δ_{t+k} on what turn t did, within groups, less what chance gives; λ̂ = nρ² / (nρ² + 1 − ρ²) weighs the squared
bias against the variance of a mean over the n rollouts of a round (docs/method.md §5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from cm2_agent.types.json_values import JSON

from .episodes import Episode, Floats
from .values import FEWEST, FOLDS, ITEMS, cross_fitted

PERMUTATIONS = 199
LEVEL = 0.05
"""Of the permutation test: a ρ² that chance gives more often is taken for 0."""
FEWEST_PAIRS = 30
"""Turns with a next one, below which nothing is estimated."""
MOST_PAIRS = 20_000
"""Turns that are looked at; of more, every k-th group."""


@dataclass(frozen=True, kw_only=True)
class LambdaEstimate:
    """λ̂ in [0, 1], from ρ² (0 where the test does not reject: `p_value`, by permutation within groups) over `pairs`
    turns that have a next one, for n `rollouts` a round."""

    lam: float
    rho2: float
    p_value: float
    pairs: int
    rollouts: int

    def to_json(self) -> dict[str, JSON]:
        return {
            "lambda": round(self.lam, 4),
            "rho2": round(self.rho2, 5),
            "p_value": self.p_value,
            "pairs": self.pairs,
            "rollouts": self.rollouts,
        }


Table: TypeAlias = tuple[tuple[Floats, tuple[str, ...]], Floats, list[np.ndarray]]
"""Of a group: features and the names of the items' columns, what V̂ leaves of what came after, and each turn's rows."""


def estimate_lambda(
    groups: Sequence[Sequence[Episode]], values: Sequence[Sequence[Floats]], *, seed: int = 0
) -> LambdaEstimate | None:
    """λ̂ from a round's episodes and V̂ of their turns; None where they are too few to tell."""
    rollouts = sum(map(len, groups))
    found = (_within(group, own) for group, own in zip(groups, values, strict=True))
    tables = [one for one in found if one is not None]
    every = -(-sum(len(left) for _, left, _ in tables) // MOST_PAIRS)
    tables = tables[::every] if every > 1 else tables
    pairs = sum(len(left) for _, left, _ in tables)
    if len(tables) < FEWEST or pairs < FEWEST_PAIRS:
        return None
    rng = np.random.default_rng(seed)
    targets = [np.column_stack([left, *_permuted(left, cells, rng)]) for _, left, cells in tables]
    features = _columns([one for one, _, _ in tables])
    folds = np.arange(len(tables)) % min(FOLDS, len(tables))
    predicted = cross_fitted(features, targets, folds)
    whole = np.sum([(target**2).sum(axis=0) for target in targets], axis=0)
    left = [((target - one) ** 2).sum(axis=0) for target, one in zip(targets, predicted, strict=True)]
    missed = np.sum(left, axis=0)
    if not whole[0] > 0:
        return LambdaEstimate(lam=0.0, rho2=0.0, p_value=1.0, pairs=pairs, rollouts=rollouts)
    explained = 1 - missed / whole
    chance = float(explained[1:].mean())
    p_value = float(1 + (explained[1:] >= explained[0]).sum()) / (1 + PERMUTATIONS)
    rho2 = max(0.0, (float(explained[0]) - chance) / (1 - chance)) if p_value <= LEVEL else 0.0
    lam = rollouts * rho2 / (rollouts * rho2 + 1 - rho2)
    return LambdaEstimate(lam=lam, rho2=rho2, p_value=p_value, pairs=pairs, rollouts=rollouts)


def _within(group: Sequence[Episode], values: Sequence[Floats]) -> Table | None:
    """Of each turn that has a next one: what it did (with the names of the items' columns), and what V̂ leaves of what
    came after, both less their means over the group's rollouts at that turn; and which rows these rollouts are. None
    where no two rollouts reached a same next turn."""
    rows: list[Floats] = []
    left: list[float] = []
    cells: dict[int, list[int]] = {}
    for one, value in zip(group, values, strict=True):
        ahead = one.returns_T - value
        for at, turn in enumerate(one.turns[:-1]):
            cells.setdefault(turn, []).append(len(rows))
            rows.append(np.concatenate([one.behaviour_TF[at], one.words_TW[at], one.own_TC[at]]))
            left.append(float(ahead[at + 1]))
    kept = [np.array(cell) for cell in cells.values() if len(cell) > 1]
    if not kept:
        return None
    table, after = np.array(rows), np.array(left)
    for cell in kept:
        table[cell] -= table[cell].mean(axis=0)
        after[cell] -= after[cell].mean()
    order = np.concatenate(kept)
    ends = np.cumsum([len(cell) for cell in kept])[:-1]
    return (table[order], group[0].items), after[order], np.split(np.arange(len(order)), ends)


def _permuted(left: Floats, cells: Sequence[np.ndarray], rng: np.random.Generator) -> list[Floats]:
    found = []
    for _ in range(PERMUTATIONS):
        one = left.copy()
        for cell in cells:
            one[cell] = left[rng.permutation(cell)]
        found.append(one)
    return found


def _columns(tables: Sequence[tuple[Floats, tuple[str, ...]]]) -> list[Floats]:
    """The tables with the same columns: those of all, then one of each item."""
    names = [item for item, _ in Counter(item for _, items in tables for item in items).most_common(ITEMS)]
    place = {item: at for at, item in enumerate(names)}
    found = []
    for table, items in tables:
        plain = table.shape[1] - len(items)
        wide = np.zeros((len(table), plain + len(names)))
        wide[:, :plain] = table[:, :plain]
        for at, item in enumerate(items):
            if item in place:
                wide[:, plain + place[item]] = table[:, plain + at]
        found.append(wide)
    return found


__all__ = ["LambdaEstimate", "estimate_lambda"]
