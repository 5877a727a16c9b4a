"""Log-probabilities of trained positions alone: prompts and tool results pass through no head."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.integrations.fsdp import is_fsdp_managed_module

from cm2_agent.models.adapters import is_peft, plain_model

from .micro_batches import buckets

LOGITS_AT_ONCE = 2**25
"""Logits (tokens × vocabulary) that are held for the backward pass; above, they are taken in chunks of so many and once
more in the backward pass.
"""
METHOD = "logprob_pass"
"""The attribute under which a sharded model has `logprob_pass` as a method that gathers its weights."""
_SCALED_HEADS = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


def separable(model: Any) -> PreTrainedModel | None:
    """The transformers model whose layers and head may be called one after the other, adapters included; None where
    only a call of the model as a whole is right: a capped or scaled head, prompt tuning, parallel wrappers.
    """
    if is_peft(model) and any(one.is_prompt_learning for one in model.peft_config.values()):
        return None
    model = plain_model(model)
    if not isinstance(model, PreTrainedModel) or (is_fsdp_managed_module(model) and not hasattr(model, METHOD)):
        return None
    text = model.config.get_text_config()
    if any(getattr(text, name, None) not in (None, 1.0) for name in _SCALED_HEADS):
        return None
    return model if model.base_model is not model and model.get_output_embeddings() is not None else None


def trained_logprobs(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trained: torch.Tensor,
    *,
    temperature: float,
    entropy: bool,
    entropy_gradient: bool = False,
    router_loss: bool = False,
    one_pass: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """log π (and entropies) of the positions where `trained`, (B, T), is 1; 0 elsewhere, each (B, T); and a router's
    loss where it is asked for. `one_pass`: all rows go through the model at once, and not in buckets of like length.

    `input_ids` and `attention_mask` are (B, P + T): prompts left padded, completions right padded. `model` has TRL's
    fused head, which computes what cannot be taken apart (`separable`).
    """
    rows, width = trained.shape
    offset = input_ids.size(1) - width  # of the completion in (B, P + T)
    lengths = attention_mask.sum(1)
    lefts = attention_mask.argmax(1)  # rows are contiguous: pads left of the prompt, right of the completion
    filled = torch.nonzero(trained.any(1)).flatten()
    if not len(filled):  # nothing to learn from: a zero that backward can pass through
        nothing = next(model.parameters()).sum() * 0.0 + torch.zeros((rows, width), device=input_ids.device)
        return nothing, nothing.detach() if entropy else None, None
    plain = None if router_loss else separable(model)
    vocabulary = 1 if plain is None else plain.config.get_text_config().vocab_size
    chunk = None if int(trained.sum()) * vocabulary <= LOGITS_AT_ONCE else max(1, LOGITS_AT_ONCE // vocabulary)
    places, logps, entropies, routers = [], [], [], []
    for bucket in [list(range(len(filled)))] if one_pass else buckets(lengths[filled].tolist()):
        part = filled[torch.tensor(bucket, device=filled.device)]
        longest = int(lengths[part].max())
        columns = (lefts[part, None] + torch.arange(longest, device=part.device)).clamp(max=input_ids.size(1) - 1)
        ids = input_ids[part].gather(1, columns)  # (b, longest), flush left: causal attention then needs no mask
        row, column = torch.nonzero(trained[part], as_tuple=True)
        source = column + offset - lefts[part][row]  # the token's place in its flushed row
        if plain is None:
            labels = torch.full_like(ids, -100)
            labels[row, source] = ids[row, source]
            seen = torch.arange(longest, device=ids.device) < lengths[part, None]
            extra = {"output_router_logits": True} if router_loss else {}
            out = model(input_ids=ids, attention_mask=seen.long(), labels=labels, fused_lm_head=True, **extra)
            found, uncertain = out.log_probs[row, source - 1], out.entropy[row, source - 1]
            if router_loss:
                routers.append(out.aux_loss)
        else:
            run = getattr(plain, METHOD, None) or partial(logprob_pass, plain)
            found, uncertain = run(ids, row, source, temperature, entropy, entropy_gradient, chunk=chunk)
        logps.append(found)
        if entropy:
            entropies.append(uncertain)
        places.append(part[row] * width + column)
    index = torch.cat(places)
    return (
        _spread(logps, index, rows, width),
        _spread(entropies, index, rows, width) if entropy else None,
        torch.stack(routers).mean() if routers else None,
    )


def logprob_pass(
    model: Any,
    ids: torch.Tensor,
    row: torch.Tensor,
    source: torch.Tensor,
    temperature: float,
    entropy: bool,
    entropy_gradient: bool,
    *,
    chunk: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`head_logprobs` of the tokens at (row, source), each (n,), of `ids`, (b, L): layers and head, one after the
    other.
    """
    states = model.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[row, source - 1]
    head = model.get_output_embeddings()
    return head_logprobs(head, states, ids[row, source], temperature, entropy, entropy_gradient, chunk=chunk)


def head_logprobs(
    head: Any,
    states: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    entropy: bool,
    entropy_gradient: bool,
    *,
    chunk: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log π of `labels`, (n,), and the entropies there (zeros where they are not asked for), from the states, (n, H),
    before the head; in chunks of so many tokens, whose logits are not held for the backward pass.
    """

    def some(states: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = head(states)
        logits = (logits if logits.dtype == torch.float64 else logits.float()) / temperature  # (n, V)
        distribution = torch.log_softmax(logits, dim=-1)
        found = distribution.gather(1, labels[:, None]).squeeze(1)
        if not entropy:
            return found, torch.zeros_like(found)
        with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_gradient):
            return found, -(distribution.exp() * distribution).sum(-1)

    if chunk is None:
        return some(states, labels)
    pairs = zip(torch.split(states, chunk), torch.split(labels, chunk), strict=True)
    chunks = [checkpoint(some, *pair, use_reentrant=False) for pair in pairs]
    return torch.cat([found for found, _ in chunks]), torch.cat([uncertain for _, uncertain in chunks])


def _spread(values: list[torch.Tensor], index: torch.Tensor, rows: int, width: int) -> torch.Tensor:
    flat = torch.cat(values)
    return flat.new_zeros(rows * width).index_put((index,), flat).view(rows, width)
