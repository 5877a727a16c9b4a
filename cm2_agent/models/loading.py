"""Loading a policy from a folder or the hub: a model, or an adapter over one; no code of a folder runs, no pickle is
read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cm2_agent.errors import ModelError
from cm2_agent.models.adapters import ADAPTER_CONFIG, load_adapter

__all__ = ["base_of", "load_config", "load_policy_model", "load_tokenizer"]


def load_policy_model(
    source: str | Path,
    *,
    dtype: str | None = None,
    base: Any = None,
    trainable: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """A transformers model, or a PeftModel where `source` is an adapter's folder.

    Args:
        source: a folder, or a hub name.
        dtype: of the weights, as torch names it; None: the checkpoint's own. An adapter is always in float32.
        base: the model below an adapter: a folder, a hub name or a model in memory; None: the one it names.
        trainable: whether an adapter's weights get gradients.
        options: go to transformers' `from_pretrained`.

    Raises:
        ModelError: there is no such model, it needs code of its folder, or its weights are no safetensors.
    """
    options = dict(options or {})
    if options.pop("trust_remote_code", False):
        raise ModelError(
            f"trust_remote_code was asked for {str(source)!r}; no code of a model's folder is ever run. Expected a"
            " model that transformers has a class for"
        )
    adapter = adapter_folder(source)
    if adapter is None:
        if base is not None:
            raise ModelError(f"base was given, and {str(source)!r} is no adapter: it has no {ADAPTER_CONFIG}")
        return _load_weights(source, dtype, options)
    if base is None:
        base = base_of(adapter)
    below = _load_weights(base, dtype, options) if isinstance(base, str | Path) else base
    return load_adapter(below, adapter, trainable=trainable)


def adapter_folder(source: str | Path) -> Path | None:
    """The folder of an adapter, None where `source` is none. One on the hub is downloaded, without its pickles."""
    if Path(source).is_dir():
        return Path(source) if (Path(source) / ADAPTER_CONFIG).exists() else None
    from huggingface_hub import snapshot_download
    from transformers.utils.peft_utils import find_adapter_config_file

    with loading(source):
        if find_adapter_config_file(str(source)) is None:
            return None
        return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"]))


def base_of(folder: Path) -> str:
    """The model that an adapter is over: a folder (as recorded, or beside the adapter) or a hub name. Raises
    ModelError where none is recorded, or its folder is gone.
    """
    try:
        name = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"cannot read {str(folder / ADAPTER_CONFIG)!r}: {error}") from error
    if not name:
        raise ModelError(
            f"the adapter {str(folder)!r} does not say what model it is over: that was in memory. Save that model and"
            " give its folder: LocalChatModel.load(…, base=…)"
        )
    if Path(name).exists():
        return str(name)
    moved = folder.parent / Path(name).name
    if moved.is_dir():
        return str(moved)
    if Path(name).is_absolute() or len(Path(name).parts) > 2:
        raise ModelError(
            f"the adapter {str(folder)!r} is over the model in {name!r}, which is not there; give its place:"
            " LocalChatModel.load(…, base=…)"
        )
    return str(name)


def load_tokenizer(source: str | Path, **options: Any) -> Any:
    """The tokenizer beside a model, or an adapter's, or its base's. Raises ModelError."""
    from transformers import AutoTokenizer

    folder = adapter_folder(source)
    if folder is not None and not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        source = base_of(folder)
    with loading(source):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)


def load_config(source: str | Path) -> Any:
    """The configuration of a model, or of the one below an adapter. Raises ModelError."""
    from transformers import AutoConfig

    folder = adapter_folder(source)
    if folder is not None:
        source = base_of(folder)
    with loading(source):
        return AutoConfig.from_pretrained(source, trust_remote_code=False)


def _load_weights(source: str | Path, dtype: str | None, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    with loading(source):
        return AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype or "auto", **{"use_safetensors": True, **options, "trust_remote_code": False}
        )


@contextmanager
def loading(source: str | Path) -> Iterator[None]:
    """Raises ModelError for what transformers says of a source that cannot be loaded."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            f"the weights in {str(source)!r} are cut off or broken ({error}); copy or download the folder again"
        ) from error
    except (OSError, ValueError, KeyError, ImportError) as error:
        named = _custom_code(Path(source))
        if named:
            raise ModelError(
                f"{str(source)!r} needs code of its own ({named}), which is never run; expected a model that this"
                " version of transformers has a class for. Convert it, or update transformers"
            ) from error
        if _only_pickles(Path(source)):
            raise ModelError(
                f"the weights in {str(source)!r} are pickles, which can hold code and are not read; expected"
                " safetensors. Convert them: load them where you trust them, and save_pretrained again"
            ) from error
        raise ModelError(
            f"cannot load a model from {str(source)!r}: {error}. Expected a folder or a hub name of a causal language"
            " model."
        ) from error


def _custom_code(folder: Path) -> str:
    """The classes of its own that a folder names, where it names some."""
    found: list[str] = []
    for file in ("config.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            named = json.loads((folder / file).read_text(encoding="utf-8")).get("auto_map") or {}
            found += [f"auto_map {kind}: {value}" for kind, value in named.items()] if isinstance(named, dict) else []
    return ", ".join(found)


def _only_pickles(folder: Path) -> bool:
    return not any(folder.glob("*.safetensors")) and any(
        any(folder.glob(pattern)) for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt")
    )
