"""What a model can read, by its configuration, and where it comes from: a folder, a hub name, or memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from cm2_agent.errors import ModelError, TrainError


class ModelLimits:
    """What a model can read, by its configuration: looked up when first asked for, and before any weight is loaded."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @cached_property
    def context(self) -> int | None:
        """How many tokens the model reads at most, None where its configuration does not say."""
        value = getattr(self._config, "max_position_embeddings", None)
        return None if value is None else int(value)

    @cached_property
    def vocabulary(self) -> int:
        """How many token ids the model knows."""
        if source_of(self._model) is not None:
            return int(self._config.vocab_size)
        return int(self._model.get_input_embeddings().weight.shape[0])

    @cached_property
    def _config(self) -> Any:
        from cm2_agent.models.loading import load_config

        source = source_of(self._model)
        if source is None:
            return self._model.config.get_text_config()
        with loading(source):
            return load_config(source).get_text_config()


def source_of(model: Any) -> str | None:
    """The folder or hub name to load, None for a transformers model in memory. Raises TrainError for anything else."""
    if isinstance(model, str | Path):
        return str(model)
    if not callable(getattr(model, "save_pretrained", None)) or not callable(getattr(model, "parameters", None)):
        raise TrainError(f"model is a {type(model).__name__}; expected a path, a hub name or a transformers model")
    return None


@contextmanager
def loading(source: str) -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise TrainError(str(error)) from error
