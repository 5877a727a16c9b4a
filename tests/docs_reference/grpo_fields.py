"""The page of GRPOConfig's fields: what `GRPO(args=…)` does with each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cm2_agent.trainers.grpo_fields import OURS, PASSED, REFUSED
from tests.docs_reference.markdown import code, escape, table


def grpo_fields_page() -> str:
    """The page."""
    return "\n".join(_page())


def _page() -> Iterator[str]:
    yield "# Fields of GRPOConfig\n"
    yield (
        "What becomes of each field of TRL's GRPOConfig in `GRPO(args={…})`, in a GRPOConfig given as `args`, and in "
        "`cm2 train --set NAME=VALUE`. A field counts as given where it is named, or where it differs from TRL's "
        "default in a GRPOConfig. Names that are not here are refused.\n"
    )
    yield f"## Passed on ({len(PASSED)})\n"
    yield "TRL's trainer gets them as they are.\n"
    yield table(["field", "about"], _grouped(PASSED))
    yield f"## Ours ({len(OURS)})\n"
    yield "CM2 gives them a meaning for stored rollouts.\n"
    yield table(["field", "meaning"], [[code(name), escape(meaning)] for name, meaning in OURS.items()])
    yield f"## Refused ({len(REFUSED)})\n"
    yield "Any other value than TRL's default raises TrainError with this reason.\n"
    yield table(["field", "why, and what to do"], _grouped(REFUSED))


def _grouped(fields: Mapping[str, str]) -> list[list[str]]:
    """One line a text, with all fields that have it."""
    names: dict[str, list[str]] = {}
    for name, text in fields.items():
        names.setdefault(text, []).append(name)
    return [[", ".join(map(code, listed)), escape(text)] for text, listed in names.items()]
