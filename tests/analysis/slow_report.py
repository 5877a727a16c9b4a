"""A report over a store's scores: which items fail, together with which, where first, in which traces, and at what
cost."""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from cm2_agent.analysis.bootstrap import bootstrap, codes, mean_interval, ratio, wilson
from cm2_agent.analysis.report_figures import (
    CoFailure,
    Consistency,
    FailedItem,
    FirstFailure,
    PassRate,
    Report,
    WorstTrace,
)
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.cluster import cluster_of
from cm2_agent.types.null_rates import NullTally
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.text import shorten
from cm2_agent.types.trace import Trace

NOT_LOOKED = frozenset({"dependency", "gate", "limit", "unreached", "not applicable", "when"})
"""Reasons of verdicts that say nothing of the item itself: something else decided."""
WORST = 10
PAIRS = 12
BINS = 10
_CUT = 600


def report(pairs: Iterable[tuple[Trace, Score]], checklist: Callable[[str], Checklist | None]) -> Report:
    """The report over traces and their scores under one version; `checklist` finds one by its hash. Raises ValueError
    on scores of several versions, which are not comparable."""
    gathered = _Gathered(checklist)
    for trace, score in pairs:
        gathered.add(trace, score)
    return gathered.report()


class _Gathered:
    """What was counted so far; no trace is kept but the worst."""

    def __init__(self, checklist: Callable[[str], Checklist | None]) -> None:
        self._find = checklist
        self._items: dict[str, dict[str, Item]] = {}
        self.version: str | None = None
        self.traces = 0
        self.rewards: list[tuple[float, str]] = []
        self.null_rewards: Counter[str] = Counter()
        self.known: dict[str, Item | None] = {}
        self.seen: defaultdict[str, list[tuple[bool, str]]] = defaultdict(list)
        self.nulls: Counter[str] = Counter()
        self.decided: Counter[str] = Counter()
        self.inapplicable: Counter[str] = Counter()
        self.null_causes: Counter[str] = Counter()
        self.by_policy = NullTally()
        self.failures: list[dict[str, bool]] = []
        self.first: Counter[tuple[int | None, int]] = Counter()
        self.first_items: Counter[str] = Counter()
        self.worst: list[tuple[float, int, Trace, Score]] = []
        self.families: defaultdict[str, list[tuple[bool, bool]]] = defaultdict(list)
        self.children: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self.cost: Counter[str] = Counter()
        self.usd: float | None = 0.0

    def add(self, trace: Trace, score: Score) -> None:
        if self.version not in (None, score.reward_version):
            raise ValueError(
                f"scores of {self.version!r} and {score.reward_version!r}; expected those of one reward version"
            )
        self.version = score.reward_version
        self.traces += 1
        cluster = cluster_of(trace.id, trace.task_id)
        items = self._items_of(score)
        failed: dict[str, bool] = {}
        places: list[tuple[tuple[int, int], tuple[int | None, int], str]] = []
        for block, turn in enumerate(score.turns):
            for verdict in turn.verdicts if turn.reached else ():
                if verdict.reason == "when":  # whether another item applies: nobody's failure
                    continue
                self.known.setdefault(verdict.item, items.get(verdict.item))
                self._count(verdict, cluster, failed)
                if verdict.value is False and verdict.reason not in NOT_LOOKED:
                    at, step = _place(turn, verdict)
                    order = (len(trace.turns) + block if at is None else at, step)
                    places.append((order, (at, step), verdict.item))
            self._family(turn, items)
        self.failures.append(failed)
        if places:
            _, place, item = min(places, key=lambda found: found[0])
            self.first[place] += 1
            self.first_items[item] += 1
        self._price(trace, score)
        self.by_policy.add(trace, score)
        if score.reward is None:
            self.null_rewards[score.null_reason or "unknown"] += 1
            return
        self.rewards.append((score.reward, cluster))
        if score.reward < 1 and places:
            heapq.heappush(self.worst, (-score.reward, -self.traces, trace, score))
            if len(self.worst) > WORST:
                heapq.heappop(self.worst)

    def _items_of(self, score: Score) -> dict[str, Item]:
        if score.checklist is None:
            return {}
        if score.checklist not in self._items:
            found = self._find(score.checklist)
            self._items[score.checklist] = {} if found is None else dict(found.by_id)
        return self._items[score.checklist]

    def _count(self, verdict: Verdict, cluster: str, failed: dict[str, bool]) -> None:
        if not verdict.applies:
            self.inapplicable[verdict.item] += 1
        elif verdict.value is None:
            self.nulls[verdict.item] += 1
            self.null_causes[": ".join(filter(None, (verdict.cause or "unknown", verdict.reason)))] += 1
        elif verdict.reason in NOT_LOOKED:
            self.decided[verdict.item] += 1
        else:
            self.seen[verdict.item].append((verdict.value, cluster))
            failed[verdict.item] = failed.get(verdict.item, False) or not verdict.value

    def _family(self, turn: TurnScore, items: Mapping[str, Item]) -> None:
        values = {verdict.item: verdict.value for verdict in turn.verdicts} if turn.reached else {}
        parents: defaultdict[str, list[str]] = defaultdict(list)
        for item in values:
            parent = items[item].part_of if item in items else None
            if parent is not None and parent in values:
                parents[parent].append(item)
        for parent, children in parents.items():
            self.children[parent].update(dict.fromkeys(children))
            answers = [values[child] for child in children]
            whole = values[parent]
            if whole is not None and None not in answers:
                self.families[parent].append((whole, all(answers)))

    def _price(self, trace: Trace, score: Score) -> None:
        for call in trace.calls:
            self.cost["agent_calls"] += 1
            if not call.usage:
                self.cost["agent_calls_of_unknown_usage"] += 1
                continue
            self.cost["agent_input_tokens"] += call.usage.get("input_tokens", 0)
            self.cost["agent_output_tokens"] += call.usage.get("output_tokens", 0)
        if score.usage:
            self.cost["judged_traces"] += 1
            for name in ("calls", "re_asks", "escalated", "cached", "input_tokens", "output_tokens"):
                self.cost[f"judge_{name}"] += score.usage.get(name) or 0
            spent = score.usage.get("usd")
            self.usd = None if spent is None or self.usd is None else self.usd + spent

    def report(self) -> Report:
        values, clusters = [value for value, _ in self.rewards], [cluster for _, cluster in self.rewards]
        several = len(set(clusters)) > 1
        mean, interval = mean_interval(values, clusters) if values else (None, None)
        bins = Counter(min(BINS - 1, int(max(-1.0, min(1.0, value)) * BINS)) for value in values)
        return Report(
            version=self.version or "",
            traces=self.traces,
            rewarded=len(values),
            mean_reward=mean,
            reward_interval=interval if several else None,
            null_rewards=dict(self.null_rewards.most_common()),
            histogram=tuple(bins[number] for number in range(BINS)),
            items=tuple(sorted(map(self._rate, self.known), key=_worst_first)),
            facets=self._by(lambda item: item.facet),
            levels=self._by(lambda item: item.level),
            together=_together(self.failures),
            first=tuple(FirstFailure(turn=turn, step=step, n=n) for (turn, step), n in self.first.most_common()),
            first_items=dict(self.first_items.most_common()),
            without_failure=self.traces - sum(self.first.values()),
            worst=tuple(
                self._bad(trace, score) for _, _, trace, score in sorted(self.worst, key=lambda one: (-one[0], -one[1]))
            ),
            null_causes=dict(self.null_causes.most_common()),
            nulls_by_policy=self.by_policy.policies,
            cost=self._cost(),
            consistency=tuple(map(self._consistency, self.children)),
        )

    def _cost(self) -> dict[str, float | int | None]:
        """The sums, None for one that no number can hold."""
        cost: dict[str, float | int | None] = dict(self.cost)
        if "judged_traces" in cost:
            cost["judge_usd"] = self.usd
        return {name: None if value is not None and not math.isfinite(value) else value for name, value in cost.items()}

    def _rate(self, name: str) -> PassRate:
        item = self.known[name]
        words = {} if item is None else {"question": item.question, "facet": item.facet, "level": item.level}
        return _rate(
            name,
            self.seen[name],
            nulls=self.nulls[name],
            decided=self.decided[name],
            inapplicable=self.inapplicable[name],
            **words,
        )

    def _by(self, property: Callable[[Item], str | None]) -> tuple[PassRate, ...]:
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for name, item in self.known.items():
            groups[(property(item) if item is not None else None) or "none"].append(name)
        if set(groups) <= {"none"}:
            return ()
        rates = (
            _rate(
                group,
                [one for name in names for one in self.seen[name]],
                nulls=sum(self.nulls[name] for name in names),
                decided=sum(self.decided[name] for name in names),
                inapplicable=sum(self.inapplicable[name] for name in names),
            )
            for group, names in groups.items()
        )
        return tuple(sorted(rates, key=_worst_first))

    def _bad(self, trace: Trace, score: Score) -> WorstTrace:
        items = self._items_of(score)
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

    def _consistency(self, parent: str) -> Consistency:
        found = self.families[parent]
        alone = sum(whole and not parts for whole, parts in found)
        return Consistency(
            parent=parent,
            children=tuple(self.children[parent]),
            n=len(found),
            parent_alone=alone,
            children_alone=sum(parts and not whole for whole, parts in found),
            rate=ratio(len(found) - alone, len(found)),
        )


def _rate(
    name: str,
    seen: Sequence[tuple[bool, str]],
    *,
    nulls: int,
    decided: int,
    inapplicable: int,
    **words: str | None,
) -> PassRate:
    passed = sum(value for value, _ in seen)
    interval: tuple[float, float] | None = None
    if seen:
        cluster = codes([cluster for _, cluster in seen])
        size = int(cluster.max()) + 1
        if size == len(seen):
            interval = wilson(passed, size)
        elif size > 1 and passed in (0, len(seen)):  # every draw would be the same: as many trials as there are tasks
            interval = wilson(size if passed else 0, size)
        else:
            sums = np.bincount(cluster, [value for value, _ in seen], size)
            counts = np.bincount(cluster, minlength=size)
            interval = bootstrap(lambda weights: ratio(weights @ sums, weights @ counts), size, draws=1000)
    return PassRate(
        name=name,
        n=len(seen),
        passed=passed,
        rate=ratio(passed, len(seen)),
        interval=interval,
        nulls=nulls,
        decided=decided,
        inapplicable=inapplicable,
        **words,
    )


def _worst_first(rate: PassRate) -> tuple[bool, float, str]:
    return rate.rate is None, rate.rate or 0.0, rate.name


def _together(traces: Sequence[Mapping[str, bool]]) -> tuple[CoFailure, ...]:
    """The pairs of items whose failures share more traces than chance would have them, the strongest first."""
    names = sorted({item for failed in traces for item in failed})
    place = {name: number for number, name in enumerate(names)}
    judged, fails = np.zeros((len(traces), len(names))), np.zeros((len(traces), len(names)))  # (traces, items)
    for row, failed in enumerate(traces):
        for item, value in failed.items():
            judged[row, place[item]], fails[row, place[item]] = 1.0, float(value)
    n, both = judged.T @ judged, fails.T @ fails
    left = fails.T @ judged  # failures of the row's item where the column's was judged too
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


def _place(turn: TurnScore, verdict: Verdict) -> tuple[int | None, int]:
    """Where an item failed: at the step that the judge quotes, else at the end of its scope, where it was decided."""
    for quote in verdict.evidence:
        at, step = quote.get("turn"), quote.get("step")
        if isinstance(step, int) and isinstance(at, int) and "snippet" in quote:
            return at, step + 1
    return turn.turn, turn.steps


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


__all__ = ["Report", "report"]
