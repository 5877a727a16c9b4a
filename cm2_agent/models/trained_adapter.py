"""A trained adapter's folder, as far as a server has to know it: whose it is, over what, how wide."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm2_agent.errors import ModelError
from cm2_agent.models.model_files import ADAPTER_CONFIG as CONFIG
from cm2_agent.models.model_files import ADAPTER_WEIGHTS as WEIGHTS

__all__ = ["TrainedAdapter"]

REPORT = "report.json"


@dataclass(frozen=True, kw_only=True)
class TrainedAdapter:
    """`version` names the policy, base and adapter together; `base` is the model's recorded name or path, "" where
    there is none. `fused`: it is over a mixture's experts, which are one tensor a layer."""

    folder: Path
    version: str
    base: str
    rank: int
    fused: bool = False

    @classmethod
    def read(cls, folder: Path) -> TrainedAdapter:
        """Raises ModelError where the folder holds no LoRA adapter as safetensors."""
        folder = folder.absolute()
        if not (folder / CONFIG).is_file():
            raise ModelError(_no_adapter(folder))
        if not (folder / WEIGHTS).is_file():
            raise ModelError(
                f"{str(folder)!r} has an {CONFIG} and no {WEIGHTS}; a pickle is not deployed, since loading one runs"
                " its code: save the adapter as safetensors"
            )
        try:
            config = _read(folder / CONFIG)
            base, ranks = config.get("base_model_name_or_path"), (config.get("rank_pattern") or {}).values()
            fused = bool(config.get("target_parameters"))
            rank = max(int(config["r"]), *map(int, ranks), 1)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(f"{str(folder / CONFIG)!r} is no configuration of a LoRA adapter: {error!r}") from error
        return cls(folder=folder, version=_version(folder), base=str(base or ""), rank=rank, fused=fused)

    def writes(self, messages: Sequence[Mapping[str, str]], ids: Sequence[int]) -> bool | None:
        """Whether the folder's tokenizer writes these ids for the messages; None where there is none, or no
        transformers."""
        if not (self.folder / "tokenizer_config.json").is_file():
            return None
        try:
            from transformers import AutoTokenizer
        except ImportError:
            return None
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
            own: Any = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
        except Exception:  # a template may raise anything, and then there is nothing to compare
            return None
        return list(own) == list(ids)


def _no_adapter(folder: Path) -> str:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        return f"{str(folder)!r} {what}; expected the folder that LoRA training wrote, with {CONFIG} in it"
    if not (folder / "config.json").is_file():
        return f"{str(folder)!r} holds no {CONFIG}; expected the folder that LoRA training wrote"
    name = _reported(folder) or "NAME"
    vllm = f"vllm serve {folder} --served-model-name {name} --logprobs-mode processed_logprobs --generation-config vllm"
    return (
        f"{str(folder)!r} holds whole weights, and a server loads those only at its start. Restart it with them, under"
        " a name of their own, and put that name into the app:\n"
        f"  {vllm}\n"
        f"  python -m sglang.launch_server --model-path {folder} --served-model-name {name}\n"
        "Train with LoRA (cm2 train --lora r=16,alpha=32) to load policies while the server runs."
    )


def _version(folder: Path) -> str:
    """The trainer's name for the policy. Where no trainer has written it down, the base is loaded to find it."""
    found = _reported(folder)
    if found is not None:
        return found
    from cm2_agent.models.loading import load_policy_model
    from cm2_agent.models.weights import fingerprint

    return fingerprint(load_policy_model(folder))


def _reported(folder: Path) -> str | None:
    """The policy's version after training, as the trainer's report has it."""
    try:
        version = _read(folder / REPORT)["policy"]["after"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return version if isinstance(version, str) and version else None


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
