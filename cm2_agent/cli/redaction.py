"""The option `--redact`, and the redactor that it means."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from cm2_agent.errors import TaskError

if TYPE_CHECKING:
    from cm2_agent.datasets import Redactor
    from cm2_agent.store import SQLStore

SECRET = "CM2_REDACTION_KEY"  # noqa: S105 (the name of a variable)

RedactOption: TypeAlias = Annotated[
    bool,
    typer.Option("--redact", help=f"Replace personal data and secrets before anything leaves or is stored ({SECRET})."),
]


def redactor_of(source: SQLStore | Path) -> Redactor:
    """With the key in the environment. Without one the key follows from the store's earliest trace, or from the file's
    content, so that the same source gives the same placeholders, and nobody without it can test values against them.
    Raises TaskError for a key that is too short."""
    from cm2_agent.datasets import Redactor, key_from

    secret = os.environ.get(SECRET)
    if secret is not None and len(secret) < 16:
        raise TaskError(
            f"{SECRET} has {len(secret)} characters; expected a secret of 16 or more, such as: openssl rand -hex 32"
        )
    return Redactor(key=key_from(_texts(source)) if secret is None else secret.encode())


def _texts(source: SQLStore | Path) -> Iterable[str]:
    import json

    if isinstance(source, Path):
        return [source.read_text(encoding="utf-8")]
    return (json.dumps(trace.to_json(), sort_keys=True) for trace in source.traces(limit=1))
