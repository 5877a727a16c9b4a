"""`fingerprint`: a name for the exact weights of a model."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["fingerprint"]


def fingerprint(model: Any) -> str:
    """A name for these exact weights: 16 hexadecimal digits of a SHA-256 over every tensor's name, shape, type and
    bytes.

    `model` is a torch module. It is the `model_version` of what a LocalChatModel writes. A model with LoRA adapters has
    its base's name, "+", and 16 digits over the active adapter's tensors in float32 and their scale: the same in
    memory, from a folder and after a reload. Adapters that are switched off, or that add nothing yet, leave the base's
    name; merged ones have a name like any model.

    >>> import torch
    >>> from cm2_agent.models import fingerprint
    >>> layer = torch.nn.Linear(2, 1)
    >>> before = fingerprint(layer)
    >>> with torch.no_grad():
    ...     _ = layer.bias.add_(1.0)
    >>> len(before), fingerprint(layer) == before
    (16, False)
    """
    base, adapter = _parts(model)
    return _named(_digest(base), adapter)


def with_adapter(base: str, model: Any) -> str:
    """The fingerprint of a model whose base's name is known; the base's weights are not looked at."""
    return _named(base, _parts(model)[1])


def _named(base: str, adapter: Mapping[str, Any]) -> str:
    return base + (f"+{_digest(adapter)}" if adapter else "")


def _digest(tensors: Mapping[str, Any]) -> str:
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _parts(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of the model without adapters, by the names that they have there, and those of active adapters."""
    peft = sys.modules.get("peft")
    if peft is None:  # then nobody can have put an adapter in
        return dict(model.state_dict()), {}
    if isinstance(model, peft.PeftModel):
        model = model.get_base_model()
    state = dict(model.state_dict())
    wrappers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer | peft.utils.other.AuxiliaryTrainingWrapper)
    }
    base: dict[str, Any] = {}
    adapter: dict[str, Any] = {}
    for name, tensor in state.items():
        plain, owner, rest = _placed(name, wrappers)
        if owner is None:
            base[plain] = tensor
            continue
        for active in _active(wrappers[owner]):
            if active in rest:
                rest.remove(active)
                adapter[f"{owner}.{'.'.join(rest)}"] = tensor.detach().float()
                break
    if not _adds_something(adapter):
        return base, {}
    return base, {**adapter, **_scales(wrappers)}


def _placed(name: str, wrappers: Mapping[str, Any]) -> tuple[str, str | None, list[str]]:
    """Where a tensor stands: its name without adapters; the wrapper whose own it is, None for one of the base's; and
    its name within that. Wrappers may stand within one another, as over the fused experts of a mixture."""
    parts, plain = name.split("."), list[str]()
    for place, part in enumerate(parts):
        around = ".".join(parts[:place])
        if around not in wrappers:
            plain.append(part)
        elif part not in ("base_layer", "original_module") and f"{around}.{part}" not in wrappers:
            return ".".join(plain), around, parts[place:]
    return ".".join(plain), None, []


def _active(module: Any) -> list[str]:
    """The adapters that take part in what a layer computes beside its base."""
    if getattr(module, "disable_adapters", False):
        return []
    merged = getattr(module, "merged_adapters", None) or []  # these are in the base's weights now
    return [name for name in module.active_adapters if name not in merged]


def _adds_something(adapter: Mapping[str, Any]) -> bool:
    """Whether an adapter changes what is computed: one factor of a new one is 0."""
    zero = (".lora_B.", ".lora_embedding_A")
    other = (".lora_A.", ".lora_embedding_B")
    return any(
        bool(tensor.any()) if any(part in name for part in zero) else not any(part in name for part in other)
        for name, tensor in adapter.items()
    )


def _scales(wrappers: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    found = {}
    for name, module in wrappers.items():
        scaling = getattr(module, "scaling", {})
        values = [float(scaling[one]) for one in _active(module) if one in scaling]
        if values:
            found[f"{name}.scaling"] = torch.tensor(values, dtype=torch.float64)
    return found
