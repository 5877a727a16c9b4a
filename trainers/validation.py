"""What GRPO refuses to train on, and the words it does so with: which, why, and what to do. Apart so that the
trainer reads as what it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cm2_agent.errors import TrainError

from .dataset import Collected
from .rows import TEXT_ONLY

STALE = "policy lag above max_lag"


def settings(
    *,
    form: str,
    cap: float,
    steps: int | None,
    epochs: int | None,
    rollouts_per_step: int,
    rollouts_per_load: int | None,
    ratio_band: float | None,
    max_lag: int | None,
    versions: Sequence[str] | None,
) -> None:
    """Raises TrainError on a keyword that cannot be meant."""
    if form not in ("truncated", "direct"):
        raise TrainError(f"form {form!r}; expected 'truncated' or 'direct'")
    if steps is not None and epochs is not None:
        raise TrainError(f"steps {steps} and epochs {epochs} were both given; give one of them")
    for name, count in (
        ("steps", steps),
        ("epochs", epochs),
        ("rollouts_per_step", rollouts_per_step),
        ("rollouts_per_load", rollouts_per_load),
    ):
        if count is not None and count < 1:
            raise TrainError(f"{name} {count}; expected at least 1")
    if not cap >= 1:
        raise TrainError(f"cap {cap}; expected 1 or more: the bound of π_prox/μ")
    if ratio_band is not None and not ratio_band > 1:
        raise TrainError(
            f"ratio_band {ratio_band}; expected more than 1 (rollouts outside [1/b, b] are left out), or None for no"
            " limit"
        )
    if max_lag is not None and versions is None:
        raise TrainError(
            "max_lag needs versions=[…], the policy versions from oldest to newest: their names do not tell their order"
        )


def stale(collected: Collected, versions: Sequence[str] | None, max_lag: int | None) -> Collected:
    """Groups of one policy pass; of several only with `versions`, and without those that lag too far. Raises
    TrainError.
    """
    found = sorted({str(group.group.key.get("policy")) for group in collected.groups if group.rollouts})
    if versions is None:
        if len(found) > 1:
            raise TrainError(
                f"the groups come from {len(found)} policies: {', '.join(found[:4])}. Train on one "
                "(store.groups(policy=…)), or say which is older: versions=[oldest, …, newest]."
            )
        return collected
    unknown = [name for name in found if name not in versions]
    if unknown:
        raise TrainError(
            f"policy {unknown[0]!r} of the groups is not among versions {list(versions)}; name every policy, from"
            " oldest to newest"
        )
    if max_lag is None:
        return collected
    lag = {name: len(versions) - 1 - index for index, name in enumerate(versions)}
    old = {
        id(one)
        for group in collected.groups
        for one in group.rollouts
        if lag[str(group.group.key.get("policy"))] > max_lag
    }
    return collected.without(lambda one: STALE if id(one) in old else None)


def trainable(collected: Collected) -> float:
    """The one temperature of the rows. Raises TrainError where there is no row, nothing to learn, several
    temperatures or rows from words.
    """
    report = collected.report
    if report.retokenised_rows:
        raise TrainError(
            f"{report.retokenised_rows} of {report.rows} rows were made from words (retokenised): their ids are not"
            " what the model wrote and they have no logprobs. Train on them with SFT, then collect rollouts with your"
            " own policy for GRPO."
        )
    something_left(collected)
    temperatures = sorted(
        {row.temperature for group in collected.groups for row in group.rows if row.temperature is not None}
    )
    if len(temperatures) > 1:
        raise TrainError(
            f"the rollouts were sampled at temperatures {', '.join(map(str, temperatures))}; their logprobs belong to "
            "different distributions. Train on those of one temperature at a time."
        )
    return temperatures[0]


def something_left(collected: Collected) -> None:
    """Raises TrainError where no rollout with a non-zero advantage is left, with the reasons that were counted."""
    if any(not one.zero for group in collected.groups for one in group.rollouts):
        return
    report = collected.report
    reasons = report.left_out
    if reasons and not report.rows and all(reason.startswith(("no reward", "no verdict")) for reason in reasons):
        raise TrainError(
            f"all rewards are NULL: {_told(reasons)}. A missing reward is never taken for 0; find out why (cm2 doctor "
            "lists the reasons), score again, and train then."
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
        f"nothing is left to learn from in {report.groups} groups: {_told(reasons) or 'no rollout'}. {advice}"
    )


def vocabulary(collected: Collected, size: int) -> None:
    """Raises TrainError where a row holds an id that the model does not know: it was written by another model."""
    for group in collected.groups:
        for row in group.rows:
            if max(row.ids) >= size or min(row.ids) < 0:
                raise TrainError(
                    f"trace {row.trace_id!r} holds token id {max(row.ids)}, the model knows {size}: these rollouts are "
                    "another model's. Name the model that sampled them, or one with its vocabulary."
                )
    something_left(collected)


def mismatch(check: Mapping[str, float], version: str, tolerance: float) -> TrainError:
    """The refusal of stored logprobs that the model which is said to have written them does not give again."""
    return TrainError(
        f"stored logprobs are not this policy's: {check['calls']:g} calls of policy {version} recomputed, mean"
        f" |difference| {check['mean_abs']:.3g} (at most {check['max_abs']:.3g}), expected up to {tolerance:g}. Either"
        " the ids or logprobs were recorded wrongly, or another temperature, template or precision was used than"
        " stored; training on them would go astray. If the sampler computed in lower precision on purpose, raise"
        " tolerance."
    )


def _besides(reasons: Mapping[str, int]) -> str:
    return f" (left out besides: {_told(reasons)})" if reasons else ""


def _told(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))
