"""Policies in the same SQL as the traces that they wrote: their lineage, which one is promoted, and the way back."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

from sqlalchemy import Connection, Row, func, insert, select, update

from cm2_agent.errors import ConflictError, StoreError
from cm2_agent.store.codec import dump, load, seal, sealed, unseal, unsealed
from cm2_agent.store.engine import Database
from cm2_agent.store.schema import policies, promotions
from cm2_agent.types.json_values import JSON
from cm2_agent.types.policy import Policy, PolicyState, Promotion, require_name


class Policies:
    """The methods of `SQLStore` on policies."""

    _db: Database
    _project: str

    def save_policy(self, policy: Policy) -> None:
        """Register a policy. One that is registered already keeps its state and its time; the rest is replaced.
        Raises StoreError where the agent's name is not a printable line."""
        require_name(policy.name)
        body = _columns(policy)
        with self._db.writing() as connection:
            self._lock(connection, policy.name)
            known = self._known(connection, policy.name, policy.version)
            if known is None:
                if policy.state == "promoted":
                    raise StoreError(f"policy {policy.version}: register it as a candidate, then promote it")
                place = {"project": self._project, "name": seal(policy.name), "version": seal(policy.version)}
                stored = policy.stored or time.time_ns()
                connection.execute(insert(policies).values(**place, **body, state=policy.state, stored=stored))
            else:
                connection.execute(update(policies).where(policies.c.seq == known.seq).values(**body))

    def policies(self, name: str | None = None) -> list[Policy]:
        """The policies of an agent, or of all, in the order in which they were registered.

        >>> from cm2_agent import Policy, SQLStore
        >>> with SQLStore("sqlite://") as store:
        ...     store.save_policy(Policy(name="support", version="a1"))
        ...     store.save_policy(Policy(name="support", version="b2", parent="a1"))
        ...     store.promote("support", "b2")
        ...     [(one.version, one.state) for one in store.policies("support")]
        [('a1', 'candidate'), ('b2', 'promoted')]
        """
        query = select(policies).where(policies.c.project == self._project).order_by(policies.c.seq)
        if name is not None:
            query = query.where(policies.c.name == seal(name))
        with self._db.reading() as connection:
            return [_policy(row) for row in connection.execute(query)]

    def policy(self, name: str, version: str) -> Policy | None:
        """A policy by its agent's name and its version, None where it is not registered."""
        return next((one for one in self.policies(name) if one.version == version), None)

    def promoted(self, name: str) -> Policy | None:
        """The promoted policy of an agent, None where none is."""
        return next((one for one in self.policies(name) if one.state == "promoted"), None)

    def promotions(self, name: str) -> list[Promotion]:
        """The promotions of an agent's policies, the last one last."""
        with self._db.reading() as connection:
            return [_promotion(row) for row in self._history(connection, name)]

    def reject(self, name: str, version: str) -> None:
        """Note that an evaluation spoke against a candidate; the state of one that was promoted once stays. Raises
        StoreError where it is not registered."""
        with self._db.writing() as connection:
            row = self._row(connection, name, version)
            if row.state == "candidate":
                _set(connection, row.seq, "rejected")

    def promote(
        self, name: str, version: str, *, reason: Mapping[str, JSON] | None = None, instead_of: str | None = None
    ) -> None:
        """Make a registered policy the agent's promoted one, in one transaction; promoting it again changes nothing.

        Args:
            name: the agent's.
            version: the policy's.
            reason: what speaks for it; stored with the promotion.
            instead_of: the version that is expected to be promoted now; None: whichever is, or none.

        Raises:
            StoreError: the policy is not registered.
            ConflictError: another policy than `instead_of` is promoted now.
        """
        body = dump(dict(reason or {}), f"the reason to promote {version!r}")
        with self._db.writing() as connection:
            self._lock(connection, name)
            row, now = self._row(connection, name, version), self._promoted(connection, name)
            if now is not None and now.seq == row.seq:
                return
            if instead_of is not None and (now is None or unseal(now.version) != instead_of):
                found = "none" if now is None else unseal(now.version)
                raise ConflictError(
                    f"policy {version} was to replace {instead_of} as the promoted one of {name!r}, and {found} is"
                    f" promoted now; nothing was changed. See who did it: cm2 policy show {found} --name {name}"
                )
            if now is not None:
                _set(connection, now.seq, "replaced")
            _set(connection, row.seq, "promoted")
            connection.execute(insert(promotions).values(policy=row.seq, reason=body, promoted=time.time_ns()))

    def rollback(self, name: str) -> tuple[Policy, Policy]:
        """Take the last promotion of an agent back, in one transaction: the policy that was promoted before is so
        again. Returns the one that was rolled back, and the one that is promoted now. Raises StoreError where there was
        none before."""
        with self._db.writing() as connection:
            self._lock(connection, name)
            standing = [row for row in self._history(connection, name) if row.undone is None]
            if len(standing) < 2:
                what = "its only promotion" if standing else "no promotion"
                raise StoreError(
                    f"agent {name!r} has {what}, so that there is no policy to go back to. Type: cm2 policy list"
                    f" --store {self._db.url}"
                )
            gone, back = standing[-1], standing[-2]
            undone = update(promotions).where(promotions.c.seq == gone.promotion)
            connection.execute(undone.values(undone=time.time_ns()))
            _set(connection, gone.seq, "rolled_back")
            _set(connection, back.seq, "promoted")
            return _policy(self._by_seq(connection, gone.seq)), _policy(self._by_seq(connection, back.seq))

    def _lock(self, connection: Connection, name: str) -> None:
        """Hold the agent's policies until the transaction ends: whoever comes second sees what the first one did."""
        if not self._db.sqlite:
            number = func.hashtextextended(f"{self._project}\x1f{seal(name)}", 0)
            connection.execute(select(func.pg_advisory_xact_lock(number)))

    def _known(self, connection: Connection, name: str, version: str) -> Row[Any] | None:
        table = policies.c
        place = (table.project == self._project, table.name == seal(name), table.version == seal(version))
        return connection.execute(select(policies).where(*place)).first()

    def _row(self, connection: Connection, name: str, version: str) -> Row[Any]:
        row = self._known(connection, name, version)
        if row is None:
            raise StoreError(
                f"agent {name!r} has no policy {version!r} in {self._db.url}; see those that it has: cm2 policy list"
                f" --store {self._db.url}"
            )
        return row

    def _by_seq(self, connection: Connection, seq: int) -> Row[Any]:
        return connection.execute(select(policies).where(policies.c.seq == seq)).one()

    def _promoted(self, connection: Connection, name: str) -> Row[Any] | None:
        table = policies.c
        place = (table.project == self._project, table.name == seal(name), table.state == "promoted")
        return connection.execute(select(policies).where(*place)).first()

    def _history(self, connection: Connection, name: str) -> Sequence[Any]:
        query = (
            select(
                policies.c.seq,
                policies.c.name,
                policies.c.version,
                promotions.c.seq.label("promotion"),
                promotions.c.reason,
                promotions.c.promoted,
                promotions.c.undone,
            )
            .join(promotions, promotions.c.policy == policies.c.seq)
            .where(policies.c.project == self._project, policies.c.name == seal(name))
            .order_by(promotions.c.seq)
        )
        return connection.execute(query).all()


def _set(connection: Connection, seq: int, state: PolicyState) -> None:
    connection.execute(update(policies).where(policies.c.seq == seq).values(state=state))


def _columns(policy: Policy) -> dict[str, Any]:
    what = f"policy {policy.version!r}"
    return {
        **{name: sealed(getattr(policy, name)) for name in ("parent", "folder", "reward", "certificate")},
        **{name: dump(dict(getattr(policy, name)), what) for name in ("data", "settings", "metrics")},
    }


def _policy(row: Row[Any]) -> Policy:
    return Policy(
        name=unseal(row.name),
        version=unseal(row.version),
        folder=unsealed(row.folder),
        parent=unsealed(row.parent),
        state=cast(PolicyState, row.state),
        reward=unsealed(row.reward),
        certificate=unsealed(row.certificate),
        data=load(row.data),
        settings=load(row.settings),
        metrics=load(row.metrics),
        stored=row.stored,
    )


def _promotion(row: Row[Any]) -> Promotion:
    return Promotion(
        name=unseal(row.name),
        version=unseal(row.version),
        reason=load(row.reason),
        promoted=row.promoted,
        undone=row.undone,
    )


__all__ = ["Policies"]
