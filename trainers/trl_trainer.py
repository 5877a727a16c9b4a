"""TRL's GRPOTrainer fed with stored rows instead of generating: the one override, and log-probabilities of trained
positions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PrinterCallback
from trl import GRPOTrainer

from cm2_agent.types.protocols import Progress

from .cached_logprobs import Call, cached_logprobs
from .callbacks import StepFigures
from .collator import Sample, collate
from .divergence import StopsWhenAstray
from .dropout import restore_dropout, switch_off_dropout
from .master_weights import MasterWeightsMixin
from .rows import Floats, Row
from .trained_logits import FORWARD_ROWS, trained_logprobs

# Above this many logits (tokens × vocabulary) at a time TRL's chunked head is the better one: it never holds them all.
MANY_LOGITS = 2**26
_SCALED_HEADS = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


def no_reward_func(*args: Any, **kwargs: Any) -> list[float]:
    """TRL wants a reward function; stored rollouts have their rewards, so that nobody may ask for one here."""
    raise RuntimeError("stored rollouts were scored before training; no reward is computed in the trainer")


class StoredGRPOTrainer(StopsWhenAstray, MasterWeightsMixin, GRPOTrainer):
    """GRPOTrainer whose "generation" is the next batch of stored rows.

    `batches` yields the rows of one load of the data (TRL's generation batch), without end. `on_step(step, total,
    metrics)` is called after every optimizer step; the same metrics stand in `history`.
    """

    def __init__(
        self,
        *,
        batches: Iterator[Sequence[Sample]] | None = None,
        on_step: Progress | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(reward_funcs=cast(Any, no_reward_func), **kwargs)
        self.settings: Any = self.args  # a GRPOConfig; the base class knows it as less
        self.pad_id = int(cast(Any, self._tokenizer.pad_token_id))
        self.batches = batches
        self.history: list[dict[str, float]] = []
        self._trained: torch.Tensor | None = None
        self._sums: dict[str, float] = {}
        self.remove_callback(PrinterCallback)  # it writes to stdout, which is the command line's
        self.add_callback(StepFigures(self, on_step))

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, torch.Tensor]:
        if self.batches is None:
            raise RuntimeError("no batches were given; set `batches` before training")
        return self._collated(next(self.batches), multiple=self.settings.steps_per_generation)

    def _collated(self, samples: Sequence[Sample], multiple: int = 1) -> dict[str, torch.Tensor]:
        return collate(samples, pad_id=self.pad_id, multiple=multiple, device=self.accelerator.device)

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """TRL's loss; the mask is noted for the forward pass, the figures for `history`."""
        switch_off_dropout(model)
        self._trained = inputs["completion_mask"] * inputs["tool_mask"]
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self._trained = None
        self._sums["loss"] = self._sums.get("loss", 0.0) + float(loss.detach())
        return loss

    def finish_step(self) -> dict[str, float]:
        """What the optimizer step that just ended amounted to; TRL's own lists are emptied, for nobody else reads
        them.
        """
        lists = self._metrics["train"]
        means = {
            name: [value for value in lists.get(name, []) if value == value]
            for name in ("entropy", "clip_ratio/region_mean", "kl")
        }
        metrics = {
            "loss": self._sums.pop("loss", 0.0),
            **{name: sum(values) / len(values) for name, values in means.items() if values},
        }
        lists.clear()
        self._sums.clear()
        self.history.append(metrics)
        return metrics

    @torch.no_grad()
    def logprobs(self, rows: Sequence[Row]) -> list[Floats]:
        """log π of each row's model tokens under the weights as they are now, by the same forward pass that training
        takes.
        """
        found: list[Floats] = []
        with _evaluating(self.model):
            for start in range(0, len(rows), FORWARD_ROWS):
                part = rows[start : start + FORWARD_ROWS]
                batch = self._collated([Sample(row=row) for row in part])
                self._trained = batch["completion_mask"] * batch["tool_mask"]
                try:
                    logps, _, _ = self._get_per_token_logps_and_entropies(
                        self.model,
                        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                        batch["completion_ids"].size(1),
                    )
                finally:
                    self._trained = None
                values: Floats = logps.double().cpu().numpy()
                found += [values[index, row.positions - row.spans[0].start] for index, row in enumerate(part)]
        return found

    def sampled_logprobs(self, calls: Sequence[Call]) -> list[Floats]:
        """log π of the calls' sampled tokens as a sampler computes them."""
        with _evaluating(self.model):
            return cached_logprobs(self.model, calls, temperature=self.temperature)

    def logprobs_by_row(self, rows: Sequence[Row]) -> dict[int, Floats]:
        """`logprobs` by the `id` of the row: of rows as objects, since nothing says that a trace stands in one group
        only.
        """
        ordered = sorted(rows, key=lambda row: len(row.ids))
        return dict(zip(map(id, ordered), self.logprobs(ordered), strict=True))

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Any,
        attention_mask: Any,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """log π of the trained positions, (B, T); 0 elsewhere. Entropies likewise, with a gradient only where the loss
        has an entropy term.

        TRL passes prompt and tool positions through the head too, which costs a small model half its step. Where its
        own way is needed (a wrapped model, a scaled or capped head, a router's loss) or better (many logits), it is
        taken.
        """
        trained = self._trained
        vocabulary = model.config.get_text_config().vocab_size if isinstance(model, PreTrainedModel) else 0
        if (
            trained is None
            or compute_aux_loss
            or not isinstance(model, PreTrainedModel)
            or self.settings.cast_lm_head_to_fp32
            or self.args.bf16
            or self.args.fp16
            or any(getattr(model.config.get_text_config(), name, None) not in (None, 1.0) for name in _SCALED_HEADS)
            or int(trained.sum()) * vocabulary > MANY_LOGITS
        ):
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                compute_aux_loss,
                **kwargs,
            )
        return trained_logprobs(
            model,
            input_ids,
            attention_mask,
            trained,
            temperature=self.temperature,
            entropy=compute_entropy,
            entropy_gradient=self._entropy_bonus_enabled,
        )


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def config_restored(model: Any) -> Iterator[None]:
    """Take off, at the end, what TRL put on the model for training: its fused forward, and the training mode."""
    patched, training = "forward" in vars(model), model.training
    try:
        yield
    finally:
        if not patched:
            vars(model).pop("forward", None)
        restore_dropout(model)
        model.train(training)
