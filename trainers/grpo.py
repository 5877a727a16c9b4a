"""GRPO on stored groups: from scored traces to the folder of a better policy, with the loss of method.md §6 on TRL's
GRPOTrainer.

    path = GRPO(model="Qwen/Qwen3-4B", out="runs/1").train(store.groups(checklist=support, policy="v3"))

This file decides what is trained on, refuses what cannot be, and keeps the account; `stored` runs it. torch and TRL
are imported when training begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cm2_agent.errors import TrainError
from cm2_agent.types.group import Group
from cm2_agent.types.json_values import JSON

from . import checkpoint
from . import validation as refusals
from .dataset import Collected, Credits, GroupRows, collect
from .off_policy import mean_ratio, measure, truncated_weights
from .rows import TOO_LONG
from .trl_config import config

if TYPE_CHECKING:
    from .collator import Sample
    from .trl_trainer import StoredGRPOTrainer

Form = Literal["truncated", "direct"]
Progress = Callable[[int, int, dict[str, float]], object]

FRESH = 1e-4
"""Mean |log π − log μ| of the recomputed calls up to which the stored logprobs stand for π_prox itself."""

DRIFT_ROWS = 64
"""Rows, evenly spaced, on which the trained policy is measured against μ for the report."""


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
        form: Form = "truncated",
        cap: float = 2.0,
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
        refusals.settings(
            form=form,
            cap=cap,
            steps=steps,
            epochs=epochs,
            rollouts_per_step=rollouts_per_step,
            rollouts_per_load=rollouts_per_load,
            ratio_band=ratio_band,
            max_lag=max_lag,
            versions=versions,
        )
        self.model, self.tokenizer, self.out = model, tokenizer, Path(out)
        self.level, self.norm, self.credits = level, norm, credits
        self.form, self.cap = form, cap
        self.steps, self.epochs, self.rollouts_per_step, self.rollouts_per_load = (
            steps,
            epochs,
            rollouts_per_step,
            rollouts_per_load,
        )
        self.learning_rate, self.warmup_steps, self.seed, self.args = learning_rate, warmup_steps, seed, args
        self.max_length, self.ratio_band, self.max_kl = max_length, ratio_band, max_kl
        self.versions, self.max_lag, self.policy_version = versions, max_lag, policy_version
        self.checks, self.tolerance = checks, tolerance
        self.report: dict[str, JSON] = {}

    def train(self, groups: Iterable[Group], progress: Progress | None = None) -> Path:
        """Train and return `out`: safetensors, tokenizer and report.json (also `self.report`).

        `progress(step, total, metrics)` is told of every optimizer step. An interrupted run leaves `out` as it was.
        Raises TrainError, with which, why and what to do, for whatever cannot be trained on.
        """
        checkpoint.check_out(self.out)
        collected = collect(groups, level=self.level, norm=self.norm, max_length=self.max_length, credits=self.credits)
        collected = refusals.stale(collected, self.versions, self.max_lag)
        temperature = refusals.trainable(collected)
        policy = checkpoint.load_policy(self.model, self.tokenizer)
        context = checkpoint.longest(policy.model)
        if context is not None:
            collected = collected.without(
                lambda one: TOO_LONG if any(len(row.ids) > context for row in one.rows) else None
            )
        refusals.vocabulary(collected, checkpoint.vocabulary(policy.model))
        with checkpoint.whole_folder(self.out) as folder:
            from .trl_trainer import restored

            with restored(policy.model):
                run = _Run(self, collected, policy, temperature, folder, progress)
                run.train()
            self.report = run.report()
            checkpoint.save(folder, policy.model, policy.tokenizer, self.report)
        return self.out

    def config(self, temperature: float, folder: Path, batches: Callable[[Any], int]) -> Any:
        """The GRPOConfig of this run. `batches(config)` is the number of optimizer steps of one pass over the data."""
        from trl import GRPOConfig

        given = isinstance(self.args, GRPOConfig)
        mapping = self.args if isinstance(self.args, Mapping) else {}
        parts = int(mapping.get("steps_per_generation") or mapping.get("gradient_accumulation_steps") or 1)
        nominal = int(
            mapping.get("per_device_train_batch_size") or 2
        )  # TRL counts prompts by it; how many rows there are we decide
        nominal = nominal if nominal * parts > 1 else 2
        defaults = {
            "per_device_train_batch_size": nominal,
            "num_generations": nominal * parts,
            "beta": 0.0,
            "loss_type": "dapo",
            "epsilon": 0.2,
            "epsilon_high": 0.28,
            "temperature": temperature,
            "scale_rewards": "none",
            "shuffle_dataset": False,
            "seed": self.seed,
            "learning_rate": 3e-6,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 0,
            "num_train_epochs": self.epochs or 1,
            **({"delta": self.cap} if self.form == "direct" else {}),
        }
        asked = {"learning_rate": self.learning_rate, "warmup_steps": self.warmup_steps, "max_steps": self.steps}
        made = config(GRPOConfig, self.args, defaults, folder, asked if not given else {**asked, "epochs": self.epochs})
        if made.temperature != temperature:
            raise TrainError(
                f"args say temperature {made.temperature}, the stored logprobs are of temperature {temperature}; set "
                f"temperature={temperature}: the ratio is only one of the same distribution"
            )
        if made.use_vllm or made.world_size > 1:
            raise TrainError(
                "stored rollouts are trained on by one process and without vLLM; expected use_vllm=False and one"
                " process"
            )
        if self.form == "direct" and made.delta is None:
            made.delta = self.cap
        if made.max_steps <= 0:
            made.max_steps = max(1, round(made.num_train_epochs * batches(made)))
        return made


class _Run:
    """One call of `train`: the samples, the trainer, and what is reported of them."""

    def __init__(
        self,
        grpo: GRPO,
        collected: Collected,
        policy: checkpoint.Policy,
        temperature: float,
        folder: Path,
        progress: Progress | None,
    ) -> None:
        from .collator import Sample

        self.grpo, self.policy, self.temperature = grpo, policy, temperature
        self.given = collected
        self.config = grpo.config(temperature, folder.parent / "trl", self._batches)
        self.beta, self.config.beta = (
            self.config.beta,
            0.0,
        )  # TRL would load a second model to refer to; ours is this one, before training
        # By the rollout as an object: nothing says that a trace stands in one group only.
        self.samples: dict[int, list[Sample]] = {
            id(one): [Sample.of(row) for row in one.rows]
            for group in collected.groups
            if group.informative or self.beta
            for one in group.rollouts
        }
        self.trainer = self._trainer(progress)
        self.check = self._recomputed()
        self.fresh = self.check is not None and self.check["mean_abs"] <= FRESH and policy.full_precision
        self.start = self._located()
        self.kept = self._limited(collected)
        self.off_policy = self._measured(self.start)
        self.after: dict[str, float] = {}
        if grpo.max_kl is not None and self.off_policy["kl_per_rollout"] > grpo.max_kl:
            raise TrainError(
                f"KL(μ‖π) is {self.off_policy['kl_per_rollout']:.3g} nats a rollout, above max_kl {grpo.max_kl}: these "
                "rollouts are too old for this policy; sample new ones with it, or raise max_kl"
            )

    def train(self) -> None:
        self.trainer.batches = self._feed()
        self.trainer.beta = self.beta
        self.trainer.train()
        samples = [sample for group in self.groups for one in group.rollouts for sample in self.samples[id(one)]]
        self.after = self._measured(self._now(samples[:: -(-len(samples) // DRIFT_ROWS)]))

    def _trainer(self, progress: Progress | None) -> StoredGRPOTrainer:
        from datasets import Dataset

        from .trl_trainer import StoredGRPOTrainer

        # TRL draws prompts to generate from; ours are nominal, as many as one of its batches and the next steps need.
        prompts = Dataset.from_dict(
            {"prompt": [""] * (self.config.generation_batch_size * min(64, self.config.max_steps))}
        )
        return StoredGRPOTrainer(
            on_step=progress,
            model=self.policy.model,
            args=self.config,
            train_dataset=prompts,
            processing_class=self.policy.tokenizer,
        )

    @property
    def groups(self) -> list[GroupRows]:
        return [group for group in self.kept.groups if group.rollouts and (group.informative or self.beta)]

    def _batches(self, made: Any) -> int:
        """Optimizer steps of one pass: a TRL batch is `steps_per_generation` parts, used `num_iterations` times."""
        rollouts = sum(len(group.rollouts) for group in self.given.groups if group.informative or made.beta)
        loads = -(-rollouts // self.grpo.rollouts_per_step)
        return max(1, loads * made.num_iterations * made.steps_per_generation // made.gradient_accumulation_steps)

    def _recomputed(self) -> dict[str, float] | None:
        """Stored calls against this model, where it is the policy that wrote them (method.md §6); None where it is
        not, or none can be compared.
        """
        samples = [sample for listed in self.samples.values() for sample in listed]
        versions = {sample.row.policy for sample in samples}
        mine = (
            {self.policy.version}
            if self.grpo.policy_version is None
            else {self.policy.version, self.grpo.policy_version}
        )
        calls = [(sample, number) for sample in samples if sample.row.exact for number in range(len(sample.row.spans))]
        if not versions <= mine or not calls or self.grpo.checks < 1:
            return None
        chosen = [
            calls[index * len(calls) // min(self.grpo.checks, len(calls))]
            for index in range(min(self.grpo.checks, len(calls)))
        ]
        rows = list({id(sample): sample for sample, _ in chosen}.values())
        now = dict(zip(map(id, rows), self.trainer.logprobs(rows), strict=True))
        differences = []
        for sample, number in chosen:
            start = sum(len(span) for span in sample.row.spans[:number])
            part = slice(start, start + len(sample.row.spans[number]))
            differences.append(np.abs(now[id(sample)][part] - sample.mu[part]))
        found = np.concatenate(differences)
        check = {
            "calls": len(chosen),
            "tokens": len(found),
            "mean_abs": float(found.mean()),
            "max_abs": float(found.max()),
        }
        if not check["mean_abs"] <= self.grpo.tolerance:
            raise refusals.mismatch(check, self.policy.version, self.grpo.tolerance)
        return check

    def _located(self) -> dict[int, Any]:
        """log π_prox by sample: of this policy before training. Where it is the behaviour policy, and was checked,
        these are the stored ones.
        """
        samples = [sample for listed in self.samples.values() for sample in listed]
        if self.fresh and all(sample.row.exact for sample in samples):
            return {id(sample): sample.mu for sample in samples}
        return self._now(samples)

    def _now(self, samples: Sequence[Sample]) -> dict[int, Any]:
        ordered = sorted(samples, key=lambda sample: len(sample.row.ids))
        return dict(zip(map(id, ordered), self.trainer.logprobs(ordered), strict=True))

    def _limited(self, collected: Collected) -> Collected:
        band = self.grpo.ratio_band
        if band is None:
            return collected

        def outside(one: Any) -> str | None:
            samples = self.samples.get(id(one))
            if not samples:
                return None
            ratio = mean_ratio(
                np.concatenate([self.start[id(s)] for s in samples]), np.concatenate([s.mu for s in samples])
            )
            return None if 1 / band <= ratio <= band else f"mean ratio outside [1/{band:g}, {band:g}]"

        kept = collected.without(outside)
        refusals.something_left(kept)
        return kept

    def _measured(self, prox: dict[int, Any]) -> dict[str, float]:
        """Figures of method.md §6 over the samples that `prox` holds."""
        rows = [
            (number, sample)
            for number, one in enumerate(one for group in self.groups for one in group.rollouts)
            for sample in self.samples[id(one)]
            if id(sample) in prox
        ]
        return measure(
            np.concatenate([prox[id(sample)] for _, sample in rows]),
            np.concatenate([sample.mu for _, sample in rows]),
            np.concatenate([sample.advantages for _, sample in rows]),
            np.concatenate([np.full(len(sample.mu), number) for number, sample in rows]),
            cap=self.grpo.cap,
        ).to_json()

    def _feed(self) -> Iterator[list[Sample]]:
        """The batches, pass after pass: dealt into loads, π_prox taken when a load begins, dealt again into steps."""
        from .collator import dealt, forever

        grpo, first = self.grpo, True

        def loads(epoch: int) -> list[list[GroupRows]]:
            groups = self.groups
            if grpo.rollouts_per_load is None:
                return [groups]
            return dealt(
                groups, [len(group.rollouts) for group in groups], grpo.rollouts_per_load, seed=grpo.seed, epoch=epoch
            )

        for epoch, load in enumerate(forever(loads)):
            listed = [sample for group in load for one in group.rollouts for sample in self.samples[id(one)]]
            prox = self.start if first or grpo.rollouts_per_load is None else self._now(listed)
            first = False
            ready = {id(sample): self._ready(sample, prox[id(sample)]) for sample in listed}
            for step in dealt(
                load, [len(group.rollouts) for group in load], grpo.rollouts_per_step, seed=grpo.seed, epoch=epoch
            ):
                yield [ready[id(s)] for group in step for one in group.rollouts for s in self.samples[id(one)]]

    def _ready(self, sample: Sample, prox: Any) -> Sample:
        ref = self.start[id(sample)] if self.beta else None
        if self.grpo.form == "direct":
            return replace(sample, old=sample.mu, ref=ref)
        return replace(
            sample, old=prox, advantages=sample.advantages * truncated_weights(prox, sample.mu, self.grpo.cap), ref=ref
        )

    def report(self) -> dict[str, JSON]:
        """What was trained on what, and what it did."""
        from cm2_agent.models.local import fingerprint

        grpo, kept = self.grpo, self.kept.report
        behaviour = sorted({str(group.group.key.get("policy")) for group in self.given.groups})
        return {
            **kept.to_json(),
            "zero_advantage_groups": kept.groups - kept.informative_groups,
            "reward": self.given.groups[0].group.key.get("reward"),
            "policy": {"behaviour": behaviour, "before": self.policy.version, "after": fingerprint(self.policy.model)},
            "level": grpo.level,
            "norm": grpo.norm,
            "form": grpo.form,
            "cap": grpo.cap,
            "temperature": self.temperature,
            "beta": self.beta,
            "learning_rate": self.config.learning_rate,
            "rollouts_per_step": grpo.rollouts_per_step,
            "steps": len(self.trainer.history),
            "seed": self.config.seed,
            "recomputed": self.check,
            "fresh": self.fresh,
            "off_policy": self.off_policy,
            "off_policy_after": self.after,
            "history": self.trainer.history,
        }
