"""The tokenizer that a command reads token ids with."""

from __future__ import annotations

from typing import Any

from cm2_agent.errors import ModelError, TrainError


def tokenizer_of(model: str | None) -> Any:
    """The tokenizer of a model, or the bundled byte-level one. No code of the model's runs. Raises TrainError."""
    if model is None:
        from cm2_agent.models.tokenizer import byte_tokenizer

        return byte_tokenizer()
    from cm2_agent.models.loading import load_tokenizer

    try:
        return load_tokenizer(model)
    except ModelError as error:
        raise TrainError(str(error)) from error
