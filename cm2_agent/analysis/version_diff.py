"""What changed between two reward versions of the same traces: verdicts item by item, with McNemar's exact test, and
rewards.

A verdict is compared with the one on the same item in the same turn of the same trace. The test takes those that both
versions judged and counts every pair as independent: verdicts of one trace are not quite, so a p-value near the limit
means less than it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import Score, Verdict

WORDS: Mapping[bool | None, str] = {None: "NULL", True: "true", False: "false"}


@dataclass(frozen=True, kw_only=True)
class Flips:
    """One item (None: all of them): how many verdicts went from one value to another, and `p` of McNemar's exact
    two-sided test that true → false and false → true are equally likely."""

    item: str | None
    counts: Mapping[tuple[bool | None, bool | None], int]
    p: float

    @property
    def compared(self) -> int:
        return sum(self.counts.values())

    @property
    def changed(self) -> int:
        return sum(count for (old, new), count in self.counts.items() if old is not new)

    def to_json(self) -> dict[str, JSON]:
        moved = {f"{WORDS[old]}>{WORDS[new]}": self.counts.get((old, new), 0) for old in WORDS for new in WORDS}
        return {"item": self.item, "compared": self.compared, "changed": self.changed, "p": self.p, **moved}


@dataclass(frozen=True, kw_only=True)
class Change:
    """Two reward versions compared over the `traces` that both have scored.

    `overall` and `items` (most changed first) are of verdicts; `up`, `down`, `same` of rewards that both have; `null`
    counts the others by what became of them, such as `("", "censored")`: a reward before, none now, because the new
    gate would have let the dialogue go on. Of the `both_true` verdicts, `same_step` hold from the same step in both:
    how well two protocols or judges agree on when an item flipped (hold and avoid items turn true at the end by
    definition, and agree)."""

    old: str
    new: str
    traces: int
    overall: Flips
    items: tuple[Flips, ...]
    up: int
    down: int
    same: int
    null: Mapping[tuple[str, str], int]
    both_true: int = 0
    same_step: int = 0

    def to_json(self) -> dict[str, JSON]:
        null = {f"{old or 'a reward'} → {new or 'a reward'}": count for (old, new), count in self.null.items()}
        rewards = {"up": self.up, "down": self.down, "same": self.same, "null": null}
        items = [one.to_json() for one in self.items]
        overall = self.overall.to_json()
        return {
            "old": self.old,
            "new": self.new,
            "traces": self.traces,
            "overall": overall,
            "items": items,
            "rewards": rewards,
            "both_true": self.both_true,
            "same_step": self.same_step,
        }


def compare(old: Iterable[Score], new: Iterable[Score], *, names: tuple[str, str] = ("old", "new")) -> Change:
    """Compare the scores of two versions, trace by trace; a trace that one of them lacks is left out."""
    before = {score.trace_id: score for score in old}
    items: dict[str, Counter[tuple[bool | None, bool | None]]] = {}
    null: Counter[tuple[str, str]] = Counter()
    up = down = same = traces = both_true = same_step = 0
    for score in new:
        earlier = before.get(score.trace_id)
        if earlier is None:
            continue
        traces += 1
        verdicts = _verdicts(earlier)
        for key, verdict in _verdicts(score).items():
            if (first := verdicts.get(key)) is not None:
                items.setdefault(key[1], Counter())[first.value, verdict.value] += 1
                both_true += bool(first.value and verdict.value)
                same_step += bool(first.value and verdict.value and first.step == verdict.step)
        if score.reward is None or earlier.reward is None:
            null[_reason(earlier), _reason(score)] += 1
        else:
            up += score.reward > earlier.reward
            down += score.reward < earlier.reward
            same += score.reward == earlier.reward
    found = [_flips(item, counts) for item, counts in items.items()]
    total = sum(items.values(), Counter[tuple[bool | None, bool | None]]())
    return Change(
        old=names[0],
        new=names[1],
        traces=traces,
        overall=_flips(None, total),
        items=tuple(sorted(found, key=lambda one: (-one.changed, str(one.item)))),
        up=up,
        down=down,
        same=same,
        null=dict(null.most_common()),
        both_true=both_true,
        same_step=same_step,
    )


def mcnemar(lost: int, gained: int) -> float:
    """The exact two-sided p-value that `lost` (true → false) and `gained` (false → true) come from a fair coin; 1 where
    nothing flipped.

    Source: McNemar (1947), in its exact binomial form: min(1, 2 · P[Binomial(lost + gained, ½) ≤ min(lost, gained)]).

    >>> mcnemar(1, 9)
    0.021484375
    """
    if not lost + gained:
        return 1.0
    from scipy.stats import binomtest  # half a second to import, and most commands compare nothing

    return float(binomtest(lost, lost + gained).pvalue)


def _verdicts(score: Score) -> dict[tuple[int | None, str], Verdict]:
    return {(turn.turn, verdict.item): verdict for turn in score.turns for verdict in turn.verdicts}


def _flips(item: str | None, counts: Mapping[tuple[bool | None, bool | None], int]) -> Flips:
    return Flips(item=item, counts=dict(counts), p=mcnemar(counts.get((True, False), 0), counts.get((False, True), 0)))


def _reason(score: Score) -> str:
    return "" if score.reward is not None else score.null_reason or "unknown"


__all__ = ["Change", "Flips", "compare", "mcnemar"]
