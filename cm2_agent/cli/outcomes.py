"""A reward measured by an outcome, for `cm2 eval --against OUTCOME`: order, confusion, baselines, and where they
differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cm2_agent.cli.common import format_number, printable
from cm2_agent.errors import StoreError
from cm2_agent.types.score_bounds import IN_FULL

if TYPE_CHECKING:
    from cm2_agent.analysis.classification import Confusion
    from cm2_agent.store import SQLStore
    from cm2_agent.types.score import Score

PEOPLE = "human_outcome"
"""The name of people's labels of whole dialogues in `cm2 eval --against`."""
NO_OUTCOME = "none. Import recordings with a reward, or labels of whole dialogues (cm2 import labels)"
SHOWN = 20
"""The number of dialogues that are listed one by one."""


@dataclass(kw_only=True)
class Measured:
    """The traces that have both a reward and the outcome, one entry each. `rewards` are what training pays
    (`Score.lower`), `stored` the rewards as they are stored."""

    rewards: list[float] = field(default_factory=list)
    stored: list[float | None] = field(default_factory=list)
    outcomes: list[float] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)
    traces: list[tuple[str, str | None]] = field(default_factory=list)
    unpaid: list[list[tuple[str, float]]] = field(default_factory=list)
    baselines: dict[str, list[float]] = field(default_factory=dict)
    nulls: int = 0
    """Traces with the outcome whose reward is pending or means nothing; they are in no other figure."""


def measured(store: SQLStore, version: str, against: str, reads: Collection[str] = ()) -> Measured:
    """What is to be compared. Raises StoreError where no trace has both."""
    from cm2_agent.analysis.baselines import baselines
    from cm2_agent.types.cluster import cluster_of
    from cm2_agent.types.group import group_key
    from cm2_agent.types.human_labels import of_dialogues
    from cm2_agent.types.json_values import canonical_json

    scores = {score.trace_id: score for score in store.scores(reward=version)}
    people = of_dialogues(store.labels()) if against == PEOPLE else {}
    simple = baselines(reads)
    found = Measured(baselines={name: [] for name in simple})
    known: set[str] = set()
    for trace in store.traces():
        known |= trace.outcomes.keys()
        score, outcome = scores.get(trace.id), trace.outcomes.get(against)
        if trace.id in people:
            outcome = float(people[trace.id])
        if score is None or outcome is None:
            continue
        if score.lower is None:
            found.nulls += 1
            continue
        key = group_key(trace, version)
        found.rewards.append(score.lower)
        found.stored.append(score.reward)
        found.outcomes.append(outcome)
        found.groups.append(None if key is None else canonical_json(key))
        found.clusters.append(cluster_of(trace.id, trace.task_id))
        found.traces.append((trace.id, trace.task_id))
        found.unpaid.append([] if score.lower >= IN_FULL else _unpaid(score))
        for name, figure in simple.items():
            found.baselines[name].append(figure(trace))
    if not found.rewards:
        there = sorted(known | ({PEOPLE} if of_dialogues(store.labels()) else set()))
        raise StoreError(
            f"no trace in {store.url} has both a reward under {version} and the outcome {against!r}; outcomes there"
            f" are: {', '.join(there) or NO_OUTCOME}"
        )
    return found


def outcome_report(found: Measured, success_at: float = 1.0) -> dict[str, Any]:
    """The result of `cm2 eval --against OUTCOME`, as JSON."""
    from cm2_agent.analysis.classification import best_threshold, confusion
    from cm2_agent.analysis.ranking import agreement

    order = agreement(found.rewards, found.outcomes, found.groups, found.clusters)
    success = [outcome >= success_at for outcome in found.outcomes]
    whole = [reward >= IN_FULL for reward in found.rewards]
    best = best_threshold(found.rewards, success)
    at_best = [best is not None and reward >= best for reward in found.rewards]
    names = ("auc", "auc_within", "spearman", "kendall")
    return {
        "n": order.n,
        "nulls": found.nulls,
        "measured": "lower",
        "successes": sum(success),
        "success_at": success_at,
        **{name: getattr(order, name) for name in names},
        "pairs": order.pairs,
        "whole": _table(confusion(whole, success, found.clusters, threshold=1.0)),
        "best": _table(confusion(at_best, success, found.clusters, threshold=best)),
        "held_out": _held_out(found.rewards, success, found.clusters),
        "ci": {name: _listed(interval) for name, interval in order.ci.items()},
        "baselines": {name: _beside(found, values, success) for name, values in found.baselines.items()},
        "differ": list(_differ(found, whole, success)),
        "stored_reward": _stored(found, success),
    }


def _stored(found: Measured, success: list[bool]) -> dict[str, Any] | None:
    """The stored reward, which renormalises over a few NULLs, as a prediction; None where it is what training pays."""
    from cm2_agent.analysis.classification import confusion
    from cm2_agent.analysis.ranking import agreement

    if found.stored == found.rewards:
        return None
    known = [place for place, reward in enumerate(found.stored) if reward is not None]
    rewards = [reward for reward in found.stored if reward is not None]
    outcomes, groups = [found.outcomes[at] for at in known], [found.groups[at] for at in known]
    clusters = [found.clusters[at] for at in known]
    whole = confusion([one >= IN_FULL for one in rewards], [success[at] for at in known], clusters, threshold=1.0)
    order = agreement(rewards, outcomes, groups, clusters) if rewards else None
    return {
        "n": len(known),
        "differ": sum(found.stored[place] != found.rewards[place] for place in known),
        "auc": None if order is None else order.auc,
        "auc_within": None if order is None else order.auc_within,
        "whole": _table(whole),
    }


def _beside(found: Measured, values: list[float], success: list[bool]) -> dict[str, Any]:
    """A baseline's own figures, and how far the reward is above it."""
    from cm2_agent.analysis.classification import best_threshold, held_out, mcc_difference
    from cm2_agent.analysis.ranking import agreement, differences

    order = agreement(values, found.outcomes, found.groups, found.clusters)
    best = best_threshold(values, success)
    above = differences(found.rewards, values, found.outcomes, found.groups, found.clusters)
    ours, theirs = (held_out(one, success, found.clusters) for one in (found.rewards, values))
    if ours is not None and theirs is not None:
        above["mcc"] = mcc_difference(ours, theirs, success, found.clusters)
    return {
        "auc": order.auc,
        "auc_within": order.auc_within,
        "kendall": order.kendall,
        "best": _table_of(values, success, best),
        "held_out": _held_out(values, success, found.clusters),
        "ci": {name: _listed(order.ci[name]) for name in ("auc", "auc_within", "kendall")},
        "reward_is_above_by": {
            name: {"value": value, "ci": _listed(interval)} for name, (value, interval) in above.items()
        },
    }


def _table_of(values: list[float], success: list[bool], threshold: float | None) -> dict[str, Any]:
    from cm2_agent.analysis.classification import confusion

    predicted = [threshold is not None and value >= threshold for value in values]
    return _table(confusion(predicted, success, threshold=threshold, draws=0), intervals=False)


def _held_out(values: list[float], success: list[bool], clusters: list[str]) -> dict[str, Any] | None:
    from cm2_agent.analysis.classification import confusion, held_out

    predicted = held_out(values, success, clusters)
    return None if predicted is None else _table(confusion(predicted, success, clusters))


def _table(found: Confusion, *, intervals: bool = True) -> dict[str, Any]:
    table: dict[str, Any] = {name: getattr(found, name) for name in ("threshold", "tp", "fp", "fn", "tn")}
    table |= {"accuracy": found.accuracy, "mcc": found.mcc}
    return table | ({"ci": {name: _listed(one) for name, one in found.ci.items()}} if intervals else {})


def _differ(found: Measured, whole: list[bool], success: list[bool]) -> Iterator[dict[str, Any]]:
    """The dialogues in which a whole reward and success do not go together. `item` is the one that decides: of those
    that were not paid, on their own account, the one that weighs most; None where all were paid."""
    for place, (one, other) in enumerate(zip(whole, success, strict=True)):
        if one != other:
            trace, task = found.traces[place]
            items = [item for item, _ in found.unpaid[place]]
            yield {
                "trace": trace,
                "task": task,
                "reward": found.rewards[place],
                "outcome": found.outcomes[place],
                "item": items[0] if items else None,
                "items": items,
            }


def _unpaid(score: Score) -> list[tuple[str, float]]:
    """The items that were not paid and how much they weigh, those that failed of themselves first, then the
    heaviest."""
    from cm2_agent.analysis.report import NOT_LOOKED

    lost: defaultdict[str, float] = defaultdict(float)
    own: set[str] = set()
    for turn in score.turns:
        for verdict in turn.verdicts:
            if verdict.weight and verdict.pays != 1.0:
                lost[verdict.item] += verdict.weight * (1.0 - (verdict.pays or 0.0))
                if verdict.reason not in NOT_LOOKED and verdict.value is not True:
                    own.add(verdict.item)
    return sorted(lost.items(), key=lambda pair: (pair[0] not in own, -pair[1]))


def outcome_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The report as text."""
    yield (
        f"traces      {result['n']}  ({result['successes']} with an outcome of at least {result['success_at']:g};"
        f" pending or without a reward: {result['nulls']})"
    )
    yield "reward      lower, what training pays: nothing for a verdict that is missing by the agent's doing"
    for name in ("auc", "auc_within", "spearman", "kendall"):
        yield f"{name:<11} {format_number(result[name], result['ci'][name])}"
    yield f"pairs       {result['pairs']}  (of one group, with different outcomes)"
    words = {
        "whole": "reward 1 predicts success",
        "best": f"the best threshold here, {format_number(result['best']['threshold'])}",
        "held_out": "each task by the threshold that is best on the others",
    }
    for name, title in words.items():
        table = result[name]
        if table is None:
            yield f"\n{title}: one task has no others"
            continue
        yield f"\n{title}"
        yield f"  success     {table['tp']} predicted, {table['fn']} not"
        yield f"  no success  {table['fp']} predicted, {table['tn']} not"
        for figure in ("accuracy", "mcc"):
            yield f"  {figure:<11} {format_number(table[figure], table['ci'][figure])}"
    yield from _baseline_lines(result["baselines"])
    stored = result["stored_reward"]
    if stored is not None:
        figures = {"auc": stored["auc"], "auc_within": stored["auc_within"], "mcc of reward 1": stored["whole"]["mcc"]}
        yield f"\nthe stored reward, which differs on {stored['differ']} of {stored['n']} dialogues that have one"
        yield "  " + "  ".join(f"{name} {format_number(value)}" for name, value in figures.items())
    differ = result["differ"]
    if differ:
        yield f"\ndialogues in which reward 1 and success differ: {len(differ)}"
    for one in differ[:SHOWN]:
        why = one["item"] or "every item is paid"
        yield printable(f"  {one['trace']}  reward {one['reward']:.3f}, outcome {one['outcome']:g}: {why}")
    if len(differ) > SHOWN:
        yield f"  … and {len(differ) - SHOWN} more"


def _baseline_lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield "\nbaselines that read nothing: mcc at the best threshold, and held out; then how far the reward is above"
    for name, one in found.items():
        held = None if one["held_out"] is None else one["held_out"]["mcc"]
        figures = {"mcc": one["best"]["mcc"], "held out": held}
        figures |= {figure: one[figure] for figure in ("auc", "auc_within", "kendall")}
        yield f"  {name:<14} " + "  ".join(f"{figure} {format_number(value)}" for figure, value in figures.items())
        for figure, difference in one["reward_is_above_by"].items():
            title = "mcc, held out" if figure == "mcc" else figure
            yield f"    {title:<13} {format_number(difference['value'], difference['ci'])}"


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
