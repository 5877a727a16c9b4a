"""procrastinate's tables beside the store's, and the trigger that makes a stored trace a job in its own transaction."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

from cm2_agent.errors import StoreError, require_extra
from cm2_agent.store.engine import Database

if TYPE_CHECKING:
    from cm2_agent.store import SQLStore

TASK = "cm2.score"
"""The name of the jobs' task."""
LIVE, BULK = 10, 0
"""The priorities of jobs: of traces whose last run ended within an hour, and of all others."""
_LOCK = 0x636D3277
"""The advisory lock under which the tables are made and upgraded."""
_NOTE = "cm2-agent: "
"""What stands before the last migration in the comment of procrastinate's table, where they are ours to upgrade."""
_NEWEST = "procrastinate_retry_job_v2(bigint, timestamptz, int, varchar, varchar)"
"""A function of procrastinate's schema 3.4, the oldest that does."""
_TRIGGER = """
CREATE INDEX IF NOT EXISTS cm2_jobs_lock ON procrastinate_jobs (lock);
CREATE OR REPLACE FUNCTION cm2_enqueue_scoring() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM procrastinate_defer_jobs_v1(array_agg(ROW(
        queues.queue, 'cm2.score',
        CASE WHEN (SELECT max(ended) FROM runs WHERE trace = NEW.seq)
            > (extract(epoch FROM clock_timestamp()) - 3600) * 1e9 THEN 10 ELSE 0 END,
        queues.queue || ':' || NEW.seq, NULL,
        jsonb_build_object('trace', NEW.seq, 'again', TG_OP = 'UPDATE' AND NEW.runs < OLD.runs), NULL
    )::procrastinate_job_to_defer_v1))
    FROM scoring_queues AS queues
    WHERE queues.active AND queues.project = NEW.project AND NOT EXISTS (
        SELECT 1 FROM procrastinate_jobs AS jobs
        WHERE jobs.lock = queues.queue || ':' || NEW.seq AND jobs.xmin = pg_current_xact_id()::xid
    )
    HAVING count(*) > 0;
    RETURN NULL;
END;
$$;
DROP TRIGGER IF EXISTS cm2_new_trace ON traces;
CREATE CONSTRAINT TRIGGER cm2_new_trace AFTER INSERT ON traces DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.runs > 0) EXECUTE FUNCTION cm2_enqueue_scoring();
DROP TRIGGER IF EXISTS cm2_grown_trace ON traces;
CREATE CONSTRAINT TRIGGER cm2_grown_trace AFTER UPDATE OF runs ON traces DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.runs <> OLD.runs) EXECUTE FUNCTION cm2_enqueue_scoring();
"""
# Its numbers are LIVE, BULK and an hour. It is deferred since a trace's row is written before its runs are, and twice
# where it is of a group. A trace whose run was replaced (a late span) is counted anew from 0, and scored again.


def require_postgres(store: SQLStore) -> None:
    """Raises StoreError for a store that workers cannot share, MissingExtra where what they need is not installed."""
    if store.database.sqlite:
        raise StoreError(
            f"workers need PostgreSQL, and {store.url} is SQLite; score it in one process: cm2 score CHECKLIST.yaml"
            f" --store {store.url}"
        )
    require_extra("postgres", "Workers", "procrastinate", "psycopg")


def install(database: Database) -> None:
    """Make procrastinate's tables and the trigger, or bring them up to date: each migration in a transaction of its
    own, so that one that is stopped goes on where it was. Tables that another application made with procrastinate are
    used as they are. Raises StoreError."""
    from procrastinate.schema import SchemaManager

    folder = Path(SchemaManager.get_migrations_path())
    steps = sorted(path.name for path in folder.glob("*.sql"))
    while True:
        with database.writing() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            last = _last(connection) if is_installed(connection) else ""
            if last == "":
                _run(connection, SchemaManager.get_schema())
                _note(connection, steps[-1])
            elif last is not None and (step := next((step for step in steps if step > last), None)) is not None:
                _run(connection, (folder / step).read_text(encoding="utf-8"))
                _note(connection, step)
                continue
            elif connection.scalar(text("SELECT to_regprocedure(:name)"), {"name": _NEWEST}) is None:
                raise StoreError(
                    f"store {database.url} holds tables of another application's procrastinate, older than 3.4; apply"
                    " its migrations there, or give the store a database of its own"
                )
            _run(connection, _TRIGGER)
            return


def upgrade_jobs(url: str) -> None:
    """Bring the tables up to date where workers have made them, and what that needs is installed. Raises
    StoreError."""
    database = Database(url)
    try:
        if database.sqlite or find_spec("procrastinate") is None:
            return
        with database.reading() as connection:
            made = is_installed(connection) and _last(connection) is not None
        if made:
            install(database)
    finally:
        database.close()


def is_installed(connection: Connection) -> bool:
    """Whether the database has tables of procrastinate."""
    return connection.scalar(text("SELECT to_regclass('procrastinate_jobs')")) is not None


def _last(connection: Connection) -> str | None:
    """The last migration that was applied here, None where another application made the tables."""
    found = connection.scalar(text("SELECT obj_description('procrastinate_jobs'::regclass, 'pg_class')"))
    return found.removeprefix(_NOTE) if found is not None and found.startswith(_NOTE) else None


def _note(connection: Connection, step: str) -> None:
    _run(connection, f"COMMENT ON TABLE procrastinate_jobs IS '{_NOTE}{step}'")


def _run(connection: Connection, script: str) -> None:
    """Run a script of several statements, which takes no parameters: the driver's own call for that."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(script)
    finally:
        cursor.close()


__all__ = ["BULK", "LIVE", "TASK", "install", "is_installed", "require_postgres", "upgrade_jobs"]
