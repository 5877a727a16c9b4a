"""Imitation of stored traces: supervised fine-tuning on all of them, on the best of each group, or on those above a
score.

It needs neither logprobs nor advantages, and for all traces neither groups nor scores: it is where text-only traces
go, and the baseline that GRPO has to beat (`RFT`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cm2_agent.errors import TrainError
from cm2_agent.types.json_values import JSON
from cm2_agent.types.protocols import Progress

from .dialogue_trainer import DialogueTrainer
from .imitation import Dialogues, Imitation, RowMaker, Select
from .policy import Policy
from .rows import Row
from .trl_config import check_counts


class SFT(DialogueTrainer[Imitation]):
    """Trains a policy to write what the chosen rollouts hold, and writes the new one to a folder, on TRL's SFTTrainer.

    The loss is the mean −log π_θ of the model's own tokens: by the recorded ids where they can be trusted, else by the
    words through the tokenizer's chat template, for traces of hosted models, edited answers and ids of another
    tokenizer. Prompts, tool results and users are masked; an answer that was cut off is given no end. The report says
    how many rows came from which. A model in memory is trained in place; the same seed, traces and machine give the
    same weights.

    Args:
        model: the policy to train: a folder or hub name of a model or of a LoRA adapter, a transformers model, or a
            PeftModel.
        out: the folder to write; it must not exist yet, unless it holds this very run's result or `overwrite` is
            given.
        tokenizer: the model's, where `model` is in memory; else it is loaded from beside the model.
        peft_config: train a new LoRA adapter over the model, which stays as it is: a peft.LoraConfig, or a dict of its
            keywords ({"r": 16, "lora_alpha": 32}; by default every linear layer gets one). `out` is then the adapter's.
        select: "all" (the default: every dialogue that did not fail, scored or not), "best" (those with the highest
            `Score.lower` of their group, ties included; none of a group that earned nothing), "best-turn" (of each turn
            those that earned the most in it, and something; their other turns are read and not trained on), or the
            least `Score.lower` as a number in [0, 1]. What the policy kept from being judged is unpaid in it.
        retokenise: take the words of all traces, also of those whose recorded ids can be trusted.
        agent: train on the steps of the agent of this name alone, in a graph of several.
        steps: optimizer steps, exactly so many; or give `epochs`.
        epochs: passes over the rows (default 1).
        rows_per_step: rows an optimizer step.
        learning_rate: default 2e-5, for an adapter 2e-4; constant after the warm-up.
        warmup_steps: optimizer steps of linear warm-up (default 0).
        seed: of the order of the rows, and of TRL.
        max_length: rollouts with a row of more tokens are left out (default: what the model reads); none is ever cut.
        max_fall: a policy that has collapsed is not saved: one under which what is imitated became more than so
            many nats less likely a token (default 1); math.inf: no limit.
        overwrite: replace the policy of another run in `out`, once this one has ended well; the other's checkpoints go
            when this one begins to keep its own.
        args: an SFTConfig, which then decides alone (give neither `steps` nor `learning_rate`), or a dict of its
            settings.

    Raises:
        TrainError: a setting that cannot be meant.
        MissingExtra: on import, without the extra `train`.

    >>> import tempfile
    >>> from transformers import Qwen3Config, Qwen3ForCausalLM
    >>> from cm2_agent import SFT, Group, Message, Rollout, Run, Score, Trace
    >>> from cm2_agent.models import byte_tokenizer
    >>> messages = (Message.of("user", "A or B?"), Message.of("assistant", "A"))
    >>> score = Score(trace_id="a", reward_version="r:1", reward=1.0)
    >>> rollout = Rollout(trace=Trace.of(Run(id="a", messages=messages)), score=score)
    >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    >>> heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(byte_tokenizer())}
    >>> model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads))
    >>> sft = SFT(model, tempfile.mkdtemp(), tokenizer=byte_tokenizer(), select="best", steps=2)
    >>> folder = sft.train([Group(key={"task": "letters", "reward": "r:1"}, rollouts=(rollout,))])
    >>> (folder / "model.safetensors").exists(), sft.report["steps"], sft.report["rollouts"]
    (True, 2, 1)
    """

    _algorithm = "sft"

    def __init__(
        self,
        model: Any,
        out: str | Path,
        *,
        tokenizer: Any = None,
        peft_config: Any = None,
        select: Select = "all",
        retokenise: bool = False,
        agent: str | None = None,
        steps: int | None = None,
        epochs: int | None = None,
        rows_per_step: int = 16,
        learning_rate: float | None = None,
        warmup_steps: int | None = None,
        seed: int = 0,
        max_length: int | None = None,
        max_fall: float | None = None,
        overwrite: bool = False,
        args: Any = None,
    ) -> None:
        if isinstance(select, bool) or (isinstance(select, str) and select not in ("all", "best", "best-turn")):
            raise TrainError(
                f"select {select!r}; expected 'all', 'best', 'best-turn', or the least reward as a number in [0, 1]"
            )
        if not isinstance(select, str) and not 0 <= select <= 1:
            raise TrainError(f"select {select}; expected a reward in [0, 1]")
        check_counts(steps=steps, epochs=epochs, rows_per_step=rows_per_step)
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
        self.select: Select = select
        self.rows_per_step = rows_per_step

    @property
    def needs(self) -> str:
        """What `cm2 train` gives: "traces" (all of them), "scored" rollouts, or "groups" of them."""
        return {"all": "traces", "best": "groups", "best-turn": "groups"}.get(str(self.select), "scored")

    def train(self, groups: Dialogues, progress: Progress | None = None) -> Path:
        """Train and return `out`: safetensors, tokenizer and report.json (also `self.report`).

        Args:
            groups: the rollouts of each task, `store.groups(…)`; to choose by a number, also scored rollouts that
                are in no group; with "all" also traces, `store.traces(…)`. Scores are of one reward version unless
                `select` is "all".
            progress: called with (step, total, metrics) after every optimizer step; where a run goes on from a
                checkpoint, its method `resumed` with (step, total, checkpoint): without one, that is logged.

        Raises:
            TrainError: where nothing is left to imitate, with the reasons. A refused or interrupted run leaves `out` as
                it was.
        """
        return self._train(groups, progress)

    def _read(self, dialogues: Dialogues, make: RowMaker) -> Imitation:
        imitation = Imitation(self.select, make)
        imitation.read(dialogues)
        imitation.require_rows()
        return imitation

    def _rows_per_step(self) -> tuple[str, int]:
        return "rows_per_step", self.rows_per_step

    def _settle(self, made: Any) -> None:
        if made.packing:
            raise TrainError(
                "packing was asked for, and a row is a dialogue, which is neither cut nor joined; leave it out"
            )
        # Rows are tokens already, cut to length.
        made.dataset_kwargs = {**(made.dataset_kwargs or {}), "skip_prepare_dataset": True}

    def _trainer(self, policy: Policy, material: Imitation, made: Any, progress: Progress | None) -> Any:
        from .sft_trainer import sft_trainer

        return sft_trainer(policy, material.rows, made, progress)

    def _better(self, material: Imitation) -> tuple[Sequence[Row], float, str]:
        from .collapse import LIMIT

        return material.rows, LIMIT, "what it imitates"

    def _report(self, material: Imitation, policy: Policy, trainer: Any, stops: Sequence[str]) -> dict[str, JSON]:
        return {**material.report, **self._outcome(policy, trainer, stops)}
