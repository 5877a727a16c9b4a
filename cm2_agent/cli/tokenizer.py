"""The tokenizer that a command reads token ids with."""

from __future__ import annotations

from typing import Any

from cm2_agent.errors import TrainError


def tokenizer_of(model: str | None) -> Any:
    """The tokenizer of a model, or the bundled byte-level one. No code of the model's runs. Raises TrainError."""
    if model is None:
        from cm2_agent.models.tokenizer import byte_tokenizer

        return byte_tokenizer()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise TrainError(
            f"cannot load a tokenizer from {model!r}: {first}. Expected a folder or hub name of a model with one"
        ) from error
