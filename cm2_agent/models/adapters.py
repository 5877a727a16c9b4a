"""LoRA adapters over a frozen model: loading and saving them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from cm2_agent.errors import ModelError, require_extra
from cm2_agent.models.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS

__all__ = ["is_peft", "load_adapter", "plain_model", "save_adapter"]

STOPS = "generation_config.json"


def is_peft(model: Any) -> bool:
    """Whether the model is a PeftModel; imports nothing."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def plain_model(model: Any) -> Any:
    """The transformers model, with an adapter's layers in it where there are some: what computes."""
    return model.get_base_model() if is_peft(model) else model


def load_adapter(base: Any, folder: Path, *, trainable: bool = False) -> Any:
    """A PeftModel: the adapter of a folder, in float32, over a model in memory, which it changes. Raises ModelError."""
    require_extra("train", "LoRA adapters", "peft")
    from peft import PeftConfig, PeftModel
    from safetensors import safe_open
    from transformers import GenerationConfig

    try:
        settings = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot read {str(folder / ADAPTER_CONFIG)!r}: {error}") from error
    require_lora(settings)
    if not (folder / ADAPTER_WEIGHTS).exists():
        raise ModelError(
            f"{str(folder)!r} has no {ADAPTER_WEIGHTS}; expected safetensors: pickles can hold code and are not read"
        )
    try:
        model = PeftModel.from_pretrained(base, str(folder), config=settings, is_trainable=trainable)
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            stored = set(file.keys())
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"the adapter {str(folder)!r} does not fit its base: {_first(error)}. Expected the model that it was"
            " trained over"
        ) from error
    wanted = set(adapter_state(model))
    if stored != wanted:
        missing, unknown = sorted(wanted - stored), sorted(stored - wanted)
        raise ModelError(
            f"the adapter {str(folder)!r} does not fit its base: {len(missing)} weights are missing"
            f" ({', '.join(missing[:2]) or 'none'}), {len(unknown)} have no place ({', '.join(unknown[:2]) or 'none'})."
            " Expected the model that it was trained over"
        )
    if (folder / STOPS).exists():
        plain_model(model).generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _first(error: Exception) -> str:
    """The first of what torch lists, or what was said."""
    listed = str(error).split("\n\t")
    return (listed[1] if len(listed) > 1 else listed[0]).rstrip(".")


def require_lora(settings: Any) -> None:
    """Raises ModelError for another kind of adapter than LoRA, and for one that trains weights of its base."""
    kind = getattr(settings.peft_type, "value", settings.peft_type)
    if kind != "LORA":
        raise ModelError(f"an adapter of type {kind}; expected LORA")
    if settings.bias != "none":
        raise ModelError(f"an adapter with bias={settings.bias!r} changes its base's own biases; expected 'none'")


def adapter_state(model: Any) -> dict[str, Any]:
    """The tensors of a PeftModel's adapter, by the names that they are saved under."""
    from peft import get_peft_model_state_dict

    name = adapter_name(model)
    found: dict[str, Any] = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return found


def adapter_name(model: Any) -> str:
    """The name of the active adapter. Raises ModelError where several are active at once."""
    active = model.active_adapters
    if len(active) != 1:
        raise ModelError(f"{len(active)} adapters are active ({', '.join(active)}); expected one: set_adapter(…)")
    return str(active[0])


def save_adapter(model: Any, folder: Path) -> None:
    """Write a PeftModel's active adapter into a folder that exists: adapter_config.json and safetensors."""
    from safetensors.torch import save_file

    name = adapter_name(model)
    settings = model.peft_config[name]
    before = settings.inference_mode, settings.base_model_name_or_path
    base = before[1] or plain_model(model).name_or_path or None
    # A path that holds wherever the adapter is loaded; a hub name as it is.
    settings.base_model_name_or_path = os.path.abspath(base) if base and os.path.isdir(base) else base
    settings.inference_mode = True
    try:
        settings.save_pretrained(folder)
    finally:
        settings.inference_mode, settings.base_model_name_or_path = before
    state = {key: value.detach().cpu().contiguous().clone() for key, value in adapter_state(model).items()}
    save_file(state, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    stops = plain_model(model).generation_config
    if base is None or not os.path.isdir(base) or _stops_in(Path(base)) != stops.eos_token_id:
        stops.save_pretrained(folder)  # an adapter that learnt another end stops at it


def _stops_in(folder: Path) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig.from_pretrained(folder).eos_token_id if (folder / STOPS).exists() else None
