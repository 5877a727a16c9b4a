"""`cm2 db`: show or upgrade the store's schema."""

from __future__ import annotations

import typer

from cm2_agent.cli.common import STORE, JsonOption, StoreOption, command_group, print_result


def register(app: typer.Typer) -> None:
    group = command_group("Show or upgrade the store's schema.")
    help = "Print the store's schema revision and the one this version needs."
    group.command("revision", help=help, short_help="Print the schema revisions: the store's and the newest.")(revision)
    group.command("upgrade", help="Upgrade the store's schema to this version, in one transaction.")(upgrade)
    app.add_typer(group, name="db")


def revision(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    from cm2_agent.store import HEAD, schema_revision

    found = schema_revision(store)
    print_result({"revision": found, "head": HEAD, "up_to_date": found == HEAD}, as_json=as_json)


def upgrade(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    from cm2_agent.store import schema_revision
    from cm2_agent.store import upgrade as migrate
    from cm2_agent.workers.job_tables import upgrade_jobs

    before = schema_revision(store)
    revision = migrate(store)
    upgrade_jobs(store)
    print_result({"before": before, "revision": revision}, as_json=as_json)
