"""The connection: which databases there are, how they are opened, and every driver's error as a StoreError without
secrets in it."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from cm2_agent.errors import MissingExtra, StoreError
from cm2_agent.types.secrets import error_text

BUSY_SECONDS = 60
"""How long a writer waits for another process to finish its transaction."""
EXPECTED = "expected sqlite:///FILE.db or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
_SECRETS = ("password", "sslpassword", "passfile")


class Database:
    """An opened database: `reading()` and `writing()` give a connection inside a transaction; what raises rolls it
    back.

    Threads may share it. On SQLite a writer takes the write lock at once, so that it never has to start again; `url`
    hides passwords."""

    def __init__(self, url: str, *, echo: bool = False, create: bool = True) -> None:
        parsed = parse(url)
        self.url = safe(parsed)
        self.sqlite = parsed.get_backend_name() == "sqlite"
        self._open = True
        self._pid = os.getpid()
        if self.sqlite:
            _check_file(parsed, self.url, create)
            self.engine = _sqlite(parsed, echo)
        else:
            self.engine = _postgres(parsed, echo)
        # One writer at a time within the process: waiting for a lock costs nothing, polling a busy file does.
        self._writer: Any = threading.RLock() if self.sqlite else nullcontext()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One unchanging view of the database. Raises StoreError."""
        with self._errors(), self.engine.connect() as connection:
            if not self.sqlite:
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def asking(self) -> Iterator[Any]:
        """A cursor of the driver for one statement that reads: it needs no transaction of its own, and SQLAlchemy's
        part in one costs more than the statement. Raises StoreError."""
        with self._errors():
            connection = self.engine.raw_connection()
            cursor = connection.cursor()
            try:
                yield cursor
            except self.engine.dialect.loaded_dbapi.Error as error:
                raise StoreError(f"store {self.url}: {error}") from error
            finally:
                cursor.close()  # a statement with rows left would hold its view, from which no writer can begin
                connection.close()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Commits on leaving, or changes nothing. Raises StoreError."""
        with self._errors(), self._writer, self.engine.connect() as connection:
            connection.execution_options(cm2_write=True)
            with connection.begin():
                yield connection

    @contextmanager
    def storing(self) -> Iterator[Any]:
        """`writing`, but for a cursor of the driver: SQLAlchemy's part in a transaction costs more than a small write
        does. Raises StoreError."""
        with self._errors(), self._writer:
            connection = self.engine.raw_connection()
            cursor = connection.cursor()
            try:
                if self.sqlite:
                    cursor.execute("BEGIN IMMEDIATE")
                yield cursor
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
            finally:
                cursor.close()
                connection.close()

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """`writing`, for changes of the schema: SQLite changes a table by making it anew, which foreign keys would
        forbid meanwhile. They are checked at the end. Raises StoreError."""
        with self._errors(), self._writer, self.engine.connect() as connection:
            if self.sqlite:
                driver: Any = connection.connection.driver_connection
                driver.execute("PRAGMA foreign_keys = OFF")  # it changes nothing within a transaction
            try:
                connection.execution_options(cm2_write=True)
                with connection.begin():
                    yield connection
                    if self.sqlite and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").fetchone()):
                        raise StoreError(
                            f"store {self.url}: a row of {broken[0]} refers to no row of {broken[2]}; nothing was"
                            " changed: restore the database from a copy"
                        )
            finally:
                if self.sqlite:
                    driver.execute("PRAGMA foreign_keys = ON")

    def compact(self, tables: Iterable[str]) -> tuple[str, ...]:
        """Rewrite the database's files without what was deleted; returns what could not be done. On PostgreSQL these
        tables are rewritten. Raises StoreError."""
        with self._errors(), self._writer:
            if not self.sqlite:
                with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    for table in tables:
                        connection.exec_driver_sql(f"VACUUM (FULL) {table}")
                return ()
            held = self.engine.raw_connection()
            try:
                cursor = held.cursor()
                cursor.execute("PRAGMA secure_delete = ON")
                cursor.execute("VACUUM")
                busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                return ("another process is reading: the -wal file could not be emptied yet",) if busy else ()
            finally:
                held.close()

    def files(self) -> list[Path]:
        """The files of an SQLite database."""
        name = self.engine.url.database
        if not self.sqlite or name in (None, "", ":memory:") or name.startswith("file:"):
            return []
        return [file for end in ("", "-wal", "-shm", "-journal") if (file := Path(f"{name}{end}")).exists()]

    def close(self) -> None:
        self._open = False
        self.engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        if os.getpid() != self._pid:  # connections must not cross a fork
            self._pid = os.getpid()
            self.engine.dispose(close=False)
            self._writer = threading.RLock() if self.sqlite else nullcontext()
        if not self._open:
            raise StoreError(f"store {self.url} was closed; open it again with SQLStore(…)")
        try:
            yield
        except (SQLAlchemyError, self.engine.dialect.loaded_dbapi.Error) as error:
            raise StoreError(f"store {self.url}: {error_message(error)}") from error
        except OverflowError as error:
            raise StoreError(
                f"store {self.url}: {error}; expected values that fit the columns (integers of 64 bits)"
            ) from error


def parse(url: str) -> URL:
    """The URL with our driver in it. Raises StoreError on anything but SQLite and PostgreSQL."""
    if not isinstance(url, str):
        raise StoreError(f"a store's URL is {type(url).__name__} {str(url)[:60]!r}; {EXPECTED}")
    try:
        parsed = make_url("postgresql" + url[len("postgres") :] if url.startswith("postgres:") else url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError) as error:
        raise StoreError(f"store {_masked(url)!r} is not a URL; {EXPECTED}") from error
    if backend == "sqlite" and parsed.drivername in {"sqlite", "sqlite+pysqlite"}:
        return parsed
    if backend == "postgresql" and parsed.drivername in {"postgresql", "postgresql+psycopg"}:
        return parsed.set(drivername="postgresql+psycopg")
    raise StoreError(f"store {safe(parsed)} is {parsed.drivername}; {EXPECTED}")


def safe(url: URL) -> str:
    """The URL for messages: no password, neither before the host nor among the options."""
    hidden = {name: "***" for name in url.query if name in _SECRETS}
    return (
        (url.update_query_dict(hidden) if hidden else url)
        .render_as_string(hide_password=True)
        .replace("%2A%2A%2A", "***")
    )


def _masked(url: str) -> str:
    return re.sub(r"(?i)((?:ssl)?password=)[^&]*", r"\1***", re.sub(r"(:)[^:@/]*(@)", r"\1***\2", url))


def error_message(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    text = " ".join(error_text(cause, 1000).split())
    if "not a database" in text:
        return f"{text}; expected an SQLite file: name another path, or move that file away"
    if "unable to open" in text or "readonly" in text or "permission" in text.lower():
        return f"{text}; give the path of a file that can be read and written"
    if "locked" in text:
        return f"{text}: another process has been writing for over {BUSY_SECONDS} s; end it, or try again"
    return text


def _check_file(url: URL, shown: str, create: bool) -> None:
    name = url.database
    if name in (None, "", ":memory:") or name.startswith("file:"):
        return
    path = Path(name)
    try:
        kind = "folder" if path.is_dir() else "file" if path.exists() else None
        housed = path.absolute().parent.is_dir()
    except OSError as error:
        raise StoreError(
            f"store {shown}: {error.strerror}; give the path of a file that can be read and written"
        ) from error
    if kind == "folder":
        raise StoreError(f"store {shown} is a folder; expected a file, such as {shown.rstrip('/')}/cm2.db")
    if kind is None and not housed:
        raise StoreError(f"store {shown}: the folder {path.parent} does not exist; make it, or name another path")
    if kind is None and not create:
        raise StoreError(f"store {shown} does not exist; name the store that holds your traces (--store URL)")


def _sqlite(url: URL, echo: bool) -> Engine:
    memory = url.database in (None, "", ":memory:")
    # A database in memory lives in its one connection, which threads then take in turn.
    sizes: dict[str, Any] = {"pool_size": 1, "max_overflow": 0} if memory else {"pool_size": 4, "max_overflow": 60}
    engine = create_engine(
        url, echo=echo, hide_parameters=True, poolclass=QueuePool, connect_args={"check_same_thread": False}, **sizes
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = (
            None  # we say BEGIN ourselves: the driver's own would let a reader turn writer and fail
        )
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        if not memory:
            _journal(cursor)
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("cm2_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _journal(cursor: sqlite3.Cursor) -> None:
    """Set WAL. The change of mode does not wait for other connections by itself, so two openers at once need patience
    here."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _postgres(url: URL, echo: bool) -> Engine:
    try:
        import psycopg  # noqa: F401 (is it there?)
    except ImportError as error:
        raise MissingExtra("postgres", "PostgreSQL stores") from error
    return create_engine(
        url, echo=echo, hide_parameters=True, paramstyle="format", pool_pre_ping=True, pool_size=5, max_overflow=20
    )
