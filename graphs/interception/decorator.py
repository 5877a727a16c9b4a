"""Tools that plain function nodes call, shown to the switch one by one: a decorator; apart from the switch, which works
on tool nodes.

    @switchable
    def get_order(order_id: int) -> dict: ...        # or over @tool; the decorator stands outermost

Where a run has no `Backends` (production) nothing changes. Where it has, the call goes the way of a ToolNode's call: a
span, validation, the run's backend, faults and journal."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_type_hints

from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, var_child_runnable_config
from langchain_core.tools import BaseTool, ToolException
from langgraph._internal._constants import CONFIG_KEY_READ, CONFIG_KEY_RUNTIME
from langgraph.errors import GraphBubbleUp
from langgraph.prebuilt.tool_node import ToolCallRequest, ToolRuntime
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import to_jsonable_python

from cm2_agent.errors import CM2Error, ToolError
from cm2_agent.langchain_messages import plain
from cm2_agent.types.json_values import JSON
from cm2_agent.types.run_attributes import TOOL_BACKEND, TOOL_FAULT

from ..tools.functions import FunctionTools
from ..tools.specs import spec_of
from .discovery import SWITCHABLE, switchable_of
from .tool_node import awrap_tool_call, backends_of, wrap_tool_call

W = TypeVar("W")
_UNSAID = dict[str, Any] | list[Any] | str


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
        return made  # type: ignore[no-any-return]
    if not inspect.isfunction(wrapped):
        raise ToolError(
            f"switchable was given a {type(wrapped).__name__}; expected a typed function or a LangChain tool"
        )
    function: Any = _Function(wrapped).wrapper()
    return function  # type: ignore[no-any-return]


class _Function:
    """A decorated function: what it is to the switch, and how its calls are answered."""

    def __init__(self, function: Callable[..., Any]) -> None:
        name = function.__name__
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ToolError(f"switchable function {name!r} is a generator; expected one that returns its answer")
        if next(iter(inspect.signature(function).parameters), "") in ("self", "cls"):
            raise ToolError(
                f"switchable function {name!r} is a method; its object cannot be told to a model, so decorate a"
                " function"
            )
        (tool,) = FunctionTools(function)
        hints = get_type_hints(function)
        if "return" not in hints:
            raise ToolError(
                f"switchable function {name!r} does not say what it returns; annotate it, such as `-> str` or `-> dict`"
            )
        spec_of(tool)
        self.function, self.tool, self.returned = function, tool, _Returned(hints["return"])
        self.signature, self.awaited = inspect.signature(function), inspect.iscoroutinefunction(function)
        self.fields = frozenset(getattr(tool.args_schema, "model_fields", {}))

    def wrapper(self) -> Callable[..., Any]:
        function = self.function

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            runtime = _running(None)
            if runtime is None:
                return function(*args, **kwargs)
            calling = self._calling(runtime, args, kwargs, {"func": lambda **_: function(*args, **kwargs)})
            return calling.value(wrap_tool_call(calling.request, calling.execute))

        @functools.wraps(function)
        async def acall(*args: Any, **kwargs: Any) -> Any:
            runtime = _running(None)
            if runtime is None:
                return await function(*args, **kwargs)

            async def real(**_: Any) -> Any:
                return await function(*args, **kwargs)

            calling = self._calling(runtime, args, kwargs, {"coroutine": real})
            return calling.value(await awrap_tool_call(calling.request, calling.aexecute))

        made = acall if self.awaited else call
        setattr(made, SWITCHABLE, self.tool)
        return made

    def _calling(self, runtime: ToolRuntime, args: Any, kwargs: Any, real: Mapping[str, Any]) -> _Calling:
        given = self.signature.bind(*args, **kwargs).arguments
        arguments = {name: as_json(value) for name, value in given.items() if name in self.fields}
        return _Calling(self.tool.model_copy(update=dict(real)), arguments, runtime, self.returned, strict=True)


class _SwitchableTool(BaseTool):
    """A tool of the same face that asks the run who answers its calls."""

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
            returned=_Returned(hint),
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
        return None if TOOL_BACKEND in (self.metadata or {}) else _running(config)

    def _calling(self, runtime: ToolRuntime, given: Any) -> _Calling:
        return _Calling(self.tool, given, runtime, self.returned, strict=False)


class _Returned:
    """What a function's return annotation makes of an answer's text."""

    def __init__(self, hint: Any) -> None:
        self.text = hint is str
        self._type: TypeAdapter[Any] | None = None
        with contextlib.suppress(
            PydanticUserError
        ):  # of a class that pydantic knows nothing of, JSON is all that can be given
            self._type = TypeAdapter(hint)

    def read(self, message: ToolMessage) -> Any:
        """The value. Raises ValueError where the text is not one of this type."""
        content: Any = message.content
        if self.text:
            return content if isinstance(content, str) else message.text
        if isinstance(content, list):
            return content if self._type is None else self._type.validate_python(content)
        try:
            parsed = json.loads(content)
        except ValueError:
            if self._type is None:
                raise
            return self._type.validate_python(content)
        if self._type is None:
            return parsed
        try:
            return self._type.validate_python(parsed)
        except ValidationError:
            return self._type.validate_python(content)  # text under `str | None`, say, that happens to be JSON


class _Calling:
    """One call on its way through the switch and back to code that expects a value."""

    def __init__(self, tool: BaseTool, given: Any, runtime: ToolRuntime, returned: _Returned, *, strict: bool) -> None:
        self.tool, self.given, self.runtime, self.returned = tool, given, runtime, returned
        self.strict = (
            strict  # a function's call: what its arguments break is an answer to the agent, not its code's own error
        )
        self.by_call = isinstance(given, Mapping) and given.get("type") == "tool_call"
        self.request = ToolCallRequest(
            tool_call={
                "name": tool.name,
                "args": self._arguments(),
                "id": given["id"] if self.by_call else None,
                "type": "tool_call",
            },
            tool=tool,
            state=runtime.state,
            runtime=runtime,
        )
        self.fault: str | None = None
        self.replaced = False
        self.raised: Exception | None = None
        self.result: Any = None
        self.told: tuple[Any, str] | None = None

    def execute(self, request: ToolCallRequest) -> Any:
        tool = self._ready(request)
        try:
            return self._answered(tool.invoke(self.given, self.runtime.config))
        except Exception as error:
            return self._failed(error)

    async def aexecute(self, request: ToolCallRequest) -> Any:
        tool = self._ready(request)
        try:
            return self._answered(await tool.ainvoke(self.given, self.runtime.config))
        except Exception as error:
            return self._failed(error)

    def value(self, answered: Any) -> Any:
        """What the caller is given of the switch's answer. Raises what the tool raised, or ToolException for an answer
        that is an error."""
        if self.raised is not None:
            raise self.raised
        message = answered if isinstance(answered, ToolMessage) else None
        if message is None or (not self.replaced and self.told == (message.content, message.status)):
            return self.result
        failed = message.status == "error"
        if failed and not (self.tool.handle_tool_error and not self.strict):
            raise ToolException(message.text)
        if self.by_call:
            return message
        if failed:
            return message.text
        try:
            return self.returned.read(message)
        except ValueError as error:
            said = (
                f"tool {self.tool.name!r} answered {message.text[:200]!r}, which is not what its return annotation says"
            )
            if self.fault is not None:
                raise ToolException(said) from error
            backends = backends_of(self.runtime)
            broken = ToolError(f"{said}; answers must be JSON of that type ({str(error)[:200]})")
            raise (broken if backends is None else backends.fail(broken)) from error

    def _arguments(self) -> dict[str, JSON]:
        """What the model would have given: without injected arguments."""
        if isinstance(self.given, str):
            given: Mapping[str, Any] = {next(iter(self.tool.args), "input"): self.given}
        else:
            given = self.given["args"] if self.by_call else self.given
        fields = (
            getattr(self.tool.get_input_schema(), "model_fields", {})
            if not isinstance(self.tool.args_schema, dict)
            else {}
        )
        hidden = self.tool._injected_args_keys | (fields.keys() - self.tool.args.keys())
        return {str(name): as_json(value) for name, value in given.items() if name not in hidden}

    def _ready(self, request: ToolCallRequest) -> BaseTool:
        assert request.tool is not None
        metadata = request.tool.metadata or {}
        self.fault, self.replaced = metadata.get(TOOL_FAULT), type(request.tool) is not type(self.tool)
        # a stand-in answers errors as content, which without a tool call's id could not be told from an answer
        return request.tool.model_copy(update={"handle_tool_error": False}) if self.replaced else request.tool

    def _answered(self, result: Any) -> Any:
        self.result = result
        if isinstance(result, ToolMessage):
            message = result
        elif type(result).__name__ == "Command":
            return result
        else:
            message = self._message(
                result if isinstance(result, str) else json.dumps(as_json(result), ensure_ascii=False)
            )
        self.told = (message.content, message.status)
        return message

    def _failed(self, error: Exception) -> ToolMessage:
        if isinstance(error, (GraphBubbleUp, CM2Error)):
            raise error
        if (
            self.strict
            and isinstance(error, ValidationError)
            and error.title == getattr(self.tool.args_schema, "__name__", None)
        ):
            self.raised = ToolException(
                f"{self.tool.name} was called with arguments that its schema does not allow: {error}"
            )
            self.raised.__cause__ = error
        elif not (self.replaced and isinstance(error, ToolException)):
            self.raised = error
        said = str(error) if isinstance(error, ToolException) else f"{type(error).__name__}: {error}"
        return self._message(said, "error")

    def _message(self, content: str, status: Any = "success") -> ToolMessage:
        return ToolMessage(
            content=content, name=self.tool.name, tool_call_id=self.request.tool_call["id"] or "", status=status
        )


def as_json(value: Any) -> JSON:
    """A Python value as JSON: dates, models, dataclasses and enumerations as pydantic writes them, and what it does not
    know as text."""
    try:
        return plain(to_jsonable_python(value, serialize_unknown=True))
    except ValueError:  # a cycle, or bytes that are no text
        return plain(value)


def _running(config: RunnableConfig | None) -> ToolRuntime | None:
    """The run that the caller is in, where it has backends."""
    if config is None and var_child_runnable_config.get() is None:
        return None
    around = ensure_config(config)
    configurable = around.get("configurable") or {}
    inner = configurable.get(CONFIG_KEY_RUNTIME)
    runtime: Any = ToolRuntime(
        state={},
        context=getattr(inner, "context", None),
        config=around,
        stream_writer=getattr(inner, "stream_writer", lambda _: None),
        tool_call_id=None,
        store=getattr(inner, "store", None),
    )
    if backends_of(runtime) is None:
        return None
    read = configurable.get(CONFIG_KEY_READ)  # as ToolNode reads the state of a graph that did not hand it over
    if isinstance(read, functools.partial):
        runtime.state = read(list(read.args[1]), True)
    found: ToolRuntime = runtime
    return found


def _as_call(name: str, given: Any, call_id: str | None) -> Any:
    return given if call_id is None else {"name": name, "args": given, "id": call_id, "type": "tool_call"}


def _return_hint(function: Any) -> Any:
    """The return annotation of a tool's function; where there is none that can be read, an answer is an object, a list
    or text."""
    try:
        return get_type_hints(function).get("return", _UNSAID) if inspect.isfunction(function) else _UNSAID
    except (NameError, TypeError):
        return _UNSAID


__all__ = ["switchable"]
