"""Groups in, rows out: what a trainer will see of stored, scored groups, and the account of what it will not see.

Apart from `rows`, which knows one trace: here rollouts are compared, left out and counted. Runs that silently train on
nothing are what users of other trainers complain of most, so whatever is left out has a reason and a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from cm2_agent.errors import TrainError
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.json_values import JSON

from .advantage import Level, Norm, advantages
from .retokenize import REFUSED, TemplateRefused, retokenised_rows
from .rows import TEXT_ONLY, TOO_LONG, Credit, Row, rows_of, why_not

Credits: TypeAlias = Callable[[Group], Sequence[Credit | str]]
"""The advantages of a group's rollouts, in their order; for a rollout that is left out, the reason."""


@dataclass(frozen=True, kw_only=True)
class RolloutRows:
    """A rollout and its rows."""

    rollout: Rollout
    rows: tuple[Row, ...]

    @property
    def zero(self) -> bool:
        """Whether every advantage is 0, so that nothing can be learnt from it."""
        return all(span.advantage == 0 for row in self.rows for span in row.spans)


@dataclass(frozen=True, kw_only=True)
class GroupRows:
    """A group and those of its rollouts that became rows. `informative`: some advantage of the group is not 0."""

    group: Group
    rollouts: tuple[RolloutRows, ...]
    informative: bool

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for rollout in self.rollouts for row in rollout.rows)


@dataclass(frozen=True, kw_only=True)
class RowReport:
    """What became of the groups. `left_out` counts rollouts by reason; `masked_tokens` are those of prompts, tools and
    users.

    `retokenised_rows` (rows made from words, which GRPO refuses) is in the JSON only where there are some.
    """

    groups: int
    informative_groups: int
    rows: int
    trained_tokens: int
    masked_tokens: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    retokenised_rows: int = 0

    def to_json(self) -> dict[str, JSON]:
        out: dict[str, JSON] = {**self.__dict__, "left_out": dict(sorted(self.left_out.items()))}
        if not self.retokenised_rows:
            del out["retokenised_rows"]
        return out


@dataclass(frozen=True, kw_only=True)
class Collected:
    """All groups that were given, each with what is left of it, and the rollouts that were left out by reason."""

    groups: tuple[GroupRows, ...]
    left_out: Mapping[str, int]

    @property
    def report(self) -> RowReport:
        rows = [row for group in self.groups for row in group.rows]
        trained = sum(row.trained for row in rows)
        return RowReport(
            groups=len(self.groups),
            informative_groups=sum(group.informative for group in self.groups),
            rows=len(rows),
            trained_tokens=trained,
            masked_tokens=sum(len(row.ids) for row in rows) - trained,
            left_out=dict(self.left_out),
            retokenised_rows=sum(row.retokenised for row in rows),
        )

    def without(self, drop: Callable[[RolloutRows], str | None]) -> Collected:
        """The same less the rollouts for which `drop` gives a reason; which groups are informative is not asked
        again.
        """
        left_out = Counter(self.left_out)
        groups = []
        for group in self.groups:
            kept = []
            for rollout in group.rollouts:
                reason = drop(rollout)
                if reason is None:
                    kept.append(rollout)
                else:
                    left_out[reason] += 1
            groups.append(GroupRows(group=group.group, rollouts=tuple(kept), informative=group.informative))
        return Collected(groups=tuple(groups), left_out=dict(left_out))


def collect(
    groups: Iterable[Group],
    *,
    level: str = "trajectory",
    norm: str = "none",
    max_length: int | None = None,
    tokenizer: Any = None,
    credits: Credits | None = None,
) -> Collected:
    """The rows of groups with their advantages (method.md §5).

    Advantages are of all scored rollouts of a group, whether or not they can become rows: they are what the rollouts
    were worth beside each other. A rollout longer than `max_length` tokens is left out, never cut. With a `tokenizer`,
    text-only rollouts become retokenised rows. `credits` replaces `advantages(level, norm)`. Raises TrainError on an
    empty set, and on several reward versions in it.
    """
    groups = checked(groups)
    credits = credits or by_level(level, norm)
    left_out: Counter[str] = Counter()
    made = []
    for group in groups:
        if not group.rollouts:
            made.append(GroupRows(group=group, rollouts=(), informative=False))
            continue
        worth = list(credits(group))
        kept, informative = [], False
        for rollout, credit in zip(group.rollouts, worth, strict=True):
            if isinstance(credit, str):
                left_out[credit] += 1
                continue
            steps = rollout.trace.steps
            informative = informative or any(credit(step.turn, step.index) != 0 for step in steps)
            rows = _rows(rollout, credit, max_length, tokenizer)
            if isinstance(rows, str):
                left_out[rows] += 1
            else:
                kept.append(RolloutRows(rollout=rollout, rows=tuple(rows)))
        made.append(GroupRows(group=group, rollouts=tuple(kept), informative=informative))
    return Collected(groups=tuple(made), left_out=dict(left_out))


def checked(groups: Iterable[Group], *, one_reward: bool = True) -> list[Group]:
    """The groups as a list. Raises TrainError where there is none, or no rollout in them, or they mix reward
    versions.
    """
    groups = list(groups)
    if not groups:
        raise TrainError(
            "no group was given; expected scored rollouts of tasks. Score the traces first (cm2 score), and check what "
            "the store's groups(…) was asked for: task, policy and reward version must be those of stored traces."
        )
    if not any(group.rollouts for group in groups):
        raise TrainError(
            f"{len(groups)} groups were given and none holds a rollout; expected at least two scored rollouts of a task"
        )
    versions = sorted({str(group.key.get("reward")) for group in groups})
    if one_reward and len(versions) > 1:
        raise TrainError(
            f"the groups mix {len(versions)} reward versions: {', '.join(versions[:4])}. Rewards of different versions "
            "cannot be compared: score all of them with one (cm2 score --again), or name the version to train on."
        )
    return groups


def _rows(rollout: Rollout, credit: Credit, max_length: int | None, tokenizer: Any) -> list[Row] | str:
    reason = why_not(rollout.trace, max_length=max_length)
    if reason is None:
        return rows_of(rollout.trace, credit)
    if reason != TEXT_ONLY or tokenizer is None:
        return reason
    try:
        rows = retokenised_rows(rollout.trace, tokenizer, credit)
    except TemplateRefused:
        return REFUSED
    if max_length is not None and any(len(row.ids) > max_length for row in rows):
        return TOO_LONG
    return rows


def by_level(level: str, norm: str) -> Credits:
    """The advantages of method.md §5 as credits of a group's rollouts. Raises TrainError on an unknown level or norm
    when it is called.
    """

    def credits(group: Group) -> list[Credit | str]:
        scores = [rollout.score for rollout in group.rollouts]
        happened = [[len(turn.steps) for turn in rollout.trace.turns] for rollout in group.rollouts]
        found = advantages(scores, level=cast(Level, level), norm=cast(Norm, norm), happened=happened)
        return [one if one.left_out is None else _brief(one.left_out) for one in found.rollouts]

    return credits


def _brief(reason: str) -> str:
    """One reason for all failures, one for all censored rollouts …: without what comes after the second colon."""
    return ":".join(reason.split(":")[:2]).strip()
