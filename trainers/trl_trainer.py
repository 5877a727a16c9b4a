"""TRL's GRPOTrainer fed with stored rows instead of generating: an optimizer step in micro-batches, and
log-probabilities of trained positions only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import PrinterCallback, Trainer
from trl import GRPOTrainer

from cm2_agent.models.adapters import plain_model
from cm2_agent.types.protocols import Progress

from .cached_logprobs import Call, cached_logprobs
from .callbacks import StepFigures
from .collator import Sample, collate
from .divergence import require_finite, require_finite_logprobs
from .dropout import evaluating, restore_dropout, switch_off_dropout
from .micro_batches import MicroBatches, buckets
from .processes import from_all, from_first, mean_gradients, share
from .reporting import StepReports, completions
from .rows import Floats, Row
from .sharding import by_ourselves
from .step_parts import Part, above_threshold, cut, own_parts
from .trained_logits import trained_logprobs
from .trl_mixin import TRLMixin


def no_reward_func(*args: Any, **kwargs: Any) -> list[float]:
    """TRL wants a reward function; stored rollouts have their rewards, so that nobody may ask for one here."""
    raise RuntimeError("stored rollouts were scored before training; no reward is computed in the trainer")


class StoredGRPOTrainer(TRLMixin, GRPOTrainer):
    """GRPOTrainer whose "generation" is the next batch of stored rows.

    `batches` yields the rows of one load of the data (TRL's generation batch), without end; `steps_per_generation`
    optimizer steps share it, each of which is cut by `micro_batches`: TRL's own accumulation stays 1, so that the loss
    is that of the step in one piece, whatever its type. `on_step(step, total, metrics)` is called after every optimizer
    step; the same metrics stand in `history`.
    """

    def __init__(
        self,
        *,
        batches: Iterator[Sequence[Sample]] | None = None,
        micro_batches: MicroBatches | None = None,
        on_step: Progress | None = None,
        max_weight: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(reward_funcs=cast(Any, no_reward_func), **kwargs)
        self.settings: Any = self.args  # a GRPOConfig; the base class knows it as less
        self.pad_id = int(cast(Any, self._tokenizer.pad_token_id))
        self.batches = batches
        self.micro_batches = micro_batches or MicroBatches()
        self.history: list[dict[str, float]] = []
        self.rewards: Mapping[str, float | None] = {}  # by trace, for log_completions
        self._reports = StepReports(max_weight=max_weight) if self.settings.logging_strategy != "no" else None
        self._taken = 0  # batches
        self._steps: list[list[Sample]] = []  # of the batch that was taken last, by optimizer step
        self._trained: torch.Tensor | None = None
        self._logps: torch.Tensor | None = None
        self._entropy_threshold: torch.Tensor | None = None
        self._weights: list[int] = []  # trained tokens of the micro-batches of this step, of all processes
        self._sums: dict[str, float] = {}
        self.remove_callback(PrinterCallback)  # it writes to stdout, which is the command line's
        self.add_callback(StepFigures(self, on_step if self.accelerator.is_main_process else None))

    def create_accelerator_and_postprocess(self) -> None:
        with by_ourselves():
            super().create_accelerator_and_postprocess()

    def _sync_replicated_trainable_parameters(self, model: Any) -> None:
        """Nothing: an adapter over a sharded base is the same in all processes, and so are its gradients once
        `mean_gradients` has averaged them.
        """

    def feed(self, batches: Iterator[Sequence[Sample]], *, beta: float, rewards: Mapping[str, float | None]) -> None:
        """What is trained on: batches without end, the weight of the KL term, and rewards by trace for
        `log_completions`.
        """
        self.batches, self.beta, self.rewards = batches, beta, rewards

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """The forward and backward passes of one optimizer step; its loss. `inputs` are TRL's nominal prompts."""
        started = time.perf_counter()
        if isinstance(model, DistributedDataParallel):
            model = model.module  # its gradients are added up below, once a step: backward gives them a part at a time
        processes = self.args.world_size
        parts = cut(self._samples_of(self.state.global_step), self.micro_batches, processes)
        self._entropy_threshold = None
        if self.top_entropy_quantile < 1.0 and len(parts) > 1:
            parts = self._with_threshold(model, parts)
        losses = []
        parts = own_parts(parts, processes)
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            self.accelerator.gradient_state._set_sync_gradients(last)
            with nullcontext() if last else self.accelerator.no_sync(model):
                losses.append(Trainer.training_step(self, model, cast(Any, part)))
        if processes > 1:
            mean_gradients(model.parameters() if self.masters is None else self.masters.parameters())
        self._step += 1
        self._metrics["train"]["step_time"].append(time.perf_counter() - started)
        loss = torch.stack(losses).sum()
        require_finite(float(loss), "loss", self.state.global_step + 1, self.args.learning_rate)
        return loss

    def _samples_of(self, step: int) -> list[Sample]:
        """The samples of the optimizer step with this number, from 0; a run that goes on passes over what was used."""
        if self.batches is None:
            raise RuntimeError("no batches were given; set `batches` before training")
        parts = self.settings.steps_per_generation
        wanted = step // (parts * self.num_iterations) + 1
        while self._taken < wanted:
            batch = next(self.batches)
            self._taken += 1
            if self.log_completions:
                self._logs = completions(batch, self._tokenizer, self.rewards)
            if self._taken == wanted:
                mixed = [batch[index] for index in from_first(torch.randperm(len(batch)).tolist())]
                self._steps = [mixed[number::parts] for number in range(parts)]
        return self._steps[step % parts]

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """A micro-batch as tensors, with its share; TRL's buffer of generated batches is not used."""
        if not isinstance(generation_batch, Part):
            raise RuntimeError("stored rollouts are trained on; there is nothing to evaluate on")
        part = generation_batch
        return {**self._collated(part.samples, part.rows), "share": part.share}

    def _collated(self, samples: Sequence[Sample], rows: int | None = None) -> dict[str, torch.Tensor]:
        return collate(samples, pad_id=self.pad_id, device=self.accelerator.device, rows=rows)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """TRL's loss: the micro-batch's part in that of the step, as `inputs["share"]` says (without it, all).

        The mask is noted for the forward pass, the figures for `history`.
        """
        switch_off_dropout(model)
        cast(Any, self.model).training = True  # of the model as a whole, which TRL reads as its own mode
        share = inputs.get("share")
        kind = self.loss_type
        self._trained = inputs["completion_mask"] * inputs["tool_mask"]
        if share is not None and not share.counts:  # it passes through the model, and through no mean
            inputs = inputs | {
                name: torch.zeros_like(inputs[name]) for name in ("tool_mask", "advantages", "num_items_in_batch")
            }
        self.current_gradient_accumulation_steps = 1.0 if share is None else share.accumulation(kind)
        try:
            with self._entropy_term(1.0 if share is None else share.entropy(kind)):
                loss = super()._compute_loss(model, inputs)
        finally:
            self._trained, self.current_gradient_accumulation_steps = None, 1
        if self._reports is not None and self._logps is not None and (share is None or share.counts):
            self._reports.add(self._logps, inputs)
        self._weights.append(int(cast(torch.Tensor, self.accelerator.gather(inputs["num_items_in_batch"])).sum()))
        self._sums["loss"] = self._sums.get("loss", 0.0) + float(loss.detach())
        return loss

    @contextmanager
    def _entropy_term(self, factor: float) -> Iterator[None]:
        """Scales the weight of TRL's entropy term, and moves it as TRL's controller does, which adds to it as it is."""
        before = cast(float, getattr(self, "entropy_coef"))  # noqa: B009 (its type is not known)
        args, metrics = self.settings, self._metrics["train"]
        self.entropy_coef = before * factor
        try:
            yield
        finally:
            self.entropy_coef = before
        if self._entropy_bonus_enabled and self.accelerator.sync_gradients:
            if self.use_adaptive_entropy and self._last_world_entropy <= args.entropy_target:
                self.entropy_coef = min(before + args.entropy_coef_delta, args.entropy_coef_max)
            elif self.use_adaptive_entropy:
                self.entropy_coef = max(before - args.entropy_coef_delta, args.entropy_coef_min)
            metrics["entropy_coef"][-1:] = [self.entropy_coef]

    def _with_threshold(self, model: Any, parts: Sequence[Part]) -> list[Part]:
        """The micro-batches with their numbers of tokens of high entropy (`top_entropy_quantile`): above a threshold
        of the whole step, for which they pass forward once more.
        """
        found = []
        switch_off_dropout(model)
        for part in parts:
            batch = self._collated(part.samples)
            with torch.no_grad():
                _, entropies = self._forward(model, batch, entropy=True)
            found.append(cast(torch.Tensor, entropies)[batch["tool_mask"].bool()].float())
        threshold = torch.quantile(torch.cat(found), 1 - self.top_entropy_quantile)
        self._entropy_threshold = threshold
        return above_threshold(parts, [int((values >= threshold).sum()) for values in found])

    def get_high_entropy_mask(self, entropies: torch.Tensor, mask: torch.Tensor, threshold: float) -> torch.Tensor:
        """TRL's mask of the tokens of high entropy, by the threshold of the whole optimizer step."""
        if self._entropy_threshold is None:
            return super().get_high_entropy_mask(entropies, mask, threshold)
        return (entropies * mask >= self._entropy_threshold) & mask.bool()

    def finish_step(self) -> dict[str, float]:
        """What the optimizer step that just ended amounted to; TRL's own lists are emptied, for nobody else reads
        them.
        """
        lists = self._metrics["train"]
        means = {
            name: [
                (value, weight)
                for value, weight in zip(lists.get(name, []), self._weights, strict=False)
                if value == value
            ]
            for name in ("entropy", "clip_ratio/region_mean", "kl")
        }
        metrics = {
            "loss": sum(from_all(self._sums.pop("loss", 0.0))) / self.args.world_size,
            **{name: _mean(values) for name, values in means.items() if values},
        }
        if self._reports is not None:
            self._reports.close(metrics, lists)
        lists.clear()
        self._sums.clear()
        self._weights.clear()
        self.history.append(metrics)
        return metrics

    @property
    def compares(self) -> bool:
        """Whether the recorded logprobs are looked at: by a report, or by TRL's off-policy mask."""
        return self._reports is not None or self.settings.off_policy_mask_threshold is not None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log, with the means of what was collected since the last one."""
        if self._reports is not None:
            self._reports.flush(self._metrics["train" if cast(Any, self.model).training else "eval"])
        super().log(logs, start_time)

    def go_on(self, step: int, drawn: int) -> None:
        """Go on after so many optimizer steps, for which so many batches were drawn."""
        self._step, self._taken = step, drawn

    @torch.no_grad()
    def logprobs(self, rows: Sequence[Row], model: Any = None) -> list[Floats]:
        """log π of each row's model tokens under the weights as they are now, by the same forward pass that training
        takes, in buckets of like length; or under those of another model of the same kind.
        """
        model = self.model if model is None else model
        found: dict[int, Floats] = {}
        with evaluating(model):
            for bucket in share(buckets([len(row.ids) for row in rows], tokens=self.micro_batches.tokens)):
                batch = self._collated([Sample(row=rows[index]) for index in bucket])
                logps, _ = self._forward(model, batch, entropy=False)
                values: Floats = logps.double().cpu().numpy()
                for place, index in enumerate(bucket):
                    row = rows[index]
                    found[index] = values[place, row.positions - row.spans[0].start]
        found = {index: values for part in from_all(found) for index, values in part.items()}
        return [found[index] for index in range(len(rows))]

    def sampled_logprobs(self, calls: Sequence[Call]) -> list[Floats]:
        """log π of the calls' sampled tokens as a sampler computes them."""
        with evaluating(self.model):
            return cached_logprobs(self.model, calls, temperature=self.temperature)

    def logprobs_by_row(self, rows: Sequence[Row], model: Any = None) -> dict[int, Floats]:
        """`logprobs` by the `id` of the row: of rows as objects, since nothing says that a trace stands in one group
        only.
        """
        found = self.logprobs(rows, model)
        require_finite_logprobs(found, "after training" if self.state.global_step else "before training")
        return dict(zip(map(id, rows), found, strict=True))

    def _forward(
        self, model: Any, batch: dict[str, torch.Tensor], *, entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        self._trained = batch["completion_mask"] * batch["tool_mask"]
        try:
            logps, entropies, _ = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                batch["completion_ids"].size(1),
                compute_entropy=entropy,
            )
        finally:
            self._trained = None
        return logps, entropies

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

        TRL passes prompt and tool positions through the head too, which costs a small model half its step, and pads
        all rows together.
        """
        if self._trained is None:
            raise RuntimeError("no positions are marked as trained; expected a batch of stored rows")
        with self.accelerator.autocast():
            found = trained_logprobs(
                model,
                input_ids,
                attention_mask,
                self._trained,
                temperature=self.temperature,
                entropy=compute_entropy,
                entropy_gradient=self._entropy_bonus_enabled,
                router_loss=compute_aux_loss,
                one_pass=self.micro_batches.one_pass,
            )
        self._logps = found[0].detach()
        return found


def _mean(pairs: Sequence[tuple[float, int]]) -> float:
    """The mean of the values of micro-batches, by their trained tokens."""
    if len(pairs) == 1:
        return pairs[0][0]
    return sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)


@contextmanager
def config_restored(model: Any) -> Iterator[None]:
    """Take off, at the end, what TRL put on the model for training: its fused forward, and the training mode."""
    plain = plain_model(model)
    patched, training = "forward" in vars(plain), model.training
    try:
        yield
    finally:
        if not patched:
            vars(plain).pop("forward", None)
        restore_dropout(model)
        model.train(training)
