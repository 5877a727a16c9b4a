"""Who may do what: bearer tokens, looked up by their hash, and loopback alone where there are none."""

from __future__ import annotations

import ipaddress

from cm2_agent.errors import StoreError
from cm2_agent.incidents import Incidents
from cm2_agent.store.access_tokens import AccessToken, token_hash, tokens
from cm2_agent.store.sql_store import SQLStore

__all__ = ["Access", "Allowed", "bearer", "is_loopback"]

_LONGEST = 512


class Allowed:
    """A request that may be answered: for this project, by this token (None: on loopback without any)."""

    __slots__ = ("project", "token")

    def __init__(self, project: str, token: int | None) -> None:
        self.project, self.token = project, token


class Access:
    """The tokens of the store as they were when `refresh` read them. As long as there has never been one, whoever
    reaches the loopback interface may send to the store's own project."""

    def __init__(self, store: SQLStore, incidents: Incidents, *, open_to_loopback: bool) -> None:
        self._store, self._incidents = store, incidents
        self._open = open_to_loopback
        self._by_hash: dict[str, AccessToken] = {}
        self.refresh()

    @property
    def is_open(self) -> bool:
        """Whether no token is needed."""
        return self._open and not self._by_hash

    def refresh(self) -> None:
        """Read the tokens; while the store is away those that are known hold."""
        try:
            self._by_hash = {token.hash: token for token in tokens(self._store, every_project=True)}
        except StoreError as error:
            self._incidents.add("the collector could not read its tokens", error)

    def find(self, token: str | None, scope: str) -> Allowed | None:
        """What the token of a request allows; None where the request is refused."""
        if self.is_open:
            return Allowed(self._store.project, None)
        if not token or len(token) > _LONGEST:
            return None
        found = self._by_hash.get(token_hash(token))  # a look-up by hash tells nothing by the time it takes
        return Allowed(found.project, found.id) if found is not None and found.allows(scope) else None


def bearer(header: str | None) -> str | None:
    """The token of an Authorization header."""
    kind, _, token = (header or "").strip().partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else None


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
