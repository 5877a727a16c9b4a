"""Imitation of stored traces: supervised fine-tuning on all of them, on the best of each group, or on those above a
score.

It needs neither logprobs nor advantages, and for all traces neither groups nor scores: it is where text-only traces
go, and the baseline that GRPO has to beat (`RFT`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cm2_agent.errors import TrainError, require_extra
from cm2_agent.models.stop_tokens import configured_stops
from cm2_agent.types.json_values import JSON
from cm2_agent.types.protocols import Progress

from .checkpoints import run_folder
from .imitation import Dialogues, Imitation, RowMaker, Select
from .model_limits import ModelLimits
from .output_folder import check_out, check_run, save_report, whole_folder
from .policy import Policy, loaded_policy, save_policy
from .rows import Row
from .run_identity import RunIdentity, identify, rows_hash
from .stop_tokens import add_stops
from .trl_config import check_counts, config, refusals

require_extra("train", "Trainers", "torch", "transformers", "trl", "accelerate", "datasets")


class SFT:
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
        learning_rate: default 2e-5, constant after the warm-up.
        warmup_steps: optimizer steps of linear warm-up (default 0).
        seed: of the order of the rows, and of TRL.
        max_length: rollouts with a row of more tokens are left out (default: what the model reads); none is ever cut.
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
        self.model, self.tokenizer, self.out = model, tokenizer, Path(out)
        self.peft_config = peft_config
        self.select: Select = select
        self.retokenise, self.agent = retokenise, agent
        self.steps, self.epochs, self.rows_per_step = steps, epochs, rows_per_step
        self.learning_rate, self.warmup_steps, self.seed = learning_rate, warmup_steps, seed
        self.max_length, self.overwrite, self.args = max_length, overwrite, args
        self.report: dict[str, JSON] = {}

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
            progress: called with (step, total, metrics) after every optimizer step.

        Raises:
            TrainError: where nothing is left to imitate, with the reasons. A refused or interrupted run leaves `out` as
                it was.
        """
        check_out(self.out)
        from .processes import require_one  # imports torch

        require_one("SFT")
        with loaded_policy(self.model, self.tokenizer, peft_config=self.peft_config, seed=self.seed) as policy:
            limits = ModelLimits(policy.model)
            make = RowMaker(
                policy.tokenizer,
                vocabulary=limits.vocabulary,
                stops=configured_stops(policy.model),
                words=self.retokenise,
                agent=self.agent,
                max_length=min((one for one in (self.max_length, limits.context) if one is not None), default=None),
            )
            imitation = Imitation(self.select, make)
            imitation.read(groups)
            imitation.require_rows()
            rows = imitation.rows
            with whole_folder(self.out) as folder:
                from .trl_trainer import config_restored

                with config_restored(policy.model):
                    steps, run = self._fit(policy, rows, folder, progress)
                stops = add_stops(policy.model, policy.tokenizer, make.ends)
                self.report = self._report(imitation.report, policy, steps, stops)
                save_policy(folder, policy)
                save_report(folder, self.report, run)
        return self.out

    def _fit(
        self, policy: Policy, rows: Sequence[Row], folder: Path, progress: Progress | None
    ) -> tuple[int, RunIdentity]:
        from datasets import Dataset
        from transformers import PrinterCallback
        from trl import SFTConfig

        from .callbacks import ProgressCallback
        from .resuming import resume_point, train_resumably
        from .sft_trainer import RowSFTTrainer

        defaults = {
            "per_device_train_batch_size": self.rows_per_step,
            "learning_rate": 2e-5,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 0,
            "num_train_epochs": 1,
            "seed": self.seed,
            "max_length": None,
            "logging_strategy": "steps",
            "logging_steps": 1,
            "dataset_kwargs": {"skip_prepare_dataset": True},
        }
        asked = {
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "max_steps": self.steps,
            "num_train_epochs": self.epochs,
        }
        made = config(SFTConfig, self.args, defaults, folder.parent / "trl", asked, keeps=run_folder(self.out))
        made.dataset_kwargs = {
            **(made.dataset_kwargs or {}),
            "skip_prepare_dataset": True,
        }  # rows are tokens already, cut to length
        run = identify("sft", model=policy.version, rows=rows_hash(rows), config=made, trainer=self)
        check_run(self.out, run, overwrite=self.overwrite)
        checkpoint = resume_point(made, run, overwrite=self.overwrite)
        data = Dataset.from_dict(
            {"input_ids": [list(row.ids) for row in rows], "labels": [_labels(row) for row in rows]}
        )
        with refusals("SFTTrainer"):
            trainer = RowSFTTrainer(
                model=policy.model,
                args=made,
                train_dataset=data,
                processing_class=policy.tokenizer,
                callbacks=[ProgressCallback(progress)],
            )
        trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is the command line's
        train_resumably(trainer, checkpoint)
        return int(trainer.state.global_step), run

    def _report(self, account: dict[str, JSON], policy: Policy, steps: int, stops: list[str]) -> dict[str, JSON]:
        from cm2_agent.models.local import fingerprint

        return {
            **account,
            "policy": {"before": policy.version, "after": fingerprint(policy.model)},
            "stops_added": list(stops),
            "steps": steps,
            "seed": self.seed,
        }


def _labels(row: Row) -> list[int]:
    return [token if trained else -100 for token, trained in zip(row.ids, row.mask, strict=True)]
