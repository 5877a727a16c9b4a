"""What a report counts of scored traces as they go by: a few bytes a trace, so that a large store fits in memory."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cm2_agent.analysis.bootstrap import Array
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.cluster import cluster_of
from cm2_agent.types.null_rates import PolicyNulls
from cm2_agent.types.scored_facts import BlockFact, ScoredFacts, VerdictFact

NOT_LOOKED = frozenset({"dependency", "gate", "limit", "unreached", "not applicable", "when"})
"""Reasons of verdicts that say nothing of the item itself: something else decided."""
WORST = 10
FOLDED = 20_000
"""How many traces of an item are held before they are folded into their clusters."""
DISTINCT = 20_000
"""How many different sets of failures are held before they are folded into pairs."""


class Clusters:
    """Numbers of the clusters (tasks, or traces without one), by the first appearance."""

    def __init__(self) -> None:
        self._tasks: dict[str, int] = {}
        self._size = 0

    def number(self, trace: str, task: str | None) -> int:
        """Only tasks come again: nothing is kept of a trace without one."""
        known = None if task is None else self._tasks.get(task)
        if known is not None:
            return known
        if task is not None:
            self._tasks[task] = self._size
        self._size += 1
        return self._size - 1


class ItemTally:
    """The verdicts on one item: by cluster, how many were looked at and how many of them were satisfied; and how many
    said nothing of the item."""

    def __init__(self, item: Item | None, folded: int = FOLDED) -> None:
        self.item = item
        self.nulls = self.decided = self.inapplicable = 0
        self._clusters, self._looked, self._passed = array("q"), array("q"), array("q")
        self._folded = self._limit = folded

    def add(self, cluster: int, looked: int, passed: int) -> None:
        """A trace of a cluster: its verdicts, and how many were satisfied."""
        self._clusters.append(cluster)
        self._looked.append(looked)
        self._passed.append(passed)
        if len(self._clusters) > self._limit:
            for own, folded in zip((self._clusters, self._looked, self._passed), self.sums(), strict=True):
                own[:] = array("q", folded.astype(np.int64).tobytes())
            self._limit = max(self._folded, 2 * len(self._clusters))

    def sums(self) -> tuple[Array, Array, Array]:
        """The clusters in the order in which they first appear, their verdicts, and how many were satisfied."""
        return _by_cluster(*(np.array(own, dtype=np.int64) for own in (self._clusters, self._looked, self._passed)))


class FailureTally:
    """In how many traces two items were both judged, and in how many of these which of them failed."""

    def __init__(self, distinct: int = DISTINCT) -> None:
        self._distinct = distinct
        self._place: dict[str, int] = {}
        self._sets: Counter[tuple[int, int]] = Counter()  # items judged, and failed, a bit each
        self._sums = np.zeros((3, 0, 0))

    def add(self, failed: Mapping[str, bool]) -> None:
        judged = failing = 0
        for item, value in failed.items():
            bit = 1 << self._place.setdefault(item, len(self._place))
            judged |= bit
            if value:
                failing |= bit
        self._sets[judged, failing] += 1
        if len(self._sets) > self._distinct:
            self._fold()

    def sums(self) -> tuple[list[str], Array]:
        """The items by name, and (3, items, items): traces that judged both, in which both failed, and in which the
        row's item failed."""
        self._fold()
        names = sorted(self._place)
        order = [self._place[name] for name in names]
        return names, self._sums[:, order][:, :, order]

    def _fold(self) -> None:
        size, old = len(self._place), self._sums
        sums = np.zeros((3, size, size))
        sums[:, : old.shape[1], : old.shape[2]] = old
        sets = list(self._sets)
        count = np.asarray(list(self._sets.values()), dtype=float)
        judged = np.asarray([[one[0] >> bit & 1 for bit in range(size)] for one in sets], dtype=float)
        fails = np.asarray([[one[1] >> bit & 1 for bit in range(size)] for one in sets], dtype=float)
        if sets:
            weighted = judged * count[:, None]
            sums += np.stack([judged.T @ weighted, fails.T @ (fails * count[:, None]), fails.T @ weighted])
        self._sums = sums
        self._sets.clear()


class PolicyTally:
    """What one policy kept from being judged."""

    def __init__(self, began: int) -> None:
        self.began = began
        self.traces = self.pending = 0
        self.shares: list[tuple[float, str]] = []
        self.causes: Counter[str] = Counter()


class Tally:
    """What was counted so far; `checklist` finds a checklist by its hash."""

    def __init__(self, checklist: Callable[[str], Checklist | None]) -> None:
        self._find = checklist
        self._items: dict[str, dict[str, Item]] = {}
        self._clusters = Clusters()
        self.traces = 0
        self.rewards, self.reward_clusters = array("d"), array("q")
        self.null_rewards: Counter[str] = Counter()
        self.items: dict[str, ItemTally] = {}
        self.null_causes: Counter[str] = Counter()
        self.policies: dict[str | None, PolicyTally] = {}
        self.failures = FailureTally()
        self.first: Counter[tuple[int | None, int]] = Counter()
        self.first_items: Counter[str] = Counter()
        self.families: defaultdict[str, Counter[tuple[bool, bool]]] = defaultdict(Counter)
        """Of each parent, how often it was satisfied or not, with all of its parts or without."""
        self.children: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self.judging: Counter[str] = Counter()
        self.usd: float | None = 0.0
        self._worst: list[tuple[float, int, str]] = []
        self._shares: dict[tuple[float, str], tuple[float, str]] = {}  # each held once, since tasks come again

    @property
    def worst(self) -> list[str]:
        """The traces with the lowest rewards, the lowest first."""
        return [trace for _, _, trace in sorted(self._worst, key=lambda one: (-one[0], -one[1]))]

    def items_of(self, checklist: str | None) -> dict[str, Item]:
        """The items of a checklist by id."""
        if checklist is None:
            return {}
        if checklist not in self._items:
            found = self._find(checklist)
            self._items[checklist] = {} if found is None else dict(found.by_id)
        return self._items[checklist]

    def add(self, facts: ScoredFacts) -> None:
        self.traces += 1
        items = self.items_of(facts.checklist)
        cluster = self._clusters.number(facts.trace, facts.task)
        looked: dict[str, list[int]] = {}  # the item's verdicts, and those that are satisfied
        places: list[tuple[tuple[bool, int, int], tuple[int | None, int], str]] = []
        for number, block in enumerate(facts.blocks):
            if not block.reached:
                continue
            for verdict in block.verdicts:
                if verdict.reason == "when":  # whether another item applies: nobody's failure
                    continue
                if verdict.item not in self.items:
                    self.items[verdict.item] = ItemTally(items.get(verdict.item))
                if verdict.value is None or verdict.reason in NOT_LOOKED:
                    self._not_looked(verdict)
                    continue
                counts = looked.setdefault(verdict.item, [0, 0])
                counts[0] += 1
                if verdict.value:
                    counts[1] += 1
                    continue
                turn, step = _place(block, verdict)
                order = (True, number, step) if turn is None else (False, turn, step)  # the closing block is last
                places.append((order, (turn, step), verdict.item))
            self._family(block, items)
        for item, (seen, passed) in looked.items():
            self.items[item].add(cluster, seen, passed)
        self.failures.add({item: passed < seen for item, (seen, passed) in looked.items()})
        if places:
            _, place, item = min(places, key=lambda found: found[0])
            self.first[place] += 1
            self.first_items[item] += 1
        self._price(facts)
        self._policy(facts)
        if facts.reward is None:
            self.null_rewards[facts.null_reason or "unknown"] += 1
            return
        self.rewards.append(facts.reward)
        self.reward_clusters.append(cluster)
        if facts.reward < 1 and places:
            heapq.heappush(self._worst, (-facts.reward, -self.traces, facts.trace))
            if len(self._worst) > WORST:
                heapq.heappop(self._worst)

    def _not_looked(self, verdict: VerdictFact) -> None:
        tally = self.items[verdict.item]
        if verdict.reason == "not applicable":
            tally.inapplicable += 1
        elif verdict.value is None:
            tally.nulls += 1
            self.null_causes[": ".join(filter(None, (verdict.cause or "unknown", verdict.reason)))] += 1
        else:
            tally.decided += 1

    def _family(self, block: BlockFact, items: Mapping[str, Item]) -> None:
        parents: dict[str, list[str]] = {}
        values: dict[str, bool | None] | None = None
        for verdict in block.verdicts:
            item = items.get(verdict.item)
            if item is None or item.part_of is None:
                continue
            values = values or {one.item: one.value for one in block.verdicts}
            if item.part_of in values and verdict.item not in parents.setdefault(item.part_of, []):
                parents[item.part_of].append(verdict.item)
        for parent, children in parents.items():
            assert values is not None
            self.children[parent].update(dict.fromkeys(children))
            whole, answers = values.get(parent), [values[child] for child in children]
            if children and whole is not None and None not in answers:
                self.families[parent][whole, all(answers)] += 1

    def _price(self, facts: ScoredFacts) -> None:
        if facts.usage:
            self.judging["judged_traces"] += 1
            for name in ("calls", "re_asks", "escalated", "cached", "input_tokens", "output_tokens"):
                self.judging[f"judge_{name}"] += facts.usage.get(name) or 0
            spent = facts.usage.get("usd")
            self.usd = None if spent is None or self.usd is None else self.usd + spent

    def _policy(self, facts: ScoredFacts) -> None:
        own = self.policies.get(facts.policy)
        if own is None:
            own = self.policies[facts.policy] = PolicyTally(facts.started)
        own.began = min(own.began, facts.started)
        own.traces += 1
        if facts.lower is None or facts.upper is None:
            own.pending += 1
        else:
            share = facts.upper - facts.lower, cluster_of(facts.trace, facts.task)
            own.shares.append(share if facts.task is None else self._shares.setdefault(share, share))
        for block in facts.blocks:
            for verdict in block.verdicts:
                if verdict.value is None and verdict.cause is not None:
                    own.causes[": ".join(filter(None, (verdict.cause, verdict.reason)))] += 1

    def nulls_by_policy(self, cuts: Mapping[str | None, Counter[str]]) -> tuple[PolicyNulls, ...]:
        """By policy, the first one first."""
        order = sorted(self.policies, key=lambda policy: (self.policies[policy].began, str(policy)))
        return tuple(
            PolicyNulls(
                policy=policy,
                traces=(own := self.policies[policy]).traces,
                pending=own.pending,
                shares=tuple(own.shares),
                causes=dict(own.causes.most_common()),
                cuts=dict(cuts.get(policy, Counter[str]()).most_common()),
            )
            for policy in order
        )


def _place(block: BlockFact, verdict: VerdictFact) -> tuple[int | None, int]:
    """Where an item failed: at the step that the judge quotes, else at the end of its scope, where it was decided."""
    if verdict.quoted is not None:
        turn, step = verdict.quoted
        return turn, step + 1
    return block.turn, block.steps


def cluster_sums(tallies: Sequence[ItemTally]) -> tuple[Array, Array]:
    """How many verdicts of these items were satisfied, and how many there are, by cluster; in the order in which the
    clusters first appear, item after item."""
    _, looked, passed = _by_cluster(*map(np.concatenate, zip(*(one.sums() for one in tallies), strict=True)))
    return passed, looked


def _by_cluster(clusters: Array, looked: Array, passed: Array) -> tuple[Array, Array, Array]:
    names, first, code = np.unique(clusters, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return (
        names[order],
        np.bincount(code, looked, len(names))[order],
        np.bincount(code, passed, len(names))[order],
    )


__all__ = ["NOT_LOOKED", "WORST", "ItemTally", "Tally", "cluster_sums"]
