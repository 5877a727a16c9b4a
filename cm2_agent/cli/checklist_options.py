"""The options by which commands that score name a checklist and its functions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

ChecklistArgument: TypeAlias = Annotated[
    Path | None, typer.Argument(metavar="CHECKLIST.yaml", help="A checklist (default: each task's own).")
]
ChecksOption: TypeAlias = Annotated[
    str | None, typer.Option("--checks", metavar="MODULE", help="A module or .py file with check functions.")
]
