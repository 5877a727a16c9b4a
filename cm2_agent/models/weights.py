"""`fingerprint`: a name for the exact weights of a model."""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["fingerprint"]


def fingerprint(model: Any) -> str:
    """A name for these exact weights: 16 hexadecimal digits of a SHA-256 over every tensor's name, shape, type and
    bytes.

    `model` is a torch module. It is the `model_version` of what a LocalChatModel writes.

    >>> import torch
    >>> from cm2_agent.models import fingerprint
    >>> layer = torch.nn.Linear(2, 1)
    >>> before = fingerprint(layer)
    >>> with torch.no_grad():
    ...     _ = layer.bias.add_(1.0)
    >>> len(before), fingerprint(layer) == before
    (16, False)
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
