"""Bearer tokens of a collector: made, listed, revoked, and found by their hash.

A token is shown once, when it is made; the store keeps its SHA-256. It is 256 random bits, so that a hash without salt
gives nothing away, and a look-up by hash takes no longer for a guess that is nearly right."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Row, insert, select, update

from cm2_agent.errors import StoreError
from cm2_agent.store.codec import seal, unseal
from cm2_agent.store.received_tables import access_tokens
from cm2_agent.store.sql_store import SQLStore

SCOPES = ("ingest", "read", "label", "admin")
"""What a token may allow: sending traces; reading them; labelling them; all of it and tokens too."""
PREFIX = "cm2_"
_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class AccessToken:
    """A token as it is stored: without its text."""

    id: int
    project: str
    name: str
    scopes: tuple[str, ...]
    hash: str
    created: int
    revoked: int | None = None

    def allows(self, scope: str) -> bool:
        """Whether it holds, and allows this."""
        return self.revoked is None and (scope in self.scopes or "admin" in self.scopes)


def token_hash(token: str) -> str:
    """The hash under which a token is stored."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def create_token(store: SQLStore, *, name: str = "", scopes: Collection[str] = ("ingest",)) -> tuple[str, AccessToken]:
    """A new token of the store's project: its text, which nothing can show again, and the token as it is stored.

    Raises StoreError for an unknown scope, or none."""
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise StoreError(f"scope {unknown[0] if unknown else ''!r}; expected some of: {', '.join(SCOPES)}")
    text = PREFIX + secrets.token_urlsafe(_BYTES)
    row = {
        "project": seal(store.project),
        "hash": token_hash(text),
        "name": seal(name),
        "scopes": " ".join(scope for scope in SCOPES if scope in scopes),
        "created": time.time_ns(),
    }
    with store.database.writing() as connection:
        made = connection.execute(insert(access_tokens).values(**row).returning(access_tokens)).one()
    return text, _token(made)


def tokens(store: SQLStore, *, every_project: bool = False) -> list[AccessToken]:
    """The tokens of the store's project, revoked ones too, in the order in which they were made."""
    query = select(access_tokens).order_by(access_tokens.c.seq)
    if not every_project:
        query = query.where(access_tokens.c.project == seal(store.project))
    with store.database.reading() as connection:
        return [_token(row) for row in connection.execute(query)]


def revoke_token(store: SQLStore, id: int) -> bool:
    """Revoke a token of the store's project; False where it was revoked already. Raises StoreError where there is no
    such token."""
    own = (access_tokens.c.seq == id, access_tokens.c.project == seal(store.project))
    with store.database.writing() as connection:
        found = connection.execute(select(access_tokens).where(*own)).one_or_none()
        if found is None:
            raise StoreError(f"project {store.project!r} has no token {id}; `cm2 token list` shows those that it has")
        if found.revoked is None:
            connection.execute(update(access_tokens).where(*own).values(revoked=time.time_ns()))
    return found.revoked is None


def _token(row: Row[tuple[object, ...]]) -> AccessToken:
    found = row._mapping
    return AccessToken(
        id=found["seq"],
        project=unseal(found["project"]),
        name=unseal(found["name"]),
        scopes=tuple(found["scopes"].split()),
        hash=found["hash"],
        created=found["created"],
        revoked=found["revoked"],
    )


__all__ = ["PREFIX", "SCOPES", "AccessToken", "create_token", "revoke_token", "token_hash", "tokens"]
