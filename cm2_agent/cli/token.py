"""`cm2 token`: the bearer tokens of a project's collector."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from cm2_agent.cli.common import (
    PROJECT,
    STORE,
    JsonOption,
    ProjectOption,
    StoreOption,
    command_group,
    echo_err,
    open_store,
    print_result,
    printable,
)


def register(app: typer.Typer) -> None:
    group = command_group("Show or change the tokens of a collector.")
    help = "Create a token of the project and print it: this once, since the store keeps its hash alone."
    group.command("create", help=help, short_help="Create a token of the project and print it.")(create)
    group.command("list", help="List the tokens of the project, without their text.")(list_tokens)
    help = "Revoke a token of the project; a running server refuses it within a few seconds."
    group.command("revoke", help=help, short_help="Revoke a token of the project.")(revoke)
    app.add_typer(group, name="token")


def create(
    name: Annotated[str, typer.Option("--name", help="What it is for, to tell it from others.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help="What it allows: ingest (default), read, label, admin; repeatable."),
    ] = None,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    from cm2_agent.store.access_tokens import create_token

    with open_store(store, project=project, create=True) as opened:
        text, made = create_token(opened, name=name, scopes=scope or ["ingest"])
    if not as_json:
        echo_err(
            f"token {made.id} of project {printable(project)}, for {' '.join(made.scopes)}; it is not shown again:"
        )
    print_result(
        {"id": made.id, "token": text, "project": project, "scopes": list(made.scopes), "name": name},
        as_json=as_json,
        lines=[text],
    )


def list_tokens(store: StoreOption = STORE, project: ProjectOption = PROJECT, as_json: JsonOption = False) -> None:
    from cm2_agent.store.access_tokens import tokens

    with open_store(store, project=project) as opened:
        found = tokens(opened)
    rows = [
        {
            "id": token.id,
            "name": token.name,
            "scopes": list(token.scopes),
            "created": _time(token.created),
            "revoked": None if token.revoked is None else _time(token.revoked),
        }
        for token in found
    ]
    lines = [
        f"{row['id']}  {row['created']}  {'revoked' if row['revoked'] else ' '.join(token.scopes)}  "
        + printable(token.name)
        for row, token in zip(rows, found, strict=True)
    ]
    print_result({"project": project, "tokens": rows}, as_json=as_json, lines=lines or ["the project has no token"])


def revoke(
    id: Annotated[int, typer.Argument(metavar="ID", help="The token's number, as cm2 token list shows it.")],
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    from cm2_agent.store.access_tokens import revoke_token

    with open_store(store, project=project) as opened:
        changed = revoke_token(opened, id)
    print_result({"id": id, "revoked": True, "changed": changed}, as_json=as_json)


def _time(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
