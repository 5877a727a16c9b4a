"""`cm2 export`: write stored traces and their scores as JSON Lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from cm2_agent.cli.common import (
    PROJECT,
    STORE,
    JsonOption,
    ProjectOption,
    StoreOption,
    open_store,
    print_result,
    tracked,
)
from cm2_agent.cli.eval import scored_version
from cm2_agent.cli.trace_filters import FilterOptions, with_filters
from cm2_agent.errors import StoreError


def register(app: typer.Typer) -> None:
    app.command("export", help="Write stored traces and their scores as JSON Lines.")(export)


@with_filters
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; replaced only once complete.")],
    reward: Annotated[
        str | None, typer.Option("--reward", metavar="VERSION", help="The reward version (default: the newest).")
    ] = None,
    *,
    where: FilterOptions,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    with open_store(store, project=project) as opened:
        version = scored_version(opened, reward)
        found = opened.scored_traces(where.trace_filter(version), reward=version)
        partial = file.with_name(f".{file.name}.{os.getpid()}.part")
        count = 0
        try:
            with partial.open("w", encoding="utf-8") as lines:
                for trace, score in tracked(found, "exporting"):
                    worth = None if score is None else score.to_json()
                    lines.write(json.dumps({"trace": trace.to_json(), "score": worth}, allow_nan=False) + "\n")
                    count += 1
            partial.replace(file)
        except OSError as error:
            raise StoreError(
                f"cannot write {file}: {error.strerror or error}; name a file in a folder that can be written"
            ) from error
        finally:
            partial.unlink(missing_ok=True)
    print_result({"exported": count, "file": str(file)}, as_json=as_json)
