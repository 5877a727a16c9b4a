"""The LangChain callback handler that writes OpenTelemetry GenAI spans.

A graph's root run is an `invoke_agent` span, model calls are `chat`, tools `execute_tool` spans; every other runnable
has none, and its children hang from its parent's span.

Messages as objects and token ids do not fit on a span: they travel beside it in process, in a `Record`. A span's
attributes hold messages as JSON only where `Source.content` says that somebody else reads the spans, and token ids
only where `Source.tokens` does."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal, ParamSpec
from uuid import UUID

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import LLMResult
from langgraph.callbacks import GraphCallbackHandler, GraphInterruptEvent, GraphResumeEvent
from langgraph.errors import GraphBubbleUp
from langgraph.types import Command

from cm2_agent.dialects import semconv
from cm2_agent.incidents import Incidents
from cm2_agent.langchain_messages import plain
from cm2_agent.tracing.graph_values import GraphValue, Selector, read_value, with_interrupts
from cm2_agent.tracing.llm_results import ToolSpecReader, read_request, read_response, read_tool_result
from cm2_agent.tracing.open_spans import OpenSpans, Spot, fail, write_content, write_status
from cm2_agent.tracing.span_attributes import is_cancel, response_attributes, token_attributes, tool_facts
from cm2_agent.tracing.span_records import ChatRecord, Record, RootRecord, Source, ToolRecord
from cm2_agent.tracing.state_log import end_task, fail_task
from cm2_agent.types.run_attributes import FACTS, TOOL_BACKEND, TOOL_FAULT

_P = ParamSpec("_P")
_handlers: weakref.WeakSet[SpanHandler] = weakref.WeakSet()


def never_raises(method: Callable[_P, None]) -> Callable[_P, None]:
    """A failure of ours is counted and logged once, and never reaches the user's call."""

    @functools.wraps(method)
    def safe(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:
            args[0].incidents.add(f"capture: {type(error).__name__} in {method.__name__}", error)  # type: ignore[attr-defined]

    return safe


class SpanHandler(GraphCallbackHandler):
    """LangChain's callbacks as spans; `capture` makes one. `source` is asked at every root for where its spans go."""

    run_inline = True
    raise_error = False

    def __init__(self, source: Callable[[], Source], incidents: Incidents) -> None:
        self.incidents = incidents
        self.spans = OpenSpans(source)
        _handlers.add(self)
        self._tool_specs = ToolSpecReader()

    @property
    def open_runs(self) -> int:
        """How many LangChain runs are being recorded: 0 when no root is open."""
        return len(self.spans.spots)

    @never_raises
    def end_open(self) -> None:
        """End what this process has begun and nobody will end: streams that were left without being closed."""
        for root in self.spans.open_roots():
            if root.pid == os.getpid():  # else it is a fork's copy
                fail(root, GeneratorExit())
                self.spans.end_root(root)

    def _failed(self, method: str, error: Exception) -> None:
        """What `never_raises` does: the callbacks that come most often do without another call around them."""
        self.incidents.add(f"capture: {type(error).__name__} in {method}", error)

    def _record(self, run_id: UUID) -> Record | None:
        spot = self.spans.spots.get(run_id)
        return None if spot is None else spot.record

    # Chains: the root, and what passes through

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
        try:
            spans = self.spans
            if run_id in spans.spots:  # the handler is in the list twice: in the graph's config and in the caller's
                return
            above = spans.above(parent_run_id)
            if above is not None:
                spot = spans.pass_through(run_id, above, kwargs.get("name"), metadata)
                record = spot.record
                if parent_run_id is not None and not record.in_tool and record.kind != "tool":
                    root = spot.root
                    task = root.log.start(root.message_index, parent_run_id, spot.task, inputs, tags, metadata or {})
                    if task is not None:
                        spot.task = spot.own = task
            elif not spans.has_ended(parent_run_id):
                root = spans.start_root(run_id, parent_run_id, kwargs.get("name") or "agent", tags, metadata)
                root.inputs = inputs
                root.input_messages = root.message_index.add_state(inputs)
                root.input = self._value(root, inputs, "user")
                if root.source.content:
                    said = [message.to_json() for message in root.input.said or ()]
                    write_content(root, {semconv.INPUT_MESSAGES: said or root.input_messages})
        except Exception as error:
            self._failed("on_chain_start", error)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        try:
            spot = self.spans.spots.get(run_id)
            if spot is None:
                return
            task, record = spot.own, spot.record
            if task is not None:
                spot.own = None
                end_task(task, spot.root.message_index, outputs)
            elif isinstance(record, RootRecord) and record.run_id == run_id:
                root = record
                try:
                    root.final_messages = root.message_index.add_state(outputs)
                    root.output = self._value(root, outputs, "assistant")
                    if root.interrupts:
                        root.output = with_interrupts(root.output, root.interrupts)
                finally:
                    self.spans.end_root(root)
        except Exception as error:
            self._failed("on_chain_end", error)

    def _value(self, root: RootRecord, value: Any, role: Literal["user", "assistant"]) -> GraphValue:
        """A graph's input or output; what a selector does not find is counted, and nothing was said then."""
        name, selector = ("input", root.source.input) if role == "user" else ("output", root.source.output)
        whole = root.source.input is not None or root.source.output is not None
        if root.interrupted:
            selector = None

        def unfound(error: Exception | None) -> None:
            said = "found nothing" if error is None else f"raised {type(error).__name__}"
            self.incidents.add(f"capture: {name}={_named(selector)} {said}", error)

        try:
            return read_value(value, role, selector, whole=whole, unfound=unfound)
        except Exception as error:  # a state of the application's that cannot be read
            self.incidents.add(f"capture: {type(error).__name__} in the graph's {name}", error)
            return GraphValue(said=None if selector is None else ())

    @never_raises
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        root = self.spans.root(run_id)
        if root is not None:
            if is_cancel(error) and root.pid != os.getpid():
                return  # a fork closes its copy of a stream; the run is the parent's
            if isinstance(error, GraphBubbleUp):
                root.interrupted = True
            else:
                fail(root, error)
            self.spans.end_root(root)
        elif (spot := self.spans.spots.get(run_id)) is not None and (task := spot.own) is not None:
            spot.own = None
            fail_task(task, spot.root.message_index, error)

    @never_raises
    def on_retriever_start(
        self, serialized: Any, query: str, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        above = self.spans.above(parent_run_id)
        if above is not None:
            self.spans.pass_through(run_id, Spot(above.record, above.root, above.name, above.record.place))

    @never_raises
    def on_interrupt(self, event: GraphInterruptEvent) -> None:
        if (root := self.spans.root(event.run_id)) is not None:
            root.interrupted = True
            root.interrupts.extend(interrupt.value for interrupt in event.interrupts)

    @never_raises
    def on_resume(self, event: GraphResumeEvent) -> None:
        if (root := self.spans.root(event.run_id)) is not None:
            root.resumed = True
        elif event.run_id is not None and (spot := self.spans.spots.get(event.run_id)) is not None:
            spot.root.log.resume(event.run_id, spot.task)

    @never_raises
    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:
        spot = self.spans.spots.get(run_id)
        if name == FACTS and spot is not None and isinstance(data, Mapping):
            spot.root.facts.update(data)

    # Model calls

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
        try:
            params = kwargs.get("invocation_params") or {}
            facts = metadata or {}
            model, settings = read_request(params, facts)
            name = f"{semconv.CHAT} {model}" if model else semconv.CHAT

            def start() -> dict[str, Any]:
                named = {semconv.PROVIDER: facts.get("ls_provider"), semconv.REQUEST_MODEL: model}
                return {semconv.OPERATION: semconv.CHAT, **{key: str(value) for key, value in named.items() if value}}

            record = self.spans.start_leaf(ChatRecord, "chat", run_id, parent_run_id, name, start, tags, metadata)
            if record is None:
                return
            record.model, record.settings = model, settings
            above = None if parent_run_id is None else self.spans.spots.get(parent_run_id)
            record.task = None if above is None else above.task
            record.internal = "lc_internal_call" in facts
            record.tools = self._tool_specs.read(params.get("tools") or params.get("functions"))
            record.input = record.root.message_index.add_all(messages[0] if messages else ())
            source = record.root.source
            if source.foreign:
                record.span.set_attributes(
                    {attribute: settings[key] for key, attribute in semconv.REQUEST.items() if key in settings}
                )
            if source.content:
                write_content(record, {semconv.INPUT_MESSAGES: record.input, semconv.TOOL_DEFINITIONS: record.tools})
        except Exception as error:
            self._failed("on_chat_model_start", error)

    def on_llm_start(self, serialized: Any, prompts: list[str], *, run_id: UUID, **kwargs: Any) -> None:
        self.on_chat_model_start(
            serialized, [[HumanMessage(content=prompt) for prompt in prompts]], run_id=run_id, **kwargs
        )

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        try:
            record = self._record(run_id)
            if not isinstance(record, ChatRecord) or record.done:
                return
            message, metadata = read_response(response)
            record.response = metadata
            if message is not None:
                record.output = record.root.message_index.add(message)
            source = record.root.source
            if source.foreign:
                record.span.set_attributes(response_attributes(metadata, content=source.content))
            if source.content:
                write_content(record, {semconv.OUTPUT_MESSAGES: [record.output] if record.output else None})
            if source.tokens:
                record.span.set_attributes(token_attributes(metadata))
            self.spans.end_leaf(record)
        except Exception as error:
            self._failed("on_llm_end", error)

    @never_raises
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        record = self._record(run_id)
        if isinstance(record, ChatRecord) and not record.done:
            fail(record, error)
            self.spans.end_leaf(record)

    # Tools

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
        try:
            tool = (serialized or {}).get("name") or kwargs.get("name") or "tool"
            call_id = kwargs.get("tool_call_id")

            def start() -> dict[str, Any]:
                named = {
                    semconv.OPERATION: semconv.EXECUTE_TOOL,
                    semconv.TOOL_NAME: tool,
                    semconv.TOOL_TYPE: "function",
                }
                return {**named, semconv.TOOL_CALL_ID: str(call_id)} if call_id else named

            record = self.spans.start_leaf(
                ToolRecord, "tool", run_id, parent_run_id, f"{semconv.EXECUTE_TOOL} {tool}", start, tags, metadata
            )
            if record is None:
                return
            record.name, record.call_id = tool, str(call_id) if call_id else None
            record.arguments = plain(inputs) if inputs is not None else input_str
            if record.root.source.content:
                write_content(record, {semconv.TOOL_ARGUMENTS: record.arguments})
            if facts := tool_facts(metadata):
                record.backend, record.fault = facts.get(TOOL_BACKEND), facts.get(TOOL_FAULT)
                record.span.set_attributes(facts)
        except Exception as error:
            self._failed("on_tool_start", error)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        try:
            record = self._record(run_id)
            if not isinstance(record, ToolRecord) or record.done:
                return
            read = read_tool_result(output, record.call_id)
            record.result, record.error, record.artifact = read.result, read.error, read.artifact
            record.call_id = record.call_id or read.call_id
            record.handoff = isinstance(output, Command) and output.graph == Command.PARENT
            if record.error is not None:
                record.span.set_attribute(semconv.ERROR_TYPE, "ToolError")
                write_status(record)
            if record.root.source.content:
                write_content(record, {semconv.TOOL_RESULT: record.result})
            self.spans.end_leaf(record)
        except Exception as error:
            self._failed("on_tool_end", error)

    @never_raises
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        record = self._record(run_id)
        if isinstance(record, ToolRecord) and not record.done:
            if isinstance(error, GraphBubbleUp):
                record.interrupted = True
            else:
                fail(record, error)
            self.spans.end_leaf(record)


def end_open_runs() -> None:
    """The process ends: what is still open counts as cancelled, as if its stream had been closed."""
    for handler in list(_handlers):
        handler.end_open()


def _named(selector: Selector | None) -> str:
    return repr(selector) if isinstance(selector, str) else getattr(selector, "__name__", type(selector).__name__)


def is_watched(graph: Any) -> bool:
    """Whether a graph's own config holds a SpanHandler."""
    callbacks = (getattr(graph, "config", None) or {}).get("callbacks")
    handlers = callbacks.handlers if isinstance(callbacks, BaseCallbackManager) else callbacks or ()
    return any(isinstance(handler, SpanHandler) for handler in handlers)
