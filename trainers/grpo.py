"""GRPO on stored groups: from scored traces to the folder of a better policy, with the loss of docs/method.md §6."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cm2_agent.errors import TrainError, require_extra
from cm2_agent.types.group import Group
from cm2_agent.types.json_values import JSON

from . import checkpoint
from .dataset import Credits, build_dataset
from .trl_config import grpo_config
from .validation import check, stale, too_long

require_extra("train", "Trainers", "torch", "transformers", "trl", "accelerate", "datasets")

ImportanceWeighting: TypeAlias = Literal["decoupled", "direct"]
Progress: TypeAlias = Callable[[int, int, dict[str, float]], object]


class GRPO:
    """Trains `model` on stored groups and writes the new policy to the folder `out`.

    Data. `level` and `norm` choose the advantage (method.md §5); `credits` replaces both by any function of a group.
    Rollouts longer than `max_length` tokens (default: what the model reads) are left out. `ratio_band` b leaves out
    rollouts whose geometric-mean ratio to the behaviour policy lies outside [1/b, b]; `max_kl` refuses the run where
    KL(μ‖π) a rollout, in nats, is above it. Groups of several policies need `versions`, the policy versions from
    oldest to newest; those more than `max_lag` behind the newest are left out. Groups without any non-zero advantage
    are trained on only where there is a KL term.

    Loss. `form` "truncated": `−w·min(rA, clip(r)A)` with r = π_θ/π_prox and w = min(`cap`, π_prox/μ), which passes no
    gradient; "direct": r = π_θ/μ, bounded by `cap` where A < 0. π_prox is the policy as it was when the rollouts were
    loaded: all at once at the start, or `rollouts_per_load` at a time. Averaged over the trained tokens of an
    optimizer step (dapo), so that a rollout in two rows counts as it would in one.

    Steps. Exactly `steps` optimizer steps, or `epochs` passes (default 1), of about `rollouts_per_step` rollouts;
    groups stay whole. The learning rate is constant after `warmup_steps`. `args` is a GRPOConfig (then it alone
    decides; give neither `steps` nor `learning_rate`) or a dict of its settings; `gradient_accumulation_steps` k
    splits a step's rows into k parts. A KL term (`beta`) pulls towards the policy as given.

    Before anything is learnt from rollouts of this very policy (its fingerprint, or `policy_version` where versions
    have names), `checks` stored calls are recomputed: a mean |difference| above `tolerance` refuses the run.

    A model in memory is trained in place. The same seed, groups and machine give the same weights, bit by bit.
    """

    def __init__(
        self,
        model: Any,
        out: str | Path,
        *,
        tokenizer: Any = None,
        level: str = "trajectory",
        norm: str = "none",
        credits: Credits | None = None,
        importance_weighting: ImportanceWeighting = "decoupled",
        max_weight: float = 2.0,
        steps: int | None = None,
        epochs: int | None = None,
        rollouts_per_step: int = 64,
        rollouts_per_load: int | None = None,
        learning_rate: float | None = None,
        warmup_steps: int | None = None,
        seed: int = 0,
        max_length: int | None = None,
        ratio_band: float | None = 2.0,
        max_kl: float | None = None,
        versions: Sequence[str] | None = None,
        max_lag: int | None = None,
        policy_version: str | None = None,
        checks: int = 50,
        tolerance: float = 1e-3,
        args: Any = None,
    ) -> None:
        self.importance_weighting, self.max_weight = importance_weighting, max_weight
        self.steps, self.epochs = steps, epochs
        self.rollouts_per_step, self.rollouts_per_load = rollouts_per_step, rollouts_per_load
        self.ratio_band, self.versions, self.max_lag = ratio_band, versions, max_lag
        self._refuse_settings()
        self.model, self.tokenizer, self.out = model, tokenizer, Path(out)
        self.level, self.norm, self.credits = level, norm, credits
        self.learning_rate, self.warmup_steps, self.seed, self.args = learning_rate, warmup_steps, seed, args
        self.max_length, self.max_kl, self.policy_version = max_length, max_kl, policy_version
        self.checks, self.tolerance = checks, tolerance
        self.report: dict[str, JSON] = {}

    def train(self, groups: Iterable[Group], progress: Progress | None = None) -> Path:
        """Train and return `out`: safetensors, tokenizer and report.json (also `self.report`).

        `progress(step, total, metrics)` is told of every optimizer step. An interrupted run leaves `out` as it was.
        Raises MissingExtra without the extra `train`,
        and TrainError, with which, why and what to do, for whatever cannot be trained on.
        """
        checkpoint.check_out(self.out)
        limits = checkpoint.ModelLimits(self.model)
        dataset = build_dataset(
            groups,
            level=self.level,
            norm=self.norm,
            credits=self.credits,
            drop=[too_long(self.max_length, limits), stale(self.versions, self.max_lag)],
        )
        temperature = check(dataset, versions=self.versions, model=limits)
        policy = checkpoint.load_policy(self.model, self.tokenizer)
        with checkpoint.whole_folder(self.out) as folder:
            # torch and TRL are imported when training begins.
            from .grpo_run import fit, limit, prepare, recheck
            from .trl_trainer import config_restored

            config = grpo_config(self, temperature, folder.parent / "trl")
            with config_restored(policy.model):
                prepared = prepare(self, dataset, policy, config, progress)
                rechecked = recheck(prepared)
                limited = limit(rechecked)
                self.report = fit(limited)
            checkpoint.save(folder, policy.model, policy.tokenizer, self.report)
        return self.out

    def _refuse_settings(self) -> None:
        """Raises TrainError on a keyword that cannot be meant."""
        if self.importance_weighting not in ("decoupled", "direct"):
            raise TrainError(
                f"importance_weighting {self.importance_weighting!r}; expected 'decoupled' (clip around π_prox, weigh"
                " by π_prox/μ) or 'direct' (clip around μ)"
            )
        if self.steps is not None and self.epochs is not None:
            raise TrainError(f"steps {self.steps} and epochs {self.epochs} were both given; give one of them")
        for name in ("steps", "epochs", "rollouts_per_step", "rollouts_per_load"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise TrainError(f"{name} {count}; expected at least 1")
        if not self.max_weight >= 1:
            raise TrainError(f"max_weight {self.max_weight}; expected 1 or more: the bound of π_prox/μ")
        if self.ratio_band is not None and not self.ratio_band > 1:
            raise TrainError(
                f"ratio_band {self.ratio_band}; expected more than 1 (rollouts outside [1/b, b] are left out), or None"
                " for no limit"
            )
        if self.max_lag is not None and self.versions is None:
            raise TrainError(
                "max_lag needs versions=[…], the policy versions from oldest to newest: their names do not tell their"
                " order"
            )
