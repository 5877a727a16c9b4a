"""What stored traces and their scores show of a checklist: items that are dead, saturated or at odds, and which
counterfeits of real dialogues would be paid."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace

from .dialogue import with_failed_calls, without_calls
from .finding import Finding

ENOUGH = 20
"""How many verdicts on an item say something about it."""


@dataclass
class ItemCounts:
    """How often items of scored turns were true, alone and in pairs; NULLs are not counted.

    >>> from cm2_agent.rewards.linting.stored import ItemCounts
    >>> counts = ItemCounts()
    >>> for _ in range(20):
    ...     counts.add_turn({"a": True, "b": False})
    >>> [(finding.item, finding.code) for finding in counts.findings()]
    [('a', 'saturated'), ('b', 'dead')]
    """

    judged: Counter[str] = field(default_factory=Counter)
    true: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    both: Counter[tuple[str, str]] = field(default_factory=Counter)
    either: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, score: Score) -> None:
        for turn in score.turns:
            if turn.reached:
                self.add_turn({one.item: one.value for one in turn.verdicts if one.value is not None})

    def add_turn(self, values: dict[str, bool]) -> None:
        self.judged.update(values.keys())
        self.true.update(item for item, value in values.items() if value)
        for pair in combinations(sorted(values), 2):
            first, second = values[pair[0]], values[pair[1]]
            self.pairs[pair] += 1
            self.both[pair] += first and second
            self.either[pair] += first or second

    def findings(self) -> Iterator[Finding]:
        for item, count in sorted(self.judged.items()):
            if count < ENOUGH:
                continue
            if self.true[item] == 0:
                what = f"never satisfied in {count} turns: it teaches nothing; see whether it can be, or drop it"
                yield Finding(severity="warning", code="dead", item=item, message=what)
            elif self.true[item] == count:
                what = f"satisfied in all {count} turns: it tells no two dialogues apart; sharpen it, or drop it"
                yield Finding(severity="warning", code="saturated", item=item, message=what)
        for (first, second), count in sorted(self.pairs.items()):
            often = min(self.true[first], self.true[second]) >= ENOUGH / 4
            if count >= ENOUGH and often and self.both[first, second] == 0:
                always = self.either[first, second] == count
                what = (
                    f"it and {second!r} were never both satisfied in {count} turns"
                    + (", and one of them always was" if always else "")
                    + "; no dialogue can earn both: make them `any_of` one item, or give each a `when`"
                )
                yield Finding(severity="warning", code="at odds", item=first, message=what)


def counterfeits(traces: Iterable[Trace]) -> Iterator[tuple[str, Trace]]:
    """Each real dialogue without what its agent did: its replies without the calls, and with calls that all fail. Those
    without a call have no counterfeit."""
    for trace in traces:
        if trace.scope(None).calls:
            yield "the replies without the calls", without_calls(trace)
            yield "the replies after calls that fail", with_failed_calls(trace)


def best(scores: Sequence[Score], most: int) -> list[str]:
    """The ids of the traces that are paid best."""
    paid = [score for score in scores if score.lower is not None]
    by_worth: defaultdict[float, list[str]] = defaultdict(list)
    for score in paid:
        by_worth[score.lower or 0.0].append(score.trace_id)
    return [id for worth in sorted(by_worth, reverse=True) for id in by_worth[worth]][:most]


__all__ = ["ENOUGH", "ItemCounts", "best", "counterfeits"]
