"""How alembic runs here: on a connection that is given, inside its transaction, so that a migration happens whole or
not at all."""

from __future__ import annotations

from alembic import context

from cm2_agent.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
