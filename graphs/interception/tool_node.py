"""The switch in a graph's tool nodes: the same graph with real, recorded, replayed or simulated tools, no line of it
changed.

A call that is not real runs a *stand-in* of its tool: same name, description and argument schema, so that validation,
errors, spans and callbacks are those of the real call. The dialogue's `Backends` decide who answers; where a run has
none, the graph runs as it would without the switch."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import threading
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, ToolException
from langgraph.prebuilt import ToolNode
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.types import Command
from pydantic import BaseModel

from cm2_agent.errors import ToolError
from cm2_agent.langchain_messages import from_langchain
from cm2_agent.types.messages import Message
from cm2_agent.types.run_attributes import TOOL_BACKEND, TOOL_FAULT
from cm2_agent.types.tool_calls import ToolAnswer, ToolRequest

from ..backends.backends import TOOLS, Backends
from ..backends.tool_backends import ResolvedBackend
from ..crashes import may_repeat, note_reproduced
from .discovery import with_tool_nodes

T = TypeVar("T")
Execute = Callable[[ToolCallRequest], Any]
AsyncExecute = Callable[[ToolCallRequest], Awaitable[Any]]


def switched(graph: Any) -> Any:
    """A copy of a compiled graph whose tool nodes, its subgraphs' too, ask the run's `Backends`; the graph itself stays
    as it is. `run` does this for the graphs that it is given.

    A tool node's own `wrap_tool_call` stays around the switch. Tools that plain function nodes call are not switched:
    see `switchable`.

    >>> from langchain_core.language_models import GenericFakeChatModel
    >>> from langchain_core.messages import AIMessage
    >>> from cm2_agent.graphs import TOOLS, Backends, FunctionTools, agent, switched
    >>> def get_order(order_id: int) -> str:
    ...     "Look an order up."
    ...     return "real"
    >>> async def always_shipped(request):
    ...     return "shipped"
    >>> class Model(GenericFakeChatModel):
    ...     def bind_tools(self, tools, **kwargs):
    ...         return self
    >>> call = {"name": "get_order", "args": {"order_id": 7}, "id": "1", "type": "tool_call"}
    >>> model = Model(messages=iter([AIMessage("", tool_calls=[call]), AIMessage("It was shipped.")]))
    >>> graph = switched(agent(model, FunctionTools(get_order)))
    >>> config = {"configurable": {TOOLS: Backends(always_shipped)}}
    >>> graph.invoke({"messages": [("user", "Where is order 7?")]}, config)["messages"][2].content
    'shipped'
    """
    return with_tool_nodes(graph, _switched)


def _switched(node: ToolNode) -> ToolNode:
    made = copy.copy(node)
    for name in ("func", "afunc"):  # bound to the original, whose wrappers they would call
        method = getattr(node, name)
        if isinstance(method, types.MethodType) and method.__self__ is node:
            setattr(made, name, types.MethodType(method.__func__, made))
    wrapper, async_wrapper = node._wrap_tool_call, node._awrap_tool_call
    made._wrap_tool_call = wrap_tool_call if wrapper is None else _around(wrapper)
    if async_wrapper is not None:
        made._awrap_tool_call = _aaround(async_wrapper)
    else:
        made._awrap_tool_call = awrap_tool_call if wrapper is None else _in_thread(wrapper)
    return made


def _around(wrapper: Any) -> Any:
    return lambda request, execute: wrapper(request, lambda asked: wrap_tool_call(asked, execute))


def _aaround(wrapper: Any) -> Any:
    async def wrap(request: ToolCallRequest, execute: AsyncExecute) -> Any:
        return await wrapper(request, lambda asked: awrap_tool_call(asked, execute))

    return wrap


def _in_thread(wrapper: Any) -> Any:
    """A sync wrapper around an async switch: it waits in a thread of its own."""

    async def wrap(request: ToolCallRequest, execute: AsyncExecute) -> Any:
        loop = asyncio.get_running_loop()

        def inner(asked: ToolCallRequest) -> Any:
            return asyncio.run_coroutine_threadsafe(_run(asked, execute), loop).result()

        return await asyncio.to_thread(wrapper, request, inner)

    return wrap


def backends_of(runtime: Any) -> Backends | None:
    """The dialogue's backends: LangGraph's runtime context itself, what it holds under `cm2_tools`, or the configurable
    of that name."""
    context = getattr(runtime, "context", None)
    held = context
    if not isinstance(context, Backends):
        held = context.get(TOOLS) if isinstance(context, Mapping) else getattr(context, TOOLS, None)
    if isinstance(held, Backends):
        return held
    config = getattr(runtime, "config", None) or {}
    found = (config.get("configurable") or {}).get(TOOLS)
    return found if isinstance(found, Backends) else None


def wrap_tool_call(request: ToolCallRequest, execute: Execute) -> Any:
    """For `ToolNode(wrap_tool_call=…)`: runs the call, or its stand-in's, as the run's backends say."""
    plan = _Plan.of(request)
    if plan is None:
        return execute(request)
    try:
        return plan.done(execute(plan.request()))
    except Exception as error:
        if plan.repeats(error):
            try:
                execute(plan.request())
            except Exception as again:
                if type(again) is type(error):
                    note_reproduced(error)
        raise plan.failed(error) from error.__cause__


async def awrap_tool_call(request: ToolCallRequest, execute: AsyncExecute) -> Any:
    """For `ToolNode(awrap_tool_call=…)`: the same, awaited."""
    return await _run(request, execute)


async def _run(request: ToolCallRequest, execute: AsyncExecute) -> Any:
    plan = _Plan.of(request)
    if plan is None:
        return await execute(request)
    try:
        return plan.done(await execute(plan.request()))
    except Exception as error:
        if plan.repeats(error):
            try:
                await execute(plan.request())
            except Exception as again:
                if type(again) is type(error):
                    note_reproduced(error)
        raise plan.failed(error) from error.__cause__


class _Plan:
    """One call on its way through the switch."""

    def __init__(self, call: ToolCallRequest, tool: BaseTool, backends: Backends) -> None:
        self.tool_call, self.tool, self.backends = call, tool, backends
        given = call.tool_call["args"]
        arguments = given if isinstance(given, Mapping) else {}
        self.asked = ToolRequest(tool=backends.spec(tool), arguments=arguments, task=backends.task)
        self.fault = backends.draw(self.asked)
        self.answer = backends.fault_before(self.asked, self.fault)
        backend = backends.resolved(tool.name)
        self.real = backend.ask is None
        self.backend = backend.answers_as
        if not self.real:
            self._prepare(backend)
        self.began = time.perf_counter()

    def _prepare(self, backend: ResolvedBackend) -> None:
        """Whether a recording answers or the backend is asked, and what it is asked with."""
        if self.backends.replayed(self.asked) is None:
            self.asked = replace(self.asked, arguments=_as_the_tool_reads(self.tool, self.asked.arguments))
        if self.backends.replayed(self.asked) is not None:
            self.backend = backend.found_as
        elif self.backend != "replay":
            self.asked = replace(self.asked, messages=_dialogue(self.tool_call.state))

    @classmethod
    def of(cls, call: ToolCallRequest) -> _Plan | None:
        """None where nothing is to be switched: no backends, a tool that does not exist, or a call that is switched
        already."""
        tool, backends = call.tool, backends_of(call.runtime)
        if backends is None or tool is None or TOOL_BACKEND in (tool.metadata or {}):
            return None
        try:
            return cls(call, tool, backends)
        except ToolError as error:  # a tool without a schema, say
            raise backends.fail(error) from error.__cause__

    def request(self) -> ToolCallRequest:
        """The call as it is run: of the tool itself, or of its stand-in."""
        names = {TOOL_BACKEND: self.backend, **({} if self.fault is None else {TOOL_FAULT: self.fault})}
        metadata = {**(self.tool.metadata or {}), **names}
        if self.real and self.answer is None:
            return self.tool_call.override(tool=self.tool.model_copy(update={"metadata": metadata}))
        return self.tool_call.override(tool=stand_in(self.tool, self._answer, metadata))

    async def _answer(self) -> ToolAnswer:
        if self.answer is not None:  # it failed before any tool was asked
            self.backends.record_real(self.asked, self.answer)
            return self.answer
        return self.backends.fault_after(self.asked, self.fault, await self.backends.answer(self.asked))

    def repeats(self, error: Exception) -> bool:
        """Whether the call is made once more, to see whether it is the call that crashes the tool."""
        return self.real and self.answer is None and may_repeat(error)

    def failed(self, error: Exception) -> Exception:
        """Infrastructure that failed is noted, whatever the graph makes of it."""
        return self.backends.fail(error) if isinstance(error, ToolError) else error

    def done(self, answered: Any) -> Any:
        message = _message(answered, self.tool_call.tool_call["id"])
        if message is None:
            return answered
        if self.real and self.answer is None:
            answer = ToolAnswer(content=message.content, error=message.status == "error", backend=self.backend)
            self.backends.record_real(self.asked, answer, time.perf_counter() - self.began)
            if self.fault is not None:
                answer = self.backends.fault_after(self.asked, self.fault, answer)
                message.content, message.status = answer.content, "error" if answer.error else "success"
        return answered


def _as_the_tool_reads(tool: BaseTool, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments as the tool would get them: pydantic reads "7" as the 7 that is asked for. What it cannot read
    stays, for the stand-in to refuse."""
    schema = tool.tool_call_schema
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        try:
            return schema.model_validate(arguments).model_dump(mode="json", by_alias=True, exclude_unset=True)
        except ValueError:  # also pydantic's, and what cannot be written as JSON
            pass
    return arguments


def _dialogue(state: Any) -> tuple[Message, ...]:
    """The dialogue so far, as far as the graph's state shows one."""
    messages = (
        state
        if isinstance(state, list)
        else state.get("messages")
        if isinstance(state, Mapping)
        else getattr(state, "messages", ())
    )
    return tuple(from_langchain(message) for message in messages or ())


def _message(answered: Any, call_id: str | None) -> ToolMessage | None:
    """The tool message among what a tool node's call gave, the one that answers this call where there are several."""
    if isinstance(answered, ToolMessage):
        return answered
    if isinstance(answered, Command):
        update = answered.update if isinstance(answered.update, Mapping) else {}
        answered = update.get("messages") or []
    found = [item for item in answered if isinstance(item, ToolMessage)] if isinstance(answered, list) else []
    return next((item for item in found if item.tool_call_id == call_id), found[0] if found else None)


class _StandIn(BaseTool):
    """A tool of the same name and schema that calls nothing real."""

    answering: Callable[[], Coroutine[Any, Any, ToolAnswer]]
    injected: frozenset[str] = frozenset()
    """The arguments that LangGraph brings (state, runtime), by the signature of the real tool: no span holds them."""

    @cached_property
    def _injected_args_keys(self) -> frozenset[str]:
        return self.injected

    def _run(self, **arguments: Any) -> Any:
        return _content(wait_for(self.answering))

    async def _arun(self, **arguments: Any) -> Any:
        return _content(await self.answering())


def stand_in(
    tool: BaseTool, answering: Callable[[], Coroutine[Any, Any, ToolAnswer]], metadata: Mapping[str, Any]
) -> BaseTool:
    """A tool of the same name, description and argument schema; `answering` answers in its place, once the arguments
    are valid."""
    return _StandIn(
        name=tool.name,
        description=tool.description,
        args_schema=tool.args_schema or tool.get_input_schema(),
        answering=answering,
        injected=tool._injected_args_keys,
        metadata=dict(metadata),
        tags=tool.tags,
        return_direct=tool.return_direct,
        handle_tool_error=True,
        handle_validation_error=tool.handle_validation_error,
    )


def _content(answer: ToolAnswer) -> Any:
    if answer.error:
        raise ToolException(answer.content)  # the agent sees it as the tool's own error
    return answer.content


def wait_for(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What a coroutine returns, from code that cannot await: in a thread of its own where a loop runs in this one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(make())
    ended: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            ended.append(asyncio.run(make()))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,))
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return ended[0]


__all__ = ["awrap_tool_call", "backends_of", "stand_in", "switched", "wait_for", "wrap_tool_call"]
