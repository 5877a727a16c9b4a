"""Tasks and checklists: what traces were asked to do and what they are judged by. Both are immutable under a name and a
version."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlalchemy import Connection, func, select

from cm2_agent.errors import ConflictError, StoreError
from cm2_agent.store.codec import dump, dump_mapping, load, seal, unseal
from cm2_agent.store.schema import checklists, tasks
from cm2_agent.store.statements import Row, Statements
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.json_values import content_hash
from cm2_agent.types.task import Task


def save_tasks(connection: Connection, do: Statements, given: Sequence[Task]) -> None:
    """Raises ConflictError where a task of that id and version is stored with other content."""
    rows: dict[tuple[str, int], Row] = {}
    for task in given:
        try:
            body = task.to_json()
        except ValueError as error:  # pydantic's, on text that is not Unicode or values that are not JSON
            raise StoreError(
                f"task {task.id!r} is not JSON: {error}; expected text, numbers, lists and objects"
            ) from error
        row = (seal(task.id), task.version, content_hash(body), dump(body, f"task {task.id!r}"))
        if rows.setdefault((row[0], row[1]), row)[2] != row[2]:
            raise _conflict(task)
    do.task.many(connection, list(rows.values()))
    for task in given:
        query = select(tasks.c.hash).where(tasks.c.id == seal(task.id), tasks.c.version == task.version)
        if connection.execute(query).scalar_one() != rows[seal(task.id), task.version][2]:
            raise _conflict(task)


def _conflict(task: Task) -> ConflictError:
    return ConflictError(
        f"task {task.id!r} version {task.version} is stored already with other content; give the changed task a new"
        " version (a GRPO group never mixes versions)"
    )


def task(connection: Connection, id: str, version: int | None) -> Task | None:
    """The task of that version, or its newest."""
    query = select(tasks.c.body).where(tasks.c.id == seal(id)).order_by(tasks.c.version.desc()).limit(1)
    body = connection.execute(
        query if version is None else query.where(tasks.c.version == version)
    ).scalar_one_or_none()
    return None if body is None else Task.model_validate(load(body))


def all_tasks(connection: Connection) -> list[Task]:
    """The newest version of each task, in the order in which they were first stored."""
    columns = (tasks.c.id, func.max(tasks.c.version).label("version"), func.min(tasks.c.seq).label("first"))
    newest = select(*columns).group_by(tasks.c.id).subquery()
    query = (
        select(tasks.c.body)
        .join(newest, (newest.c.id == tasks.c.id) & (newest.c.version == tasks.c.version))
        .order_by(newest.c.first)
    )
    return [Task.model_validate(load(body)) for body in connection.scalars(query)]


def save_checklist(connection: Connection, do: Statements, checklist: Checklist) -> str:
    """Store and return the hash. Raises ConflictError where that name and version is stored with other content."""
    where = f"checklist {checklist.name!r}"
    sources = {item.id: item.source for item in checklist.items if item.source is not None}
    row = (
        checklist.hash,
        seal(checklist.name),
        checklist.version,
        dump(checklist.to_json(), where),
        dump_mapping(sources, where),
    )
    do.checklist.many(connection, [row])
    query = select(checklists.c.hash).where(checklists.c.name == row[1], checklists.c.version == checklist.version)
    if connection.execute(query).scalar_one() != checklist.hash:
        raise ConflictError(
            f"checklist {checklist.name!r} version {checklist.version} is stored already with other content (a"
            f" function's source counts too); give the changed checklist version: {checklist.version + 1}"
        )
    return checklist.hash


def checklist(connection: Connection, hash_or_name: str, version: int | None) -> Checklist | None:
    """By hash, or by name and version (the newest where none is given). Functions come back as names: `Checklist.bound`
    binds them."""
    found = None
    if re.fullmatch(r"[0-9a-f]{64}", hash_or_name):
        found = connection.execute(
            select(checklists.c.body).where(checklists.c.hash == hash_or_name)
        ).scalar_one_or_none()
    if found is None:
        query = (
            select(checklists.c.body)
            .where(checklists.c.name == seal(hash_or_name))
            .order_by(checklists.c.version.desc())
            .limit(1)
        )
        found = connection.execute(
            query if version is None else query.where(checklists.c.version == version)
        ).scalar_one_or_none()
    return None if found is None else Checklist.from_json(load(found))


def checklist_sources(connection: Connection, hash: str) -> dict[str, str]:
    """The sources of the functions that a checklist was stored with, by item id."""
    text = connection.execute(select(checklists.c.sources).where(checklists.c.hash == hash)).scalar_one_or_none()
    sources: dict[str, str] = {} if text is None else load(text)
    return sources


def name_of(connection: Connection, hash: str) -> str:
    """How to call a checklist in a message."""
    row = connection.execute(
        select(checklists.c.name, checklists.c.version).where(checklists.c.hash == hash)
    ).one_or_none()
    return f"checklist {hash[:12]}" if row is None else f"checklist {unseal(row.name)!r} version {row.version}"
