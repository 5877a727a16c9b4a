"""The policy of a training run: loading it, and writing what it became."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cm2_agent.errors import ModelError, TrainError
from cm2_agent.models.adapters import is_peft, require_lora, save_adapter
from cm2_agent.models.loading import load_policy_model, load_tokenizer

from .lora import add_adapter
from .model_limits import loading, source_of


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A model to train, in the precision that it was found and sampled in, its tokenizer, and the version of the
    weights as they were found.
    """

    model: Any
    tokenizer: Any
    version: str
    full_precision: bool
    """Whether the weights were found in float32: only then does a sampler that used them give the very same
    logprobs.
    """
    lent: Mapping[str, bool] = field(default_factory=dict)
    """Of a model in memory over which a new adapter was put: whether each of its parameters had a gradient."""


def load_policy(model: Any, tokenizer: Any = None, *, peft_config: Any = None, seed: int = 0) -> Policy:
    """A folder or hub name is loaded; a transformers model or a PeftModel is taken as it is and trained in place.

    Args:
        model: a folder or hub name of a model or of a LoRA adapter, or a model in memory.
        tokenizer: None: the one beside the model.
        peft_config: a new adapter over the model, whose own weights stay as they are.
        seed: of the new adapter.

    Raises:
        TrainError: the model or its tokenizer cannot be loaded or trained.
    """
    import torch
    from transformers import PreTrainedTokenizerBase

    from cm2_agent.models.weights import fingerprint

    source = source_of(model)
    if source is not None:
        with loading(source), without_bars():
            loaded = load_policy_model(source, trainable=True)
        if getattr(loaded, "hf_quantizer", None) is not None and not is_peft(loaded) and peft_config is None:
            raise TrainError(
                f"the weights in {source!r} are quantised, and cannot be trained themselves; train an adapter over them"
                " (peft_config=…, --lora), or take the model that they were made of"
            )
    else:
        loaded, source = model, getattr(getattr(model, "config", None), "_name_or_path", None) or None
        _require_trainable(loaded)
    if tokenizer is None:
        if source is None:
            raise TrainError(
                "a model in memory came without its tokenizer; give tokenizer=…, so that the result can be used"
            )
        try:
            tokenizer = load_tokenizer(source)
        except ModelError as error:
            raise TrainError(
                f"cannot load a tokenizer from {source!r}: {error}. Give tokenizer=…, or save it beside the model."
            ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TrainError(f"tokenizer is a {type(tokenizer).__name__}; expected a transformers tokenizer")
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise TrainError("the tokenizer has neither a pad nor an eos token; set tokenizer.pad_token")
    rows, pad = loaded.get_input_embeddings().weight.shape[0], tokenizer.pad_token_id
    if pad is not None and pad >= rows:
        raise TrainError(
            f"the padding token {tokenizer.pad_token!r} ({pad}) has no row in the model's embedding of {rows}: it was"
            " added to the tokenizer alone. Set tokenizer.pad_token to a token that the model has, such as its eos, or"
            " resize the embedding (model.resize_token_embeddings), and save both"
        )
    lent = {}
    if peft_config is not None:
        if not isinstance(model, str | Path):
            lent = {name: one.requires_grad for name, one in loaded.named_parameters()}
        loaded = add_adapter(loaded, peft_config, seed=seed)
    version = fingerprint(loaded)
    full = all(one.dtype == torch.float32 for one in loaded.parameters())
    return Policy(model=loaded, tokenizer=tokenizer, version=version, full_precision=full, lent=lent)


def _require_trainable(model: Any) -> None:
    """Raises TrainError for a model in memory of which nothing could be trained, or not saved."""
    if is_peft(model):
        try:
            for name in model.active_adapters:
                require_lora(model.peft_config[name])
        except ModelError as error:
            raise TrainError(f"the model has {error}") from error
    elif getattr(model, "_hf_peft_config_loaded", False):
        raise TrainError(
            "the model has an adapter that transformers put into it; give the adapter's folder instead, or a peft"
            " PeftModel"
        )
    if not any(one.requires_grad for one in model.parameters()):
        raise TrainError(
            "no weight of the model is trainable; for an adapter, load it with"
            " PeftModel.from_pretrained(…, is_trainable=True), or give its folder"
        )


def save_policy(folder: Path, policy: Policy) -> None:
    """Weights (an adapter's alone, where there is one) as safetensors and the tokenizer, into a folder that exists."""
    with without_bars():
        if is_peft(policy.model):
            save_adapter(policy.model, folder)
        else:
            policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


@contextmanager
def loaded_policy(model: Any, tokenizer: Any = None, *, peft_config: Any = None, seed: int = 0) -> Iterator[Policy]:
    """`load_policy`; a model in memory over which a new adapter was put is, at the end, as it was before, however the
    run ended.
    """
    policy = load_policy(model, tokenizer, peft_config=peft_config, seed=seed)
    try:
        yield policy
    finally:
        if policy.lent:
            plain = policy.model.unload()
            for name, one in plain.named_parameters():
                one.requires_grad_(policy.lent[name])


@contextmanager
def without_bars() -> Iterator[None]:
    """Without transformers' own bars, which would stand between those of whoever shows progress."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
