"""Loading a policy from a folder or the hub: a model, or an adapter over one; no code of a folder runs, no pickle is
read.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cm2_agent.errors import ModelError
from cm2_agent.models.adapters import load_adapter
from cm2_agent.models.model_files import ADAPTER_CONFIG, code_of, only_pickles, read_json
from cm2_agent.models.model_source import ModelSource, model_source

__all__ = ["base_of", "load_config", "load_policy_model", "load_tokenizer"]


def load_policy_model(
    source: str | Path | ModelSource,
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
        ModelError: there is no such model, it needs code of its folder, it is no causal language model, or its weights
            are no safetensors, broken, or not all there.
    """
    options = dict(options or {})
    if options.pop("trust_remote_code", False):
        name = source.name if isinstance(source, ModelSource) else str(source)
        raise ModelError(
            f"trust_remote_code was asked for {name!r}; no code of a model's folder is ever run. Expected a"
            " model that transformers has a class for"
        )
    found = model_source(source)
    if found.adapter is None:
        if base is not None:
            raise ModelError(f"base was given, and {found.name!r} is no adapter: it has no {ADAPTER_CONFIG}")
        return _load_weights(found, dtype, options)
    if base is None:
        base = base_of(found.adapter)
    below = _load_weights(_base_source(base), dtype, options) if isinstance(base, str | Path) else base
    return load_adapter(below, found.adapter, trainable=trainable)


def _base_source(base: str | Path) -> ModelSource:
    found = model_source(base)
    if found.adapter is not None:
        raise ModelError(
            f"the base {found.name!r} is an adapter itself; expected a whole model: merge it first (cm2 policy merge)"
        )
    return found


def base_of(folder: Path) -> str:
    """The model that an adapter is over: a folder (as recorded, or beside the adapter) or a hub name. Raises
    ModelError where none is recorded, or its folder is gone.
    """
    try:
        name = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    except ModelError as error:
        raise ModelError(f"{error}, in the adapter {str(folder)!r}") from error
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


def load_tokenizer(source: str | Path | ModelSource, *, ask: bool = True, **options: Any) -> Any:
    """The tokenizer beside a model, or an adapter's, or its base's; `ask` False asks no hub. Raises ModelError."""
    from transformers import AutoTokenizer

    found = model_source(source)
    if found.adapter is not None:
        own = any((found.adapter / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))
        found = ModelSource(name=str(found.adapter)) if own else model_source(base_of(found.adapter), ask=ask)
    with loading(found.name, "a tokenizer", "a folder with tokenizer.json and tokenizer_config.json"):
        return AutoTokenizer.from_pretrained(found.name, trust_remote_code=False, **found.options, **options)


def load_config(source: str | Path | ModelSource) -> Any:
    """The configuration of a model, or of the one below an adapter. Raises ModelError."""
    from transformers import AutoConfig

    found = model_source(source)
    if found.adapter is not None:
        found = model_source(base_of(found.adapter))
    with loading(found.name):
        return AutoConfig.from_pretrained(found.name, trust_remote_code=False, **found.options)


def _load_weights(source: ModelSource, dtype: str | None, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    other_sizes = options.pop("ignore_mismatched_sizes", False)
    own = {
        "trust_remote_code": False,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # transformers names them in a log alone, where it raises
    }
    with loading(source.name):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.name, dtype=dtype or "auto", **{"use_safetensors": True, **source.options, **options, **own}
        )
    model, info = loaded
    _require_causal(model, source.name)
    _require_cache(model, source.name)
    _require_whole(info, source.name, other_sizes=other_sizes)
    return model


def _require_causal(model: Any, name: str) -> None:
    """Raises ModelError for an encoder, or a half of an encoder and decoder, which transformers loads as if it wrote
    one token after the other."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_MASKED_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    config, kind = model.config, type(model).__name__
    written = getattr(config, "architectures", None)
    named = list(map(str, written)) if isinstance(written, list) else []
    both = type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING and kind not in named
    both = both or bool(getattr(config, "is_encoder_decoder", False))
    decodes = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    if both or (type(config) in MODEL_FOR_MASKED_LM_MAPPING and not decodes):
        what = "an encoder and a decoder" if both else "an encoder"
        raise ModelError(
            f"the model in {name!r} ({', '.join(named) or kind}) is {what}: it does not write one token after the"
            " other. Expected a causal language model"
        )


def _require_cache(model: Any, name: str) -> None:
    """Raises ModelError for a model whose state is no cache of keys and values: sampling could not go on from it."""
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise ModelError(
            f"the model in {name!r} ({type(model).__name__}) takes no past_key_values, by which it would be sampled."
            " Expected a model with attention, or a mixture of it and others (Mamba and RWKV alone are not supported)"
        )


def _require_whole(info: Mapping[str, Any], name: str, *, other_sizes: bool) -> None:
    """Raises ModelError for weights that transformers would draw at random, with no more than a log."""
    missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    if mismatched and not other_sizes:
        key, stored, wanted = mismatched[0]
        raise ModelError(
            f"{_counted(mismatched, 'weight')} in {name!r} of another size than its config.json says: {key} has"
            f" {list(stored)}, expected {list(wanted)}. The configuration is another model's, or was edited"
        )
    if missing:
        more = f", … ({len(missing)} in all)" if missing[3:] else ""
        raise ModelError(
            f"{_counted(missing, 'weight')} missing in {name!r}: {', '.join(missing[:3])}{more}. Expected every weight"
            " of the model that config.json describes: it was saved as another class, or not whole"
        )
    if info["error_msgs"]:
        raise ModelError(f"cannot load the weights in {name!r}: {info['error_msgs'][0]}")


def _counted(listed: Sequence[Any], noun: str) -> str:
    return f"1 {noun} is" if len(listed) == 1 else f"{len(listed)} {noun}s are"


@contextmanager
def loading(
    name: str, what: str = "a model", expected: str = "a folder or a hub name of a causal language model"
) -> Iterator[None]:
    """Raises ModelError for what transformers says of a source that cannot be loaded."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    folder = Path(name)
    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            f"the weights in {name!r} are cut off or broken ({error}); copy or download the folder again"
        ) from error
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError),
        StrictDataclassError,  # a field of config.json of another type
    ) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's own, of a sound model
            raise
        named = code_of(folder)
        if named:
            raise ModelError(
                f"{name!r} needs code of its own ({named}), which is never run; expected a model that this"
                " version of transformers has a class for. Convert it, or update transformers"
            ) from error
        if what == "a model" and only_pickles(folder):
            raise ModelError(
                f"the weights in {name!r} are pickles, which can hold code and are not read; expected"
                " safetensors. Convert them: load them where you trust them, and save_pretrained again"
            ) from error
        said = " ".join(str(error).split()) or type(error).__name__
        if said.startswith("Unrecognized configuration class"):  # and then some hundred names of others
            said = "its config.json describes no causal language model that transformers has a class for"
            said += _kind_of(folder)
        raise ModelError(f"cannot load {what} from {name!r}: {said.rstrip('.')}. Expected {expected}") from error


def _kind_of(folder: Path) -> str:
    """In brackets, what kind of model a folder has that is no causal language model."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    try:
        named = read_json(folder / "config.json").get("model_type")
    except ModelError:  # on the hub
        return ""
    kind = ""
    if named in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        kind = ", which reads images too: take a text-only model"
    elif named in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        kind = ", an encoder and a decoder"
    return f" (model_type {named!r}{kind})"
