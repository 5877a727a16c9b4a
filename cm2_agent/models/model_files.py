"""The files of a model's folder: its weights, whether they are whole, and code of its own, which is never run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cm2_agent.errors import ModelError

__all__ = ["ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "WeightFiles", "adapter_files", "code_of", "read_json", "weight_files"]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_OTHERS = ("*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.npz")
_POINTER = b"version https://git-lfs"


@dataclass(kw_only=True)
class WeightFiles:
    """Files of weights that are whole. `problems`: why they cannot all be loaded; `notes`: what lies beside them;
    `others`: weights that are not read, where there are none that are."""

    files: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def weight_files(folder: Path) -> WeightFiles:
    """The safetensors that transformers loads from a folder, each opened, and no weight of them read."""
    found = WeightFiles()
    index = folder / _INDEX
    if (folder / _WEIGHTS).exists():
        _open(folder / _WEIGHTS, found)
    elif index.exists():
        try:
            shards = sorted({str(file) for file in read_json(index)["weight_map"].values()})
        except (ModelError, KeyError, TypeError, AttributeError) as error:
            found.problems.append(f"{_INDEX} is no index of weights ({error})")
            return found
        for shard in shards:
            _open(folder / shard, found)
    else:
        found.problems.append(_none(folder))
        found.others = _names(folder, ("*.safetensors", *_PICKLES, *_OTHERS))
        return found
    pickles = _names(folder, _PICKLES)
    if pickles:
        found.notes.append(f"{', '.join(pickles)}: pickles, which can hold code and are not read")
    return found


def adapter_files(folder: Path) -> WeightFiles:
    """The weights of an adapter's folder."""
    found = WeightFiles()
    if (folder / ADAPTER_WEIGHTS).exists():
        _open(folder / ADAPTER_WEIGHTS, found)
    else:
        found.problems.append(_none(folder, ADAPTER_WEIGHTS))
    return found


def code_of(folder: Path) -> str:
    """The classes of its own that a folder names, where it names some."""
    found: list[str] = []
    for file in ("config.json", "tokenizer_config.json"):
        try:
            named = read_json(folder / file).get("auto_map")
        except ModelError:
            continue
        found += [f"auto_map {kind}: {value}" for kind, value in named.items()] if isinstance(named, dict) else []
    return ", ".join(found)


def only_pickles(folder: Path) -> bool:
    """Whether the weights of a folder are pickles alone."""
    return not any(folder.glob("*.safetensors")) and bool(_names(folder, _PICKLES))


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object in a file. Raises ModelError."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {file.name}: {error}") from error
    if not isinstance(read, dict):
        raise ModelError(f"{file.name} holds a {type(read).__name__}; expected a JSON object")
    return read


def _open(file: Path, found: WeightFiles) -> None:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        found.problems.append(f"{file.name} is missing, which {_INDEX} names: copy or download the folder again")
        return
    try:
        with file.open("rb") as opened:
            pointer = opened.read(len(_POINTER)) == _POINTER
        if not pointer:
            with safe_open(file, framework="pt"):
                found.files.append(file)
            return
    except (SafetensorError, OSError, ValueError) as error:
        found.problems.append(f"{file.name} is cut off or broken ({error}): copy or download the folder again")
        return
    found.problems.append(f"{file.name} is a pointer of Git LFS, not the weights: type git lfs pull in the folder")


def _none(folder: Path, expected: str = _WEIGHTS) -> str:
    """Why a folder has no weights that are read."""
    pickles, others = _names(folder, _PICKLES), _names(folder, _OTHERS)
    strange = [name for name in _names(folder, ("*.safetensors",)) if name != expected]
    if strange:
        return f"there is no {expected} (there is {', '.join(strange)}): rename it, or convert the checkpoint"
    if pickles:
        return (
            f"the weights are pickles ({', '.join(pickles)}), which can hold code and are not read; expected"
            f" {expected}. Convert them: load them where you trust them, and save_pretrained again"
        )
    if others and others[0].endswith(".gguf"):
        return (
            f"the weights are GGUF ({', '.join(others)}); expected {expected}. Load them by LocalChatModel.load(FOLDER,"
            f' model_options={{"gguf_file": "{others[0]}"}}), and save model and tokenizer again'
        )
    if others:
        return f"there is no {expected} (there is {', '.join(others)}): convert the weights by save_pretrained"
    return f"there are no weights; expected {expected}"


def _names(folder: Path, patterns: Iterable[str]) -> list[str]:
    ours = {"training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth"}  # no weights
    return sorted(file.name for pattern in patterns for file in folder.glob(pattern) if file.name not in ours)
