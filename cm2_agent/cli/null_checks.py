"""What `cm2 train` looks at before it trains: whether the policy keeps more from being judged than it did at the start,
and whether an item is too often NULL on dialogues that are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from cm2_agent.cli.common import echo_err, format_number, printable
from cm2_agent.errors import TrainError
from cm2_agent.types.null_rates import NullTally, PolicyNulls
from cm2_agent.types.score_bounds import IN_FULL

if TYPE_CHECKING:
    from cm2_agent.analysis.bootstrap import Interval
    from cm2_agent.store import SQLStore
    from cm2_agent.types.group import Group
    from cm2_agent.types.human_labels import PeopleFound
    from cm2_agent.types.score import Score
    from cm2_agent.types.score_bounds import Bounds
    from cm2_agent.types.trace import Trace

MAX_NULL_RISE = 0.05
MAX_NULL_RATE = 0.05
"""Of an item on right dialogues, by the upper bound."""
ENOUGH = 100
"""Right dialogues from which on that bound is taken."""
OFFICIAL = ("official", "official_reward")
"""The names of outcomes that a benchmark's own checker wrote."""


def null_rates(groups: Iterable[Group]) -> tuple[PolicyNulls, ...]:
    """Of the groups' policies, the oldest first."""
    return NullTally((one.trace, one.score) for group in groups for one in group.rollouts).policies


def null_lines(found: Iterable[PolicyNulls]) -> Iterator[str]:
    """What stands in a report about the NULLs of each policy."""
    from cm2_agent.analysis.bootstrap import mean_interval

    for one in found:
        interval = mean_interval(*zip(*one.shares, strict=True))[1] if one.shares else None
        counts = ", ".join(f"{name} {count}" for name, count in [*one.causes.items(), *one.cuts.items()])
        yield printable(
            f"policy {one.policy or 'unknown'}: {format_number(one.share, interval)} of the reward is unknown because"
            f" of it; {one.pending} of {one.traces} traces pending" + (f"; {counts}" if counts else "")
        )


def report_groups(groups: Iterable[Group]) -> tuple[PolicyNulls, ...]:
    """Say on stderr what is known of the rewards that are trained on, and what is not. The groups are gone through
    once; returns their `null_rates`."""
    from cm2_agent.analysis.bootstrap import mean
    from cm2_agent.trainers.item_tally import ItemTally

    number, pending = 0, 0
    bounds: list[Bounds] = []
    tally, items = NullTally(), ItemTally()
    for group in groups:
        number += 1
        items.add([one.score for one in group.rollouts])
        found = [one.score.bounds for one in group.rollouts if one.score.lower is not None]
        if len(found) == len(group.rollouts):
            bounds += [one for one in found if one is not None]
        else:
            pending += 1
        for one in group.rollouts:
            tally.add(one.trace, one.score)
    if pending:
        echo_err(f"{pending} of {number} groups are left out: a rollout of theirs is pending (cm2 score asks again)")
    if bounds:
        lower, upper = mean([one.lower for one in bounds]), mean([one.upper for one in bounds])
        missing = f" with NULLs unpaid; at most {upper - lower:.3f} is missing by that" if upper > lower else ""
        echo_err(f"mean reward {lower:.3f}{missing}")
    known = null_lines(one for one in tally.policies if one.share or one.pending or one.causes or one.cuts)
    for line in [*known, *items.warnings()]:
        echo_err(printable(line))
    return tally.policies


def check_null_rise(found: tuple[PolicyNulls, ...], most: float, policy: str | None = None) -> None:
    """Raises TrainError where the newest policy (or `policy`) keeps more of the reward from being known than the first
    one did, by more than `most` and by more than chance."""
    known = [one for one in found if one.shares and one.policy is not None]
    newest = next((one for one in reversed(known) if policy in (None, one.policy)), None)
    if newest is None or newest is known[0]:
        return
    first = known[0]
    assert newest.share is not None
    assert first.share is not None
    rise, interval = newest.share - first.share, _difference(first, newest)
    if rise <= most or (interval is not None and interval[0] <= 0):
        return
    raise TrainError(
        f"policy {newest.policy} keeps {newest.share:.3f} of its rewards from being known, the first policy"
        f" ({first.policy}) {first.share:.3f}: a rise of {format_number(rise, interval)}, expected at most {most:g}."
        " Nothing was trained: it may be learning to break its judge. See the NULL verdicts of its traces (cm2 report,"
        " cm2 show), mend the items or the judge and score again, or allow more by --max-null-rise"
    )


def _difference(first: PolicyNulls, newest: PolicyNulls) -> Interval | None:
    """The interval of the rise, by task: the two policies' tasks are drawn together where they are the same."""
    import numpy as np

    from cm2_agent.analysis.bootstrap import bootstrap, codes, ratio

    code = codes([name for one in (first, newest) for _, name in one.shares])
    size = int(code.max()) + 1
    parts = (code[: len(first.shares)], first), (code[len(first.shares) :], newest)
    (old, n_old), (new, n_new) = (
        (np.bincount(part, [share for share, _ in one.shares], size), np.bincount(part, minlength=size))
        for part, one in parts
    )

    def rise(weights: np.ndarray) -> float | None:
        after, before = ratio(weights @ new, weights @ n_new), ratio(weights @ old, weights @ n_old)
        return None if after is None or before is None else after - before

    return bootstrap(rise, size, draws=1000)


def check_null_items(store: SQLStore, version: str) -> None:
    """Raises TrainError where an item is NULL by the policy's doing too often on dialogues that are right: there,
    leaving it unpaid punishes what should be paid. Right is what a benchmark's own outcome (or the trace's only one)
    passes, or people's labels of the dialogue or the item; with fewer than 100 of them it is not decided."""
    from cm2_agent.analysis.rates import upper
    from cm2_agent.types.human_labels import PeopleFound

    broken = {score.trace_id: items for score in store.scores(reward=version) if (items := _null_items(score))}
    if not broken:
        return
    people = PeopleFound(store.labels())
    right: Counter[str] = Counter()
    nulls: Counter[str] = Counter()
    watched = sorted({item for items in broken.values() for item in items})
    for trace in store.traces(reward=version):
        for item in watched:
            if _is_right(trace, item, people):
                right[item] += 1
                nulls[item] += item in broken.get(trace.id, ())
    refused = [item for item in watched if right[item] >= ENOUGH and upper(nulls[item], right[item]) > MAX_NULL_RATE]
    if refused:
        rates = ", ".join(
            f"{item} ({nulls[item]} of {right[item]}, at most {upper(nulls[item], right[item]):.3f})"
            for item in refused
        )
        raise TrainError(
            f"reward version {version}: NULL too often on dialogues that are right: {rates}; expected at most"
            f" {MAX_NULL_RATE:g} by the upper 95 % bound. Nothing was trained, since unpaid NULLs would punish right"
            " answers there. Ask the item more plainly, or another judge, and score again"
        )
    few = [item for item in watched if right[item] < ENOUGH]
    if few:
        echo_err(
            printable(
                f"not decided whether {', '.join(few)} is NULL on right dialogues too often: that takes {ENOUGH} with"
                " an outcome or a label that says so"
            )
        )


def _null_items(score: Score) -> frozenset[str]:
    """The items that the policy kept from being known in the trace, and on which its reward depends."""
    return frozenset(
        one.item
        for one in score.verdicts
        if one.pays is None and one.weight and one.cause == "content" and one.reason != "dependency"
    )


def _is_right(trace: Trace, item: str, people: PeopleFound) -> bool:
    found = people.right(trace.id, [item])
    if found is not None:
        return found
    named = [trace.outcomes[name] for name in OFFICIAL if name in trace.outcomes]
    values = named or (list(trace.outcomes.values()) if len(trace.outcomes) == 1 else [])
    return bool(values) and all(value is not None and value >= IN_FULL for value in values)


__all__ = [
    "MAX_NULL_RISE",
    "check_null_items",
    "check_null_rise",
    "null_lines",
    "null_rates",
    "report_groups",
]
