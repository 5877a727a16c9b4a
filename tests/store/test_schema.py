"""The schema and the door: migrations, versions that do not fit, databases that cannot be opened, and secrets that are
not told."""

from __future__ import annotations

import ast
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, create_engine, inspect, text

import cm2_agent.store
from cm2_agent.errors import SchemaError, StoreError
from cm2_agent.store import HEAD, SQLStore, migrate, schema_revision, upgrade
from cm2_agent.store.engine import Database
from cm2_agent.store.schema import metadata
from cm2_agent.types.run import Run

FOLDER = Path(cm2_agent.store.__file__).parent


def at_revision(url: str, revision: str) -> None:
    """Make a store of an earlier revision."""
    database = Database(url)
    with database.writing() as connection:
        migrate.migrate(connection, database, revision)
    database.close()


def say_revision(url: str, revision: str) -> None:
    """Make a store that says it is of this revision."""
    SQLStore(url).close()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    engine.dispose()


def content(url: str) -> list[object]:
    """Tables, columns and the revision."""
    engine = create_engine(url)
    with engine.connect() as connection:
        tables = sorted(inspect(connection).get_table_names())
        versions = (
            [row[0] for row in connection.execute(text("SELECT version_num FROM alembic_version"))]
            if "alembic_version" in tables
            else []
        )
        columns = [column["name"] for table in tables for column in inspect(connection).get_columns(table)]
    engine.dispose()
    return [tables, columns, versions]


def through_all_revisions(url: str) -> None:
    at_revision(url, migrate.REVISIONS[0])
    upgrade(url)


def at_once(url: str) -> None:
    SQLStore(url).close()


def _index(index: Any) -> str:
    """What is reflected of an index; a condition's object says nothing of it, its text does."""
    options = {name: str(value) for name, value in index.get("dialect_options", {}).items()}
    return str({**index, "dialect_options": options})


def definitions(url: str) -> dict[str, Any]:
    """All that the database says of its tables, whatever the order of their columns."""
    engine = create_engine(url)
    with engine.connect() as connection:
        there = inspect(connection)
        found = {
            name: {
                "columns": sorted(str(sorted(column.items(), key=str)) for column in there.get_columns(name)),
                "primary key": there.get_pk_constraint(name),
                "foreign keys": sorted(map(str, there.get_foreign_keys(name))),
                "unique": sorted(map(str, there.get_unique_constraints(name))),
                "checks": sorted(map(str, there.get_check_constraints(name))),
                "indexes": sorted(map(_index, there.get_indexes(name))),
            }
            for name in there.get_table_names()
        }
    engine.dispose()
    return found


@pytest.mark.parametrize("made", [at_once, through_all_revisions])
def test_an_empty_database_gets_the_tables_of_the_code(store_url: str, made: Callable[[str], None]) -> None:
    made(store_url)
    engine = create_engine(store_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        unique = {
            table: sorted(tuple(each["column_names"]) for each in inspect(connection).get_unique_constraints(table))
            for table in metadata.tables
        }
    engine.dispose()
    assert unique["scores"] == [("trace", "reward", "runs")]
    assert unique["runs"] == [("project", "id")]
    assert unique["traces"] == [("project", "id")]
    assert unique["tasks"] == [("id", "version")]
    assert unique["checklists"] == [("hash",), ("name", "version")]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_at_once_they_are_what_all_revisions_lead_to(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'cm2.db'}" if database == "sqlite" else request.getfixturevalue("postgres_url")
    at_once(url)
    found = definitions(url)
    engine = create_engine(url)
    with engine.begin() as connection:
        everything = MetaData()
        everything.reflect(connection)
        everything.drop_all(connection)
    engine.dispose()
    through_all_revisions(url)
    assert found == definitions(url)
    assert schema_revision(url) == HEAD


def test_the_code_knows_every_revision_in_order() -> None:
    scripts = ScriptDirectory.from_config(migrate.alembic_config())
    assert [script.revision for script in scripts.walk_revisions()] == list(reversed(migrate.REVISIONS))
    assert scripts.get_heads() == [HEAD]


def test_no_column_holds_a_pickle_and_no_code_makes_one(store_url: str) -> None:
    SQLStore(store_url).close()
    engine = create_engine(store_url)
    kinds = {
        type(column["type"]).__name__ for table in metadata.tables for column in inspect(engine).get_columns(table)
    }
    engine.dispose()
    assert kinds <= {"INTEGER", "BIGINT", "TEXT", "BLOB", "BYTEA", "DOUBLE", "DOUBLE_PRECISION", "BOOLEAN"}
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not {"pickle", "PickleType", "marshal", "shelve", "dill"} & set(named), path


def test_an_older_schema_is_left_alone_until_it_is_upgraded(store_url: str) -> None:
    at_revision(store_url, migrate.REVISIONS[0])
    before = content(store_url)
    with pytest.raises(SchemaError, match=f"has schema 0001, this version of cm2-agent needs {HEAD}; .*cm2 db upgrade"):
        SQLStore(store_url)
    assert content(store_url) == before
    assert schema_revision(store_url) == "0001"
    assert upgrade(store_url) == HEAD
    assert schema_revision(store_url) == HEAD
    assert upgrade(store_url) == HEAD
    with SQLStore(store_url) as store:
        store.save_run(Run(id="a"))


@pytest.mark.parametrize("revision", ["9999", "a_friend's_branch"])
def test_a_schema_that_the_code_does_not_know_changes_nothing(store_url: str, revision: str) -> None:
    say_revision(store_url, revision)
    before = content(store_url)
    with pytest.raises(SchemaError, match=r"newer version .*pip install -U cm2-agent.* nothing was changed"):
        SQLStore(store_url)
    with pytest.raises(SchemaError, match="newer version"):
        upgrade(store_url)
    assert schema_revision(store_url) == revision
    assert content(store_url) == before


def test_a_database_of_something_else_is_refused(store_url: str) -> None:
    engine = create_engine(store_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE customers (id INTEGER)"))
    engine.dispose()
    before = content(store_url)
    for opening in (SQLStore, upgrade, schema_revision):
        with pytest.raises(SchemaError, match=r"holds other tables \(customers\) and no CM2 store"):
            opening(store_url)
    assert content(store_url) == before


def test_a_migration_that_fails_leaves_an_empty_database(store_url: str) -> None:
    """The second revision meets a table of its name: nothing of the first stays either."""
    database = Database(store_url)

    def fail() -> None:
        with database.writing() as connection:
            migrate.migrate(connection, database, "0001")
            connection.exec_driver_sql("CREATE TABLE scores (id INTEGER)")
            migrate.migrate(connection, database)

    with pytest.raises(StoreError, match="already exists"):
        fail()
    database.close()
    assert content(store_url) == [[], [], []]
    SQLStore(store_url).close()
    assert schema_revision(store_url) == HEAD


def test_asking_for_the_revision_makes_nothing(store_url: str, tmp_path: Path) -> None:
    if not store_url.startswith("sqlite"):
        assert schema_revision(store_url) is None
        assert content(store_url) == [[], [], []]
        return
    with pytest.raises(StoreError, match="does not exist"):
        schema_revision(store_url)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "cm2.db").touch()
    assert schema_revision(store_url) is None


def test_sqlite_is_set_up_as_promised(tmp_path: Path) -> None:
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as store, store._db.reading() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 60_000}


def test_a_store_that_must_exist(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'typo.db'}"
    with pytest.raises(StoreError, match=r"typo.db does not exist; name the store that holds your traces"):
        SQLStore(url, create=False)
    assert list(tmp_path.iterdir()) == []
    SQLStore(url).close()
    SQLStore(url, create=False).close()


def test_files_that_cannot_be_a_store(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(
        "these are notes, and no database, as anyone can see from the first line\n" * 20
    )
    with pytest.raises(StoreError, match="not a database; expected an SQLite file"):
        SQLStore(f"sqlite:///{tmp_path / 'notes.txt'}")
    assert (tmp_path / "notes.txt").read_text().startswith("these are notes")
    with pytest.raises(StoreError, match="is a folder; expected a file"):
        SQLStore(f"sqlite:///{tmp_path}")
    with pytest.raises(StoreError, match=r"the folder .*missing does not exist; make it, or name another path"):
        SQLStore(f"sqlite:///{tmp_path / 'missing' / 'cm2.db'}")
    SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}").close()
    with (
        pytest.raises(StoreError, match=r"readonly|read-only"),
        SQLStore(f"sqlite:///file:{tmp_path / 'cm2.db'}?mode=ro&uri=true") as store,
    ):
        store.save_run(Run(id="a"))


def test_a_truncated_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cm2.db"
    with SQLStore(f"sqlite:///{path}") as store:
        store.save_runs([Run(id=str(number)) for number in range(500)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    with (
        pytest.raises(StoreError, match=r"malformed|not a database|disk image|I/O"),
        SQLStore(f"sqlite:///{path}") as store,
    ):
        list(store.traces())


def test_a_file_without_permission_is_told(tmp_path: Path) -> None:
    code = (
        "import os, sys; from cm2_agent.store import SQLStore\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setuid(65534)  # root may write anywhere\n"
        "SQLStore(sys.argv[1])"
    )
    tmp_path.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{tmp_path / 'cm2.db'}"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "StoreError" in done.stderr
    assert "give the path of a file that can be read and written" in done.stderr


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("cm2.db", "is not a URL; expected sqlite:///FILE.db"),
        ("", "is not a URL; expected sqlite:///FILE.db"),
        ("mysql://root:hunter2@host/db", r"store mysql://root:\*\*\*@host/db is mysql; expected sqlite"),
        ("sqlite+aiosqlite:///cm2.db", "is sqlite[+]aiosqlite; expected sqlite"),
        ("nothing://root:hunter2@host/db", r"root:\*\*\*@host/db"),
        ("postgresql://me:hunter2@127.0.0.1:1/db", r"store postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/db: "),
        ("postgresql+psycopg://me@127.0.0.1:1/db?password=hunter2", r"password=\*\*\*"),
        ("postgresql://me:hunter2@127.0.0.1:port/db", "is not a URL; expected sqlite"),
        (7, "a store's URL is int '7'; expected sqlite"),
    ],
)
def test_urls_that_lead_nowhere_are_told_without_the_password(url: str, problem: str) -> None:
    with pytest.raises(StoreError, match=problem) as caught:
        SQLStore(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in str(error)
        error = error.__cause__ or error.__context__


def test_the_url_hides_its_password(postgres_url: str) -> None:
    with SQLStore(postgres_url.replace("cm2@", "cm2:hunter2@")) as store:  # the server trusts, whatever the password
        assert "hunter2" not in store.url + repr(store)
        with pytest.raises(StoreError) as caught:
            store.groups()
        assert "hunter2" not in str(caught.value)


def test_a_missing_driver_is_told_as_the_line_to_type() -> None:
    code = "import sys; sys.modules['psycopg'] = None\nfrom cm2_agent.store import SQLStore; SQLStore('postgresql://u:p@h/d')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'MissingExtra: PostgreSQL stores need an extra: pip install "cm2-agent[postgres]"' in done.stderr


def test_a_closed_store_says_so(store_url: str) -> None:
    with SQLStore(store_url) as store:
        store.save_run(Run(id="a"))
    with pytest.raises(StoreError, match="was closed; open it again"):
        store.trace("a")


def test_a_broken_reference_is_refused_by_the_database(tmp_path: Path) -> None:
    path = tmp_path / "cm2.db"
    with (
        SQLStore(f"sqlite:///{path}") as store,
        pytest.raises(StoreError, match="FOREIGN KEY"),
        store._db.writing() as connection,
    ):
        connection.exec_driver_sql("INSERT INTO outcomes VALUES (?, ?, ?)", (77, "x", 1.0))
    with sqlite3.connect(path) as plain:
        assert plain.execute("SELECT count(*) FROM outcomes").fetchone() == (0,)


def test_missing_contents_are_told(store_url: str) -> None:
    from cm2_agent.types.messages import Message

    with SQLStore(store_url) as store:
        store.save_run(Run(id="a", messages=(Message.of("user", "x"),)))
        with store._db.writing() as connection:
            connection.exec_driver_sql("DELETE FROM contents")
        with pytest.raises(StoreError, match="1 contents that traces refer to are missing"):
            store.trace("a")
