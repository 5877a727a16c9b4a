"""The algorithms of `cm2 train`: those that ship, or a trainer of one's own, made with the options that were typed."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from cm2_agent.cli.common import echo_err, printable
from cm2_agent.cli.run import load_function
from cm2_agent.errors import TaskError, TrainError
from cm2_agent.types.protocols import Trainer

ALGORITHMS = {"grpo": "GRPO", "sft": "SFT", "rft": "RFT", "dpo": "DPO"}
"""The algorithms that come with CM2, by the name of their class on the face of the trainers."""
CONFIGS = {"grpo": "GRPOConfig", "sft": "SFTConfig", "rft": "SFTConfig", "dpo": "DPOConfig"}
"""The TRL config whose fields an algorithm takes in `args`: `--set` reaches these too."""
FLAGS = {
    **{name: f"--{name}" for name in ("model", "out", "overwrite", "level", "norm", "steps", "seed")},
    "learning_rate": "--learning-rate",
    "rollouts_per_step": "--rollouts-per-step",
    "lam": "--lambda",
    "agent": "--agent-name",
    "peft_config": "--lora",
}
"""The keywords of a trainer that have an option of their own."""
NORMS = {"none": ("none", False), "std": ("group", True)}
"""A value of --norm → what TRL's `scale_rewards` is for it."""
MakeTrainer = Callable[..., Trainer]


def load_algorithm(name: str) -> MakeTrainer:
    """What makes the trainer of an algorithm. Raises TrainError, and MissingExtra where its extra is not installed."""
    if name in ALGORITHMS:
        return cast(MakeTrainer, getattr(import_module("cm2_agent.trainers"), ALGORITHMS[name]))
    if ":" not in name:
        raise TrainError(
            f"algorithm {name!r} is unknown; expected {', '.join(ALGORITHMS)}, or a trainer of your own. Type: cm2"
            " train --algorithm MODULE:TRAINER"
        )
    try:
        return cast(MakeTrainer, load_function(name, "trainer"))
    except TaskError as error:
        raise TrainError(f"{error}. A trainer has train(groups). Type: cm2 train --algorithm MODULE:TRAINER") from error


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` as keywords: a value that is JSON is read as JSON, any other is text. Raises TrainError."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.isidentifier():
            raise TrainError(f"--set {setting!r}; expected NAME=VALUE, for example: --set select=best")
        if name in found:
            raise TrainError(f"--set {name} was given twice; give it once")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def make_trainer(algorithm: str, make: MakeTrainer, options: Mapping[str, Any], settings: Mapping[str, Any]) -> Trainer:
    """The trainer, made with the options that were typed and the `--set` settings as keyword arguments.

    Raises TrainError where the trainer does not take one of them (none is ignored), where it needs one that was not
    given, and where what was made cannot train.
    """
    twice = sorted(options.keys() & settings.keys())
    if twice:
        raise TrainError(f"{_flag(twice[0])} and --set {twice[0]} were both given; give one of them")
    _require_one_norm(options, settings)
    given = _with_fields(algorithm, make, {**options, **settings})
    parameters = keywords_of(make)
    takes = [
        name
        for name, one in parameters.items()
        if one.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    ]
    missing = [name for name in takes if name not in given and parameters[name].default is inspect.Parameter.empty]
    if missing:
        flags = " and ".join(_flag(name) for name in missing)
        example = "--model MODEL --out NEW_FOLDER" if {*missing} <= {"model", "out"} else flags
        chosen = "" if algorithm == "grpo" else f" --algorithm {algorithm}"
        raise TrainError(f"{flags} not given; type: cm2 train{chosen} {example} (or --rows-only)")
    if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        unknown = [name for name in given if name not in takes]
        if unknown:
            fields = f", or a field of TRL's {CONFIGS[algorithm]}" if algorithm in CONFIGS else ""
            raise TrainError(
                f"{_flag(unknown[0]) if unknown[0] in options else f'--set {unknown[0]}'} was given, and algorithm"
                f" {algorithm} takes no {unknown[0]!r}; expected one of {', '.join(takes)}{fields}. Leave it out"
            )
    trainer = make(**given)
    if not callable(getattr(trainer, "train", None)):
        raise TrainError(
            f"algorithm {algorithm} made a {type(trainer).__name__}; expected an object with train(groups). Name a"
            " class that has it"
        )
    return trainer


def _require_one_norm(options: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises TrainError where --norm was typed, and TRL's name for it says something else."""
    args = settings.get("args")
    scale = settings.get("scale_rewards", args.get("scale_rewards") if isinstance(args, Mapping) else None)
    meant = NORMS.get(str(options.get("norm")))
    if scale is not None and meant is not None and scale not in meant:
        raise TrainError(
            f"--norm {options['norm']} and scale_rewards {scale!r} were both given and differ (--norm std is"
            " scale_rewards=group); give one of them"
        )


def _with_fields(algorithm: str, make: MakeTrainer, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords, with those that are fields of the algorithm's TRL config in `args`. Raises TrainError where a field
    is in `args` already.
    """
    names = [name for name in given if name not in keywords_of(make)]
    if algorithm not in CONFIGS or not names:
        return dict(given)
    config = getattr(import_module("trl"), CONFIGS[algorithm])
    known = {spec.name for spec in dataclasses.fields(config)}
    found = {name: given[name] for name in names if name in known}
    args = given.get("args") or {}
    if not found or not isinstance(args, Mapping):  # what args may be is the trainer's to say
        return dict(given)
    twice = sorted(found.keys() & args.keys())
    if twice:
        raise TrainError(f"--set {twice[0]} was given, and args holds {twice[0]} too; give one of them")
    rest = {name: value for name, value in given.items() if name not in found}
    return {**rest, "args": {**args, **found}}


def keywords_of(make: MakeTrainer) -> dict[str, inspect.Parameter]:
    """The parameters of a trainer. A class that hands `**settings` on to the class it extends has those of both."""
    found = dict(inspect.signature(make).parameters)
    for base in inspect.getmro(make)[1:] if inspect.isclass(make) else ():
        rest = [name for name, one in found.items() if one.kind is inspect.Parameter.VAR_KEYWORD]
        if not rest or base is object:
            break
        del found[rest[0]]
        found = {**inspect.signature(base).parameters, **found}
    return found


class StepsDone:
    """The progress of a run for a bar: `advance` is called for every step that is done, those of a checkpoint too."""

    def __init__(self, advance: Callable[[], object]) -> None:
        self._advance = advance

    def __call__(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        self._advance()

    def resumed(self, step: int, total: int, checkpoint: Path) -> None:
        """Says on stderr from where the run goes on."""
        echo_err(printable(f"going on from step {step} of {total} ({checkpoint})"))
        for _ in range(step):
            self._advance()


def train_on(trainer: Trainer, groups: Iterable[Any], advance: Callable[[], object]) -> Path:
    """The folder of the new policy. `advance` is called after every step where the trainer reports progress; what the
    trainer prints goes to stderr, since stdout is the command's. Raises TrainError where it returns no folder that
    exists.
    """
    train = cast(Callable[..., Any], trainer.train)
    reports = "progress" in inspect.signature(train).parameters
    with redirect_stdout(sys.stderr):
        path = train(groups, progress=StepsDone(advance)) if reports else train(groups)
    if not isinstance(path, str | Path):
        raise TrainError(
            f"{type(trainer).__name__}.train returned a {type(path).__name__}; expected the folder of the new policy"
        )
    if not Path(path).is_dir():
        raise TrainError(
            f"{type(trainer).__name__}.train returned {str(path)!r}, and there is no such folder; expected the folder"
            " into which it wrote the new policy"
        )
    return Path(path)


def interrupted(out: object) -> str:
    """What to say of a run that was interrupted: whether the same command goes on, from where."""
    if not isinstance(out, Path):
        return "interrupted"
    kept = out.parent / f"{out.name}.run"
    if any(kept.glob("checkpoint-*/state.json")):
        return printable(
            f"interrupted; {out} is as it was. The same command goes on from the newest checkpoint in {kept}"
        )
    return printable(
        f"interrupted; {out} is as it was, and no checkpoint was kept: the same command begins anew. With --set"
        " save_steps=N a run keeps checkpoints, and goes on from the newest"
    )


def report_of(trainer: Trainer) -> dict[str, Any]:
    """What stands in the trainer's `report`, without its history, as JSON: what is not JSON as its text."""
    report = getattr(trainer, "report", {})
    if not isinstance(report, Mapping):
        report = {"report": report}
    return {str(name): _plain(value) for name, value in report.items() if name != "history"}


def _plain(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value


def _flag(name: str) -> str:
    return FLAGS.get(name, f"--set {name}=…")
