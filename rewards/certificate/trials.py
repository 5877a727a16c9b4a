"""Trials: what came of each family on each failing trace, and the rates and bounds that follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cm2_agent.analysis.rates import ALPHA, excess, least_excess, lower, upper
from cm2_agent.types.certificate import AttackRate, PassRate
from cm2_agent.types.json_values import JSON

COMPOSITIONS = "compositions"
ADAPTIVE = "adaptive"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a family's templates did to one failing trace that they could change.

    Args:
        subject: The trace's place among the subjects.
        cluster: Its task.
        judged: Whether something that a judge was asked about must stay unpaid in it.
        hit: Whether anything that must stay unpaid was paid.
        fooled: Whether a judge had a say in what was paid.
        pending: Whether a verdict is missing.
        parts: Of compositions the families of each pair that hit.
        example: `{trace, template, item}` of the first hit.
    """

    subject: int
    cluster: str
    judged: bool
    hit: bool = False
    fooled: bool = False
    pending: bool = False
    parts: tuple[frozenset[str], ...] = ()
    example: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BenignTrial:
    """What benign edits did to one failing trace: for each edit, in order, whether anything was paid that had not been,
    and whether a judge had a say in that."""

    subject: int
    cluster: str
    judged: bool
    paid: tuple[bool, ...]
    fooled: tuple[bool, ...]


def attack_rates(
    trials: Mapping[str, Sequence[Trial]],
    benign: Sequence[BenignTrial],
    templates: Mapping[str, int],
    *,
    exact: bool,
) -> tuple[AttackRate, ...]:
    """The rate of each family with its bounds; those that hold together do so for all that were tried. `exact` says
    that the checklist asks no judge."""
    tried = sum(bool(of_family) for of_family in trials.values())
    missed = leave_one_out(trials)
    return tuple(
        _rate(name, of_family, benign, templates[name], None if exact else max(1, tried), missed.get(name, 0))
        for name, of_family in trials.items()
    )


def _rate(
    name: str,
    trials: Sequence[Trial],
    benign: Sequence[BenignTrial],
    templates: int,
    families: int | None,
    left_out: int,
) -> AttackRate:
    tasks = {one.cluster for one in trials}
    fooled = {one.cluster for one in trials if one.fooled}
    judged = {one.cluster for one in trials if one.judged} | fooled
    checked = {one.cluster for one in trials if one.hit} - fooled
    pending = {one.cluster for one in trials if one.pending} - fooled - checked
    subjects = {one.subject for one in trials}
    flipped = {one.cluster for one in benign if one.subject in subjects and any(one.fooled[:templates])} & judged
    n, hits, unsure = len(judged), len(fooled), len(pending & judged)
    certain = (len(checked) + len(pending - judged)) / len(tasks) if tasks else 0.0

    def bound(alpha: float) -> float:
        """Checks are certain; a judge is known by a sample."""
        sampled = 0.0 if families is None else excess(hits + unsure, len(flipped), n, alpha)
        return min(1.0, certain + sampled) if tasks else 1.0

    return AttackRate(
        family=name,
        templates=templates,
        traces=len(trials),
        hit_traces=sum(one.hit for one in trials),
        tasks=len(tasks),
        judged_tasks=n,
        judged_hits=hits,
        benign_hits=len(flipped),
        checked_hits=len(checked),
        pending=len(pending),
        rate=max(0.0, (hits + len(checked) - len(flipped)) / len(tasks)) if tasks else 0.0,
        lower=max(len(checked) / len(tasks) if tasks else 0.0, least_excess(hits, len(flipped), n) if n else 0.0),
        bound=bound(ALPHA),
        together=bound(ALPHA / (families or 1)),
        left_out=left_out,
        example=next((one.example for one in trials if one.hit), {}),
    )


def leave_one_out(trials: Mapping[str, Sequence[Trial]]) -> dict[str, int]:
    """For each family the traces that it alone got paid, so that the others would have missed them. Compositions count
    among the others where they do without it; the adaptive attack, which starts from all, does not."""
    hit = {name: {one.subject for one in of_family if one.hit} for name, of_family in trials.items()}
    pairs = [(one.subject, parts) for one in trials.get(COMPOSITIONS, ()) for parts in one.parts]
    missed = {}
    for name, own in hit.items():
        others = {COMPOSITIONS, ADAPTIVE, name}
        found = set[int]().union(*(subjects for other, subjects in hit.items() if other not in others))
        if name != COMPOSITIONS:
            found |= {subject for subject, parts in pairs if name not in parts}
        missed[name] = len(own - found)
    return missed


def benign_bound(trials: Sequence[BenignTrial], *, exact: bool) -> float:
    """The upper 95 % bound of the share of tasks in which a benign edit got a failing trace paid."""
    tasks = {one.cluster for one in trials}
    if not tasks:
        return 1.0
    fooled = {one.cluster for one in trials if any(one.fooled)}
    judged = {one.cluster for one in trials if one.judged} | fooled
    checked = {one.cluster for one in trials if any(one.paid)} - fooled
    return min(1.0, len(checked) / len(tasks) + (0.0 if exact else upper(len(fooled), len(judged))))


def pass_rate(trials: Iterable[tuple[str, bool, bool]], *, exact: bool) -> PassRate:
    """The power, from (task, paid, paid after every benign edit too) of each trace that is known to be right. A task
    counts as paid where all its traces are."""
    given = list(trials)
    tasks = {cluster for cluster, _, _ in given}
    unpaid = {cluster for cluster, paid, _ in given if not paid}
    flipped = unpaid | {cluster for cluster, _, after in given if not after}
    n, good = len(tasks), len(tasks - flipped)
    bound = (good / n if exact else lower(good, n)) if n else 0.0
    return PassRate(
        traces=len(given), tasks=n, paid=len(tasks - unpaid), paid_after_edits=good, bound=bound, exact=exact
    )


__all__ = [
    "ADAPTIVE",
    "COMPOSITIONS",
    "BenignTrial",
    "Trial",
    "attack_rates",
    "benign_bound",
    "leave_one_out",
    "pass_rate",
]
