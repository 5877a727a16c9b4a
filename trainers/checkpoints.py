"""Checkpoints of a run, in a folder beside `out`: saved whole, found again by the same run alone, read without pickle.

`out.run/` holds run.json (which run it is), checkpoint-N/, and what trackers and `log_completions` write. A checkpoint
has the weights as safetensors, what torch reads with `weights_only=True`, and state.json and state.safetensors of our
own, written last: a checkpoint without state.json was cut off and is not used.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cm2_agent.errors import TrainError
from cm2_agent.types.json_values import JSON

from .output_folder import saving
from .run_identity import MANIFEST, RunIdentity, read_identity

STATE, TENSORS = "state.json", "state.safetensors"
_PREFIX = "checkpoint-"
_BY_TORCH = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth")
_NEVER_READ = ("training_args.bin",)
_PICKLED = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


@dataclass(frozen=True, kw_only=True)
class State:
    """What a trainer of ours adds to a checkpoint: plain values, and tensors by name."""

    values: Mapping[str, JSON] = field(default_factory=dict)
    tensors: Mapping[str, Any] = field(default_factory=dict)


def run_folder(out: Path) -> Path:
    """The folder beside `out` where a run keeps its checkpoints and trackers their files."""
    return out.parent / f"{out.name}.run"


def open_run(folder: Path, run: RunIdentity, *, overwrite: bool, resume: str | bool | None = None) -> Path | None:
    """The checkpoint from which a run goes on, None where it begins; the folder is the run's from then on.

    Args:
        folder: the run's folder (`run_folder`).
        run: which run it is.
        overwrite: whether another run's checkpoints make room, at once.
        resume: a checkpoint of this run, False to begin anew, None for its newest.

    Raises:
        TrainError: another run's folder without `overwrite`; a checkpoint that is not this run's or not whole.
    """
    found, checkpoints = read_identity(folder / MANIFEST), _checkpoints(folder)
    if checkpoints and found is None:
        raise TrainError(
            f"{str(folder)!r} holds checkpoints, and no {MANIFEST} that says of which run; remove it, or name another"
            " out"
        )
    others = found is not None and found != run
    if found is not None and others and not overwrite:
        raise TrainError(
            f"{str(folder)!r} holds the checkpoints of another run ({found.difference(run)}); to go on with that run,"
            " give its settings; to replace it, pass overwrite=True (--overwrite), or remove the folder; or name"
            " another out"
        )
    chosen = _named(Path(resume), run) if isinstance(resume, str) else None
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
    whole = []
    for one in checkpoints:
        if chosen is not None and one.resolve() == chosen.resolve():
            continue
        if (one / STATE).exists() and resume is not False and not others:
            whole.append(one)
        else:
            shutil.rmtree(one)
    with saving(folder):
        run.save(folder / MANIFEST)
    if chosen is None and whole:
        chosen = whole[-1]
    if chosen is not None:
        check_checkpoint(chosen)
    return chosen


def _named(checkpoint: Path, run: RunIdentity) -> Path:
    """A checkpoint that was named. Raises TrainError where it is not one of this run."""
    if not (checkpoint / STATE).is_file():
        raise TrainError(
            f"resume_from_checkpoint {str(checkpoint)!r} is not a whole checkpoint of CM2 (no {STATE}); name a folder"
            " checkpoint-N in the run's folder, or leave it out: a run goes on from its newest by itself"
        )
    found = read_identity(checkpoint.parent / MANIFEST)
    if found != run:
        differs = f"no {MANIFEST} beside it" if found is None else found.difference(run)
        raise TrainError(
            f"resume_from_checkpoint {str(checkpoint)!r} is of another run ({differs}); give that run's settings, or"
            " begin a new run with model set to this folder"
        )
    return checkpoint


def _checkpoints(folder: Path) -> list[Path]:
    """The folders of checkpoints, by step."""
    found = [one for one in folder.glob(f"{_PREFIX}*") if one.is_dir() and one.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(found, key=lambda one: int(one.name.removeprefix(_PREFIX)))


def check_checkpoint(checkpoint: Path) -> None:
    """Raises TrainError where a checkpoint holds what only an unrestricted pickle could read: such a file may run code
    of whoever wrote it.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers.trainer_pt_utils import safe_globals

    if not any(checkpoint.glob("model*.safetensors")) and not any(checkpoint.rglob("adapter_model*.safetensors")):
        raise TrainError(f"checkpoint {str(checkpoint)!r} has no weights as safetensors; remove it, and begin anew")
    for path in checkpoint.rglob("*.safetensors"):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise TrainError(
                f"checkpoint {str(checkpoint)!r}: {path.name} cannot be read ({error}); nothing of it was run. Remove"
                " that checkpoint: the run goes on from the one before, or begins anew"
            ) from error
    by_torch = {path for pattern in _BY_TORCH for path in checkpoint.glob(pattern)}
    for path in sorted(one for one in checkpoint.rglob("*") if one.suffix in _PICKLED):
        if path in by_torch:
            try:
                with safe_globals():
                    torch.load(path, map_location="meta", weights_only=True)  # reads no tensor's values
            except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
                said = " ".join(str(error).split())[:120] or type(error).__name__
                raise TrainError(
                    f"checkpoint {str(checkpoint)!r}: {path.name} is broken, or holds more than numbers"
                    f" ({said}); nothing of it was run. Remove that checkpoint: the"
                    " run goes on from the one before, or begins anew"
                ) from error
        elif path.name not in _NEVER_READ:
            raise TrainError(
                f"checkpoint {str(checkpoint)!r} holds {path.name}, a pickle that CM2 did not write; nothing of it was"
                " run. Remove that checkpoint"
            )


def complete(checkpoint: Path, state: State, limit: int | None) -> None:
    """Adds our own state to a checkpoint that TRL has just written, and drops the oldest beyond `limit`."""
    from safetensors.torch import save_file

    for name in _NEVER_READ:  # nobody reads it, and it is a pickle
        (checkpoint / name).unlink(missing_ok=True)
    written = checkpoint / f"{STATE}.new"
    with saving(checkpoint):
        save_file({name: values.detach().contiguous() for name, values in state.tensors.items()}, checkpoint / TENSORS)
        written.write_text(json.dumps(dict(state.values), ensure_ascii=False) + "\n", encoding="utf-8")
        written.replace(checkpoint / STATE)
    if limit is not None and limit > 0:
        for old in [one for one in _checkpoints(checkpoint.parent) if (one / STATE).exists()][:-limit]:
            shutil.rmtree(old)


def read_state(checkpoint: Path) -> State:
    """Our own state of a checkpoint. Raises TrainError where it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        values = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"{STATE} is no object")
        return State(values=values, tensors=load_file(checkpoint / TENSORS))
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainError(
            f"checkpoint {str(checkpoint)!r} cannot be read: {error}. Remove it: the run goes on from the one before,"
            " or begins anew"
        ) from error
