"""What the nodes of a run's graphs were shown of the state's messages and what they wrote to them, in order of time.

Only LangGraph's own callbacks are read: a node's task starts with the state (a `Send` with what it was sent) and ends
with what it writes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.messages import BaseMessage
from langgraph.constants import START
from langgraph.errors import GraphInterrupt, ParentCommand
from langgraph.types import Command, Overwrite

from cm2_agent.dialects.seen_message import Removal, SeenMessage
from cm2_agent.tracing.graph_values import state_messages
from cm2_agent.tracing.message_index import MessageIndex

_SENT = "__pregel_push"
_NODE_TAG = "graph:step:"


@dataclass(slots=True, eq=False)
class NodeTask:
    """One execution of a node. `before` is the state that it was shown, None where it was shown none; `writes` what it
    wrote, each item a list that a reducer takes, and whether the list replaces the state's. `ended` is in nanoseconds
    since 1970, 0 for a task that did not end; `stopped` says that an interrupt stopped it, `retried` that it failed and
    was started again."""

    graph: GraphLog
    step: int
    path: tuple[Any, ...]
    before: list[SeenMessage] | None = None
    writes: tuple[tuple[list[SeenMessage | Removal], bool], ...] = ()
    ended: int = 0
    stopped: bool = False
    retried: bool = False

    @property
    def unfinished(self) -> bool:
        """Whether the run went no further than this task."""
        return not self.ended and not self.retried

    @property
    def top(self) -> NodeTask:
        """The task of the run's own graph that this one is part of."""
        task = self
        while task.graph.task is not None:
            task = task.graph.task
        return task


@dataclass(slots=True, eq=False)
class GraphLog:
    """The tasks of one graph: the run's own, or a subgraph within a task of it. `resumed` says that it went on from a
    checkpoint."""

    task: NodeTask | None = None
    tasks: list[NodeTask] = field(default_factory=list)
    resumed: bool = False
    key: str | None = None
    """Where the messages stand in the graph's state, once a node was shown some."""

    def messages(self, state: Any) -> Any:
        """The messages of what a node is shown or writes."""
        if type(state) is dict and self.key == "messages" and "messages" in state:
            return state["messages"]
        key, found = state_messages(state)
        if self.key is None:
            self.key = key if found else None
        elif key != self.key:
            found = state.get(self.key) if isinstance(state, Mapping) else getattr(state, self.key, None)
        return found

    def steps(self) -> list[list[NodeTask]]:
        """The tasks by superstep; within one in the order in which LangGraph applies their writes."""
        out: list[list[NodeTask]] = []
        for task in self.tasks:
            if out and out[-1][0].step == task.step:
                out[-1].append(task)
            else:
                out.append([task])
        for tasks in out:
            if len(tasks) > 1:
                tasks.sort(key=lambda task: [_sortable(part) for part in task.path])
        return out


@dataclass(slots=True, eq=False)
class StateLog:
    """The logs of a run's graphs by the LangChain ids of their runs."""

    graphs: dict[UUID, GraphLog] = field(default_factory=dict)

    def forget(self) -> None:
        """Let the graphs go of their tasks, which refer to them."""
        for graph in self.graphs.values():
            graph.tasks.clear()

    def wrote(self, run_id: UUID) -> bool:
        """Whether a node of this graph wrote messages."""
        graph = self.graphs.get(run_id)
        return graph is not None and any(write for task in graph.tasks for write, _ in task.writes)

    def start(
        self,
        index: MessageIndex,
        parent: UUID,
        around: NodeTask | None,
        inputs: Any,
        tags: Any,
        metadata: Mapping[str, Any],
    ) -> NodeTask | None:
        """A chain has started below the run's root, within the task `around`: the task that it is itself, None where
        it is no node's."""
        step = metadata.get("langgraph_step")
        if not isinstance(step, int) or not _is_task(tags):
            return None
        if metadata.get("langgraph_node") == START:  # it is shown the input alone, and no state
            return None
        graph = self.graphs.get(parent)
        if graph is None:
            graph = self.graphs[parent] = GraphLog(around)
        task = NodeTask(graph, step, tuple(metadata.get("langgraph_path") or ()))
        sent = _SENT in (metadata.get("langgraph_triggers") or ())
        state = _sent_state(inputs) if sent else inputs
        if state is not None:
            task.before = index.add_snapshot(graph.messages(state))
        for earlier in reversed(graph.tasks):
            if earlier.step != step:
                break
            earlier.retried = earlier.retried or earlier.path == task.path
        graph.tasks.append(task)
        return task

    def resume(self, run_id: UUID, around: NodeTask | None) -> None:
        """A subgraph, within the task `around`, goes on from a checkpoint."""
        if run_id not in self.graphs:
            self.graphs[run_id] = GraphLog(around)
        self.graphs[run_id].resumed = True


def end_task(task: NodeTask, index: MessageIndex, outputs: Any) -> None:
    """A node has ended."""
    _add_writes(task, index, outputs)
    task.ended = time.time_ns()


def fail_task(task: NodeTask, index: MessageIndex, error: BaseException) -> None:
    """A node has ended with an exception. One that sends the parent graph elsewhere may bring it messages."""
    if isinstance(error, ParentCommand):
        _add_writes(task, index, error.args[0])
        task.ended = time.time_ns()
    task.stopped = isinstance(error, GraphInterrupt)


def _is_task(tags: Any) -> bool:
    """Whether LangGraph says by a tag that the chain is a node's task."""
    if not tags:
        return False
    if len(tags) == 1:
        return isinstance(tags[0], str) and tags[0].startswith(_NODE_TAG)
    return any(isinstance(tag, str) and tag.startswith(_NODE_TAG) for tag in tags)


def _sortable(part: Any) -> str:
    return f"{part:010}" if isinstance(part, int) else str(part)


def _sent_state(inputs: Any) -> Any:
    """The state within what a tool node is sent by LangGraph's own agents; None in what others send."""
    return inputs.get("state") if isinstance(inputs, Mapping) and "tool_call" in inputs else None


def _add_writes(task: NodeTask, index: MessageIndex, outputs: Any) -> None:
    if isinstance(outputs, Command):
        outputs = outputs.update
    values: list[Any]
    if type(outputs) is dict:
        values = [task.graph.messages(outputs)]
    elif isinstance(outputs, BaseMessage):
        values = [outputs] if _is_list_state(task) else []
    elif isinstance(outputs, list | tuple):
        if outputs and isinstance(outputs[0], BaseMessage):
            values = [outputs] if _is_list_state(task) else []
        elif outputs and all(isinstance(item, tuple) and len(item) == 2 for item in outputs):  # Command(update=[…])
            values = [value for key, value in outputs if key == (task.graph.key or "messages")]
        else:
            for item in outputs:
                if isinstance(item, Command | Mapping):
                    _add_writes(task, index, item)
            return
    else:
        values = [task.graph.messages(outputs)]
    for value in values:
        replaces = isinstance(value, Overwrite)
        found = index.add_write(value.value if isinstance(value, Overwrite) else value)
        if found is not None:
            task.writes = (*task.writes, (found, replaces))


def _is_list_state(task: NodeTask) -> bool:
    """Whether the graph's state may be a list of messages: a node of another state writes no bare message."""
    return task.before is not None
