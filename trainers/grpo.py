"""GRPO on stored groups: from scored traces to the folder of a better policy, with the loss of docs/method.md §6."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cm2_agent.errors import TrainError, require_extra
from cm2_agent.models.adapters import is_peft
from cm2_agent.types.group import Group
from cm2_agent.types.json_values import JSON
from cm2_agent.types.protocols import Progress

from .dataset import WHOLE_ROUND, Credits, build_dataset, check_credit
from .grpo_args import check_fields
from .launch import launched, rank, warn_unsharded
from .model_limits import ModelLimits
from .output_folder import check_out, check_run, save_report, saving
from .policy import loaded_policy, save_policy
from .previous_round import round_before
from .prompt_text import leave_out_lost
from .run_identity import identify, rows_hash
from .trl_config import check_counts, grpo_config, one_setting
from .validation import check, check_sizes, not_finite, noted, stale, too_long, truncated

require_extra("train", "Trainers", "torch", "transformers", "trl", "accelerate", "datasets")

ImportanceWeighting: TypeAlias = Literal["decoupled", "direct"]


class GRPO:
    """Trains a policy on stored groups and writes the new one to a folder, with the loss of docs/method.md §6 on
    TRL's GRPOTrainer.

    With r = π_θ/π_prox and w = min(c, π_prox/μ), which passes no gradient, the loss is the mean over the trained
    tokens of an optimizer step of −w·min(r·A, clip(r, 0.8, 1.28)·A). μ is the policy that wrote the rollouts (its
    logprobs are stored), π_prox the policy as it was when the rollouts were loaded, A the advantage (CM2,
    arXiv 2602.12268, Eq. 5 and 7–10; docs/method.md §5–6). A KL term (`args={"beta": …}`) pulls towards the policy as
    given.

    Before anything is learnt from rollouts of this very policy, stored calls are recomputed, and the run is refused
    where the logprobs differ. Rollouts that cannot be used are left out, each counted with its reason in the report. A
    model in memory is trained in place. The same seed, groups and machine give the same weights, bit by bit.

    Args:
        model: the policy to train: a folder or hub name of a model or of a LoRA adapter, a transformers model, or a
            PeftModel.
        out: the folder to write; it must not exist yet, unless it holds this very run's result or `overwrite` is
            given.
        tokenizer: the model's, where `model` is in memory; else it is loaded from beside the model.
        peft_config: train a new LoRA adapter over the model, which stays as it is: a peft.LoraConfig, or a dict of its
            keywords ({"r": 16, "lora_alpha": 32}; by default every linear layer gets one). `out` is then the adapter's.
        level: where credit is given: "trajectory" (one advantage a rollout, Eq. 5), "turn" (Eq. 7), "step" (Eq. 8–10),
            "return_to_go", "evidence", "lambda": GAE(λ) over turns with a baseline that is fitted on the other groups
            (docs/method.md §5), or "auto": "trajectory" or "lambda", with the reason in the report.
        norm: "none", or "std": advantages over the group's standard deviation + 1e-6; at levels "lambda" and "auto"
            "others": over that of the other groups, which does not bias it.
        lam: λ of level "lambda", in [0, 1]: 1 is unbiased, less is less noise, unbiased where V̂ is exact (default: λ̂
            of the round before, else 1).
        contrast: η in [0, 1), 0.5 for example: items that about half of the rollouts were paid in the round before
            weigh more (docs/method.md §5); rewards are reported as they are. Default: off.
        previous: the folder of the round before, whose report says λ̂ and how often each item was paid (default:
            `model`, where it is the folder of a round).
        credits: replaces `level`, `norm`, `lam` and `contrast`: a function of a group that returns, for each of its
            rollouts, a function of (turn, step), both 0-based, to the advantage of every token of that step; or the
            reason to leave it out.
        agent: train on the steps of the agent of this name alone, in a graph of several (docs/method.md §6). Rollouts
            in which it wrote no step of the dialogue are left out.
        importance_weighting: "decoupled" clips the ratio around π_prox and weighs by π_prox/μ, as above; "direct"
            clips π_θ/μ itself, bounded by `max_weight` where A < 0.
        max_weight: c, at least 1.
        steps: optimizer steps, exactly so many; or give `epochs`.
        epochs: passes over the rollouts (default 1).
        rollouts_per_step: about so many rollouts an optimizer step; groups stay whole.
        rollouts_per_load: take π_prox anew after so many rollouts; None: once, before the first step.
        tokens_per_micro_batch: tokens, padding included, of the rows that pass forward and backward at once, which is
            what memory follows; None: no limit. Micro-batches hold rows of like length and change no loss; a longer
            row is alone in its own.
        learning_rate: default 3e-6, for an adapter 3e-5; constant after the warm-up.
        warmup_steps: optimizer steps of linear warm-up (default 0).
        seed: of the order of the rollouts, and of TRL.
        max_length: rollouts with a row of more tokens are left out (default: what the model reads); none is ever cut.
        ratio_band: b > 1: rollouts whose geometric-mean ratio π/μ lies outside [1/b, b] are left out; None: no limit.
        max_kl: refuse the run where KL(μ‖π) a rollout, in nats, is above this, before the first step or after the last;
            math.inf: no limit. None: a policy that has collapsed is not saved, one under which the tokens with a
            positive advantage became more than 1 nat less likely each.
        versions: the policy versions from oldest to newest, for groups of several policies.
        max_lag: leave out the rollouts of policies more than so many behind the newest of `versions`.
        policy_version: the name under which this very policy wrote rollouts, where that is not its fingerprint.
        checks: how many stored calls are recomputed (0: none).
        tolerance: the mean |difference| of recomputed logprobs, in nats, above which the run is refused. Default: 1e-3
            in float32; in lower precision what two runs of these weights differ by, which is measured, and a margin.
        overwrite: replace the policy of another run in `out`, once this one has ended well; the other's checkpoints go
            when this one begins to keep its own.
        args: a GRPOConfig, which then decides alone (give neither `steps` nor `learning_rate`), or a dict of its
            fields, each of which is passed on, ours or refused (docs/reference/grpo-fields.md);
            `per_device_train_batch_size` bounds the rows of a micro-batch, and there are
            `gradient_accumulation_steps` of them a step or more.

    Raises:
        TrainError: a setting that cannot be meant.
        MissingExtra: on import, without the extra `train`.

    >>> import tempfile
    >>> from transformers import Qwen3Config, Qwen3ForCausalLM
    >>> from cm2_agent import GRPO, Group, Message, ModelCall, Rollout, Run, Score, Trace
    >>> from cm2_agent.models import byte_tokenizer
    >>> sampling = {"temperature": 1.0, "logprobs": "processed"}
    >>> def rollout(name, token, reward):
    ...     ids = {"prompt_ids": (1, 2), "completion_ids": (token,), "logprobs": (-5.6,)}
    ...     call = ModelCall(span_id=name, message=1, sampling=sampling, model_version="v0", **ids)
    ...     messages = (Message.of("user", "A or B?"), Message.of("assistant", name))
    ...     score = Score(trace_id=name, reward_version="r:1", reward=reward)
    ...     return Rollout(trace=Trace.of(Run(id=name, messages=messages, calls=(call,))), score=score)
    >>> key = {"task": "letters", "policy": "v0", "reward": "r:1"}
    >>> group = Group(key=key, rollouts=(rollout("A", 65, 1.0), rollout("B", 66, 0.0)))
    >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    >>> heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(byte_tokenizer())}
    >>> model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads))
    >>> grpo = GRPO(model, tempfile.mkdtemp(), tokenizer=byte_tokenizer(), steps=2, learning_rate=1e-3)
    >>> folder = grpo.train([group])
    >>> (folder / "model.safetensors").exists(), grpo.report["steps"], grpo.report["trained_tokens"]
    (True, 2, 2)
    """

    def __init__(
        self,
        model: Any,
        out: str | Path,
        *,
        tokenizer: Any = None,
        peft_config: Any = None,
        level: str = "trajectory",
        norm: str = "none",
        lam: float | None = None,
        contrast: float | None = None,
        previous: str | Path | None = None,
        credits: Credits | None = None,
        agent: str | None = None,
        importance_weighting: ImportanceWeighting = "decoupled",
        max_weight: float = 2.0,
        steps: int | None = None,
        epochs: int | None = None,
        rollouts_per_step: int = 64,
        rollouts_per_load: int | None = None,
        tokens_per_micro_batch: int | None = 32_768,
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
        tolerance: float | None = None,
        overwrite: bool = False,
        args: Any = None,
    ) -> None:
        self.importance_weighting, self.max_weight = importance_weighting, max_weight
        self.steps, self.epochs = steps, epochs
        self.rollouts_per_step, self.rollouts_per_load = rollouts_per_step, rollouts_per_load
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.ratio_band, self.versions, self.max_lag, self.max_kl = ratio_band, versions, max_lag, max_kl
        self._refuse_settings()
        self._own = own = check_fields(args)
        self.model, self.tokenizer, self.out = model, tokenizer, Path(out)
        self.peft_config = peft_config
        self.level, self.norm, self.credits, self.agent = level, own.one_norm(norm, credits), credits, agent
        check_credit(level, self.norm, lam=lam, contrast=contrast)
        self._lam, self._contrast, self._previous = lam, contrast, previous
        self.learning_rate, self.warmup_steps = learning_rate, warmup_steps
        self.seed = one_setting("seed", seed, args, default=0)
        self.overwrite, self.args = overwrite, args
        self.max_length, self.policy_version = max_length, policy_version
        self.checks, self.tolerance = checks, tolerance
        self.report: dict[str, JSON] = {}

    def train(self, groups: Iterable[Group], progress: Progress | None = None) -> Path:
        """Train and return `out`: safetensors, tokenizer and report.json (also `self.report`).

        Args:
            groups: the scored rollouts of each task, `store.groups(…)`, of one reward version and temperature.
            progress: called with (step, total, metrics) after every optimizer step; where a run goes on from a
                checkpoint, its method `resumed` with (step, total, checkpoint): without one, that is logged.

        Raises:
            TrainError: with which, why and what to do, for whatever cannot be trained on. A refused, failed or
                interrupted run leaves `out` as it was.
        """
        check_out(self.out)
        limits = ModelLimits(self.model)
        rewards: dict[str, float | None] = {}
        dataset = build_dataset(
            groups,
            level=self.level,
            norm=self.norm,
            lam=self._lam,
            contrast=self._contrast,
            before=round_before(self._previous, self.model) if self._looks_back else None,
            credits=self.credits,
            agent=self.agent,
            drop=[
                too_long(self.max_length, limits),
                stale(self.versions, self.max_lag),
                not_finite,
                *([truncated] if self._own.mask_truncated else []),
                *([noted(rewards)] if self._own.log_completions else []),
            ],
        )
        check_sizes(dataset, self._own.num_generations)
        temperature = check(dataset, versions=self.versions, model=limits)
        # torch and TRL are imported when training begins.
        from .processes import ending_together, folder_of_first, from_first, require_same

        given = loaded_policy(self.model, self.tokenizer, peft_config=self.peft_config, seed=self.seed)
        with ending_together(), given as policy:
            dataset = leave_out_lost(dataset, policy.tokenizer)
            from .sharding import require_known

            with folder_of_first(self.out) as folder:
                from .grpo_run import fit, limit, prepare
                from .recheck import recheck
                from .resuming import resume_point
                from .trl_trainer import config_restored

                config = grpo_config(self, temperature, folder.parent / "trl", adapter=is_peft(policy.model))
                require_known(config)
                warn_unsharded()
                seen = rows_hash(row for group in dataset.groups for row in group.rows)
                run = identify(
                    "grpo", model=policy.version, rows=seen, config=config, trainer=self, launched=launched()
                )
                require_same(run)
                checkpoint = None
                if rank() == 0:
                    check_run(self.out, run, overwrite=self.overwrite)
                    checkpoint = resume_point(config, run, overwrite=self.overwrite)
                checkpoint = from_first(checkpoint)
                with config_restored(policy.model):
                    prepared = prepare(self, dataset, policy, config, progress)
                    rechecked = recheck(prepared)
                    limited = limit(rechecked)
                    trained, self.report = fit(limited, checkpoint, rewards)
                if trained is not None:
                    with saving(self.out):
                        save_policy(folder, trained)
                        save_report(folder, self.report, run)
        return self.out

    @property
    def _looks_back(self) -> bool:
        given = self._contrast is not None or self._previous is not None
        return self.credits is None and (given or self.level in WHOLE_ROUND)

    def _refuse_settings(self) -> None:
        """Raises TrainError on a keyword that cannot be meant."""
        if self.importance_weighting not in ("decoupled", "direct"):
            raise TrainError(
                f"importance_weighting {self.importance_weighting!r}; expected 'decoupled' (clip around π_prox, weigh"
                " by π_prox/μ) or 'direct' (clip around μ)"
            )
        counts = ("steps", "epochs", "rollouts_per_step", "rollouts_per_load", "tokens_per_micro_batch")
        check_counts(**{name: getattr(self, name) for name in counts})
        if not self.max_weight >= 1:
            raise TrainError(f"max_weight {self.max_weight}; expected 1 or more: the bound of π_prox/μ")
        if self.ratio_band is not None and not self.ratio_band > 1:
            raise TrainError(
                f"ratio_band {self.ratio_band}; expected more than 1 (rollouts outside [1/b, b] are left out), or None"
                " for no limit"
            )
        if self.max_kl is not None and not (_is_number(self.max_kl) and self.max_kl >= 0):
            raise TrainError(
                f"max_kl {self.max_kl!r}; expected nats a rollout, 0 or more, for example 20, or math.inf (Infinity)"
                " for no limit"
            )
        if self.max_lag is not None and self.versions is None:
            raise TrainError(
                "max_lag needs versions=[…], the policy versions from oldest to newest: their names do not tell their"
                " order"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
