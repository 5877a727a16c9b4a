"""The stop tokens that a policy learnt: those that it was trained to end its answers with."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from cm2_agent.models.stop_tokens import configured_stops, eos_ids


def add_stops(model: Any, tokenizer: Any, ends: Collection[int]) -> list[str]:
    """Add the tokens that the policy was trained to end its answers with to the model's stop tokens, and return the new
    ones as text: a base checkpoint stops at the end of a text alone, and would go on after its answer."""
    known = list(dict.fromkeys([*configured_stops(model), *eos_ids(tokenizer.eos_token_id)]))
    new = sorted(set(ends) - set(known))
    if new:
        model.generation_config.eos_token_id = [*known, *new]
    return [str(tokenizer.convert_ids_to_tokens(one)) for one in new]
