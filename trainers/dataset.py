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
from dataclasses import dataclass, field, replace
from typing import TypeAlias, cast, get_args

from cm2_agent.errors import TrainError
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.json_values import JSON
from cm2_agent.types.null_rates import NullTally, PolicyNulls
from cm2_agent.types.score import Score
from cm2_agent.types.score_bounds import Bounds
from cm2_agent.types.trace import Trace

from .advantage import GroupAdvantages, Level, Norm, advantages
from .contrast import Contrast, check_contrast
from .item_tally import ItemTally
from .previous_round import PreviousRound, item_rates
from .round_credits import RoundCredits
from .rows import NO_STEP, TEXT_ONLY, Credit, Row, rows_or_reason
from .shown_words import Shown, shown_words

Credits: TypeAlias = Callable[[Group], Sequence[Credit | str]]
"""The advantages of a group's rollouts, in their order; for a rollout that is left out, the reason."""
WHOLE_ROUND = ("lambda", "auto")
"""Levels that look at all groups of a round."""
MakeRows: TypeAlias = Callable[[Trace, Credit], "list[Row] | str"]
"""The rows of a trace that has no token ids, or the reason why it has none."""


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
        rows = [row for group in self.groups for row in group.rows]
        trained = sum(row.trained for row in rows)
        bounds = [one for group in self.groups if not group.pending for one in group.bounds]
        return RowReport(
            groups=len(self.groups),
            informative_groups=sum(group.informative for group in self.groups),
            rows=len(rows),
            trained_tokens=trained,
            masked_tokens=sum(len(row.ids) for row in rows) - trained,
            pending_groups=sum(group.pending for group in self.groups),
            lower=math.fsum(one.lower for one in bounds) / len(bounds) if bounds else None,
            upper=math.fsum(one.upper for one in bounds) / len(bounds) if bounds else None,
            left_out=dict(self.left_out),
            retokenised_rows=sum(row.retokenised for row in rows),
            nulls=self.nulls,
            credit=self.credit,
            items=self.items,
        )


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
    tally = ItemTally()
    left_out: Counter[str] = Counter()
    nulls = NullTally()
    made: list[GroupRows] = []
    kept: list[list[int]] = []
    for group in require_scored(groups, nulls=nulls):
        rollouts, informative, places = [], False, []
        tally.add([rollout.score for rollout in group.rollouts])
        given = credits(group) if group.rollouts or isinstance(credits, RoundCredits) else ()
        for place, (rollout, credit) in enumerate(zip(group.rollouts, given, strict=True)):
            if isinstance(credit, str):
                left_out[credit] += 1
                continue
            informative = informative or any(credit(step.turn, step.index) != 0 for step in rollout.trace.steps)
            rows = rows_or_reason(rollout.trace, credit, agent=agent)
            if rows == TEXT_ONLY and from_text is not None:
                rows = from_text(rollout.trace, credit)
            rows = rows or NO_STEP
            if isinstance(rows, str):
                left_out[rows] += 1
                continue
            given_reasons = (why(group, rollout, rows) for why in drop)
            reason = next((reason for reason in given_reasons if reason is not None), None)
            if reason is not None:
                left_out[reason] += 1
                continue
            recorded = [row for row in rows if not row.retokenised]
            shown = shown_words(rollout.trace, recorded)
            rollouts.append(RolloutRows(trace_id=rollout.trace.id, rows=tuple(rows), shown=shown))
            places.append(place)
        unknown = any(rollout.score.lower is None for rollout in group.rollouts)
        pending = unknown and all(isinstance(credit, str) for credit in given)
        made.append(GroupRows.of(group, rollouts, informative=informative, pending=pending))
        kept.append(places)
    figures: Mapping[str, JSON] = {}
    if isinstance(credits, RoundCredits):
        found = zip(made, kept, credits.advantages(), strict=True)
        made, figures = [one.credited(given, places) for one, places, given in found], credits.report
    if weights is not None:
        figures = {**figures, "contrast": weights.to_json()}
    if figures:
        figures = {**figures, "rates": item_rates(tally.rates)}
    return RolloutDataset(
        groups=tuple(made),
        left_out=dict(left_out),
        nulls=nulls.policies,
        credit=figures,
        items=tally.teaches_nothing,
    )


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
