"""`check_folder`: what keeps the model or adapter in a folder from being loaded or trained; no weight of it is read."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cm2_agent.errors import ModelError
from cm2_agent.models.loading import base_of, load_policy_model
from cm2_agent.models.model_files import adapter_files, code_of, read_json, weight_files
from cm2_agent.models.model_source import ModelSource, model_source

__all__ = ["FolderCheck", "check_folder", "vocabulary_findings"]


@dataclass(kw_only=True)
class FolderCheck:
    """What a folder holds: `weights` in words, the `model` without its numbers (on torch's meta device), None where it
    cannot be made, and `base`, where an adapter's lies."""

    weights: str = "none"
    model: Any = None
    base: ModelSource | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int | None:
        """How many token ids its embedding has."""
        return None if self.model is None else int(self.model.get_input_embeddings().weight.shape[0])


def check_folder(source: ModelSource) -> FolderCheck:
    """Load a model as training would, without the numbers of its weights: files, sizes and names are compared."""
    if source.adapter is not None:
        return _adapter(source, source.adapter)
    folder, found = Path(source.name), FolderCheck()
    code = code_of(folder)
    if code:
        found.notes.append(f"it names code of its own ({code}), which is never run: transformers' own class is used")
    scripts = sorted(file.name for file in folder.glob("*.py"))
    if scripts:
        found.notes.append(
            f"it holds code ({', '.join(scripts[:3])}{', …' if scripts[3:] else ''}), which is never run"
        )
    weights = weight_files(folder)
    if not (folder / "config.json").exists():
        if weights.files or weights.others:
            found.problems.append("there are weights and no config.json, which says what model they are of")
        else:
            found.weights = "none: formats alone were checked"
        return found
    try:
        config = read_json(folder / "config.json")
    except ModelError as error:
        found.problems.append(str(error))
        return found
    found.notes += weights.notes
    found.problems += weights.problems
    if not weights.problems:
        _load(found, source)
    elif code:
        found.problems.append(f"it may need code of its own ({code}), which is never run")
    if "quantization_config" in config:
        found.notes.append("its weights are quantised: an adapter can be trained over them, they cannot")
    if found.model is not None:
        files = "1 file" if len(weights.files) == 1 else f"{len(weights.files)} files"
        found.weights = f"{type(found.model).__name__}, {_size(found.model)}, {files}"
        named = config.get("architectures")
        if isinstance(named, list) and named and type(found.model).__name__ not in named:
            found.notes.append(f"it was saved as {', '.join(map(str, named))}: the rest of it is left out")
    return found


def vocabulary_findings(tokenizer: Any, rows: int, used: Collection[int]) -> tuple[list[str], list[str]]:
    """Problems and notes of a tokenizer over an embedding of so many rows; `used` are ids of a dialogue with it, and of
    its stop tokens."""
    known = {int(id_): str(word) for word, id_ in tokenizer.get_vocab().items()}
    beyond = {id_: word for id_, word in known.items() if id_ >= rows}
    if not beyond:
        more = rows - 1 - max(known, default=-1)
        return [], [f"the embedding has {rows} rows, {more} more than the tokenizer has tokens"] if more else []
    first = min(beyond)
    what = (
        f"{len(beyond)} of the tokenizer's {len(known)} tokens, such as {beyond[first]!r} ({first}), have no row in the"
        f" embedding of {rows}"
    )
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}  # none is made from data
    if set(beyond) <= special - set(used):
        return [], [f"{what}: no dialogue needs them"]
    return [f"{what}: the tokenizer is another model's, or the embedding was not resized to it"], []


def _adapter(source: ModelSource, folder: Path) -> FolderCheck:
    found = FolderCheck()
    files = adapter_files(folder)
    found.problems += files.problems
    try:
        below = found.base = model_source(base_of(folder), ask=False)
    except ModelError as error:
        found.problems.append(f"its base cannot be found: {error}")
        return found
    if below.adapter is not None:
        found.problems.append(f"its base {below.name!r} is an adapter itself; merge that first (cm2 policy merge)")
        return found
    if below.cached:
        whole = FolderCheck(notes=["its base comes from the hub's cache"])
        _load(whole, below)
    else:
        whole = check_folder(below)
        if whole.model is None and not whole.problems:
            whole.problems.append("there are no weights")
    found.problems += [f"its base {below.name!r}: {problem}" for problem in whole.problems]
    found.notes += whole.notes
    if found.problems:
        return found
    with _quiet():
        try:
            found.model = load_policy_model(source, base=whole.model)
        except ModelError as error:
            found.problems.append(str(error))
            return found
    settings = next(iter(found.model.peft_config.values()))
    found.weights = f"LoRA of rank {settings.r} over {below.name}: {whole.weights}"
    return found


def _load(found: FolderCheck, source: ModelSource) -> None:
    with _quiet():
        try:
            found.model = load_policy_model(source, options={"device_map": "meta"})
        except ModelError as error:
            found.problems.append(str(error))


def _size(model: Any) -> str:
    count = sum(one.numel() for one in model.parameters())
    dtypes = sorted({str(one.dtype).removeprefix("torch.") for one in model.parameters()})
    unit, name = (1e9, "B") if count >= 1e9 else (1e6, "M")
    return f"{count / unit:,.2f} {name} parameters in {' and '.join(dtypes)}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and logs of a load that is none."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*to a meta parameter.*")
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
