"""One call of a `switchable`, on its way through the switch and back to code that expects a value."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping
from typing import Any

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
from cm2_agent.types.run_attributes import TOOL_FAULT

from .tool_node import backends_of


class ReturnType:
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


class SwitchableCall:
    """One call: the request that goes to the switch, and the value that comes back."""

    def __init__(self, tool: BaseTool, given: Any, runtime: ToolRuntime, returned: ReturnType, *, strict: bool) -> None:
        self.tool, self.given, self.runtime, self.returned = tool, given, runtime, returned
        # a function's call: arguments that its schema does not allow are an answer to the agent, not its code's error
        self.strict = strict
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
        self.sent: tuple[Any, str] | None = None

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
        if message is None or (not self.replaced and self.sent == (message.content, message.status)):
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
            problem = (
                f"tool {self.tool.name!r} answered {message.text[:200]!r}, which is not what its return annotation says"
            )
            if self.fault is not None:
                raise ToolException(problem) from error
            backends = backends_of(self.runtime)
            broken = ToolError(f"{problem}; answers must be JSON of that type ({str(error)[:200]})")
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
        self.sent = (message.content, message.status)
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
        text = str(error) if isinstance(error, ToolException) else f"{type(error).__name__}: {error}"
        return self._message(text, "error")

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


def runtime_with_backends(config: RunnableConfig | None) -> ToolRuntime | None:
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


__all__ = ["ReturnType", "SwitchableCall", "as_json", "runtime_with_backends"]
