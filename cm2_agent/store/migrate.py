"""The schema's revisions: which there are, how far a database is, and upgrading it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, text

from cm2_agent.errors import SchemaError
from cm2_agent.store.engine import Database
from cm2_agent.store.schema import metadata

if TYPE_CHECKING:
    from alembic.config import Config

REVISIONS = (
    *("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010"),
    *("0011", "0012", "0013", "0014"),
)
"""Every revision of this version of the code, oldest first (a test compares them with the files in
migrations/versions)."""
HEAD = REVISIONS[-1]
_VERSION = Table(
    "alembic_version",
    MetaData(naming_convention={"pk": "%(table_name)s_pkc"}),
    Column("version_num", String(32), primary_key=True),
)
"""The revision, as alembic keeps it."""
_LOCK = 0x636D32  # "cm2": the advisory lock under which PostgreSQL stores are created and upgraded


def schema_revision(url: str) -> str | None:
    """The revision of the store's schema, None where the database is empty. Creates and changes nothing.

    Args:
        url: The store's SQLAlchemy URL, as for `SQLStore`.

    Raises:
        StoreError: The database cannot be opened.
        SchemaError: It holds something else than a store.

    >>> from cm2_agent.store import HEAD, SQLStore, schema_revision
    >>> SQLStore("sqlite:///cm2.db").close()
    >>> schema_revision("sqlite:///cm2.db") == HEAD
    True
    """
    database = Database(url, create=False)
    try:
        with database.reading() as connection:
            return revision_of(connection, database.url)
    finally:
        database.close()


def upgrade(url: str) -> str:
    """Bring the store's schema to this version's revision in one transaction, and return it. An empty database gets
    the schema.

    Args:
        url: The store's SQLAlchemy URL, as for `SQLStore`.

    Raises:
        StoreError: The database cannot be opened or written.
        SchemaError: Its schema is newer than this version or is not a store's; nothing has changed then.

    >>> from cm2_agent.store import HEAD, upgrade
    >>> upgrade("sqlite:///cm2.db") == HEAD
    True
    """
    database = Database(url)
    try:
        with database.migrating() as connection:
            migrate(connection, database)
        return HEAD
    finally:
        database.close()


def ensure(database: Database) -> None:
    """Check that the schema is this code's; create it in an empty database. Raises StoreError and SchemaError."""
    with database.reading() as connection:
        revision = revision_of(connection, database.url)
    if revision is None:
        with database.migrating() as connection:  # locked: whoever comes second finds the schema there
            migrate(connection, database)
    elif revision != HEAD:
        check(revision, database.url)
        raise SchemaError(
            f"store {database.url} has schema {revision}, this version of cm2-agent needs {HEAD}; back it up, then"
            f" type: cm2 db upgrade --store {database.url}"
        )


def revision_of(connection: Connection, url: str) -> str | None:
    """The revision that the database says it has, None where it is empty. Raises SchemaError where it holds other
    tables."""
    names = inspect(connection).get_table_names()
    if not names:
        return None
    if "alembic_version" not in names:
        raise SchemaError(
            f"store {url} holds other tables ({', '.join(sorted(names)[:4])}) and no CM2 store; name an empty database"
            " or another file (on PostgreSQL another schema will do: ?options=-csearch_path=NAME)"
        )
    revisions = sorted(row[0] for row in connection.execute(text("SELECT version_num FROM alembic_version")))
    return " ".join(revisions) or "none"


def check(revision: str, url: str) -> None:
    """Raises SchemaError where the code does not know the revision."""
    if revision not in REVISIONS:
        raise SchemaError(
            f"store {url} has schema {revision}; this version of cm2-agent knows {', '.join(REVISIONS)}. It was written"
            " by a newer version (upgrade: pip install -U cm2-agent) or is not a CM2 store; nothing was changed"
        )


def migrate(connection: Connection, database: Database, target: str = HEAD) -> None:
    """Bring the schema to `target` within the connection's transaction. An empty database gets the tables of the code
    at once: those that all revisions lead to, in a fraction of the time."""
    if not database.sqlite:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    revision = revision_of(connection, database.url)
    if revision == target:
        return
    if revision is not None:
        check(revision, database.url)
    elif target == HEAD:
        metadata.create_all(connection, checkfirst=False)
        _VERSION.create(connection)
        connection.execute(_VERSION.insert().values(version_num=HEAD))
        return
    from alembic import command

    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, target)


def alembic_config() -> Config:
    """Alembic's configuration, with the folder of our revisions."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config
