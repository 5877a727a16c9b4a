"""DPO on stored preferences: a policy that writes the better of two turns rather than the worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from cm2_agent.errors import TrainError, require_extra
from cm2_agent.models.stop_tokens import configured_stops
from cm2_agent.types.json_values import JSON
from cm2_agent.types.protocols import Progress

from .checkpoints import run_folder
from .imitation import RowMaker
from .model_limits import ModelLimits
from .output_folder import check_out, check_run, save_report, whole_folder
from .pair_rows import PairRow, PairRows, Preferred
from .policy import Policy, loaded_policy, save_policy
from .run_identity import RunIdentity, identify, rows_hash
from .stop_tokens import add_stops
from .trl_config import check_counts, config, refusals

require_extra("train", "Trainers", "torch", "transformers", "trl", "accelerate", "datasets")


class DPO:
    """Trains a policy to prefer the better of two turns, and writes the new one to a folder, on TRL's DPOTrainer.

    With Δ(y) = log π_θ(y) − log π_ref(y), summed over the model's own tokens of a turn, the loss is the mean
    −log σ(β·(Δ(chosen) − Δ(rejected))) (Rafailov et al., arXiv 2305.18290). π_ref is the policy as given: its
    log-probabilities are taken before the first step, so that no second model is in memory.

    Pairs come from groups (rollouts whose `Score.lower` differs, at the turn in which they part) and from turns that a
    run-time guard rejected beside the one it let through. Both sides of a pair are by recorded ids where both have ids
    that can be trusted, else both by the words; the report says how many. Tools' answers within a turn are read and not
    trained on. A model in memory is trained in place; the same seed, pairs and machine give the same weights.

    Args:
        model: the policy to train: a folder or hub name of a model or of a LoRA adapter, a transformers model, or a
            PeftModel.
        out: the folder to write; it must not exist yet, unless it holds this very run's result or `overwrite` is
            given.
        tokenizer: the model's, where `model` is in memory; else it is loaded from beside the model.
        peft_config: train a new LoRA adapter over the model, which stays as it is: a peft.LoraConfig, or a dict of its
            keywords ({"r": 16, "lora_alpha": 32}; by default every linear layer gets one). `out` is then the adapter's.
        margin: the least difference of the rewards of a pair, above 0.
        pairs_per_group: pairs a group at most, widest difference first; None: all.
        pairs: what `cm2 train` gives: "groups", or "guard" (all traces, for the attempts that a guard rejected).
        beta: β, above 0: how much a preference may move the policy from where it was.
        retokenise: take the words of all traces, also of those whose recorded ids can be trusted.
        agent: the steps of the agent of this name alone, in a graph of several.
        steps: optimizer steps, exactly so many; or give `epochs`.
        epochs: passes over the pairs (default 1).
        pairs_per_step: pairs an optimizer step.
        learning_rate: default 1e-6, constant after the warm-up.
        warmup_steps: optimizer steps of linear warm-up (default 0).
        seed: of the order of the pairs, and of TRL.
        max_length: pairs with a side of more tokens are left out (default: what the model reads); none is ever cut.
        overwrite: replace the policy of another run in `out`, once this one has ended well; the other's checkpoints go
            when this one begins to keep its own.
        args: a DPOConfig, which then decides alone (give neither `steps`, `learning_rate` nor `beta`), or a dict of its
            settings, `loss_type` say.

    Raises:
        TrainError: a setting that cannot be meant.
        MissingExtra: on import, without the extra `train`.

    >>> import tempfile
    >>> from transformers import Qwen3Config, Qwen3ForCausalLM
    >>> from cm2_agent import DPO, Group, Message, Rollout, Run, Score, Trace
    >>> from cm2_agent.models import byte_tokenizer
    >>> def rollout(reply, reward):
    ...     run = Run(id=reply, messages=(Message.of("user", "A or B?"), Message.of("assistant", reply)))
    ...     return Rollout(trace=Trace.of(run), score=Score(trace_id=reply, reward_version="r:1", reward=reward))
    >>> group = Group(key={"task": "letters", "reward": "r:1"}, rollouts=(rollout("A", 1.0), rollout("B", 0.0)))
    >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    >>> heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(byte_tokenizer())}
    >>> model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads))
    >>> dpo = DPO(model, tempfile.mkdtemp(), tokenizer=byte_tokenizer(), steps=2, learning_rate=1e-3)
    >>> folder = dpo.train([group])
    >>> (folder / "model.safetensors").exists(), dpo.report["pairs"], round(dpo.report["history"][0]["loss"], 4)
    (True, 1, 0.6931)
    """

    def __init__(
        self,
        model: Any,
        out: str | Path,
        *,
        tokenizer: Any = None,
        peft_config: Any = None,
        margin: float = 0.25,
        pairs_per_group: int | None = 8,
        pairs: Literal["groups", "guard"] = "groups",
        beta: float | None = None,
        retokenise: bool = False,
        agent: str | None = None,
        steps: int | None = None,
        epochs: int | None = None,
        pairs_per_step: int = 16,
        learning_rate: float | None = None,
        warmup_steps: int | None = None,
        seed: int = 0,
        max_length: int | None = None,
        overwrite: bool = False,
        args: Any = None,
    ) -> None:
        if not 0 < margin <= 1:
            raise TrainError(f"margin {margin}; expected a difference of rewards above 0, at most 1")
        if pairs not in ("groups", "guard"):
            raise TrainError(f"pairs {pairs!r}; expected 'groups' or 'guard'")
        if beta is not None and not beta > 0:
            raise TrainError(f"beta {beta}; expected a number above 0, for example 0.1")
        check_counts(steps=steps, epochs=epochs, pairs_per_step=pairs_per_step, pairs_per_group=pairs_per_group)
        self.model, self.tokenizer, self.out = model, tokenizer, Path(out)
        self.peft_config = peft_config
        self.margin, self.pairs_per_group, self.pairs, self.beta = margin, pairs_per_group, pairs, beta
        self.retokenise, self.agent = retokenise, agent
        self.steps, self.epochs, self.pairs_per_step = steps, epochs, pairs_per_step
        self.learning_rate, self.warmup_steps, self.seed = learning_rate, warmup_steps, seed
        self.max_length, self.overwrite, self.args = max_length, overwrite, args
        self.report: dict[str, JSON] = {}

    @property
    def needs(self) -> str:
        """What `cm2 train` gives: "groups", or "traces" (all of them)."""
        return "traces" if self.pairs == "guard" else "groups"

    def train(self, groups: Preferred, progress: Progress | None = None) -> Path:
        """Train and return `out`: safetensors, tokenizer and report.json (also `self.report`).

        Args:
            groups: scored rollouts of each task, `store.groups(…)`, of one reward version; and traces of a guarded
                graph, `store.traces(…)`.
            progress: called with (step, total, metrics) after every optimizer step.

        Raises:
            TrainError: where there is no pair, with the reasons. A refused or interrupted run leaves `out` as it was.
        """
        check_out(self.out)
        from .processes import require_one  # imports torch

        require_one("DPO")
        with loaded_policy(self.model, self.tokenizer, peft_config=self.peft_config, seed=self.seed) as policy:
            limits = ModelLimits(policy.model)
            make = RowMaker(
                policy.tokenizer,
                vocabulary=limits.vocabulary,
                stops=configured_stops(policy.model),
                words=self.retokenise,
                agent=self.agent,
            )
            longest = min((one for one in (self.max_length, limits.context) if one is not None), default=None)
            found = PairRows(make, margin=self.margin, most=self.pairs_per_group, max_length=longest)
            found.read(groups)
            found.require_pairs()
            with whole_folder(self.out) as folder:
                from .trl_trainer import config_restored

                with config_restored(policy.model):
                    run, history = self._fit(policy, found.pairs, folder, progress)
                stops = add_stops(policy.model, policy.tokenizer, make.ends)
                self.report = self._report(found.report, policy, stops, history)
                save_policy(folder, policy)
                save_report(folder, self.report, run)
        return self.out

    def _fit(
        self, policy: Policy, pairs: list[PairRow], folder: Path, progress: Progress | None
    ) -> tuple[RunIdentity, list[dict[str, JSON]]]:
        from trl import DPOConfig

        from .pair_trainer import PairTrainer, figures, pair_trainer
        from .resuming import resume_point, train_resumably

        defaults = {
            "per_device_train_batch_size": self.pairs_per_step,
            "learning_rate": 1e-6,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 0,
            "num_train_epochs": 1,
            "beta": 0.1,
            "seed": self.seed,
            "max_length": None,
            "logging_strategy": "steps",
            "logging_steps": 1,
        }
        asked = {
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "max_steps": self.steps,
            "num_train_epochs": self.epochs,
            "beta": self.beta,
        }
        made = config(DPOConfig, self.args, defaults, folder.parent / "trl", asked, keeps=run_folder(self.out))
        if made.sync_ref_model:
            raise TrainError(
                "sync_ref_model was asked for, and the reference is the policy as given, by log-probabilities that are"
                " taken before the first step; leave it out"
            )
        made.precompute_ref_log_probs = True
        rows = rows_hash(row for pair in pairs for row in pair.sides)
        run = identify("dpo", model=policy.version, rows=rows, config=made, trainer=self)
        check_run(self.out, run, overwrite=self.overwrite)
        checkpoint = resume_point(made, run, overwrite=self.overwrite)
        with refusals("DPOTrainer"):
            trainer: PairTrainer = pair_trainer(policy, pairs, made, progress)
        train_resumably(trainer, checkpoint)
        return run, figures(trainer)

    def _report(
        self, account: dict[str, JSON], policy: Policy, stops: list[str], history: list[dict[str, JSON]]
    ) -> dict[str, JSON]:
        from cm2_agent.models.local import fingerprint

        return {
            **account,
            "margin": self.margin,
            "policy": {"before": policy.version, "after": fingerprint(policy.model)},
            "stops_added": list(stops),
            "steps": len(history),
            "seed": self.seed,
            "history": list(history),
        }
