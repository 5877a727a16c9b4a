"""Log-probabilities of trained positions alone: prompts and tool results pass through no head."""

from __future__ import annotations

from typing import Any

import torch

# Rows a forward pass: rows of like length together, so that little is computed on padding.
FORWARD_ROWS = 16


def trained_logprobs(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trained: torch.Tensor,
    *,
    temperature: float,
    entropy: bool,
    entropy_gradient: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, None]:
    """log π (and entropies) of the positions where `trained`, (B, T), is 1; 0 elsewhere, each (B, T).

    `input_ids` and `attention_mask` are (B, P + T): prompts left padded, completions right padded. The third value is
    TRL's place for a router's loss.
    """
    rows, width = trained.shape
    offset = input_ids.size(1) - width  # of the completion in (B, P + T)
    lengths = attention_mask.sum(1)
    lefts = attention_mask.argmax(1)  # rows are contiguous: pads left of the prompt, right of the completion
    filled = torch.nonzero(trained.any(1)).flatten()
    if not len(filled):  # a slice of filling rows: a zero that backward can pass through
        nothing = next(model.parameters()).sum() * 0.0 + torch.zeros((rows, width), device=input_ids.device)
        return nothing, nothing.detach() if entropy else None, None
    filled = filled[torch.argsort(lengths[filled], stable=True)]
    places, logps, entropies = [], [], []
    with_gradient = torch.is_grad_enabled() and entropy_gradient
    for part in torch.split(filled, FORWARD_ROWS):
        longest = int(lengths[part].max())
        columns = (lefts[part, None] + torch.arange(longest, device=part.device)).clamp(max=input_ids.size(1) - 1)
        ids = input_ids[part].gather(1, columns)  # (b, longest), flush left: causal attention then needs no mask
        hidden = model.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        row, column = torch.nonzero(trained[part], as_tuple=True)
        source = column + offset - lefts[part][row]  # the token's place in its flushed row
        logits = model.get_output_embeddings()(hidden[row, source - 1]).float() / temperature  # (n, V)
        distribution = torch.log_softmax(logits, dim=-1)
        logps.append(distribution.gather(1, ids[row, source][:, None]).squeeze(1))
        if entropy:
            with torch.set_grad_enabled(with_gradient):
                entropies.append(-(distribution.exp() * distribution).sum(-1))
        places.append(part[row] * width + column)
    index = torch.cat(places)
    return (
        _spread(logps, index, rows, width),
        _spread(entropies, index, rows, width) if entropy else None,
        None,
    )


def _spread(values: list[torch.Tensor], index: torch.Tensor, rows: int, width: int) -> torch.Tensor:
    flat = torch.cat(values)
    return flat.new_zeros(rows * width).index_put((index,), flat).view(rows, width)
