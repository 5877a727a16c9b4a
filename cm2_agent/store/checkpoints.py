"""LangGraph's checkpoints in the store: dialogues under way, which outlive their process.

LangGraph's own savers keep every checkpoint of every thread; resuming needs the newest. A dialogue of four turns takes
24 rows and 31 KB in theirs and one row and 3 KB here, at half the CPU time (langgraph-checkpoint-sqlite 3.1); and what
is under way lies in the same database, under the same migrations, as what has ended.

Nothing that lies in the table can make this process build an object that is not on a list (CVE-2026-28277 was about
that): blobs are msgpack without extensions for foreign types, and there is no pickle."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from sqlalchemy import func, select

from cm2_agent.errors import StoreError
from cm2_agent.store.codec import seal, unseal
from cm2_agent.store.engine import Database
from cm2_agent.store.schema import DEFAULT_PROJECT, checkpoints
from cm2_agent.store.statements import Row, Statements

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

_KINDS = {"null", "bytes", "bytearray", "msgpack"}
_MESSAGES = [
    (f"langchain_core.messages.{module}", name)
    for module, names in {
        "human": ["HumanMessage"],
        "ai": ["AIMessage", "AIMessageChunk"],
        "system": ["SystemMessage"],
        "tool": ["ToolMessage"],
        "function": ["FunctionMessage"],
        "chat": ["ChatMessage"],
        "modifier": ["RemoveMessage"],
    }.items()
    for name in names
]


class StrictSerializer(JsonPlusSerializer):
    """LangGraph's msgpack, reading back LangChain's messages, the plain types that LangGraph itself lists as safe
    (dates, sets, paths, its own Send, Command and Interrupt), and `allow`: classes of your graph's state. What else a
    blob names comes back as the plain data that it holds, whatever LANGGRAPH_STRICT_MSGPACK says. Raises StoreError for
    other kinds of blobs (pickle, JSON constructors)."""

    def __init__(self, allow: Iterable[type] = ()) -> None:
        listed: list[tuple[str, ...] | type] = [*_MESSAGES, *allow]
        super().__init__(pickle_fallback=False, allowed_json_modules=None, allowed_msgpack_modules=listed)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        if data[0] not in _KINDS:
            raise StoreError(
                f"a checkpoint is of kind {data[0]!r}; expected one of {', '.join(sorted(_KINDS))}: it was not written"
                " here"
            )
        try:
            return super().loads_typed(data)
        except ValueError as error:
            raise StoreError(f"a checkpoint cannot be read: {error}; delete its thread") from error


class StoreCheckpointer(BaseCheckpointSaver[int]):
    """A LangGraph checkpointer on the store's tables: `graph.compile(checkpointer=store.checkpointer())`.

    Only the newest checkpoint of a thread (and namespace) is kept: enough to go on, to interrupt and to resume; there
    is no history to go back to, and so a graph with a DeltaChannel is refused. Its threads are those of the store's
    project. With `steps_only` nothing is written before the first step has ended, nor what the tasks of an unfinished
    step have returned: half the writes, and all that a graph of one node a step needs.

    The async methods run on the event loop: a write is one short transaction (0.2 ms on SQLite), less than handing it
    to a thread takes. Threads may share it; of several processes on one database each must have threads of its own.
    Raises StoreError."""

    def __init__(
        self,
        database: Database,
        statements: Statements,
        *,
        project: str = DEFAULT_PROJECT,
        allow: Iterable[type] = (),
        steps_only: bool = False,
    ) -> None:
        super().__init__(serde=StrictSerializer(allow))
        self._db, self._do, self._steps_only = database, statements, steps_only
        self._project = seal(project)
        self._mark = "?" if database.sqlite else "%s"

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        thread, namespace = _place(config)
        if metadata.get("counters_since_delta_snapshot"):
            raise StoreError(
                "the graph's state has a DeltaChannel, whose history this checkpointer does not keep; use"
                " LangGraph's own"
            )
        if not self._steps_only or metadata.get("step", 0) > 0:
            kind, body = self.serde.dumps_typed(checkpoint)
            about = self.serde.dumps_typed(get_checkpoint_metadata(config, metadata))[1]
            row: Row = (
                self._project,
                seal(thread),
                seal(namespace),
                checkpoint["id"],
                get_checkpoint_id(config),
                kind,
                body,
                about,
                time.time_ns(),
            )
            with self._db.writing() as connection:
                self._do.checkpoint.many(connection, [row])
                self._do.old_writes.many(connection, [row[:4]])
        return _config(thread, namespace, checkpoint["id"])

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        thread, namespace = _place(config)
        known: list[Row] = []
        special: list[Row] = []
        of = (self._project, seal(thread), seal(namespace), str(get_checkpoint_id(config)), task_id)
        for number, (channel, value) in enumerate(writes):
            position = WRITES_IDX_MAP.get(channel, number)
            if position < 0 or not self._steps_only:
                (special if position < 0 else known).append(
                    (*of, position, task_path, channel, *self.serde.dumps_typed(value))
                )
        if known or special:
            with self._db.writing() as connection:
                self._do.new_write.many(connection, known)
                self._do.special_write.many(connection, special)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        thread, namespace = _place(config)
        mark = self._mark
        with self._db.asking() as cursor:
            where = f"WHERE project = {mark} AND thread = {mark} AND namespace = {mark}"
            place = (self._project, seal(thread), seal(namespace))
            cursor.execute(
                f"SELECT checkpoint, parent, kind, body, metadata FROM checkpoints {where}",  # noqa: S608 (marks only)
                place,
            )
            row = cursor.fetchone()
            if row is None or (get_checkpoint_id(config) or row[0]) != row[0]:
                return None
            order = f"AND checkpoint = {mark} ORDER BY path, task, position"
            cursor.execute(
                f"SELECT task, channel, kind, body FROM checkpoint_writes {where} {order}",  # noqa: S608 (marks only)
                (*place, row[0]),
            )
            writes = cursor.fetchall()
        return CheckpointTuple(
            config=_config(thread, namespace, row[0]),
            checkpoint=self._read(row[2], row[3]),
            metadata=self._read("msgpack", row[4]),
            parent_config=None if row[1] is None else _config(thread, namespace, row[1]),
            pending_writes=[(task, channel, self._read(kind, body)) for task, channel, kind, body in writes],
        )

    def _read(self, kind: str, body: bytes) -> Any:
        return self.serde.loads_typed((kind, bytes(body)))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """The newest checkpoint of each thread and namespace that fits, newest first."""
        query = select(checkpoints.c.thread, checkpoints.c.namespace).order_by(checkpoints.c.checkpoint.desc())
        query = query.where(checkpoints.c.project == self._project)
        asked: Mapping[str, Any] = (config or {}).get("configurable") or {}
        if "thread_id" in asked:
            query = query.where(checkpoints.c.thread == seal(str(asked["thread_id"])))
        if "checkpoint_ns" in asked:
            query = query.where(checkpoints.c.namespace == seal(str(asked["checkpoint_ns"])))
        if asked.get("checkpoint_id"):
            query = query.where(checkpoints.c.checkpoint == asked["checkpoint_id"])
        if before is not None and (newest := get_checkpoint_id(before)):
            query = query.where(checkpoints.c.checkpoint < newest)
        with self._db.reading() as connection:
            places = [(unseal(row[0]), unseal(row[1])) for row in connection.execute(query)]
        left = len(places) if limit is None else limit
        for thread, namespace in places:
            if left <= 0:
                return
            found = self.get_tuple({"configurable": {"thread_id": thread, "checkpoint_ns": namespace}})
            if found is not None and all(
                dict(found.metadata).get(name) == value for name, value in (filter or {}).items()
            ):
                left -= 1
                yield found

    def delete_thread(self, thread_id: str) -> None:
        with self._db.writing() as connection:
            for statement in (self._do.no_writes, self._do.no_checkpoint):
                statement.many(connection, [(self._project, seal(str(thread_id)))])

    def pending(self) -> tuple[str, ...]:
        """The threads under way: those with a checkpoint."""
        with self._db.reading() as connection:
            return tuple(
                unseal(thread)
                for thread in connection.scalars(
                    select(checkpoints.c.thread)
                    .where(checkpoints.c.project == self._project)
                    .distinct()
                    .order_by("thread")
                )
            )

    def __len__(self) -> int:
        with self._db.reading() as connection:
            counted = select(func.count(checkpoints.c.thread.distinct())).where(checkpoints.c.project == self._project)
            return int(connection.execute(counted).scalar_one())

    def __bool__(self) -> bool:
        return True  # LangGraph asks `if checkpointer`; an empty one is one

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return self.put(config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        self.put_writes(config, writes, task_id, task_path)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self.get_tuple(config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        for found in self.list(config, filter=filter, before=before, limit=limit):
            yield found

    async def adelete_thread(self, thread_id: str) -> None:
        self.delete_thread(thread_id)


def _place(config: RunnableConfig) -> tuple[str, str]:
    asked = config.get("configurable", {})
    return str(asked["thread_id"]), str(asked.get("checkpoint_ns", ""))


def _config(thread: str, namespace: str, checkpoint: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": checkpoint}}


__all__ = ["StoreCheckpointer", "StrictSerializer"]
