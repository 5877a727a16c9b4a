"""Which run it was: the algorithm, the weights it began with, the rows and the settings, all that its result follows
from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from cm2_agent.models.adapters import is_peft
from cm2_agent.types.json_values import JSON

from .rows import Row

MANIFEST = "run.json"

WATCHING = frozenset(
    {
        *("output_dir", "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id"),
        *("trackio_static_space_id", "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node"),
        *("logging_nan_inf_filter", "log_level", "log_level_replica", "disable_tqdm", "log_completions"),
        *("num_completions_to_print", "log_unique_prompts", "save_strategy", "save_steps", "save_total_limit"),
        *("save_on_each_node", "resume_from_checkpoint", "skip_memory_metrics", "dataloader_pin_memory", "local_rank"),
    }
)
"""Settings that only watch or save a run: its result does not follow from them."""
_NOMINAL = frozenset({"generation_batch_size", "num_generations"})
"""Settings that TRL needs and that say nothing of stored rollouts."""
_ELSEWHERE = frozenset({"model", "tokenizer", "out", "args", "overwrite", "report", "steps", "epochs"})
"""Attributes of our trainers that are no setting, or stand in the TRL config under its own name."""


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """The same identity twice means the same result, on the same machine: `model` is the version of the weights before
    training, `rows` a hash of what is trained on.
    """

    algorithm: str
    model: str
    rows: str
    settings: Mapping[str, JSON] = field(default_factory=dict)

    def difference(self, other: RunIdentity) -> str:
        """What tells this run from another, in words, at most three settings by name."""
        found = [
            f"{name} {mine} there, {theirs} here"
            for name in ("algorithm", "model")
            if (mine := getattr(self, name)) != (theirs := getattr(other, name))
        ]
        if self.rows != other.rows:
            found.append("other rollouts")
        names = sorted({*self.settings, *other.settings})
        changed = [name for name in names if self.settings.get(name) != other.settings.get(name)]
        found += [f"{name} {self.settings.get(name)} there, {other.settings.get(name)} here" for name in changed[:3]]
        if len(changed) > 3:
            found.append(f"and {len(changed) - 3} more settings")
        return "; ".join(found)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_identity(path: Path) -> RunIdentity | None:
    """The identity in a manifest; None where there is none that can be read."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        return RunIdentity(**{spec.name: given[spec.name] for spec in fields(RunIdentity)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def identify(
    algorithm: str, *, model: str, rows: str, config: Any, trainer: object, launched: Mapping[str, JSON] | None = None
) -> RunIdentity:
    """The identity of a run.

    Args:
        algorithm: its name on the command line.
        model: the version of the weights before training.
        rows: `rows_hash` of what is trained on, in the order in which the trainer was given them.
        config: the TRL config, a dataclass.
        trainer: our trainer: those of its public attributes that are plain values are settings.
        launched: how the run was launched, where that is not one process: sums are rounded in another order there.
    """
    given = {spec.name: getattr(config, spec.name) for spec in fields(config) if spec.name not in WATCHING | _NOMINAL}
    ours = {
        name: value
        for name, value in vars(trainer).items()
        if not name.startswith("_") and name not in _ELSEWHERE and not (callable(value) and not isinstance(value, type))
    }
    settings = {**ours, **given, **(launched or {})}
    policy: Any = getattr(trainer, "model", None)
    if is_peft(policy):  # an adapter that adds nothing yet has its base's version
        settings["adapter"] = policy.peft_config
    # As JSON reads it back, so that what was saved compares equal.
    plain = json.loads(json.dumps({name: settings[name] for name in sorted(settings)}, default=_plain))
    return RunIdentity(algorithm=algorithm, model=model, rows=rows, settings=plain)


def rows_hash(rows: Iterable[Row], more: bytes = b"") -> str:
    """A hash of token rows with their advantages, in hexadecimal; `more` are bytes that a result follows from beside
    them.
    """
    found = hashlib.sha256(more)
    for row in rows:
        spans = [(span.start, span.stop, span.turn, span.step) for span in row.spans]
        found.update(f"{row.trace_id}\0{spans}\0{row.temperature}\0{row.policy}\0{len(row.ids)}\0".encode())
        for values in (np.asarray(row.ids, dtype=np.int64), row.mu, row.token_advantages):
            found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def _plain(value: Any) -> Any:
    """What JSON has no word for, in an order that does not change from run to run."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, Mapping):
        return dict(value)
    if callable(to_dict := getattr(value, "to_dict", None)):
        return to_dict()
    return f"{type(value).__module__}.{type(value).__qualname__}"
