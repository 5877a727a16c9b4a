"""Policies on disk: loading one to train, and writing the next so that a folder is either whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cm2_agent.errors import TrainError
from cm2_agent.types.json_values import JSON

REPORT = "report.json"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A model to train (float32, so that small steps are not rounded away), its tokenizer, and the version of the
    weights as they were found.
    """

    model: Any
    tokenizer: Any
    version: str
    full_precision: bool
    """Whether the weights were found in float32: only then does a sampler that used them give the very same
    logprobs.
    """


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
        if _source(self._model) is not None:
            return int(self._config.vocab_size)
        return int(self._model.get_input_embeddings().weight.shape[0])

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        source = _source(self._model)
        if source is None:
            return self._model.config.get_text_config()
        with _loading(source):
            return AutoConfig.from_pretrained(source).get_text_config()


def load_policy(model: Any, tokenizer: Any = None) -> Policy:
    """A folder or hub name is loaded; a transformers model is taken as it is and trained in place. Raises
    TrainError.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

    from cm2_agent.models.local import fingerprint

    source = _source(model)
    if source is not None:
        with _loading(source), _no_bars():
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
    if not full and isinstance(model, str | Path):
        loaded = loaded.float()
    return Policy(model=loaded, tokenizer=tokenizer, version=version, full_precision=full)


def _source(model: Any) -> str | None:
    """The folder or hub name to load, None for a transformers model in memory. Raises TrainError for anything else."""
    if isinstance(model, str | Path):
        return str(model)
    if not callable(getattr(model, "save_pretrained", None)) or not callable(getattr(model, "parameters", None)):
        raise TrainError(f"model is a {type(model).__name__}; expected a path, a hub name or a transformers model")
    return None


@contextmanager
def _loading(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise TrainError(
            f"cannot load a model from {source!r}: {error}. Expected a folder or a hub name of a causal language model."
        ) from error


def check_out(out: Path) -> None:
    """Raises TrainError where `out` holds something that a trainer of ours did not write: it would be replaced."""
    if not out.exists() or (out.is_dir() and ((out / REPORT).exists() or not any(out.iterdir()))):
        return
    raise TrainError(
        f"out {str(out)!r} exists and is not a trained policy; name a folder that does not exist yet, or remove it"
        " first"
    )


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into; it becomes `out` (replacing an earlier result) if the block ends well,
    and is removed if not.
    """
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        fresh = scratch / "new"
        fresh.mkdir()
        yield fresh
        if out.exists():
            os.replace(out, scratch / "old")
        os.replace(fresh, out)
    finally:
        if (scratch / "old").exists() and not out.exists():  # interrupted between the two renames
            os.replace(scratch / "old", out)
        shutil.rmtree(scratch, ignore_errors=True)


def save(folder: Path, model: Any, tokenizer: Any, report: dict[str, JSON]) -> None:
    """Weights as safetensors, the tokenizer and report.json."""
    with _no_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without transformers' own bars, which would stand between those of whoever shows progress."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
