"""`cm2 db`: the store's schema."""

from __future__ import annotations

import typer

from cm2_agent.cli.common import STORE, JsonOption, StoreOption, answer


def register(app: typer.Typer) -> None:
    from cm2_agent.cli.app import Group

    help = "The store's schema: its revision, and bringing it up to date."
    group = typer.Typer(cls=Group, no_args_is_help=True, help=help, rich_markup_mode=None)
    group.command("revision", help="Print the schema's revision and the one that this version needs.")(revision)
    group.command("upgrade", help="Bring the schema to this version's revision, in one transaction.")(upgrade)
    app.add_typer(group, name="db")


def revision(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    from cm2_agent.store import HEAD, schema_revision

    found = schema_revision(store)
    answer({"revision": found, "head": HEAD, "up_to_date": found == HEAD}, as_json=as_json)


def upgrade(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    from cm2_agent.store import schema_revision
    from cm2_agent.store import upgrade as migrate

    before = schema_revision(store)
    answer({"before": before, "revision": migrate(store)}, as_json=as_json)
