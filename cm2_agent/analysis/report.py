"""What a store's scores say of the agent: which items fail, together with which, where first, in which traces, and at
what cost; pure data, apart from how it is shown (`cm2 report`: words, JSON, a page)."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from cm2_agent.analysis.bootstrap import bootstrap, codes, mean_interval, ratio, wilson
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.trace import Trace

NOT_LOOKED = frozenset({"dependency", "gate", "limit", "unreached"})
"""Reasons of verdicts that say nothing of the item itself: something else decided."""
WORST = 10
PAIRS = 12
BINS = 10
_CUT = 600


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How often `name` was satisfied of the `n` verdicts that looked at it. `interval` is of 95 %, over tasks; None
    where one task is all there is. `decided` verdicts were false for another reason (a dependency, the gate, a limit)
    and `nulls` NULL: neither is in `n`."""

    name: str
    n: int
    passed: int
    rate: float | None
    interval: tuple[float, float] | None
    nulls: int = 0
    decided: int = 0
    question: str | None = None
    facet: str | None = None
    level: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two items that failed in the same `both` of `n` traces that judged both, where `expected` would by chance; `phi`
    in [-1, 1]."""

    left: str
    right: str
    n: int
    both: int
    expected: float
    phi: float


@dataclass(frozen=True, kw_only=True)
class First:
    """How many traces failed first at this place: `step` counts from 1 within the turn; `turn` is None for the closing
    block."""

    turn: int | None
    step: int
    n: int


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A failed verdict of a bad trace. `quotes` are the judge's evidence, `said` the last reply of the judged turn
    where there is none."""

    item: str
    turn: int | None
    question: str | None
    why: str | None
    quotes: tuple[str, ...] = ()
    said: str | None = None


@dataclass(frozen=True, kw_only=True)
class Worst:
    """One of the traces with the lowest rewards."""

    trace: str
    task: str | None
    reward: float
    opening: str
    failed: tuple[Failed, ...]


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """A parent item and those that are `part_of` it, over `n` turns in which all were judged. `parent_alone`: the
    parent satisfied with a child failed; `children_alone`: all children satisfied and the parent failed; `rate` is the
    share without the first."""

    parent: str
    children: tuple[str, ...]
    n: int
    parent_alone: int
    children_alone: int
    rate: float | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything about one reward version. `histogram` counts rewards in ten bins of [0, 1]; `first` and `first_items`
    count where and by which item the traces with a failure failed first; `cost` holds the agent's tokens, as far as
    known, and what judging took where a judge was asked (`judge_usd` None: a price is not known), `judged_traces` being
    those that it was asked about."""

    version: str
    traces: int
    rewarded: int
    mean_reward: float | None
    reward_interval: tuple[float, float] | None
    null_rewards: Mapping[str, int]
    histogram: tuple[int, ...]
    items: tuple[Rate, ...]
    facets: tuple[Rate, ...]
    levels: tuple[Rate, ...]
    together: tuple[Pair, ...]
    first: tuple[First, ...]
    first_items: Mapping[str, int]
    without_failure: int
    worst: tuple[Worst, ...]
    null_causes: Mapping[str, int]
    cost: Mapping[str, float | int | None]
    consistency: tuple[Consistency, ...] = field(default=())

    def to_json(self) -> dict[str, JSON]:
        return asdict(self)


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
        self.null_causes: Counter[str] = Counter()
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
        cluster = f"task {trace.task_id}" if trace.task_id is not None else f"trace {trace.id}"
        items = self._items_of(score)
        failed: dict[str, bool] = {}
        places: list[tuple[tuple[int, int], tuple[int | None, int], str]] = []
        for block, turn in enumerate(score.turns):
            for verdict in turn.verdicts if turn.reached else ():
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
        if verdict.value is None:
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
        bins = Counter(min(BINS - 1, int(value * BINS)) for value in values)
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
            first=tuple(First(turn=turn, step=step, n=n) for (turn, step), n in self.first.most_common()),
            first_items=dict(self.first_items.most_common()),
            without_failure=self.traces - sum(self.first.values()),
            worst=tuple(
                self._bad(trace, score) for _, _, trace, score in sorted(self.worst, key=lambda one: (-one[0], -one[1]))
            ),
            null_causes=dict(self.null_causes.most_common()),
            cost={**self.cost, "judge_usd": self.usd} if "judged_traces" in self.cost else dict(self.cost),
            consistency=tuple(map(self._consistency, self.children)),
        )

    def _rate(self, name: str) -> Rate:
        item = self.known[name]
        words = {} if item is None else {"question": item.question, "facet": item.facet, "level": item.level}
        return _rate(name, self.seen[name], nulls=self.nulls[name], decided=self.decided[name], **words)

    def _by(self, property: Callable[[Item], str | None]) -> tuple[Rate, ...]:
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
            )
            for group, names in groups.items()
        )
        return tuple(sorted(rates, key=_worst_first))

    def _bad(self, trace: Trace, score: Score) -> Worst:
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
        return Worst(
            trace=trace.id, task=trace.task_id, reward=score.reward, opening=_cut(opening), failed=tuple(failed)
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


def _rate(name: str, seen: Sequence[tuple[bool, str]], *, nulls: int, decided: int, **words: str | None) -> Rate:
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
    return Rate(
        name=name,
        n=len(seen),
        passed=passed,
        rate=ratio(passed, len(seen)),
        interval=interval,
        nulls=nulls,
        decided=decided,
        **words,
    )


def _worst_first(rate: Rate) -> tuple[bool, float, str]:
    return rate.rate is None, rate.rate or 0.0, rate.name


def _together(traces: Sequence[Mapping[str, bool]]) -> tuple[Pair, ...]:
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
                    Pair(left=names[i], right=names[j], n=int(total), both=int(both[i, j]), expected=expected, phi=phi)
                )
    return tuple(sorted(found, key=lambda pair: (-pair.phi, -pair.both))[:PAIRS])


def _place(turn: TurnScore, verdict: Verdict) -> tuple[int | None, int]:
    """Where an item failed: at the step that the judge quotes, else at the end of its scope, where it was decided."""
    for quote in verdict.evidence:
        at, step = quote.get("turn"), quote.get("step")
        if isinstance(step, int) and isinstance(at, int) and "snippet" in quote:
            return at, step + 1
    return turn.turn, turn.steps


def _failed(trace: Trace, turn: TurnScore, verdict: Verdict, item: Item | None) -> Failed:
    quotes = tuple(_cut(str(quote["snippet"])) for quote in verdict.evidence if quote.get("snippet"))
    steps = trace.steps if turn.turn is None else trace.turns[turn.turn].steps if turn.turn < len(trace.turns) else ()
    said = next((step.message.text for step in reversed(steps) if step.is_reply), None)
    return Failed(
        item=verdict.item,
        turn=turn.turn,
        question=None if item is None else item.question,
        why=": ".join(filter(None, (verdict.reason, verdict.explanation))) or None,
        quotes=quotes,
        said=None if quotes or said is None else _cut(said),
    )


def _cut(text: str) -> str:
    return text if len(text) <= _CUT else text[: _CUT - 1] + "…"


__all__ = ["Consistency", "Failed", "First", "Pair", "Rate", "Report", "Worst", "report"]
