"""Sampling from a causal language model: one padded batch, each row's own randomness, logprobs that training can rely
on.

It knows token ids alone. Importing it imports torch, so `local` does that only when a model is made.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cm2_agent.errors import ContextOverflowError, ModelError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. Temperature 0 is greedy; `top_p` 1 and `top_k` 0 truncate nothing; `max_tokens`
    counts new tokens."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature {self.temperature}: expected 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p}: expected a share in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k}: expected 0 (no limit) or more")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens {self.max_tokens}: expected at least 1")

    @property
    def logprobs(self) -> str:
        """`processed`: of the distribution that was sampled from. `raw`: of the model's own, where greedy decoding
        sampled from none."""
        return "processed" if self.temperature > 0 else "raw"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to continue. `seed` alone decides this row's randomness; the first of `stop_ids` ends it, as
    its last token."""

    prompt_ids: Sequence[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    seed: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What was sampled: ids (with the stop token, if one was drawn) and the log-probability of each.

    `stopped` is False at the length limit.
    """

    completion_ids: list[int]
    logprobs: list[float]
    stopped: bool


class Generator:
    """Runs requests in batches over one model; safe to call from several threads (one batch at a time).

    `max_batch` bounds the rows of one batch. A row's tokens depend on its own request alone; that padding and
    batch size change logits in the seventh digit is the reason why callers that want the same bits must also
    bring the same batches (see `batching`).
    """

    def __init__(self, model: Any, *, pad_id: int, max_batch: int = 256) -> None:
        self.model, self.max_batch, self.rows = model, max_batch, _rows(model)
        self.pad_id = pad_id if self.rows is None or pad_id < self.rows else 0  # masked, but looked up
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._lock = threading.Lock()

    def run(self, requests: Sequence[Request]) -> list[Generation | Exception]:
        """One result a request, in order. A request that cannot be run gets its own ModelError and harms no other."""
        results: list[Generation | Exception | None] = [self._refusal(request) for request in requests]
        todo = [index for index, result in enumerate(results) if result is None]
        with self._lock:
            for start in range(0, len(todo), self.max_batch):
                chunk = todo[start : start + self.max_batch]
                for index, generation in zip(chunk, self._batch([requests[i] for i in chunk]), strict=True):
                    results[index] = generation
        return [result for result in results if result is not None]

    def _refusal(self, request: Request) -> ModelError | None:
        length = len(request.prompt_ids)
        if not length:
            return ModelError("the prompt holds no token; give at least one message")
        if self.rows is not None and max(request.prompt_ids) >= self.rows:
            return ModelError(
                f"the prompt holds token {max(request.prompt_ids)}, and the model's embedding has {self.rows} rows: its"
                " tokenizer is another model's, or the embedding was not resized to it (cm2 model check says which"
                " tokens)"
            )
        if self.context is not None and length >= self.context:
            return ContextOverflowError(
                f"the prompt has {length} tokens, the model reads at most {self.context}; shorten the dialogue"
            )
        return None

    def _limit(self, request: Request) -> int:
        room = request.sampling.max_tokens if self.context is None else self.context - len(request.prompt_ids)
        return min(request.sampling.max_tokens, room)

    @torch.inference_mode()
    def _batch(self, requests: Sequence[Request]) -> list[Generation | Exception]:
        model, device = self.model, self.model.device
        training = model.training
        model.eval()
        limits = [self._limit(request) for request in requests]
        # Drawn up front and a row at a time: what a row draws never depends on its neighbours.
        uniforms = np.zeros((len(requests), max(limits)))  # (B, T)
        for row, request in enumerate(requests):
            if request.sampling.temperature > 0:
                uniforms[row, : limits[row]] = np.random.default_rng(request.seed).random(limits[row])
        picker = _Picker([request.sampling for request in requests], torch.from_numpy(uniforms).to(device))

        width = max(len(request.prompt_ids) for request in requests)
        ids = torch.full((len(requests), width), self.pad_id, dtype=torch.long)
        mask = torch.zeros((len(requests), width), dtype=torch.long)
        for row, request in enumerate(requests):
            ids[row, width - len(request.prompt_ids) :] = torch.tensor(list(request.prompt_ids))
            mask[row, width - len(request.prompt_ids) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)

        tokens: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        stopped = [False] * len(requests)
        broken: set[int] = set()
        rows = list(range(len(requests)))  # which request each row of the batch still belongs to
        cache = None
        for step in range(max(limits)):
            output = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            drawn, drawn_logprobs = picker(output.logits[:, -1].float(), rows, step)
            alive: list[int] = []
            for place, (token, logprob) in enumerate(zip(drawn.tolist(), drawn_logprobs.tolist(), strict=True)):
                row = rows[place]
                if stopped[row] or step >= limits[row]:
                    continue  # a finished row that still travels with the batch
                if not math.isfinite(logprob):  # logits that are no numbers make no distribution to draw from
                    broken.add(row)
                    stopped[row] = True
                    continue
                tokens[row].append(token)
                logprobs[row].append(logprob)
                stopped[row] = token in requests[row].stop_ids
                if not stopped[row] and step + 1 < limits[row]:
                    alive.append(place)
            if not alive:
                break
            ids, positions = drawn[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones((len(rows), 1))], dim=1)
            # Finished rows are dropped from the batch once they are many; copying the cache costs about a step.
            if 4 * len(alive) <= 3 * len(rows):
                keep = torch.tensor(alive, device=device)
                cache.batch_select_indices(keep)
                ids, positions, mask = ids[keep], positions[keep], mask[keep]
                rows = [rows[place] for place in alive]
        model.train(training)
        return [
            _no_numbers(len(tokens[row]))
            if row in broken
            else Generation(completion_ids=tokens[row], logprobs=logprobs[row], stopped=stopped[row])
            for row in range(len(requests))
        ]


def _rows(model: Any) -> int | None:
    """How many token ids a model reads, None where it does not say."""
    table = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return None if table is None else int(table.weight.shape[0])


def _no_numbers(place: int) -> ModelError:
    return ModelError(
        f"the model's logits for token {place + 1} of its answer are NaN or infinite, so that nothing can be drawn."
        " Expected finite numbers: the weights may be broken (a run that diverged), or too large for their dtype"
        " (float16 overflows where bfloat16 and float32 do not)"
    )


def draw_tokens(logprobs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The token of each row (B,) at which its cumulative distribution, of logprobs (B, V), passes its uniform number
    (B,) in [0, 1)."""
    cumulative = logprobs.double().exp().cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logprobs.shape[-1] - 1)


class _Picker:
    """Draws the next token of every row by inverting its cumulative distribution at the row's own uniform number."""

    def __init__(self, samplings: Sequence[Sampling], uniforms: torch.Tensor) -> None:
        device = uniforms.device
        self.uniforms = uniforms  # (B, T)
        self.greedy = torch.tensor([s.temperature == 0 for s in samplings], device=device)
        self.temperature = torch.tensor([s.temperature or 1.0 for s in samplings], device=device)
        self.top_p = torch.tensor([s.top_p for s in samplings], device=device)
        self.top_k = torch.tensor([s.top_k for s in samplings], device=device)
        self.truncates = any((s.top_p < 1 or s.top_k > 0) and s.temperature > 0 for s in samplings)
        self.any_greedy = any(s.temperature == 0 for s in samplings)
        self.all_greedy = all(s.temperature == 0 for s in samplings)

    def __call__(self, logits: torch.Tensor, rows: Sequence[int], step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B,) and their log-probabilities (B,) under the distribution they were drawn from; logits are (B,
        V)."""
        index = torch.tensor(rows, device=logits.device)
        logprobs = torch.log_softmax(logits / self.temperature[index, None], dim=-1)
        if self.truncates:
            logprobs = self._truncate(logprobs, index)
        if self.all_greedy:
            drawn = logits.argmax(-1)
        else:
            drawn = draw_tokens(logprobs, self.uniforms[index, step])
            if self.any_greedy:
                drawn = torch.where(self.greedy[index], logits.argmax(-1), drawn)
        return drawn, logprobs.gather(-1, drawn[:, None]).squeeze(-1)

    def _truncate(self, logprobs: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Keep the top k tokens, then the fewest whose probability reaches top p, and renormalise; greedy rows keep
        everything."""
        ranked, order = logprobs.sort(dim=-1, descending=True, stable=True)
        place = torch.arange(logprobs.shape[-1], device=logprobs.device)
        top_k = torch.where(self.top_k[index] > 0, self.top_k[index], logprobs.shape[-1])
        ranked = ranked.masked_fill(place >= top_k[:, None], -torch.inf)
        probs = ranked.softmax(-1)
        before = probs.cumsum(-1) - probs
        ranked = ranked.masked_fill((before >= self.top_p[index, None]) & (place > 0), -torch.inf)
        truncated = torch.full_like(logprobs, -torch.inf).scatter(-1, order, ranked.log_softmax(-1))
        return torch.where(self.greedy[index, None], logprobs, truncated)
