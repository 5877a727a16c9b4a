"""The switch in a graph's tool nodes: the same graph with real, recorded, replayed or simulated tools, no line of it
changed.

A call that is not real runs the *twin* of its tool: same name, description and argument schema, so that validation,
errors, spans and callbacks are those of the real call. Who answers is said by the dialogue's `Backends`; where a run
has none, the graph runs as it would without the switch."""

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

from ..backends.backends import TOOLS, Backends
from ..backends.calls import Answer, Call
from .walking import with_tool_nodes

T = TypeVar("T")
Execute = Callable[[ToolCallRequest], Any]
AsyncExecute = Callable[[ToolCallRequest], Awaitable[Any]]


def switched(graph: Any) -> Any:
    """A copy of a compiled graph whose tool nodes, its subgraphs' too, ask the run's `Backends`; the graph itself stays
    as it is.

    A tool node's own `wrap_tool_call` stays around the switch. Tools that plain function nodes call are not switched:
    see `switchable`."""
    return with_tool_nodes(graph, _switched)


def _switched(node: ToolNode) -> ToolNode:
    made = copy.copy(node)
    for name in ("func", "afunc"):  # bound to the original, whose wrappers they would call
        method = getattr(node, name)
        if isinstance(method, types.MethodType) and method.__self__ is node:
            setattr(made, name, types.MethodType(method.__func__, made))
    theirs, atheirs = node._wrap_tool_call, node._awrap_tool_call
    made._wrap_tool_call = wrap_tool_call if theirs is None else _around(theirs)
    if atheirs is not None:
        made._awrap_tool_call = _aaround(atheirs)
    else:
        made._awrap_tool_call = awrap_tool_call if theirs is None else _in_thread(theirs)
    return made


def _around(theirs: Any) -> Any:
    return lambda request, execute: theirs(request, lambda asked: wrap_tool_call(asked, execute))


def _aaround(theirs: Any) -> Any:
    async def wrap(request: ToolCallRequest, execute: AsyncExecute) -> Any:
        return await theirs(request, lambda asked: awrap_tool_call(asked, execute))

    return wrap


def _in_thread(theirs: Any) -> Any:
    """A sync wrapper around an async switch: it waits in a thread of its own."""

    async def wrap(request: ToolCallRequest, execute: AsyncExecute) -> Any:
        loop = asyncio.get_running_loop()

        def inner(asked: ToolCallRequest) -> Any:
            return asyncio.run_coroutine_threadsafe(_run(asked, execute), loop).result()

        return await asyncio.to_thread(theirs, request, inner)

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
    """For `ToolNode(wrap_tool_call=…)`: runs the call, or its twin's, as the run's backends say."""
    plan = _Plan.of(request)
    if plan is None:
        return execute(request)
    try:
        return plan.done(execute(plan.request()))
    except Exception as error:
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
        raise plan.failed(error) from error.__cause__


class _Plan:
    """One call on its way through the switch."""

    def __init__(self, request: ToolCallRequest, tool: BaseTool, backends: Backends) -> None:
        self.asked, self.tool, self.backends = request, tool, backends
        given = request.tool_call["args"]
        self.call = Call(tool=backends.spec(tool), arguments=given if isinstance(given, Mapping) else {})
        self.fault = backends.draw(self.call)
        self.answer = backends.before(self.call, self.fault)
        self.backend: str = backends.backend(tool.name)
        if self.backend not in ("real", "record") and backends.replayed(self.call) is None:
            self.call = replace(self.call, arguments=_as_the_tool_reads(tool, self.call.arguments))
        if self.backend in ("replay", "hybrid"):
            self.backend = (
                "replay" if self.backend == "replay" or backends.replayed(self.call) is not None else "simulate"
            )
        if self.backend == "simulate":
            self.call = replace(self.call, messages=_dialogue(request.state))
        self.real = self.backend in ("real", "record")
        self.began = time.perf_counter()

    @classmethod
    def of(cls, request: ToolCallRequest) -> _Plan | None:
        """None where nothing is to be switched: no backends, a tool that does not exist, or a call that is switched
        already."""
        tool, backends = request.tool, backends_of(request.runtime)
        if backends is None or tool is None or TOOL_BACKEND in (tool.metadata or {}):
            return None
        try:
            return cls(request, tool, backends)
        except ToolError as error:  # a tool without a schema, say
            raise backends.note(error) from error.__cause__

    def request(self) -> ToolCallRequest:
        said = {TOOL_BACKEND: self.backend, **({} if self.fault is None else {TOOL_FAULT: self.fault})}
        metadata = {**(self.tool.metadata or {}), **said}
        if self.real and self.answer is None:
            return self.asked.override(tool=self.tool.model_copy(update={"metadata": metadata}))
        return self.asked.override(tool=twin(self.tool, self._invent, metadata))

    async def _invent(self) -> Answer:
        if self.answer is not None:  # it failed before any tool was asked
            self.backends.told(self.call, self.answer)
            return self.answer
        return self.backends.after(self.call, self.fault, await self.backends.invented(self.call))

    def failed(self, error: Exception) -> Exception:
        """Infrastructure that failed is noted, whatever the graph makes of it."""
        return self.backends.note(error) if isinstance(error, ToolError) else error

    def done(self, answered: Any) -> Any:
        message = _message(answered, self.asked.tool_call["id"])
        if message is None:
            return answered
        if self.real and self.answer is None:
            answer = Answer(content=message.content, error=message.status == "error", backend=self.backend)
            self.backends.told(self.call, answer, time.perf_counter() - self.began)
            if self.fault is not None:
                answer = self.backends.after(self.call, self.fault, answer)
                message.content, message.status = answer.content, "error" if answer.error else "success"
        return answered


def _as_the_tool_reads(tool: BaseTool, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments as the tool would get them: pydantic reads "7" as the 7 that is asked for. What it cannot read
    stays, for the twin to refuse."""
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


class _Twin(BaseTool):
    """A tool of the same face that calls nothing real."""

    invent: Callable[[], Coroutine[Any, Any, Answer]]
    injected: frozenset[str] = frozenset()
    """The arguments that LangGraph brings (state, runtime), by the signature of the real tool: no span holds them."""

    @cached_property
    def _injected_args_keys(self) -> frozenset[str]:
        return self.injected

    def _run(self, **arguments: Any) -> Any:
        return _told(wait_for(self.invent))

    async def _arun(self, **arguments: Any) -> Any:
        return _told(await self.invent())


def twin(tool: BaseTool, invent: Callable[[], Coroutine[Any, Any, Answer]], metadata: Mapping[str, Any]) -> BaseTool:
    """The twin of a tool: same name, description and argument schema; `invent` answers in its place, once the arguments
    are valid."""
    return _Twin(
        name=tool.name,
        description=tool.description,
        args_schema=tool.args_schema or tool.get_input_schema(),
        invent=invent,
        injected=tool._injected_args_keys,
        metadata=dict(metadata),
        tags=tool.tags,
        return_direct=tool.return_direct,
        handle_tool_error=True,
        handle_validation_error=tool.handle_validation_error,
    )


def _told(answer: Answer) -> Any:
    if answer.error:
        raise ToolException(answer.content)  # told to the agent as the tool's own error
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


__all__ = ["awrap_tool_call", "backends_of", "switched", "twin", "wait_for", "wrap_tool_call"]
