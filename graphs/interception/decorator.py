"""`switchable`: a decorator that shows the switch a tool which plain function nodes call.

    @switchable
    def get_order(order_id: int) -> dict: ...        # or over @tool; the decorator stands outermost

Where a run has no `Backends` (production) nothing changes. Where it has, the call goes the way of a ToolNode's call: a
span, validation, the run's backend, faults and log."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_type_hints

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.prebuilt.tool_node import ToolRuntime

from cm2_agent.errors import ToolError
from cm2_agent.types.run_attributes import TOOL_BACKEND

from ..tools.functions import FunctionTools
from ..tools.specs import spec_of
from .discovery import SWITCHABLE, switchable_of
from .switchable_call import ReturnType, SwitchableCall, as_json, runtime_with_backends
from .tool_node import awrap_tool_call, wrap_tool_call

W = TypeVar("W")
_UNANNOTATED = dict[str, Any] | list[Any] | str


def switchable(wrapped: W) -> W:
    """A typed function (sync or async) or a LangChain tool, whose calls from plain function nodes the switch can
    answer.

    Outside a run it is what it wraps: the same signature and value, a tool of the same name and schema. Inside a run
    whose config has `Backends` a function returns the backend's answer as its return annotation says (text for `str`,
    else what the answer's JSON is when read as that type), and an answer that tells of an error raises ToolException
    with its text; so does an argument that the schema does not allow. What a real call raises or returns comes through
    as it is. A tool returns what it would to `invoke`: a ToolMessage for a tool call, the content for plain arguments;
    its own `handle_tool_error` says whether an error is raised.

    The run is known from LangChain's context: a thread that a node starts by itself must be given it
    (`contextvars.copy_context`), or the call is taken for one outside a run. Raises ToolError for a method, a
    generator, and a function that FunctionTools would not take or whose return is not annotated.

    >>> from cm2_agent.graphs import switchable
    >>> @switchable
    ... def get_order(order_id: int) -> str:
    ...     "Look an order up."
    ...     return f"order {order_id} was shipped"
    >>> get_order(7)
    'order 7 was shipped'
    """
    if switchable_of(wrapped) is not None:
        return wrapped
    if isinstance(wrapped, BaseTool):
        made: Any = _SwitchableTool.of(wrapped)
        return made  # type: ignore[no-any-return]  # of the type that went in
    if not inspect.isfunction(wrapped):
        raise ToolError(
            f"switchable was given a {type(wrapped).__name__}; expected a typed function or a LangChain tool"
        )
    function: Any = _Function(wrapped).wrapper()
    return function  # type: ignore[no-any-return]


class _Function:
    """A decorated function: the tool that the switch sees, and how its calls are answered."""

    def __init__(self, function: Callable[..., Any]) -> None:
        name = function.__name__
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ToolError(f"switchable function {name!r} is a generator; expected one that returns its answer")
        if next(iter(inspect.signature(function).parameters), "") in ("self", "cls"):
            raise ToolError(
                f"switchable function {name!r} is a method; no model can name its object, so decorate a function"
            )
        (tool,) = FunctionTools(function)
        hints = get_type_hints(function)
        if "return" not in hints:
            raise ToolError(
                f"switchable function {name!r} does not say what it returns; annotate it, such as `-> str` or `-> dict`"
            )
        spec_of(tool)
        self.function, self.tool, self.returned = function, tool, ReturnType(hints["return"])
        self.signature, self.awaited = inspect.signature(function), inspect.iscoroutinefunction(function)
        self.fields = frozenset(getattr(tool.args_schema, "model_fields", {}))

    def wrapper(self) -> Callable[..., Any]:
        function = self.function

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            runtime = runtime_with_backends(None)
            if runtime is None:
                return function(*args, **kwargs)
            calling = self._calling(runtime, args, kwargs, {"func": lambda **_: function(*args, **kwargs)})
            return calling.value(wrap_tool_call(calling.request, calling.execute))

        @functools.wraps(function)
        async def acall(*args: Any, **kwargs: Any) -> Any:
            runtime = runtime_with_backends(None)
            if runtime is None:
                return await function(*args, **kwargs)

            async def real(**_: Any) -> Any:
                return await function(*args, **kwargs)

            calling = self._calling(runtime, args, kwargs, {"coroutine": real})
            return calling.value(await awrap_tool_call(calling.request, calling.aexecute))

        made = acall if self.awaited else call
        setattr(made, SWITCHABLE, self.tool)
        return made

    def _calling(self, runtime: ToolRuntime, args: Any, kwargs: Any, real: Mapping[str, Any]) -> SwitchableCall:
        given = self.signature.bind(*args, **kwargs).arguments
        arguments = {name: as_json(value) for name, value in given.items() if name in self.fields}
        return SwitchableCall(self.tool.model_copy(update=dict(real)), arguments, runtime, self.returned, strict=True)


class _SwitchableTool(BaseTool):
    """A tool of the same name and schema that asks the run's backends for its answers."""

    __cm2_switchable__ = True

    tool: BaseTool
    returned: Any = None

    @classmethod
    def of(cls, tool: BaseTool) -> _SwitchableTool:
        same = (
            "name",
            "description",
            "return_direct",
            "response_format",
            "tags",
            "metadata",
            "extras",
            "handle_tool_error",
        )
        function = getattr(tool, "coroutine", None) or getattr(tool, "func", None)
        hint = str if tool.response_format == "content_and_artifact" else _return_hint(function)
        return cls(
            **{name: getattr(tool, name) for name in same},
            handle_validation_error=tool.handle_validation_error,
            args_schema=tool.args_schema or tool.get_input_schema(),
            tool=tool,
            returned=ReturnType(hint),
        )

    @property
    def tool_call_schema(self) -> Any:
        return self.tool.tool_call_schema

    @functools.cached_property
    def _injected_args_keys(self) -> frozenset[str]:
        return self.tool._injected_args_keys

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        runtime = self._runtime(config)
        if runtime is None:
            return self._wrapped().invoke(input, config, **kwargs)
        calling = self._calling(runtime, input)
        return calling.value(wrap_tool_call(calling.request, calling.execute))

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        runtime = self._runtime(config)
        if runtime is None:
            return await self._wrapped().ainvoke(input, config, **kwargs)
        calling = self._calling(runtime, input)
        return calling.value(await awrap_tool_call(calling.request, calling.aexecute))

    def run(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        if self._runtime(kwargs.get("config")) is None:
            return self._wrapped().run(tool_input, *args, **kwargs)
        return self.invoke(_as_call(self.name, tool_input, kwargs.get("tool_call_id")), kwargs.get("config"))

    async def arun(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        if self._runtime(kwargs.get("config")) is None:
            return await self._wrapped().arun(tool_input, *args, **kwargs)
        return await self.ainvoke(_as_call(self.name, tool_input, kwargs.get("tool_call_id")), kwargs.get("config"))

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped()._run(*args, **kwargs)

    def _wrapped(self) -> BaseTool:
        return (
            self.tool
            if self.metadata == self.tool.metadata
            else self.tool.model_copy(update={"metadata": self.metadata})
        )

    def _runtime(self, config: RunnableConfig | None) -> ToolRuntime | None:
        """None outside a run, and where a tool node's switch has decided already."""
        return None if TOOL_BACKEND in (self.metadata or {}) else runtime_with_backends(config)

    def _calling(self, runtime: ToolRuntime, given: Any) -> SwitchableCall:
        return SwitchableCall(self.tool, given, runtime, self.returned, strict=False)


def _as_call(name: str, given: Any, call_id: str | None) -> Any:
    return given if call_id is None else {"name": name, "args": given, "id": call_id, "type": "tool_call"}


def _return_hint(function: Any) -> Any:
    """The return annotation of a tool's function; where there is none that can be read, an answer is an object, a list
    or text."""
    try:
        return get_type_hints(function).get("return", _UNANNOTATED) if inspect.isfunction(function) else _UNANNOTATED
    except (NameError, TypeError):
        return _UNANNOTATED


__all__ = ["switchable"]
