"""Spans out: a LangChain callback handler that writes OpenTelemetry GenAI spans; apart from the recorder, which reads
them back.

A graph's root run is an `invoke_agent` span, model calls are `chat`, tools `execute_tool` spans; every other runnable
passes through: its children hang from its parent's span. Parents come from LangChain's `parent_run_id` alone; where a
nested call was given its own callbacks, which drops that id, from the config that LangChain holds for the enclosing
runnable.

What is dear on a span goes beside it in process: messages as objects and token ids, in `Record`s. A span's attributes
hold messages as JSON only where `Source.content` says that somebody else reads the spans, and token ids only where
`Source.tokens` does."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.callbacks import GraphCallbackHandler, GraphInterruptEvent, GraphResumeEvent
from langgraph.errors import GraphBubbleUp
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import Status, StatusCode, set_span_in_context

from cm2_agent.incidents import Incidents
from cm2_agent.langchain_messages import plain
from cm2_agent.tracing import semconv
from cm2_agent.tracing import span_attributes as attributes
from cm2_agent.tracing.llm_results import ToolSpecs, read_answer, read_request, tool_answer
from cm2_agent.tracing.span_records import ChatRecord, Record, RootRecord, Source, ToolRecord, key_of, run_status
from cm2_agent.types.run_attributes import FACTS, GUARD_ATTEMPT, TOOL_BACKEND, TOOL_FAULT

_P = ParamSpec("_P")
_REMEMBERED = 8192
"""How many run ids of ended roots are remembered, so that what comes after the end is not taken for a new root."""


_handlers: weakref.WeakSet[SpanHandler] = weakref.WeakSet()
_handlers_lock = threading.Lock()
_Leaf = TypeVar("_Leaf", ChatRecord, ToolRecord)


def _recorded(run_id: UUID) -> bool:
    """Whether the run is part of one that some handler records."""
    with _handlers_lock:
        return any(run_id in handler._runs for handler in _handlers)


def guarded(method: Callable[_P, None]) -> Callable[_P, None]:
    """A failure of ours is counted and logged once, and never reaches the user's call."""

    @functools.wraps(method)
    def safe(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:
            args[0].incidents.add(f"capture: {type(error).__name__} in {method.__name__}", error)  # type: ignore[attr-defined]

    return safe


class SpanHandler(GraphCallbackHandler):
    """The callback handler. `source` is asked at every root, so that an OpenTelemetry set up later is found."""

    run_inline = True
    raise_error = False

    def __init__(self, source: Callable[[], Source], incidents: Incidents) -> None:
        self.incidents = incidents
        self._source = source
        self._runs: dict[UUID, Record] = {}
        self._ended: OrderedDict[UUID, None] = OrderedDict()
        self._specs = ToolSpecs()
        self._lock = threading.Lock()
        with _handlers_lock:
            _handlers.add(self)

    @property
    def open_runs(self) -> int:
        """How many LangChain runs are known: 0 when no root is open."""
        return len(self._runs)

    # Chains: the root, and what passes through

    @guarded
    def on_chain_start(
        self,
        serialized: Any,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: Any = None,
        metadata: Any = None,
        **kwargs: Any,
    ) -> None:
        if run_id in self._runs:  # the handler is in the list twice: in the graph's config and in the caller's
            return
        parent = self._parent(parent_run_id)
        if parent is not None:
            self._runs[run_id] = parent
            root = parent.root
            root.run_ids.append(run_id)
            if root.resumed and root.base is None and parent_run_id == root.run_id:
                root.base = root.sayings.of_state(
                    inputs.get("state", inputs) if isinstance(inputs, Mapping) else inputs
                )
        elif parent_run_id not in self._ended:
            root = self._start_root(run_id, parent_run_id, kwargs.get("name") or "agent", tags, metadata)
            root.given = root.sayings.of_state(inputs)
            self._attributes(root, {semconv.INPUT_MESSAGES: root.given})

    @guarded
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        root = self._runs.get(run_id)
        if isinstance(root, RootRecord) and root.run_id == run_id:
            root.state = root.sayings.of_state(outputs)
            self._end_root(root)

    @guarded
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        root = self._runs.get(run_id)
        if isinstance(root, RootRecord) and root.run_id == run_id:
            if isinstance(error, GraphBubbleUp):
                root.interrupted = True
            else:
                self._failed(root, error)
            self._end_root(root)

    @guarded
    def on_retriever_start(
        self, serialized: Any, query: str, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        parent = self._parent(parent_run_id)
        if parent is not None:
            self._runs[run_id] = parent
            parent.root.run_ids.append(run_id)

    def on_interrupt(self, event: GraphInterruptEvent) -> None:
        self._mark(event.run_id, "interrupted")

    def on_resume(self, event: GraphResumeEvent) -> None:
        self._mark(event.run_id, "resumed")

    @guarded
    def _mark(self, run_id: UUID | None, what: str) -> None:
        root = self._runs.get(run_id) if run_id is not None else None
        if isinstance(root, RootRecord) and root.run_id == run_id:
            setattr(root, what, True)

    @guarded
    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:
        record = self._runs.get(run_id)
        if name == FACTS and record is not None and isinstance(data, Mapping):
            record.root.facts.update(data)

    # Model calls

    @guarded
    def on_chat_model_start(
        self,
        serialized: Any,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: Any = None,
        metadata: Any = None,
        **kwargs: Any,
    ) -> None:
        params = kwargs.get("invocation_params") or {}
        facts = metadata or {}
        model, settings = read_request(params, facts)
        name = f"{semconv.CHAT} {model}" if model else semconv.CHAT
        start: dict[str, Any] = {semconv.OPERATION: semconv.CHAT}
        if facts.get("ls_provider"):
            start[semconv.PROVIDER] = str(facts["ls_provider"])
        if model:
            start[semconv.REQUEST_MODEL] = model
        record = self._start_leaf(ChatRecord, "chat", run_id, parent_run_id, name, start, tags, metadata)
        if record is None:
            return
        record.model, record.settings = model, settings
        record.tools = self._specs.read(params.get("tools") or params.get("functions"))
        record.input = record.root.sayings.of(messages[0] if messages else ())
        if record.root.source.content:
            record.span.set_attributes(
                {attribute: settings[key] for key, attribute in semconv.REQUEST.items() if key in settings}
            )
            self._attributes(record, {semconv.INPUT_MESSAGES: record.input, semconv.TOOL_DEFINITIONS: record.tools})

    def on_llm_start(self, serialized: Any, prompts: list[str], *, run_id: UUID, **kwargs: Any) -> None:
        self.on_chat_model_start(
            serialized, [[HumanMessage(content=prompt) for prompt in prompts]], run_id=run_id, **kwargs
        )

    @guarded
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        record = self._runs.get(run_id)
        if not isinstance(record, ChatRecord) or record.done:
            return
        message, answer = read_answer(response)
        record.answer = answer
        if message is not None:
            record.output = record.root.sayings.one(message)
        if record.root.source.content:
            record.span.set_attributes(attributes.of_answer(answer))
            self._attributes(record, {semconv.OUTPUT_MESSAGES: [record.output] if record.output else None})
        if record.root.source.tokens:
            record.span.set_attributes(attributes.of_tokens(answer))
        self._end_leaf(record)

    @guarded
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        record = self._runs.get(run_id)
        if isinstance(record, ChatRecord) and not record.done:
            self._failed(record, error)
            self._end_leaf(record)

    # Tools

    @guarded
    def on_tool_start(
        self,
        serialized: Any,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: Any = None,
        metadata: Any = None,
        inputs: Any = None,
        **kwargs: Any,
    ) -> None:
        tool = (serialized or {}).get("name") or kwargs.get("name") or "tool"
        call_id = kwargs.get("tool_call_id")
        start: dict[str, Any] = {
            semconv.OPERATION: semconv.EXECUTE_TOOL,
            semconv.TOOL_NAME: tool,
            semconv.TOOL_TYPE: "function",
        }
        if call_id:
            start[semconv.TOOL_CALL_ID] = str(call_id)
        record = self._start_leaf(
            ToolRecord, "tool", run_id, parent_run_id, f"{semconv.EXECUTE_TOOL} {tool}", start, tags, metadata
        )
        if record is None:
            return
        record.name, record.call_id = tool, str(call_id) if call_id else None
        record.arguments = plain(inputs) if inputs is not None else input_str
        told = attributes.tool_facts(metadata)
        record.backend, record.fault = told.get(TOOL_BACKEND), told.get(TOOL_FAULT)
        self._attributes(record, {semconv.TOOL_ARGUMENTS: record.arguments})
        record.span.set_attributes(told)

    @guarded
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        record = self._runs.get(run_id)
        if not isinstance(record, ToolRecord) or record.done:
            return
        record.result, record.error, call_id = tool_answer(output, record.call_id)
        record.call_id = record.call_id or call_id
        if record.error is not None:
            record.span.set_status(Status(StatusCode.ERROR, record.error))
        self._attributes(record, {semconv.TOOL_RESULT: record.result})
        self._end_leaf(record)

    @guarded
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        record = self._runs.get(run_id)
        if isinstance(record, ToolRecord) and not record.done:
            if isinstance(error, GraphBubbleUp):
                record.interrupted = True
            else:
                self._failed(record, error)
            self._end_leaf(record)

    # Spans

    def _parent(self, parent_run_id: UUID | None) -> Record | None:
        if parent_run_id is not None:
            return self._runs.get(parent_run_id)
        around = var_child_runnable_config.get()
        callbacks = around.get("callbacks") if around else None
        if isinstance(callbacks, BaseCallbackManager) and callbacks.parent_run_id is not None:
            return self._runs.get(callbacks.parent_run_id)
        return None

    def _start_root(self, run_id: UUID, parent_run_id: UUID | None, name: str, tags: Any, metadata: Any) -> RootRecord:
        source = self._source()
        facts = metadata or {}
        # Inside a run that another handler records, the thread is that run's: joined to it, this dialogue would be told
        # twice.
        thread = None if parent_run_id is not None and _recorded(parent_run_id) else facts.get("thread_id")
        start: dict[str, Any] = {semconv.OPERATION: semconv.INVOKE_AGENT, semconv.AGENT_NAME: name}
        if thread is not None:
            start[semconv.CONVERSATION] = str(thread)
        around = otel_context.get_current() if source.attach else Context()
        started = time.time_ns()
        span = source.tracer.start_span(
            f"{semconv.INVOKE_AGENT} {name}", context=around, attributes=start, start_time=started
        )
        root = RootRecord(
            kind="agent",
            run_id=run_id,
            name=name,
            root=None,  # type: ignore[arg-type]
            parent=None,
            span=span,
            key=key_of(span),
            context=set_span_in_context(span, around),
            started=started,
            source=source,
        )
        root.root = root
        root.thread = None if thread is None else str(thread)
        root.facts = attributes.caller_facts(facts, tags)
        if source.content:
            span.set_attributes(attributes.flat(root.facts))
        self._remember(root)
        return root

    def _start_leaf(
        self,
        cls: type[_Leaf],
        kind: Any,
        run_id: UUID,
        parent_run_id: UUID | None,
        name: str,
        start: Mapping[str, Any],
        tags: Any,
        metadata: Any,
    ) -> _Leaf | None:
        """A span for a model or tool, None where it has one or its root has ended. One without a root (a bare model)
        gets its own."""
        if run_id in self._runs:
            return None
        parent = self._parent(parent_run_id)
        if parent is None:
            if parent_run_id in self._ended:
                return None
            parent = self._start_root(run_id, parent_run_id, name.partition(" ")[2] or name, tags, metadata)
        source = parent.root.source
        started = time.time_ns()
        span = source.tracer.start_span(name, context=parent.context, attributes=start, start_time=started)
        record = cls(
            kind=kind,
            run_id=run_id,
            name=name,
            root=parent.root,
            parent=parent,
            span=span,
            key=key_of(span),
            context=set_span_in_context(span, parent.context),
            started=started,
            in_tool=parent.in_tool or parent.kind == "tool",
            attempt=(metadata or {}).get(GUARD_ATTEMPT),
        )
        self._remember(record)
        if source.attach:
            record.token = otel_context.attach(record.context)
        return record

    def _remember(self, record: Record) -> None:
        root = record.root
        with self._lock:
            self._runs[record.run_id] = record
            root.run_ids.append(record.run_id)
            root.open[record.run_id] = record
            if record.span.is_recording():
                root.source.beside[record.key] = record

    def _end_leaf(self, record: Record) -> None:
        if record.token is not None:
            # Not by opentelemetry.context.detach, which logs what is to be expected: end and start may lie in different
            # contexts.
            with contextlib.suppress(ValueError):
                record.token.var.reset(record.token)
            record.token = None
        self._end(record)
        root = record.root
        if root.run_id == record.run_id and not root.done:  # a bare model or tool: its root is only there to hold it
            if record.raised is not None:
                self._failed(root, record.raised)
            self._end_root(root)

    def _end_root(self, root: RootRecord) -> None:
        if root.done:
            return
        for record in [record for record in root.open.values() if record is not root]:
            record.error = record.error or "did not end before its run did"
            self._end(record)
        status = run_status(root)
        root.span.set_attribute(semconv.STATUS, status)
        self._attributes(root, {semconv.OUTPUT_MESSAGES: root.state})
        with self._lock:
            for run_id in root.run_ids:
                self._runs.pop(run_id, None)
                self._ended[run_id] = None
            while len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
        self._end(root)

    def _end(self, record: Record) -> None:
        with self._lock:
            if record.done:
                return
            record.done = True
            record.root.open.pop(record.run_id, None)
        recording = record.span.is_recording()
        record.span.end()
        if not recording:
            record.root.source.done(record, record.started, time.time_ns())

    def _failed(self, record: Record, error: BaseException) -> None:
        record.raised = error
        record.error = attributes.told(error)
        if record.span.is_recording():
            record.span.set_attribute(semconv.ERROR_TYPE, type(error).__name__)
            record.span.set_status(Status(StatusCode.ERROR, record.error))

    def _attributes(self, record: Record, contents: Mapping[str, Any]) -> None:
        """Content as JSON, only for those outside this process who read the span."""
        if record.root.source.content and record.span.is_recording():
            for name, value in contents.items():
                if value:
                    record.span.set_attribute(name, attributes.as_json(value))
