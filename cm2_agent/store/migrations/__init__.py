"""Alembic migrations of the store: one file a revision in versions/, never edited once released. A new one goes there
by hand, and its revision into cm2_agent.store.migrate.REVISIONS; tests compare the result with the tables of
cm2_agent.store.schema."""
