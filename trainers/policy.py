"""The policy of a training run: loading it, and writing what it became."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm2_agent.errors import TrainError

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


def load_policy(model: Any, tokenizer: Any = None) -> Policy:
    """A folder or hub name is loaded; a transformers model is taken as it is and trained in place. Raises
    TrainError.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

    from cm2_agent.models.local import fingerprint

    source = source_of(model)
    if source is not None:
        with loading(source), without_bars():
            loaded = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    else:
        loaded, source = model, getattr(getattr(model, "config", None), "_name_or_path", None) or None
    if tokenizer is None:
        if source is None:
            raise TrainError(
                "a model in memory came without its tokenizer; give tokenizer=…, so that the result can be used"
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError, KeyError) as error:
            raise TrainError(
                f"cannot load a tokenizer from {source!r}: {error}. Give tokenizer=…, or save it beside the model."
            ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TrainError(f"tokenizer is a {type(tokenizer).__name__}; expected a transformers tokenizer")
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise TrainError("the tokenizer has neither a pad nor an eos token; set tokenizer.pad_token")
    version = fingerprint(loaded)
    full = all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    return Policy(model=loaded, tokenizer=tokenizer, version=version, full_precision=full)


def save_policy(folder: Path, policy: Policy) -> None:
    """Weights as safetensors and the tokenizer, into a folder that exists."""
    with without_bars():
        policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


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
