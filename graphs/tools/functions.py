"""Typed Python functions as tools, whose results are JSON for certain."""

from __future__ import annotations

import functools
import inspect
import json
import math
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from langchain_core.messages.tool import ToolOutputMixin
from langchain_core.tools import BaseTool, StructuredTool
from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError

from cm2_agent.errors import ToolError

from .specs import OUTPUT_SCHEMA, READ_ONLY
from .toolbox import Toolbox


class FunctionTools(Toolbox):
    """Functions, sync or async, as a list of LangChain tools. The model sees the name, the docstring and the annotated
    parameters; pydantic models as parameters are given as such, and LangChain's injected ones stay hidden from the
    model.

    A result is serialised by pydantic (models, dataclasses, enums, dates) as the return annotation says, whose JSON
    schema is the tool's output schema unless it is text or unknown. LangChain's own results (a ToolMessage, LangGraph's
    Command) pass as they are. `reads` names the functions that change nothing; where it is given, the others are
    writes.

    Raises ToolError, when it is made, for a function without docstring, a parameter without annotation, a result type
    that cannot be JSON, two functions of one name; and, when a tool is called, for a result that is not JSON.

    >>> from cm2_agent.graphs import FunctionTools
    >>> def get_order(order_id: int) -> dict[str, str]:
    ...     "Look an order up."
    ...     return {"status": "shipped"}
    >>> [spec.reads for spec in FunctionTools(get_order, reads=["get_order"]).specs]
    [True]
    """

    def __init__(self, *functions: Callable[..., Any], reads: Iterable[str] | None = None) -> None:
        reading = None if reads is None else frozenset([reads] if isinstance(reads, str) else reads)
        super().__init__(_tool(function, reading) for function in functions)
        unknown = sorted((reading or frozenset()) - set(self._tools))
        if unknown:
            raise ToolError(
                f"reads names {', '.join(unknown)}, but the functions are {', '.join(sorted(self._tools)) or 'none'}"
            )


def _tool(function: Callable[..., Any], reads: frozenset[str] | None) -> BaseTool:
    name = getattr(function, "__name__", None)
    if isinstance(function, BaseTool) or not callable(function) or not isinstance(name, str):
        what = (
            "is a tool already: give it to the agent beside these"
            if isinstance(function, BaseTool)
            else "is no function with a name"
        )
        raise ToolError(f"{type(function).__name__} {str(function)[:80]!r} {what}; expected typed functions")
    description = inspect.getdoc(function)
    if not description:
        raise ToolError(
            f"function {name!r} has no docstring; write one, since it is what the model is told of the tool"
        )
    returned = _hints(function, name).get("return", Any)
    adapter, output = _output(name, returned)
    metadata: dict[str, Any] = {}
    if output is not None:
        metadata[OUTPUT_SCHEMA] = output
    if reads is not None:
        metadata[READ_ONLY] = name in reads
    wrapped, awaits = _wrapped(function, name, adapter), inspect.iscoroutinefunction(function)
    try:
        return StructuredTool.from_function(
            None if awaits else wrapped,
            wrapped if awaits else None,
            name=name,
            description=description,
            metadata=metadata or None,
        )
    except (PydanticUserError, TypeError, ValueError) as error:
        raise ToolError(f"function {name!r} cannot be a tool: {str(error)[:300]}") from error


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """The annotations. Raises ToolError naming a parameter that has none, or that cannot be given by its name."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as error:
        raise ToolError(
            f"function {name!r}: an annotation cannot be resolved ({error}); import its type at module level"
        ) from error
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ToolError(
                f"function {name!r}: parameter {str(parameter)!r} cannot be given by name; name each parameter and its"
                " type"
            )
        if parameter.name not in hints:
            raise ToolError(
                f"function {name!r}: parameter {parameter.name!r} has no annotation; the model is told its type, so"
                " write one"
            )
    return hints


def _output(name: str, returned: Any) -> tuple[TypeAdapter[Any], dict[str, Any] | None]:
    """What serialises the results, and their JSON schema where it says more than that they are text."""
    inner = get_args(returned)[0] if get_origin(returned) is Annotated else returned
    members = get_args(inner) if get_origin(inner) in (Union, types.UnionType) else (inner,)
    if any(
        isinstance(member := get_origin(one) or one, type) and issubclass(member, ToolOutputMixin) for one in members
    ):
        return TypeAdapter(Any), None
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(returned)
        schema = adapter.json_schema(mode="serialization")
    except PydanticUserError as error:
        raise ToolError(
            f"tool {name!r} returns {returned!r}, which cannot be JSON: {str(error).splitlines()[0]}"
        ) from error
    return adapter, None if inner is str or not schema else schema


def _wrapped(function: Callable[..., Any], name: str, adapter: TypeAdapter[Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return _json(name, adapter, await function(*args, **kwargs))

        return awaited

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return _json(name, adapter, function(*args, **kwargs))

    return called


def _json(name: str, adapter: TypeAdapter[Any], result: Any) -> Any:
    if isinstance(result, ToolOutputMixin) or (
        isinstance(result, list) and result and isinstance(result[0], ToolOutputMixin)
    ):
        return result
    try:
        plain = adapter.dump_python(result, mode="json", by_alias=True, warnings=False)
        json.dumps(plain)
        _refuse_infinite(adapter.dump_python(result, warnings=False))  # as JSON, pydantic makes null of some of them
    except (PydanticSerializationError, TypeError, ValueError, RecursionError) as error:
        raise ToolError(
            f"tool {name!r} returned {type(result).__name__}, which is not JSON: {str(error)[:200]}. Return text,"
            " finite numbers, true, false, null, lists and objects of them, or what pydantic can serialise (models,"
            " dataclasses, enums, dates)"
        ) from error
    return plain


def _refuse_infinite(value: Any) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"it holds {item}")
        if isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, list | tuple | set | frozenset):
            waiting += item


__all__ = ["FunctionTools"]
