"""What is left of groups as rows, and the account of it: `GroupRows` and `RowReport`."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cm2_agent.types.group import Group
from cm2_agent.types.json_values import JSON
from cm2_agent.types.null_rates import PolicyNulls
from cm2_agent.types.score_bounds import Bounds

from .advantage import GroupAdvantages
from .rows import Credit, Row
from .shown_words import Shown


@dataclass(frozen=True, kw_only=True)
class RolloutRows:
    """The rows of a rollout. Told from others as an object: nothing says that a trace stands in one group only."""

    trace_id: str
    rows: tuple[Row, ...]
    shown: tuple[Shown, ...] = ()
    """What the model was shown before each span, row by row; empty where nobody compares it with the prompts."""

    def credited(self, credit: Credit) -> RolloutRows:
        """With these advantages in place of those that its rows have."""
        rows = (
            replace(row, spans=tuple(replace(span, advantage=credit(span.turn, span.step)) for span in row.spans))
            for row in self.rows
        )
        return replace(self, rows=tuple(rows))

    @property
    def zero(self) -> bool:
        """Whether every advantage is 0, so that nothing can be learnt from it."""
        return all(span.advantage == 0 for row in self.rows for span in row.spans)


@dataclass(frozen=True, kw_only=True)
class GroupRows:
    """Those rollouts of a group that became rows. `key` is what they share (`Group.key`), `size` how many rollouts the
    group has. `informative`: some advantage of the group is not 0. `pending`: it was left out whole, since nobody knows
    what one of its rollouts is worth. `bounds` are those of the rewards of all its rollouts, as far as they have any.
    """

    key: Mapping[str, JSON]
    size: int
    rollouts: tuple[RolloutRows, ...]
    informative: bool
    pending: bool = False
    bounds: tuple[Bounds, ...] = ()

    @classmethod
    def of(
        cls, group: Group, rollouts: Iterable[RolloutRows], *, informative: bool, pending: bool = False
    ) -> GroupRows:
        """What is left of a group: these of its rollouts."""
        bounds = (rollout.score.bounds for rollout in group.rollouts)
        return cls(
            key=group.key,
            size=len(group.rollouts),
            rollouts=tuple(rollouts),
            informative=informative,
            pending=pending,
            bounds=tuple(one for one in bounds if one is not None),
        )

    def credited(self, found: GroupAdvantages, places: Sequence[int]) -> GroupRows:
        """With the advantages of its rollouts, each of which stands at its place in `found`."""
        rollouts = [one.credited(found.rollouts[at]) for one, at in zip(self.rollouts, places, strict=True)]
        return replace(self, rollouts=tuple(rollouts), informative=found.informative)

    def trained_on(self, beta: float) -> bool:
        """Whether steps are taken on it: a group without any advantage only where there is a KL term (`beta`)."""
        return bool(self.rollouts) and (self.informative or beta != 0)

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for rollout in self.rollouts for row in rollout.rows)


@dataclass(frozen=True, kw_only=True)
class RowReport:
    """What became of the groups. `left_out` counts rollouts by reason; `masked_tokens` are those of prompts, tools and
    users.

    `pending_groups` were left out whole for a rollout whose reward is pending. `lower` and `upper` are the mean
    bounds of the other groups' rewards, each in [0, 1], None where there is none: J − J_low is at most their
    difference (docs/method.md §4). `nulls` counts by policy what was not judged. These four are in the JSON only
    where something was not judged, and `retokenised_rows` (rows made from words, which GRPO refuses), `credit` (of a
    level that looks at the whole round, and contrast weights) and `items` (those that teach nothing: never paid, always
    paid, alike in every group) where there are some.
    """

    groups: int
    informative_groups: int
    rows: int
    trained_tokens: int
    masked_tokens: int
    pending_groups: int = 0
    lower: float | None = None
    upper: float | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    retokenised_rows: int = 0
    nulls: tuple[PolicyNulls, ...] = ()
    credit: Mapping[str, JSON] = field(default_factory=dict)
    items: Mapping[str, list[JSON]] = field(default_factory=dict)

    def to_json(self) -> dict[str, JSON]:
        out: dict[str, JSON] = {**self.__dict__, "left_out": dict(sorted(self.left_out.items()))}
        found = {one.policy or "unknown": one.to_json() for one in self.nulls}
        out["nulls"] = {
            policy: {name: value for name, value in one.items() if name != "policy"} for policy, one in found.items()
        }
        out |= {"credit": dict(self.credit), "items": dict(self.items)}
        for name in ("retokenised_rows", "credit", "items"):
            if not out[name]:
                del out[name]
        if not self.pending_groups and self.lower == self.upper:
            for name in ("pending_groups", "lower", "upper", "nulls"):
                del out[name]
        return out


class RowCounts:
    """The figures of groups that go by."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lower, self._upper = array("d"), array("d")
        self.longest_row = 0

    def add(self, group: GroupRows) -> None:
        counts = self._counts
        counts["groups"] += 1
        counts["informative_groups"] += group.informative
        counts["pending_groups"] += group.pending
        for row in group.rows:
            trained, length = row.trained, len(row.ids)
            counts["rows"] += 1
            counts["trained_tokens"] += trained
            counts["masked_tokens"] += length - trained
            counts["retokenised_rows"] += row.retokenised
            self.longest_row = max(self.longest_row, length)
        if not group.pending:
            self._lower.extend(one.lower for one in group.bounds)
            self._upper.extend(one.upper for one in group.bounds)

    def report(
        self,
        *,
        left_out: Mapping[str, int],
        nulls: tuple[PolicyNulls, ...],
        credit: Mapping[str, JSON],
        items: Mapping[str, list[JSON]],
    ) -> RowReport:
        """With what only the whole round tells."""
        found, rollouts = self._counts, len(self._lower)
        return RowReport(
            groups=found["groups"],
            informative_groups=found["informative_groups"],
            rows=found["rows"],
            trained_tokens=found["trained_tokens"],
            masked_tokens=found["masked_tokens"],
            pending_groups=found["pending_groups"],
            lower=math.fsum(self._lower) / rollouts if rollouts else None,
            upper=math.fsum(self._upper) / rollouts if rollouts else None,
            left_out=dict(left_out),
            retokenised_rows=found["retokenised_rows"],
            nulls=nulls,
            credit=credit,
            items=items,
        )


__all__ = ["GroupRows", "RolloutRows", "RowCounts", "RowReport"]
