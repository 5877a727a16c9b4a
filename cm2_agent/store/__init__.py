"""The store: runs, tasks, checklists and scores in one SQL database."""

from cm2_agent.store.migrate import HEAD, schema_revision, upgrade
from cm2_agent.store.sql_store import SQLStore

__all__ = ["HEAD", "SQLStore", "schema_revision", "upgrade"]
