"""`merge_adapter`: an adapter and the model below it as one model."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from cm2_agent.errors import ModelError
from cm2_agent.models.loading import load_policy_model, load_tokenizer
from cm2_agent.models.model_files import ADAPTER_CONFIG
from cm2_agent.models.model_source import model_source

__all__ = ["merge_adapter"]


def merge_adapter(adapter: str | Path, out: str | Path, *, base: Any = None) -> Path:
    """Write the model that an adapter and its base are together, in the base's dtype, with the tokenizer.

    Rounding makes it another policy, with a fingerprint of its own: sample anew before training on. `out` is returned.

    Args:
        adapter: an adapter's folder.
        out: a folder that does not exist yet.
        base: the model below the adapter: a folder, a hub name or a model in memory; None: the one it names.

    Raises:
        ModelError: `adapter` is none, or cannot be loaded; `out` exists.

    >>> from tempfile import TemporaryDirectory
    >>> from peft import LoraConfig, get_peft_model
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from cm2_agent.models import byte_tokenizer, merge_adapter
    >>> size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> with TemporaryDirectory() as folder:
    ...     LlamaForCausalLM(LlamaConfig(vocab_size=260, **size)).save_pretrained(f"{folder}/base")
    ...     _ = byte_tokenizer().save_pretrained(f"{folder}/base")
    ...     network = LlamaForCausalLM.from_pretrained(f"{folder}/base")
    ...     get_peft_model(network, LoraConfig(target_modules="all-linear")).save_pretrained(f"{folder}/adapter")
    ...     merged = merge_adapter(f"{folder}/adapter", f"{folder}/merged")
    ...     sorted(file.name for file in merged.glob("*.safetensors"))
    ['model.safetensors']
    """
    out = Path(out)
    source = model_source(adapter)
    if source.adapter is None:
        whole = (Path(source.name) / "config.json").exists()
        what = "is no adapter but a whole model, with nothing to merge" if whole else "is no adapter"
        raise ModelError(f"{source.name!r} {what}: expected the folder that LoRA training wrote, with {ADAPTER_CONFIG}")
    if out.exists():
        raise ModelError(f"out {str(out)!r} exists; name a folder that does not exist yet")
    model = load_policy_model(source, base=base)
    tokenizer = load_tokenizer(source)
    merged = model.merge_and_unload()
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        merged.save_pretrained(scratch / "new")
        tokenizer.save_pretrained(scratch / "new")
        os.replace(scratch / "new", out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out
