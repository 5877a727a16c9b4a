"""How well a judge agrees with people, and people with each other.

Labels of one task resemble each other, so that every interval is a bootstrap over tasks
(`cm2_agent/analysis/bootstrap.py`). A figure that the data does not determine (everyone always says yes) is None, never
0 or 1."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cm2_agent.analysis.bootstrap import Array, Interval, bootstrap, codes, ratio


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """A judge against people over `n` places that both judged.

    `agreement`: the share of equal answers. `kappa`: Cohen's κ (1960), agreement beyond what both would reach by
    guessing at their own rates. `tpr`: of what people call satisfied, the share that the judge does; `tnr`: the same of
    what they call not satisfied. `prevalence`: the share that people call satisfied, `judged` the judge's. All in [0,
    1], κ in [-1, 1], None where undetermined; `ci` holds 95 % intervals under the same names. `nulls`: places that the
    judge left NULL, which count nowhere else."""

    n: int
    agreement: float | None
    kappa: float | None
    tpr: float | None
    tnr: float | None
    prevalence: float | None
    judged: float | None
    nulls: int = 0
    ci: Mapping[str, Interval | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Two versions of a judge over the `n` places that both judged, `labelled` of them by people too.

    `to_true` and `to_false` count the answers that changed from the old version to the new. `kappa_between` compares
    the two. `kappa_old` and `kappa_new` compare each with people over the labelled places, `change` is their
    difference. None where undetermined."""

    n: int
    to_true: int
    to_false: int
    kappa_between: float | None
    labelled: int
    kappa_old: float | None
    kappa_new: float | None
    change: float | None
    ci: Mapping[str, Interval | None] = field(default_factory=dict)


def reliability(
    judge: Sequence[bool | None],
    human: Sequence[bool],
    clusters: Sequence[Hashable] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Reliability:
    """A judge's answers (None: NULL) against people's, one entry a place; `clusters` (each place its own where none are
    given) are what the intervals resample. Raises ValueError on sequences of different lengths."""
    names = _clusters(clusters, len(human))
    _same_length(judge, human, names)
    counts = _tables(
        [(one, other, name) for one, other, name in zip(judge, human, names, strict=True) if one is not None]
    )
    figures: dict[str, Callable[[Array], float | None]] = {
        "agreement": lambda table: ratio(table[0] + table[3], table.sum()),
        "kappa": _kappa,
        "tpr": lambda table: ratio(table[3], table[1] + table[3]),
        "tnr": lambda table: ratio(table[0], table[0] + table[2]),
        "prevalence": lambda table: ratio(table[1] + table[3], table.sum()),
        "judged": lambda table: ratio(table[2] + table[3], table.sum()),
    }
    whole = counts.sum(axis=0)
    return Reliability(
        n=int(whole.sum()),
        nulls=sum(one is None for one in judge),
        ci={name: _interval(figure, counts, draws, seed) for name, figure in figures.items()},
        **{name: figure(whole) for name, figure in figures.items()},
    )


def kappa(left: Sequence[bool], right: Sequence[bool]) -> float | None:
    """Cohen's κ of two raters' answers; None where chance alone agrees always.

    >>> kappa([True, True, False, False], [True, False, False, False])
    0.5
    """
    _same_length(left, right)
    return _kappa(_tables([(one, other, 0) for one, other in zip(left, right, strict=True)]).sum(axis=0))


def alpha(
    units: Sequence[Mapping[str, Hashable]],
    clusters: Sequence[Hashable] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float | None, Interval | None]:
    """Krippendorff's α for nominal answers and its interval: `{rater: answer}` a unit, raters may be missing.

    1 − D_o/D_e over pairable answers (Krippendorff, Computing Krippendorff's alpha-reliability, 2011); a unit with one
    answer counts nowhere. None where fewer than two answers can be paired, or all are equal. Raises ValueError on
    sequences of different lengths.

    >>> round(alpha([{"a": 1, "b": 1}, {"a": 0, "b": 1}, {"a": 0, "b": 0}, {"a": 0}])[0], 4)
    0.4444
    """
    names = _clusters(clusters, len(units))
    _same_length(units, names)
    paired = [(list(unit.values()), name) for unit, name in zip(units, names, strict=True) if len(unit) > 1]
    if not paired:
        return None, None
    values = {
        value: number for number, value in enumerate(dict.fromkeys(value for answers, _ in paired for value in answers))
    }
    cluster = codes([name for _, name in paired])
    coincidences = np.zeros((int(cluster.max()) + 1, len(values), len(values)))  # (clusters, values, values)
    for (answers, _), own in zip(paired, cluster, strict=True):
        counts = np.bincount([values[value] for value in answers], minlength=len(values)).astype(float)
        coincidences[own] += (np.outer(counts, counts) - np.diag(counts)) / (len(answers) - 1)

    def figure(matrix: Array) -> float | None:
        totals = matrix.sum(axis=1)
        n = totals.sum()
        expected = n * n - (totals * totals).sum()
        return None if expected <= 0 else float(1 - (n - 1) * (n - np.trace(matrix)) / expected)

    found = bootstrap(
        lambda weights: figure(np.tensordot(weights, coincidences, 1)), len(coincidences), draws=draws, seed=seed
    )
    return figure(coincidences.sum(axis=0)), found


def drift(
    old: Sequence[bool | None],
    new: Sequence[bool | None],
    human: Sequence[bool | None] | None = None,
    clusters: Sequence[Hashable] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Drift:
    """What changed from one version of a judge to another, one entry a place; places that either left NULL are left
    out. `human` is None where people said nothing. Raises ValueError on sequences of different lengths."""
    people: Sequence[bool | None] = [None] * len(old) if human is None else human
    names = _clusters(clusters, len(old))
    _same_length(old, new, people, names)
    rows = [row for row in zip(old, new, people, names, strict=True) if row[0] is not None and row[1] is not None]
    labelled = [row for row in rows if row[2] is not None]
    before = _tables([(row[0], row[2], row[3]) for row in labelled])
    after = _tables([(row[1], row[2], row[3]) for row in labelled])
    between = _tables([(row[0], row[1], row[3]) for row in rows])
    both = np.concatenate([before, after], axis=1)  # (clusters, 8): the same clusters in the same order

    def change(table: Array) -> float | None:
        first, second = _kappa(table[:4]), _kappa(table[4:])
        return None if first is None or second is None else second - first

    return Drift(
        n=len(rows),
        to_true=sum(bool(row[1]) and not row[0] for row in rows),
        to_false=sum(bool(row[0]) and not row[1] for row in rows),
        kappa_between=_kappa(between.sum(axis=0)),
        labelled=len(labelled),
        kappa_old=_kappa(before.sum(axis=0)),
        kappa_new=_kappa(after.sum(axis=0)),
        change=change(both.sum(axis=0)),
        ci={
            "kappa_between": _interval(_kappa, between, draws, seed),
            "kappa_old": _interval(_kappa, before, draws, seed),
            "kappa_new": _interval(_kappa, after, draws, seed),
            "change": _interval(change, both, draws, seed),
        },
    )


def _tables(rows: Sequence[tuple[bool | None, bool | None, Hashable]]) -> Array:
    """(clusters, 4) counts of (left, right): neither, right only, left only, both."""
    counts: defaultdict[Hashable, Array] = defaultdict(lambda: np.zeros(4))
    for left, right, name in rows:
        counts[name][2 * bool(left) + bool(right)] += 1
    return np.stack(list(counts.values())) if counts else np.zeros((0, 4))


def _kappa(table: Array) -> float | None:
    n = table.sum()
    if not n:
        return None
    left, right = (table[2] + table[3]) / n, (table[1] + table[3]) / n
    chance = left * right + (1 - left) * (1 - right)
    return None if chance >= 1 else float(((table[0] + table[3]) / n - chance) / (1 - chance))


def _interval(figure: Callable[[Array], float | None], counts: Array, draws: int, seed: int) -> Interval | None:
    return bootstrap(lambda weights: figure(weights @ counts), len(counts), draws=draws, seed=seed)


def _clusters(clusters: Sequence[Hashable] | None, n: int) -> Sequence[Hashable]:
    return range(n) if clusters is None else clusters


def _same_length(*sequences: Sequence[object]) -> None:
    if len({len(sequence) for sequence in sequences}) > 1:
        raise ValueError(
            f"sequences of {', '.join(str(len(sequence)) for sequence in sequences)} entries; expected as many of each"
        )


__all__ = ["Drift", "Reliability", "alpha", "drift", "kappa", "reliability"]
