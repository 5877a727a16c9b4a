"""How often each item of a round is paid, and which items teach nothing: never paid, always paid, or alike in every
group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from cm2_agent.types.json_values import JSON
from cm2_agent.types.score import Score

ItemKey: TypeAlias = tuple[int | None, str]
"""A turn (None: the closing block) and an item in it."""
TEACHES_NOTHING = {
    "never_paid": "never paid, so there is nothing to reinforce",
    "always_paid": "always paid, so there is nothing to learn",
    "alike_in_groups": "never paid to one rollout of a group and not to another, so no advantage follows from it",
}


@dataclass
class _Count:
    number: int = 0
    paid: float = 0.0
    varied: bool = False
    all_paid: bool = True


@dataclass
class ItemTally:
    """Counts the items that weigh, group by group; a NULL counts as unpaid."""

    counts: dict[ItemKey, _Count] = field(default_factory=dict)

    def add(self, scores: Sequence[Score]) -> None:
        """A group's scores; one of which a rollout is pending does not count."""
        if any(score.lower is None for score in scores):
            return
        seen: dict[ItemKey, set[float]] = {}
        for score in scores:
            for turn in score.turns:
                for one in turn.verdicts:
                    if not one.weight:
                        continue
                    pays = one.pays or 0.0
                    count = self.counts.setdefault((turn.turn, one.item), _Count())
                    count.number += 1
                    count.paid += pays
                    count.all_paid = count.all_paid and pays == 1
                    seen.setdefault((turn.turn, one.item), set()).add(pays)
        for key, values in seen.items():
            self.counts[key].varied = self.counts[key].varied or len(values) > 1

    @property
    def rates(self) -> Mapping[ItemKey, float]:
        """p̂: the mean share that was paid of each item in each turn."""
        return {key: one.paid / one.number for key, one in self.counts.items()}

    @property
    def teaches_nothing(self) -> dict[str, list[JSON]]:
        """The items of each kind of TEACHES_NOTHING, over all turns; kinds without one are left out."""
        items: dict[str, list[_Count]] = {}
        for (_, item), count in self.counts.items():
            items.setdefault(item, []).append(count)
        found: dict[str, list[JSON]] = {name: [] for name in TEACHES_NOTHING}
        for item, counts in sorted(items.items()):
            if not any(one.paid for one in counts):
                found["never_paid"].append(item)
            elif all(one.all_paid for one in counts):
                found["always_paid"].append(item)
            elif not any(one.varied for one in counts):
                found["alike_in_groups"].append(item)
        return {name: names for name, names in found.items() if names}

    def warnings(self) -> Iterator[str]:
        """What is to be said before training, a line a kind."""
        for name, names in self.teaches_nothing.items():
            shown = [str(item) for item in names[:10]] + (["…"] if len(names) > 10 else [])
            number = len({item for _, item in self.counts})
            yield f"{len(names)} of {number} items {TEACHES_NOTHING[name]}: {', '.join(shown)}"


__all__ = ["ItemKey", "ItemTally"]
