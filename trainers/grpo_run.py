"""One run of GRPO on a dataset: prepare the trainer, recheck stored calls, limit how far off policy, train and report.

Each function takes what the one before it returned, so that their order is the only one that types allow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from cm2_agent.errors import TrainError
from cm2_agent.types.json_values import JSON
from cm2_agent.types.protocols import Progress

from .batches import Logprobs, SampleBatches
from .collapse import LIMIT, reinforced, require_sound
from .dataset import GroupRows, RolloutDataset
from .launch import sharded
from .micro_batches import MicroBatches
from .model_limits import source_of
from .off_policy import OffPolicy, measure_rollouts, rollout_ratio, some
from .policy import Policy
from .processes import from_first, require_data_parallel
from .reference_policy import ReferencePolicy
from .resuming import train_resumably
from .rows import Floats, Row
from .saved_run import SavedRun, plan
from .sharding import gathered, shard, trained_version
from .trl_config import refusals
from .trl_trainer import StoredGRPOTrainer
from .validation import leave_out

if TYPE_CHECKING:
    from .grpo import GRPO
    from .recheck import Rechecked

REPORTED_AS = {"decoupled": "truncated", "direct": "direct"}
"""`importance_weighting` as `form` in report.json, where it keeps the words of the first reports."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The data, the policy and TRL's trainer, before any forward pass."""

    grpo: GRPO
    dataset: RolloutDataset
    policy: Policy
    trainer: StoredGRPOTrainer
    beta: float
    reference: ReferencePolicy | None = None
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class Limited:
    """A rechecked run less the rollouts outside the ratio band.

    `start` is log π of each row's model tokens before training, by the `id` of the row.
    """

    rechecked: Rechecked
    dataset: RolloutDataset
    start: Mapping[int, Floats]
    off_policy: OffPolicy


def prepare(
    grpo: GRPO, dataset: RolloutDataset, policy: Policy, config: Any, progress: Progress | None = None
) -> Prepared:
    """TRL's trainer for a dataset; `config` is a GRPOConfig, its number of steps set where it has none."""
    tokens = grpo.tokens_per_micro_batch
    micro_batches = MicroBatches.of(config, args=grpo.args, tokens=tokens, one_pass=sharded())
    # TRL would load a second model to refer to; ours is this one, before training.
    beta, config.beta = config.beta, 0.0
    reference = ReferencePolicy(policy.model) if config.sync_ref_model else None
    config.sync_ref_model = False
    # TRL draws prompts to generate from; ours are nominal, as many as one of its batches and the next steps need.
    if sharded():
        shard(policy, config.device, in_memory=source_of(grpo.model) is None)
    number = min(64, config.max_steps) if config.max_steps > 0 else 64
    prompts = Dataset.from_dict({"prompt": [""] * (config.generation_batch_size * number)})
    with refusals("GRPOTrainer"):
        trainer = StoredGRPOTrainer(
            on_step=progress,
            micro_batches=micro_batches,
            max_weight=grpo.max_weight,
            model=policy.model,
            args=config,
            train_dataset=prompts,
            processing_class=policy.tokenizer,
        )
    require_data_parallel(trainer.accelerator)
    if reference is not None:
        trainer.add_callback(reference.callback(trainer.accelerator))
    return Prepared(
        grpo=grpo,
        dataset=dataset,
        policy=policy,
        trainer=trainer,
        beta=beta,
        reference=reference,
        progress=progress,
    )


def limit(rechecked: Rechecked) -> Limited:
    """Leaves out the rollouts outside the ratio band. Raises TrainError where none is left, and above `max_kl`."""
    prepared, grpo = rechecked.prepared, rechecked.prepared.grpo
    groups = [group for group in prepared.dataset.groups if group.trained_on(prepared.beta)]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rows = [row for rollout in rollouts for row in rollout.rows]
    start: Mapping[int, Floats]
    if rechecked.exact and all(row.exact for row in rows):
        start = {id(row): row.mu for row in rows}
    else:
        start = prepared.trainer.logprobs_by_row(rows)
    dataset, outside, band = prepared.dataset, set[int](), grpo.ratio_band
    if band is not None:
        outside = {id(one) for one in rollouts if not 1 / band <= rollout_ratio(one.rows, start) <= band}
    inside = [one.rows for one in rollouts if id(one) not in outside]
    # Where none is inside the figures go unused: leaving them all out is refused.
    figures = measure_rollouts(inside or [one.rows for one in rollouts], start, max_weight=grpo.max_weight)
    if band is not None:
        dataset = leave_out(dataset, outside, f"mean ratio outside [1/{band:g}, {band:g}]")
    if grpo.max_kl is not None and not figures.kl_per_rollout <= grpo.max_kl:
        raise TrainError(
            f"KL(μ‖π) is {figures.kl_per_rollout:.3g} nats a rollout, above max_kl {grpo.max_kl}: these rollouts are "
            "too old for this policy; sample new ones with it, or raise max_kl"
        )
    return Limited(rechecked=rechecked, dataset=dataset, start=start, off_policy=figures)


def fit(
    limited: Limited, checkpoint: Path | None, rewards: Mapping[str, float | None]
) -> tuple[Policy | None, dict[str, JSON]]:
    """Trains, from a checkpoint of this very run where there is one. Returns the policy, whole, in process 0, which
    alone saves it (None in the others), and what was trained on what, and what it did. `rewards` by trace are for
    `log_completions`.
    """
    dataset, rechecked, prepared = limited.dataset, limited.rechecked, limited.rechecked.prepared
    grpo, policy, trainer = prepared.grpo, prepared.policy, prepared.trainer
    groups = [group for group in dataset.groups if group.trained_on(prepared.beta)]
    batches = SampleBatches(
        groups,
        grpo,
        start=limited.start,
        now=trainer.logprobs_by_row,
        reference=_reference(prepared, limited.start),
        compared=trainer.compares,
    )
    trainer.feed(batches, beta=prepared.beta, rewards=rewards)
    steps_a_batch = plan(trainer, batches.pass_sizes)
    saved = SavedRun(prepared=prepared, batches=batches, steps_a_batch=steps_a_batch)

    train_resumably(
        trainer,
        checkpoint,
        progress=prepared.progress,
        check=lambda: measure_after(limited, groups),
        state=saved.state,
        every=steps_a_batch,
        go_on=saved.go_on,
    )
    after = measure_after(limited, groups)
    trained = gathered(policy)
    version = from_first(None if trained is None else trained_version(trained))
    report, given = dataset.report, prepared.dataset.groups
    behaviour = sorted({str(group.key.get("policy")) for group in given})
    return trained, {
        **report.to_json(),
        "zero_advantage_groups": report.groups - report.informative_groups,
        "reward": given[0].key.get("reward"),
        "policy": {"behaviour": behaviour, "before": policy.version, "after": version},
        "level": grpo.level,
        "norm": grpo.norm,
        "form": REPORTED_AS[grpo.importance_weighting],
        "cap": grpo.max_weight,
        "temperature": trainer.settings.temperature,
        "beta": prepared.beta,
        "learning_rate": trainer.settings.learning_rate,
        "rollouts_per_step": grpo.rollouts_per_step,
        "steps": len(trainer.history),
        "seed": trainer.settings.seed,
        "recomputed": None if rechecked.check is None else dict(rechecked.check),
        "fresh": rechecked.fresh,
        "off_policy": limited.off_policy.to_json(),
        "off_policy_after": after,
        "history": trainer.history,
    }


def _reference(prepared: Prepared, start: Mapping[int, Floats]) -> Callable[[Sequence[Row]], Logprobs] | None:
    """What gives log π_ref of rows, None without a KL term: the policy before training, or the one that follows it."""
    followed = prepared.reference
    if followed is not None:
        return lambda rows: prepared.trainer.logprobs_by_row(rows, model=followed.model)
    return (lambda rows: start) if prepared.beta else None


def measure_after(limited: Limited, groups: Sequence[GroupRows]) -> dict[str, float]:
    """How far the policy is now from the one that sampled, on some of the rows. Raises TrainError where its logprobs
    are no numbers, above `max_kl`, and without one where the policy has collapsed.
    """
    prepared = limited.rechecked.prepared
    grpo, trainer = prepared.grpo, prepared.trainer
    rollouts = [rollout.rows for group in groups for rollout in group.rollouts]
    rows = [row for one in rollouts for row in one]
    drifted = trainer.logprobs_by_row(some(rows))
    measured = measure_rollouts(rollouts, drifted, max_weight=grpo.max_weight)
    after, kl = measured.to_json(), measured.kl_per_rollout
    rate = trainer.settings.learning_rate
    if grpo.max_kl is None:
        require_sound(
            reinforced(rows, limited.start, drifted),
            LIMIT,
            what=f"after {len(trainer.history)} steps KL(μ‖π) is {kl:.3g} nats a rollout, and the"
            " tokens with a positive advantage",
            learning_rate=rate,
            more=", or pass max_kl=… (--set max_kl=…), which is then the only limit: of KL(μ‖π) in nats a rollout,"
            " math.inf (Infinity) for none",
        )
    elif not kl <= grpo.max_kl:
        raise TrainError(
            f"KL(μ‖π) is {kl:.3g} nats a rollout after {len(trainer.history)} steps, above max_kl"
            f" {grpo.max_kl}; nothing was saved. Take fewer steps, a lower learning_rate (now"
            f" {rate:g}) or a KL term (beta), or raise max_kl"
        )
    return after
