"""A report over a store's scores: which items fail, together with which, where first, in which traces, and at what
cost."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from cm2_agent.analysis.bootstrap import mean_interval, ratio, ratio_interval, wilson
from cm2_agent.analysis.report_figures import (
    CoFailure,
    Consistency,
    FailedItem,
    FirstFailure,
    PassRate,
    Report,
    WorstTrace,
)
from cm2_agent.analysis.report_tally import NOT_LOOKED, ItemTally, Tally, cluster_sums
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.scored_facts import ScoredFacts
from cm2_agent.types.text import shorten
from cm2_agent.types.trace import Trace

PAIRS = 12
BINS = 10
_CUT = 600


class Scored(Protocol):
    """Traces with their scores under one reward version, as a report counts them (`SQLStore.scored_rows`)."""

    reward: str

    def __iter__(self) -> Iterator[ScoredFacts]:
        """What is counted of each."""
        ...

    def call_usage(self) -> Iterable[tuple[Mapping[str, JSON], int]]:
        """What model calls used, with the number of calls that used just that."""
        ...

    def cuts(self) -> Mapping[str | None, Counter[str]]:
        """How many dialogues of a policy were cut, by what."""
        ...

    def pairs(self, ids: Sequence[str]) -> Sequence[tuple[Trace, Score]]:
        """These as a whole."""
        ...


def report(
    scored: Scored, checklist: Callable[[str], Checklist | None], advance: Callable[[], None] = lambda: None
) -> Report:
    """The report over scored traces; `checklist` finds one by its hash, and `advance` is called after each trace.
    Nothing is held of a trace but a few numbers, and the worst are read at the end."""
    tally = Tally(checklist)
    for facts in scored:
        tally.add(facts)
        advance()
    clusters = tally.reward_clusters
    mean, interval = mean_interval(tally.rewards, clusters) if tally.rewards else (None, None)
    bins = Counter(min(BINS - 1, int(max(-1.0, min(1.0, value)) * BINS)) for value in tally.rewards)
    worst = scored.pairs(tally.worst) if tally.worst else ()
    return Report(
        version=scored.reward if tally.traces else "",
        traces=tally.traces,
        rewarded=len(tally.rewards),
        mean_reward=mean,
        reward_interval=interval if len(set(clusters)) > 1 else None,
        null_rewards=dict(tally.null_rewards.most_common()),
        histogram=tuple(bins[number] for number in range(BINS)),
        items=tuple(sorted((_rate(name, [own], own.item) for name, own in tally.items.items()), key=_worst_first)),
        facets=_by(tally.items, lambda item: item.facet),
        levels=_by(tally.items, lambda item: item.level),
        together=_together(tally),
        first=tuple(FirstFailure(turn=turn, step=step, n=n) for (turn, step), n in tally.first.most_common()),
        first_items=dict(tally.first_items.most_common()),
        without_failure=tally.traces - sum(tally.first.values()),
        worst=tuple(_bad(trace, score, tally.items_of(score.checklist)) for trace, score in worst),
        null_causes=dict(tally.null_causes.most_common()),
        nulls_by_policy=tally.nulls_by_policy(scored.cuts()),
        cost=_cost(tally, scored.call_usage()),
        consistency=tuple(_consistency(tally, parent) for parent in tally.children),
    )


def _cost(tally: Tally, used: Iterable[tuple[Mapping[str, JSON], int]]) -> dict[str, float | int | None]:
    """The sums, None for one that no number can hold."""
    sums: Counter[str] = Counter()
    for usage, calls in used:
        sums["agent_calls"] += calls
        if not usage:
            sums["agent_calls_of_unknown_usage"] += calls
            continue
        for name in ("input_tokens", "output_tokens"):
            sums[f"agent_{name}"] += (usage.get(name) or 0) * calls
    cost: dict[str, float | int | None] = {**sums, **tally.judging}
    if "judged_traces" in cost:
        cost["judge_usd"] = tally.usd
    return {name: None if value is not None and not math.isfinite(value) else value for name, value in cost.items()}


def _by(items: Mapping[str, ItemTally], property: Callable[[Item], str | None]) -> tuple[PassRate, ...]:
    groups: defaultdict[str, list[ItemTally]] = defaultdict(list)
    for own in items.values():
        groups[(property(own.item) if own.item is not None else None) or "none"].append(own)
    if set(groups) <= {"none"}:
        return ()
    return tuple(sorted((_rate(group, several) for group, several in groups.items()), key=_worst_first))


def _rate(name: str, tallies: Sequence[ItemTally], item: Item | None = None) -> PassRate:
    sums, counts = cluster_sums(tallies)
    size, passed, n = len(counts), int(sums.sum()), int(counts.sum())
    interval: tuple[float, float] | None = None
    if n and size == n:
        interval = wilson(passed, size)
    elif size > 1 and passed in (0, n):  # every draw would be the same: as many trials as there are tasks
        interval = wilson(size if passed else 0, size)
    elif n:
        interval = ratio_interval(sums, counts, draws=1000)
    words = {} if item is None else {"question": item.question, "facet": item.facet, "level": item.level}
    return PassRate(
        name=name,
        n=n,
        passed=passed,
        rate=ratio(passed, n),
        interval=interval,
        nulls=sum(one.nulls for one in tallies),
        decided=sum(one.decided for one in tallies),
        inapplicable=sum(one.inapplicable for one in tallies),
        **words,
    )


def _worst_first(rate: PassRate) -> tuple[bool, float, str]:
    return rate.rate is None, rate.rate or 0.0, rate.name


def _together(tally: Tally) -> tuple[CoFailure, ...]:
    """The pairs of items whose failures share more traces than chance would have them, the strongest first."""
    names, (n, both, left) = tally.failures.sums()
    found = []
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            total, a, b = n[i, j], left[i, j], left[j, i]
            spread = a * b * (total - a) * (total - b)
            if spread <= 0 or both[i, j] < 2:
                continue
            phi = float((total * both[i, j] - a * b) / np.sqrt(spread))
            if phi > 0:
                expected = float(a * b / total)
                found.append(
                    CoFailure(
                        left=names[i], right=names[j], n=int(total), both=int(both[i, j]), expected=expected, phi=phi
                    )
                )
    return tuple(sorted(found, key=lambda pair: (-pair.phi, -pair.both))[:PAIRS])


def _bad(trace: Trace, score: Score, items: Mapping[str, Item]) -> WorstTrace:
    failed = [
        _failed(trace, turn, verdict, items.get(verdict.item))
        for turn in score.turns
        if turn.reached
        for verdict in turn.verdicts
        if verdict.value is False and verdict.reason not in NOT_LOOKED
    ]
    opening = next((message.text for message in trace.messages if message.role == "user"), "")
    assert score.reward is not None
    return WorstTrace(
        trace=trace.id,
        task=trace.task_id,
        reward=score.reward,
        opening=shorten(opening, _CUT),
        failed=tuple(failed),
    )


def _failed(trace: Trace, turn: TurnScore, verdict: Verdict, item: Item | None) -> FailedItem:
    quotes = tuple(shorten(str(quote["snippet"]), _CUT) for quote in verdict.evidence if quote.get("snippet"))
    steps = trace.steps if turn.turn is None else trace.turns[turn.turn].steps if turn.turn < len(trace.turns) else ()
    reply = next((step.message.text for step in reversed(steps) if step.is_reply), None)
    return FailedItem(
        item=verdict.item,
        turn=turn.turn,
        question=None if item is None else item.question,
        why=": ".join(filter(None, (verdict.reason, verdict.explanation))) or None,
        quotes=quotes,
        said=None if quotes or reply is None else shorten(reply, _CUT),
    )


def _consistency(tally: Tally, parent: str) -> Consistency:
    found = tally.families[parent]
    n, alone = found.total(), found[True, False]
    return Consistency(
        parent=parent,
        children=tuple(tally.children[parent]),
        n=n,
        parent_alone=alone,
        children_alone=found[False, True],
        rate=ratio(n - alone, n),
    )


__all__ = ["NOT_LOOKED", "Report", "Scored", "report"]
