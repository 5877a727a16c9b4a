"""The stop tokens of a model: those of its generation config, and those that it learnt to end answers with."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def stops_of(model: Any) -> tuple[int, ...]:
    """The stop tokens in a model's generation config, in order."""
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return tuple(int(one) for one in (given if isinstance(given, list) else [given]) if one is not None)


def add_stops(model: Any, tokenizer: Any, ends: Collection[int]) -> list[str]:
    """Add the tokens that the policy was trained to end its answers with to the model's stop tokens, and return the new
    ones as text: a base checkpoint stops at the end of a text alone, and would go on after its answer."""
    known = {*stops_of(model), *([] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)])}
    new = sorted(set(ends) - known)
    if new:
        model.generation_config.eos_token_id = [*stops_of(model), *(known - set(stops_of(model))), *new]
    return [str(tokenizer.convert_ids_to_tokens(one)) for one in new]
