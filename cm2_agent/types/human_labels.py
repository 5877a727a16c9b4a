"""Labels: people's answers on the items of a trace, their consensus, and the verdicts on the same items."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from cm2_agent.types.cluster import cluster_of
from cm2_agent.types.score import Score

DIALOGUE = "*"
"""The item of a label that speaks of the whole dialogue; no item of a checklist can have this id."""

LabelKey: TypeAlias = "tuple[str, int | None, str]"
"""(trace id, turn, item id): what a label speaks of. The turn is None for the closing block, or where the label names
none."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A rater's answer on one item of one trace: `value` is whether the item is satisfied (for `avoid` items: never
    violated), None where the rater could not tell. With the item `*` it is whether the whole dialogue was good.

    `turn` is the 0-based turn; None for the closing block, or for an item that stands in the trace once. A rater named
    `judge` or `judge:…` is a recorded judge, everyone else a person. `task` is what intervals resample where the trace
    itself is not stored. `note` is the rater's remark, or the criterion's text."""

    trace_id: str
    item: str
    rater: str
    value: bool | None
    turn: int | None = None
    task: str | None = None
    note: str | None = None

    @property
    def by_judge(self) -> bool:
        return self.rater == "judge" or self.rater.startswith("judge:")

    @property
    def key(self) -> LabelKey:
        return (self.trace_id, self.turn, self.item)


def by_rater(labels: Iterable[Label]) -> dict[LabelKey, dict[str, bool]]:
    """`{key: {rater: value}}`; a rater who could not tell has no entry."""
    found: defaultdict[LabelKey, dict[str, bool]] = defaultdict(dict)
    for label in labels:
        if label.value is not None:
            found[label.key][label.rater] = label.value
    return dict(found)


def consensus(labels: Iterable[Label]) -> dict[LabelKey, bool]:
    """The majority of people's answers for each key; a tie has none, and recorded judges have no vote."""
    votes = by_rater(label for label in labels if not label.by_judge)
    sums = {key: sum(1 if value else -1 for value in by_person.values()) for key, by_person in votes.items()}
    return {key: total > 0 for key, total in sums.items() if total}


def of_dialogues(labels: Iterable[Label]) -> dict[str, bool]:
    """`{trace id: the majority of people's answers on the whole dialogue}`; a tie has none."""
    return {key[0]: value for key, value in consensus(one for one in labels if one.item == DIALOGUE).items()}


class PeopleFound:
    """What people found of dialogues and items, by majority.

    >>> found = PeopleFound([Label(trace_id="t", item="polite", value=True, rater="ada")])
    >>> found.right("t", ["polite"]), found.right("t", ["other"])
    (True, None)
    """

    def __init__(self, labels: Iterable[Label]) -> None:
        self._whole: dict[str, bool] = {}
        self._items: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
        for (trace, _, item), value in consensus(labels).items():
            if item == DIALOGUE:
                self._whole[trace] = value
            else:
                self._items[trace, item].append(value)

    def right(self, trace: str, items: Iterable[str]) -> bool | None:
        """Whether they found the trace right: by their word on the whole dialogue, else on each of these items that
        they labelled; None where they labelled none."""
        if trace in self._whole:
            return self._whole[trace]
        values = [value for item in items for value in self._items.get((trace, item), ())]
        return all(values) if values else None


def verdicts_at(scores: Iterable[Score], keys: Iterable[LabelKey]) -> tuple[dict[LabelKey, bool | None], int]:
    """The verdict at each of the keys that the scores judged, and how many keys name no turn although their item has
    several.

    A key without a turn is met by the item's only verdict in the trace. Verdicts of a turn that was not reached are
    left out: no rater saw what they speak of."""
    exact: dict[LabelKey, bool | None] = {}
    anywhere: defaultdict[tuple[str, str], list[bool | None]] = defaultdict(list)
    for score in scores:
        for turn in score.turns:
            if not turn.reached:
                continue
            for verdict in turn.verdicts:
                exact[score.trace_id, turn.turn, verdict.item] = verdict.value
                anywhere[score.trace_id, verdict.item].append(verdict.value)
    found: dict[LabelKey, bool | None] = {}
    unclear = 0
    for key in keys:
        trace_id, turn_of_key, item = key
        several = anywhere.get((trace_id, item), [])
        if key in exact:
            found[key] = exact[key]
        elif turn_of_key is None and len(several) == 1:
            found[key] = several[0]
        elif turn_of_key is None and several:
            unclear += 1
    return found, unclear


def tasks_of(labels: Iterable[Label], known: Mapping[str, str | None]) -> dict[str, str]:
    """`{trace id: what intervals resample}`: the trace's task as stored, else as the labels say, else the trace
    itself."""
    found: dict[str, str] = {}
    for label in labels:
        task = known.get(label.trace_id) or label.task
        if task is not None or label.trace_id not in found:
            found[label.trace_id] = cluster_of(label.trace_id, task)
    return found


__all__ = [
    "DIALOGUE",
    "Label",
    "LabelKey",
    "PeopleFound",
    "by_rater",
    "consensus",
    "of_dialogues",
    "tasks_of",
    "verdicts_at",
]
