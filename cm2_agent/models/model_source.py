"""Where a model comes from: a folder, or a name on the hub, which is asked once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm2_agent.errors import ModelError
from cm2_agent.models.model_files import ADAPTER_CONFIG

__all__ = ["ModelSource", "model_source"]

_EXPECTED = "Expected a folder with a model or a LoRA adapter, or a name on the hub such as Qwen/Qwen3-0.6B"
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model"]


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """`name` is the folder or the hub name as it was given, `adapter` the folder of an adapter, None of a model.
    `cached`: the hub was not reached, and its files are taken from the cache."""

    name: str
    adapter: Path | None = None
    cached: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """What transformers is given with the name, so that it does not ask the hub again in vain."""
        return {"local_files_only": True} if self.cached else {}


def model_source(source: str | Path | ModelSource, *, ask: bool = True) -> ModelSource:
    """Look a source up. An adapter on the hub is downloaded, without its pickles; with `ask` False the hub is not asked
    and what is in its cache counts.

    Raises ModelError at once where there is neither a folder nor, by one request, a model on the hub."""
    if isinstance(source, ModelSource):
        return source
    name, path = str(source), Path(source)
    if path.is_dir():
        return ModelSource(name=name, adapter=path if (path / ADAPTER_CONFIG).exists() else None)
    if path.exists():
        raise ModelError(f"{name!r} is a file. Expected the folder that it lies in, or a name on the hub")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # re-exported without __all__

    try:
        validate_repo_id(name)
    except HFValidationError as error:  # no name on the hub, so nobody is asked
        raise ModelError(f"there is no folder {name!r}{_beside(path)}. {_EXPECTED}") from error
    return _asked(name, path) if ask else _cached(name, path, "the hub was not asked")


def _asked(name: str, path: Path) -> ModelSource:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    try:
        get_hf_file_metadata(hf_hub_url(name, ADAPTER_CONFIG))  # one request: hf_hub_download would try six times
    except GatedRepoError as error:
        raise ModelError(
            f"the model {name!r} on the hub is gated: accept its terms there, and give a token (hf auth login, or"
            " HF_TOKEN)"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"there is no folder {name!r}{_beside(path)}, and no model of that name on the hub (for a private one give"
            f" a token: hf auth login, or HF_TOKEN). {_EXPECTED}"
        ) from error
    except EntryNotFoundError:
        return ModelSource(name=name)
    except Exception as error:  # what clients raise where there is no network shares no base
        return _cached(name, path, f"the hub could not be asked ({type(error).__name__})")
    try:
        return ModelSource(name=name, adapter=Path(snapshot_download(name, allow_patterns=_FILES)))
    except Exception as error:  # as above
        raise ModelError(f"the adapter {name!r} could not be downloaded from the hub: {error}; try again") from error


def _cached(name: str, path: Path, why: str) -> ModelSource:
    from huggingface_hub import try_to_load_from_cache

    adapter = try_to_load_from_cache(name, ADAPTER_CONFIG)
    if isinstance(adapter, str):
        return ModelSource(name=name, adapter=Path(adapter).parent, cached=True)
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return ModelSource(name=name, cached=True)
    raise ModelError(
        f"there is no folder {name!r}{_beside(path)}; {why} for a model of that name, and it is not in the cache."
        f" {_EXPECTED}"
    )


def _beside(path: Path) -> str:
    """What lies where a folder was looked for, for who has mistyped it."""
    try:
        found = sorted(one.name for one in path.parent.iterdir() if one.is_dir() and not one.name.startswith("."))
    except OSError:
        return f" (nor {str(path.parent)!r})"
    if str(path.parent) == os.curdir:
        return ""
    return f" ({str(path.parent)!r} has {', '.join(found[:5]) or 'no folders'}{', …' if found[5:] else ''})"
