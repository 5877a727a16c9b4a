"""Groups in, token rows out: the dataset a trainer sees of stored, scored groups, and the account of what it leaves
out.

Runs that silently train on nothing are what users of other trainers complain of most, so whatever is left out has a
reason and a number. Groups are taken as they come, such as from `store.stream_groups(…)`: what stays in memory are
their rows, a few bytes a token, and the figures of the report; traces and scores may go.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast, get_args

from cm2_agent.errors import TrainError
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.json_values import JSON
from cm2_agent.types.null_rates import NullTally, PolicyNulls
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace

from .advantage import Level, Norm, advantages
from .contrast import Contrast, check_contrast
from .group_rows import GroupRows as GroupRows
from .group_rows import RolloutRows as RolloutRows
from .group_rows import RowCounts
from .group_rows import RowReport as RowReport
from .item_tally import ItemTally
from .previous_round import PreviousRound, item_rates
from .round_credits import RoundCredits
from .rows import NO_STEP, TEXT_ONLY, Credit, Row, rows_or_reason
from .shown_words import shown_words

Credits: TypeAlias = Callable[[Group], Sequence[Credit | str]]
"""The advantages of a group's rollouts, in their order; for a rollout that is left out, the reason."""
WHOLE_ROUND = ("lambda", "auto")
"""Levels that look at all groups of a round."""
MakeRows: TypeAlias = Callable[[Trace, Credit], "list[Row] | str"]
"""The rows of a trace that has no token ids, or the reason why it has none."""


@dataclass(frozen=True, kw_only=True)
class RolloutDataset:
    """All groups that were given, each with what is left of it, how many rollouts were left out by reason, what was not
    judged by policy, the figures of a level that looks at the whole round, and the items that teach nothing."""

    groups: tuple[GroupRows, ...]
    left_out: Mapping[str, int]
    nulls: tuple[PolicyNulls, ...] = ()
    credit: Mapping[str, JSON] = field(default_factory=dict)
    items: Mapping[str, list[JSON]] = field(default_factory=dict)

    @property
    def report(self) -> RowReport:
        counts = RowCounts()
        for group in self.groups:
            counts.add(group)
        return counts.report(left_out=self.left_out, nulls=self.nulls, credit=self.credit, items=self.items)

    @property
    def longest_row(self) -> int:
        """In tokens; 0 without a row."""
        return max((len(row.ids) for group in self.groups for row in group.rows), default=0)


Drop: TypeAlias = Callable[[Group, Rollout, Sequence[Row]], "str | None"]
"""Why a rollout of a group, which became these rows, is left out, in words that are the same for all with that reason;
None where it is not."""


def build_dataset(
    groups: Iterable[Group],
    *,
    level: str = "trajectory",
    norm: str = "none",
    lam: float | None = None,
    contrast: float | None = None,
    before: PreviousRound | None = None,
    credits: Credits | None = None,
    drop: Sequence[Drop] = (),
    from_text: MakeRows | None = None,
    agent: str | None = None,
) -> RolloutDataset:
    """The rows of groups with their advantages (docs/method.md §5), less what `drop` gives a reason to leave out.

    Advantages are of all rollouts of a group, whether or not they become rows: they are what the rollouts were worth
    beside each other. A group with a rollout whose reward is pending is left out whole.

    Args:
        groups: scored rollouts of tasks; each is let go of when its rows are made.
        level: where credit is given.
        norm: what advantages are divided by.
        lam: λ of level `lambda` (default: λ̂ of the round before, else 1, which is unbiased).
        contrast: η of contrast weights (contrast.py); the groups are then gone through twice.
        before: the round before, whose λ̂ and p̂ these are.
        credits: replaces `level`, `norm`, `lam` and `contrast`.
        drop: functions of a group, one of its rollouts and its rows to a reason to leave it out.
        from_text: makes the rows of traces without token ids, which are left out without it.
        agent: rows of the steps of the agent of this name alone, in a graph of several.

    Raises:
        TrainError: an empty set, or several reward versions in it.
    """
    weights = None
    if credits is None:
        check_credit(level, norm, lam=lam, contrast=contrast)
        if contrast is not None:
            groups = list(groups) if isinstance(groups, Iterator) else groups
            weights = Contrast.of(contrast, before, mean_reward(groups))
        if level in WHOLE_ROUND:
            credits = RoundCredits(level=level, lam=lam, norm=norm, before=before, worth=weights)
        else:
            credits = by_level(level, norm, weights)
    account = _Account()
    made: list[GroupRows] = []
    kept: list[list[int]] = []
    for rows, places in account.group_rows(groups, credits, drop, from_text, agent):
        made.append(rows)
        kept.append(places)
    figures: Mapping[str, JSON] = {}
    if isinstance(credits, RoundCredits):
        found = zip(made, kept, credits.advantages(), strict=True)
        made, figures = [one.credited(given, places) for one, places, given in found], credits.report
    if weights is not None:
        figures = {**figures, "contrast": weights.to_json()}
    if figures:
        figures = {**figures, "rates": item_rates(account.items.rates)}
    return RolloutDataset(
        groups=tuple(made),
        left_out=dict(account.left_out),
        nulls=account.nulls.policies,
        credit=figures,
        items=account.items.teaches_nothing,
    )


def count_rows(
    groups: Iterable[Group],
    *,
    level: str = "trajectory",
    norm: str = "none",
    lam: float | None = None,
    before: PreviousRound | None = None,
    from_text: MakeRows | None = None,
    agent: str | None = None,
) -> tuple[RowReport, int]:
    """The report of `build_dataset` and the tokens of the longest row. Rows are let go of as soon as they are counted,
    but at a level that looks at the whole round.

    Args:
        groups: as in `build_dataset`, like the others.
        level: where credit is given.
        norm: what advantages are divided by.
        lam: λ of level `lambda`.
        before: the round before.
        from_text: makes the rows of traces without token ids.
        agent: rows of the steps of this agent alone.

    Raises:
        TrainError: an empty set, or several reward versions in it.
    """
    check_credit(level, norm, lam=lam, contrast=None)
    if level in WHOLE_ROUND:
        dataset = build_dataset(
            groups, level=level, norm=norm, lam=lam, before=before, from_text=from_text, agent=agent
        )
        return dataset.report, dataset.longest_row
    account, counts = _Account(), RowCounts()
    for rows, _ in account.group_rows(groups, by_level(level, norm), (), from_text, agent):
        counts.add(rows)
    return (
        counts.report(
            left_out=account.left_out, nulls=account.nulls.policies, credit={}, items=account.items.teaches_nothing
        ),
        counts.longest_row,
    )


class _Account:
    """What is counted while groups become rows."""

    def __init__(self) -> None:
        self.items, self.nulls = ItemTally(), NullTally()
        self.left_out: Counter[str] = Counter()

    def group_rows(
        self,
        groups: Iterable[Group],
        credits: Credits,
        drop: Sequence[Drop],
        from_text: MakeRows | None,
        agent: str | None,
    ) -> Iterator[tuple[GroupRows, list[int]]]:
        """What is left of each group, and the places of its rollouts in the group."""
        for group in require_scored(groups, nulls=self.nulls):
            rollouts, informative, places = [], False, []
            self.items.add([rollout.score for rollout in group.rollouts])
            given = credits(group) if group.rollouts or isinstance(credits, RoundCredits) else ()
            for place, (rollout, credit) in enumerate(zip(group.rollouts, given, strict=True)):
                if isinstance(credit, str):
                    self.left_out[credit] += 1
                    continue
                informative = informative or any(credit(step.turn, step.index) != 0 for step in rollout.trace.steps)
                rows = rows_or_reason(rollout.trace, credit, agent=agent)
                if rows == TEXT_ONLY and from_text is not None:
                    rows = from_text(rollout.trace, credit)
                rows = rows or NO_STEP
                if isinstance(rows, str):
                    self.left_out[rows] += 1
                    continue
                given_reasons = (why(group, rollout, rows) for why in drop)
                reason = next((reason for reason in given_reasons if reason is not None), None)
                if reason is not None:
                    self.left_out[reason] += 1
                    continue
                recorded = [row for row in rows if not row.retokenised]
                shown = shown_words(rollout.trace, recorded)
                rollouts.append(RolloutRows(trace_id=rollout.trace.id, rows=tuple(rows), shown=shown))
                places.append(place)
            unknown = any(rollout.score.lower is None for rollout in group.rollouts)
            pending = unknown and all(isinstance(credit, str) for credit in given)
            yield GroupRows.of(group, rollouts, informative=informative, pending=pending), places


def require_scored(
    groups: Iterable[Group], *, one_reward: bool = True, nulls: NullTally | None = None
) -> Iterator[Group]:
    """The groups as they come, what was not judged of them counted in `nulls`. Raises TrainError after the last one
    where there was none, or no rollout in them, or they mix reward versions.
    """
    number, rollouts = 0, 0
    found: set[str] = set()
    for group in groups:
        number += 1
        rollouts += len(group.rollouts)
        found.add(str(group.key.get("reward")))
        if nulls is not None:
            for one in group.rollouts:
                nulls.add(one.trace, one.score)
        yield group
    if not number:
        raise TrainError(
            "no group was given; expected scored rollouts of tasks. Score the traces first (cm2 score), and check what "
            "the store's groups(…) was asked for: task, policy and reward version must be those of stored traces. A"
            " group is several rollouts of one task (cm2 run --group 8); a dialogue that happened once is in none."
        )
    if not rollouts:
        raise TrainError(
            f"{number} groups were given and none holds a rollout; expected at least two scored rollouts of a task"
        )
    versions = sorted(found)
    if one_reward and len(versions) > 1:
        raise TrainError(
            f"the groups mix {len(versions)} reward versions: {', '.join(versions[:4])}. Rewards of different versions "
            "cannot be compared: score all of them with one (cm2 score --again), or name the version to train on."
        )


def check_credit(level: str, norm: str, *, lam: float | None, contrast: float | None) -> None:
    """Raises TrainError on an unknown level and on settings of credit that cannot be meant, of an unknown norm when it
    is used."""
    levels = (*get_args(Level), "auto")
    if level not in levels:
        raise TrainError(f"level is {level!r}; expected one of {', '.join(levels)}")
    check_contrast(contrast, norm)
    if level in WHOLE_ROUND:
        RoundCredits(level=level, lam=lam, norm=norm)
    elif lam is not None:
        raise TrainError(f"level {level} with lam {lam}; only level lambda has a λ: leave it out")


def mean_reward(groups: Iterable[Group]) -> float | None:
    """The mean reward of the groups without a pending rollout; None where there is none."""
    rewards: list[float] = []
    for group in groups:
        own = [rollout.score.lower for rollout in group.rollouts]
        rewards += [one for one in own if one is not None] if None not in own else []
    return math.fsum(rewards) / len(rewards) if rewards else None


def by_level(level: str, norm: str, worth: Callable[[Score], Score] | None = None) -> Credits:
    """The advantages of docs/method.md §5 of a level that looks at one group at a time; `worth` gives the score as it
    is learnt from. Raises TrainError on another level, and on an unknown one or norm when it is called.
    """
    if level in WHOLE_ROUND:
        raise TrainError(
            f"level {level} looks at all groups of a round, and this at one; take return_to_go, which is λ = 1 with the"
            " other rollouts' mean"
        )

    def credits(group: Group) -> list[Credit | str]:
        scores = [rollout.score if worth is None else worth(rollout.score) for rollout in group.rollouts]
        happened = [[len(turn.steps) for turn in rollout.trace.turns] for rollout in group.rollouts]
        found = advantages(scores, level=cast(Level, level), norm=cast(Norm, norm), happened=happened)
        return [one.brief or one for one in found.rollouts]

    return credits
