"""A new policy's mean reward from the stored rollouts of an old one, before anybody is served by it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm2_agent.errors import require_extra
from cm2_agent.models.adapters import is_peft
from cm2_agent.types.group import Group
from cm2_agent.types.json_values import JSON
from cm2_agent.types.protocols import Progress

from .dataset import RolloutDataset, build_dataset
from .grpo import GRPO
from .model_limits import ModelLimits
from .off_policy_values import OffPolicyValues, ValueEstimate, off_policy_values
from .policy import loaded_policy
from .prompt_text import leave_out_lost
from .rows import Floats
from .trl_config import grpo_config
from .validation import check, not_finite, too_long
from .weighed_rollouts import NotedRollouts, known_rewards, not_at, not_whole, require_one_policy

if TYPE_CHECKING:
    from .recheck import Rechecked

require_extra("train", "Trainers", "torch", "transformers", "trl", "accelerate", "datasets")

ROWS_AT_ONCE = 128
"""Rows between two calls of `progress`."""


@dataclass(frozen=True, kw_only=True)
class PolicyEvaluation:
    """What the rollouts of policy `behaviour` say that `policy` would earn at their temperature, by one reward version.

    `values` has the old policy's mean and, where nothing was `refused`, stands behind the estimates; `left_out` counts
    rollouts by reason, and `left_out_mean` is the mean reward of those whose reward is known: far from the old policy's
    mean, they were no chance selection. `by_turn`: the reward is that of a checklist's turns, so that the doubly robust
    estimate corrects turn by turn, and not the dialogue as a whole. `same`: the policy is the one that wrote the
    rollouts, so that all ratios are 1. `recomputed` is what the check of its stored calls found.
    """

    policy: str
    behaviour: str
    reward: str
    temperature: float
    values: OffPolicyValues
    by_turn: bool
    same: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)
    left_out_mean: float | None = None
    recomputed: Mapping[str, float] | None = None

    @property
    def refused(self) -> str | None:
        """Why there are no estimates of the new policy, with the figure, what was expected and what to do; None where
        there are."""
        return self.values.refusal

    @property
    def self_normalised(self) -> ValueEstimate | None:
        """Σ ρR / Σ ρ; None where it is refused."""
        return None if self.refused else self.values.self_normalised

    @property
    def doubly_robust(self) -> ValueEstimate | None:
        """The mean of V̂(h_0) + Σ_t ρ_{1:t}(R_t/L + V̂(h_{t+1}) − V̂(h_t)); None where it is refused."""
        return None if self.refused else self.values.doubly_robust

    def to_json(self) -> dict[str, JSON]:
        found, refused = self.values, self.refused is not None
        estimates: dict[str, JSON] = {
            name: None if refused else {**one.to_json(), "gain": gain.to_json()}
            for name, one, gain in (
                ("self_normalised", found.self_normalised, found.gain_self_normalised),
                ("doubly_robust", found.doubly_robust, found.gain_doubly_robust),
            )
        }
        return {
            "policy": self.policy,
            "behaviour": self.behaviour,
            "same": self.same,
            "reward": self.reward,
            "temperature": self.temperature,
            "rollouts": found.rollouts,
            "tasks": found.tasks,
            "left_out": dict(sorted(self.left_out.items())),
            "left_out_mean": self.left_out_mean,
            "effective": found.effective,
            "effective_share": found.share,
            "weight": found.weight.to_json(),
            "by_turn": self.by_turn,
            "old": found.old.to_json(),
            **estimates,
            "recomputed": None if self.recomputed is None else dict(self.recomputed),
            "refused": self.refused,
        }


def evaluate_policy(
    model: Any,
    groups: Iterable[Group],
    *,
    tokenizer: Any = None,
    agent: str | None = None,
    temperature: float | None = None,
    max_length: int | None = None,
    policy_version: str | None = None,
    checks: int = 50,
    tolerance: float | None = None,
    tokens_per_micro_batch: int | None = 32_768,
    seed: int = 0,
    progress: Progress | None = None,
) -> PolicyEvaluation:
    """What a new policy would earn on the tasks of stored rollouts, by the ratios ρ of its probabilities to those that
    the old one's sampler stored (docs/method.md §6).

    The ratios are those that GRPO takes: the same rows, temperature and forward pass. Where an effective sample size of
    less than 10 % of the rollouts or fewer than 30 tasks are left, `refused` says so and the estimates are None.
    Rewards are lower bounds: a NULL of the policy's doing is unpaid, and a group with a pending rollout is left out
    whole.

    Args:
        model: the new policy: a folder or hub name of a model or of a LoRA adapter, or a model in memory, which stays
            as it is.
        groups: scored rollouts of one policy and one reward version, `store.stream_groups(…, min_size=1)`.
        tokenizer: the model's, where it is in memory.
        agent: only this agent's steps are the new policy's, in a graph of several; the others' stay as they are.
        temperature: only rollouts sampled at this temperature; None: there must be one alone.
        max_length: rollouts with a row of more tokens are left out (default: what the model reads).
        policy_version: the name under which this very policy wrote rollouts, where that is not its fingerprint.
        checks: how many stored calls are recomputed where this very policy wrote them (0: none).
        tolerance: the mean |difference| of recomputed logprobs above which they are refused (default as in GRPO).
        tokens_per_micro_batch: tokens, padding included, that pass forward at once; None: no limit.
        seed: of the bootstrap.
        progress: called with (rows done, all rows, {}) as the model goes through them.

    Raises:
        TrainError: rollouts of several policies, temperatures or reward versions; none that can be weighed; logprobs
            that the policy which wrote them does not give again.

    >>> from transformers import Qwen3Config, Qwen3ForCausalLM
    >>> from cm2_agent import Group, Message, ModelCall, Rollout, Run, Score, Trace
    >>> from cm2_agent.models import byte_tokenizer
    >>> from cm2_agent.trainers import evaluate_policy
    >>> def group(number):
    ...     call = ModelCall(span_id="s", message=1, sampling={"temperature": 1.0, "logprobs": "processed"},
    ...         model_version="v0", prompt_ids=(1, 2), completion_ids=(65 + number % 2,), logprobs=(-5.6,))
    ...     messages = (Message.of("user", "A or B?"), Message.of("assistant", "AB"[number % 2]))
    ...     trace = Trace.of(Run(id=f"r{number}", messages=messages, calls=(call,)))
    ...     score = Score(trace_id=trace.id, reward_version="r:1", reward=float(number % 2))
    ...     key = {"task": f"t{number}", "policy": "v0", "reward": "r:1"}
    ...     return Group(key=key, rollouts=(Rollout(trace=trace, score=score),))
    >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    >>> heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(byte_tokenizer())}
    >>> model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads))
    >>> found = evaluate_policy(model, map(group, range(40)), tokenizer=byte_tokenizer())
    >>> found.values.rollouts, found.values.tasks, found.values.old.value, found.refused
    (40, 40, 0.5, None)
    """
    limits, noted = ModelLimits(model), NotedRollouts()
    dataset = build_dataset(
        noted.passing(groups),
        credits=known_rewards,
        agent=agent,
        drop=[too_long(max_length, limits), not_finite, not_whole(agent), not_at(temperature)],
    )
    require_one_policy(dataset)
    warmth = check(dataset, versions=None, model=limits)
    grpo = GRPO(
        model,
        "nowhere",
        tokenizer=tokenizer,
        steps=1,
        policy_version=policy_version,
        checks=checks,
        tolerance=tolerance,
        tokens_per_micro_batch=tokens_per_micro_batch,
    )
    # torch and TRL are imported when the model is needed.
    from .grpo_run import prepare
    from .processes import ending_together
    from .recheck import recheck
    from .trl_trainer import config_restored

    with ending_together(), loaded_policy(model, tokenizer) as policy, tempfile.TemporaryDirectory() as folder:
        dataset = leave_out_lost(dataset, policy.tokenizer)
        config = grpo_config(grpo, warmth, Path(folder), adapter=is_peft(policy.model))
        with config_restored(policy.model):
            rechecked = recheck(prepare(grpo, dataset, policy, config))
            logprobs = _logprobs(rechecked, dataset, progress)
    weighed, by_turn = noted.weighed(dataset, logprobs)
    values = off_policy_values(weighed, seed=seed)
    key = next(group.key for group in dataset.groups if group.rollouts)
    return PolicyEvaluation(
        policy=policy.version,
        behaviour=str(key.get("policy")),
        reward=str(key.get("reward")),
        temperature=warmth,
        values=values,
        by_turn=by_turn,
        same=rechecked.fresh,
        left_out=dataset.left_out,
        left_out_mean=noted.mean_besides(dataset),
        recomputed=rechecked.check,
    )


def _logprobs(rechecked: Rechecked, dataset: RolloutDataset, progress: Progress | None) -> Mapping[int, Floats]:
    """log π of each row's model tokens, by the `id` of the row: as stored where these very weights sampled them, so
    that no rounding stands between a policy and itself."""
    rows = [row for group in dataset.groups for row in group.rows]
    if rechecked.fresh:
        return {id(row): row.mu for row in rows}
    rows.sort(key=lambda row: len(row.ids))
    found: dict[int, Floats] = {}
    for start in range(0, len(rows), ROWS_AT_ONCE):
        found |= rechecked.prepared.trainer.logprobs_by_row(rows[start : start + ROWS_AT_ONCE])
        if progress is not None:
            progress(len(found), len(rows), {})
    return found


__all__ = ["PolicyEvaluation", "evaluate_policy"]
