"""Whether a stored dialogue is one of the run that goes on under its name: of the same models, seed, tools and gate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from cm2_agent.errors import TaskError
from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.run_attributes import (
    FAULTS,
    GATE,
    MADE_WITH,
    SIMULATOR,
    TASK_ID,
    TASK_TURNS,
    TOOL_BACKENDS,
    USER,
)
from cm2_agent.types.trace import Trace

_FACTS = {
    TOOL_BACKENDS: "tools answered by",
    SIMULATOR: "simulator",
    FAULTS: "faults",
    USER: "user",
    GATE: "the gate of checklist",
    TASK_TURNS: "scripted turns",
}


def made_with(models: Sequence[str], seed: int) -> str:
    """What stands in MADE_WITH of the dialogues of a named run."""
    return canonical_json({"models": list(models), "seed": seed})


def require_same_run(stored: Trace, facts: Mapping[str, JSON], name: str) -> None:
    """Raises TaskError where the stored dialogue was held otherwise than one with these facts would be.

    Nothing is compared of a trace that `run` did not write, and neither models nor seed of one that does not say them.
    """
    held = stored.attributes
    if held.get(TASK_ID) is None:
        return
    differing = [
        (words, held.get(fact), facts.get(fact)) for fact, words in _FACTS.items() if held.get(fact) != facts.get(fact)
    ]
    if held.get(MADE_WITH) is not None and facts.get(MADE_WITH) is not None:
        before, now = _read(held[MADE_WITH]), _read(facts[MADE_WITH])
        differing = [
            *((key, before.get(key), now.get(key)) for key in ("models", "seed") if before.get(key) != now.get(key)),
            *differing,
        ]
    if differing:
        there = ", ".join(f"{words} {_shown(value)}" for words, value, _ in differing)
        here = ", ".join(f"{words} {_shown(value)}" for words, _, value in differing)
        raise TaskError(
            f"the name {name!r} is of another run: its dialogue {stored.id!r} is stored, and was held with {there};"
            f" this run has {here}. Give this run a name of its own (name=, --name), or what that one had"
        )


def _read(value: JSON) -> Mapping[str, JSON]:
    try:
        found = json.loads(str(value))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _shown(value: JSON) -> str:
    if value is None:
        return "none"
    return ", ".join(map(str, value)) or "none that is known" if isinstance(value, list) else str(value)


__all__ = ["made_with", "require_same_run"]
