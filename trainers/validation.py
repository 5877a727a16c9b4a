"""Which rollouts GRPO leaves out of a dataset, and which datasets it refuses to train on: which, why, and what to
do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

import numpy as np

from cm2_agent.errors import TrainError
from cm2_agent.types.group import Group, Rollout

from .advantage import GROUP_PENDING
from .dataset import Drop, RolloutDataset
from .model_limits import ModelLimits
from .rows import TEXT_ONLY, TOO_LONG, Row

STALE = "policy lag above max_lag"
NOT_FINITE = "a stored logprob is no number"
TRUNCATED = "the token limit cut an answer"


def too_long(max_length: int | None, model: ModelLimits | None = None) -> Drop:
    """Leaves out rollouts with a row of more than `max_length` tokens, or of more than the model reads; none is ever
    cut.
    """

    def drop(group: Group, rollout: Rollout, rows: Sequence[Row]) -> str | None:
        context = None if model is None else model.context
        given = [limit for limit in (max_length, context) if limit is not None]
        return TOO_LONG if given and any(len(row.ids) > min(given) for row in rows) else None

    return drop


def stale(versions: Sequence[str] | None, max_lag: int | None) -> Drop:
    """Leaves out the rollouts of policies more than `max_lag` behind the newest of `versions`."""
    old = set() if versions is None or max_lag is None else set(versions[: max(len(versions) - 1 - max_lag, 0)])

    def drop(group: Group, rollout: Rollout, rows: Sequence[Row]) -> str | None:
        return STALE if str(group.key.get("policy")) in old else None

    return drop


def not_finite(group: Group, rollout: Rollout, rows: Sequence[Row]) -> str | None:
    """Leaves out rollouts with a stored logprob that is no number: a sampler whose logits were broken wrote them."""
    return None if all(np.isfinite(row.mu).all() for row in rows) else NOT_FINITE


def truncated(group: Group, rollout: Rollout, rows: Sequence[Row]) -> str | None:
    """Leaves out rollouts in which the token limit cut an answer (`mask_truncated_completions`): it was judged for what
    it could not finish.
    """
    cut = any(
        "length" in (step.message.finish_reason, step.call.finish_reason if step.call else None)
        for step in rollout.trace.steps
    )
    return TRUNCATED if cut else None


def noted(rewards: dict[str, float | None]) -> Drop:
    """Leaves out nothing, and notes what each rollout is worth (`log_completions`)."""

    def drop(group: Group, rollout: Rollout, rows: Sequence[Row]) -> str | None:
        rewards[rollout.trace.id] = rollout.score.lower
        return None

    return drop


def check_sizes(dataset: RolloutDataset, num_generations: int | None) -> None:
    """Raises TrainError where `num_generations` was given and a stored group has another number of rollouts."""
    for group in dataset.groups:
        number = group.size
        if num_generations is not None and number not in (0, num_generations):
            raise TrainError(
                f"num_generations {num_generations} was given, and the group of task {group.key.get('task')!r}"
                f" holds {number} rollouts; leave it out: the stored groups decide"
            )


def leave_out(dataset: RolloutDataset, rollouts: Container[int], reason: str) -> RolloutDataset:
    """The dataset less the rollouts whose `id` is among `rollouts`, each counted under `reason`; which groups are
    informative stays as it was. Raises TrainError where nothing is left to learn from.
    """
    groups, number = [], 0
    for group in dataset.groups:
        rest = tuple(one for one in group.rollouts if id(one) not in rollouts)
        number += len(group.rollouts) - len(rest)
        groups.append(replace(group, rollouts=rest))
    left_out = Counter(dataset.left_out)
    if number:
        left_out[reason] += number
    smaller = replace(dataset, groups=tuple(groups), left_out=dict(left_out))
    require_something(smaller)
    return smaller


def check(dataset: RolloutDataset, *, versions: Sequence[str] | None, model: ModelLimits) -> float:
    """The one temperature of a dataset that GRPO can train on.

    Raises TrainError on several policies without `versions`, rows from words, nothing to learn from, several
    temperatures, and ids that the model does not know.
    """
    policies = sorted({str(group.key.get("policy")) for group in dataset.groups if group.rollouts})
    if versions is None and len(policies) > 1:
        raise TrainError(
            f"the groups come from {len(policies)} policies: {', '.join(policies[:4])}. Train on one "
            "(cm2 train --policy VERSION, store.groups(policy=…)), or say which is older: versions=[oldest, …, newest]."
        )
    unknown = [name for name in policies if versions is not None and name not in versions]
    if unknown:
        raise TrainError(
            f"policy {unknown[0]!r} of the groups is not among versions {list(versions or ())}; name every policy,"
            " from oldest to newest"
        )
    rows = [row for group in dataset.groups for row in group.rows]
    from_text = sum(row.retokenised for row in rows)
    if from_text:
        raise TrainError(
            f"{from_text} of {len(rows)} rows were made from words (retokenised): their ids are not"
            " what the model wrote and they have no logprobs. Train on them with SFT, then collect rollouts with your"
            " own policy for GRPO."
        )
    require_something(dataset)
    temperatures = sorted({row.temperature for row in rows if row.temperature is not None})
    if len(temperatures) > 1:
        raise TrainError(
            f"the rollouts were sampled at temperatures {', '.join(map(str, temperatures))}; their logprobs belong to "
            "different distributions. Train on those of one temperature at a time."
        )
    for row in rows:
        ids = np.asarray(row.ids)
        if ids.max() >= model.vocabulary or ids.min() < 0:
            raise TrainError(
                f"trace {row.trace_id!r} holds token id {ids.max()}, the model knows {model.vocabulary}: these"
                " rollouts are another model's. Name the model that sampled them, or one with its vocabulary."
            )
    return temperatures[0]


def require_something(dataset: RolloutDataset) -> None:
    """Raises TrainError where no rollout with a non-zero advantage is left, with the reasons that were counted."""
    if any(not one.zero for group in dataset.groups for one in group.rollouts):
        return
    report = dataset.report
    reasons = report.left_out
    if report.groups and report.pending_groups == report.groups:
        what = f"all {report.groups} groups are pending" if GROUP_PENDING in reasons else "all rewards are NULL"
        raise TrainError(
            f"{what}: {_sentence(reasons)}. A reward that is missing by nobody's doing is never taken for 0, and its"
            " group waits with it; find out why (cm2 doctor lists the reasons), score again, and train then."
        )
    if not report.informative_groups:
        raise TrainError(
            f"none of the {report.groups} groups has a non-zero advantage: within each, all rollouts are worth the"
            f" same, so there is nothing to prefer{_besides(reasons)}. Expected rewards that differ: take harder or"
            " easier tasks, more rollouts a group, or a checklist with finer items."
        )
    advice = (
        "Expected rollouts with token ids and the sampler's own logprobs, written by a policy not far from this one."
    )
    if TEXT_ONLY in reasons:
        advice = (
            "Text-only traces cannot be trained on by GRPO: the ids and logprobs of what was sampled are not there. "
            "Train on them with SFT first, then collect rollouts with LocalChatModel or an endpoint that returns token "
            "ids (vLLM: return_token_ids), and use GRPO on these."
        )
    raise TrainError(
        f"nothing is left to learn from in {report.groups} groups: {_sentence(reasons) or 'no rollout'}. {advice}"
    )


def _besides(reasons: Mapping[str, int]) -> str:
    return f" (left out besides: {_sentence(reasons)})" if reasons else ""


def _sentence(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))
