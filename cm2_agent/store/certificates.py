"""Certificates in the same SQL as the scores: what attacks on a reward version could get paid.

Each measurement is a row of its own; the last one counts."""

from __future__ import annotations

import time

from sqlalchemy import Connection, select

from cm2_agent.store.codec import dump, load, seal
from cm2_agent.store.schema import certificates
from cm2_agent.store.statements import Statements
from cm2_agent.types.certificate import Certificate


def save(connection: Connection, do: Statements, certificate: Certificate, project: str) -> None:
    """Store a certificate, the newest of its reward version."""
    body = dump(certificate.to_json(), f"the certificate of {certificate.reward_version!r}")
    do.certificate.many(connection, [(project, seal(certificate.reward_version), body, time.time_ns())])


def newest(connection: Connection, project: str, reward: str) -> Certificate | None:
    """The last certificate of a reward version, None where it has none."""
    table = certificates.c
    query = select(table.body).where(table.project == project, table.reward == seal(reward))
    body = connection.scalars(query.order_by(table.seq.desc()).limit(1)).first()
    return None if body is None else Certificate.from_json(load(body))
