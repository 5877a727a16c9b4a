"""DPO on stored preferences: a policy that writes the better of two turns rather than the worse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cm2_agent.errors import TrainError
from cm2_agent.models.adapters import is_peft
from cm2_agent.types.json_values import JSON
from cm2_agent.types.protocols import Progress

from .dialogue_trainer import DialogueTrainer
from .imitation import RowMaker
from .pair_rows import PairRows, Preferred
from .policy import Policy
from .rows import Row
from .run_identity import RunIdentity
from .trl_config import check_counts


class DPO(DialogueTrainer[PairRows]):
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
        learning_rate: default 1e-6, for an adapter 1e-5; constant after the warm-up.
        warmup_steps: optimizer steps of linear warm-up (default 0).
        seed: of the order of the pairs, and of TRL.
        max_length: pairs with a side of more tokens are left out (default: what the model reads); none is ever cut.
        max_fall: a policy that has collapsed is not saved: one under which the better turns became more than so
            many nats less likely a token (default 3); math.inf: no limit.
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

    _algorithm = "dpo"

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
        max_fall: float | None = None,
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
        super().__init__(
            model,
            out,
            tokenizer=tokenizer,
            peft_config=peft_config,
            retokenise=retokenise,
            agent=agent,
            steps=steps,
            epochs=epochs,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            seed=seed,
            max_length=max_length,
            max_fall=max_fall,
            overwrite=overwrite,
            args=args,
        )
        self.margin, self.pairs_per_group, self.pairs, self.beta = margin, pairs_per_group, pairs, beta
        self.pairs_per_step = pairs_per_step

    @property
    def needs(self) -> str:
        """What `cm2 train` gives: "groups", or "traces" (all of them)."""
        return "traces" if self.pairs == "guard" else "groups"

    def train(self, groups: Preferred, progress: Progress | None = None) -> Path:
        """Train and return `out`: safetensors, tokenizer and report.json (also `self.report`).

        Args:
            groups: scored rollouts of each task, `store.groups(…)`, of one reward version; and traces of a guarded
                graph, `store.traces(…)`.
            progress: called with (step, total, metrics) after every optimizer step; where a run goes on from a
                checkpoint, its method `resumed` with (step, total, checkpoint): without one, that is logged.

        Raises:
            TrainError: where there is no pair, with the reasons. A refused or interrupted run leaves `out` as it was.
        """
        return self._train(groups, progress)

    def _read(self, dialogues: Preferred, make: RowMaker) -> PairRows:
        found = PairRows(make, margin=self.margin, most=self.pairs_per_group, max_length=make.max_length)
        found.read(dialogues)
        found.require_pairs()
        return found

    def _rows_per_step(self) -> tuple[str, int]:
        return "pairs_per_step", self.pairs_per_step

    def _defaults(self) -> dict[str, Any]:
        return {"beta": 0.1}

    def _asked(self) -> dict[str, Any]:
        return {"beta": self.beta}

    def _settle(self, made: Any) -> None:
        if made.sync_ref_model:
            raise TrainError(
                "sync_ref_model was asked for, and the reference is the policy as given, by log-probabilities that are"
                " taken before the first step; leave it out"
            )
        made.precompute_ref_log_probs = True

    def _fit(
        self, policy: Policy, material: PairRows, folder: Path, progress: Progress | None
    ) -> tuple[Any, RunIdentity]:
        """Without the copy of an adapter, for reference, that TRL puts into the model."""
        adapters = {*policy.model.peft_config} if is_peft(policy.model) else set()
        if adapters and "default" not in adapters:
            raise TrainError(
                f"the model's adapter is called {', '.join(sorted(adapters))}; DPO takes its reference from one called"
                " 'default': load it by that name, as PeftModel.from_pretrained does, or give its folder"
            )
        try:
            return super()._fit(policy, material, folder, progress)
        finally:
            if adapters:
                for name in {*policy.model.peft_config} - adapters:
                    policy.model.delete_adapter(name)

    def _trainer(self, policy: Policy, material: PairRows, made: Any, progress: Progress | None) -> Any:
        from .pair_trainer import pair_trainer

        return pair_trainer(policy, material.pairs, made, progress)

    def _better(self, material: PairRows) -> tuple[Sequence[Row], float, str]:
        from .collapse import PAIR_LIMIT

        return [pair.chosen for pair in material.pairs], PAIR_LIMIT, "the better turn of a pair"

    def _report(self, material: PairRows, policy: Policy, trainer: Any, stops: Sequence[str]) -> dict[str, JSON]:
        from .pair_trainer import figures

        outcome = self._outcome(policy, trainer, stops)
        return {**material.report, "margin": self.margin, **outcome, "history": list(figures(trainer))}
