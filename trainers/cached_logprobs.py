"""Log-probabilities as a sampler computes them: a token at a time, over a cache, in a padded batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .rows import Floats

Call = tuple[Sequence[int], Sequence[int]]
"""A prompt and the tokens that were sampled after it, at least one each."""

ROWS = 16
PROMPT_TOKENS = 2**14
"""The most prompt tokens, with padding, of one batch; a longer prompt is one by itself."""


@torch.no_grad()
def cached_logprobs(model: Any, calls: Sequence[Call], *, temperature: float) -> list[Floats]:
    """log π of each call's sampled tokens, one array a call, (N,).

    The same numbers as one pass over prompt and completion gives, up to rounding: what the two differ by is what two
    runs of the same weights differ by.
    """
    found: dict[int, Floats] = {}
    for part in _batches(calls):
        values = _batch(model, [calls[index] for index in part], temperature)
        found.update(zip(part, values, strict=True))
    return [found[index] for index in range(len(calls))]


def _batches(calls: Sequence[Call]) -> Iterator[list[int]]:
    """The calls' indices, those of like prompts together."""
    batch: list[int] = []
    for index in sorted(range(len(calls)), key=lambda index: len(calls[index][0])):
        if batch and (len(batch) == ROWS or (len(batch) + 1) * len(calls[index][0]) > PROMPT_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _batch(model: Any, calls: Sequence[Call], temperature: float) -> list[Floats]:
    device = model.device
    width = max(len(prompt) for prompt, _ in calls)
    ids = torch.zeros((len(calls), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (prompt, _) in enumerate(calls):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    steps = max(len(sampled) for _, sampled in calls)
    drawn = torch.zeros((steps, len(calls)), dtype=torch.long)
    for row, (_, sampled) in enumerate(calls):
        drawn[: len(sampled), row] = torch.tensor(list(sampled))
    ids, mask, drawn = ids.to(device), mask.to(device), drawn.to(device)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    cache, found = None, []
    for step in range(steps):
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        logps = torch.log_softmax(output.logits[:, -1].float() / temperature, dim=-1)
        found.append(logps.gather(1, drawn[step][:, None]).squeeze(1))
        ids, places = drawn[step][:, None], places[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones((len(calls), 1))], dim=1)
    values = torch.stack(found).double().cpu().numpy()  # (steps, rows)
    return [values[: len(sampled), row] for row, (_, sampled) in enumerate(calls)]
