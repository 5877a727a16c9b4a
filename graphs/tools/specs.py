"""A LangChain tool as a ToolSpec, the form in which a task writes it down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.tools import BaseTool

from cm2_agent.errors import ToolError
from cm2_agent.types.messages import ToolSpec

OUTPUT_SCHEMA = "output_schema"
"""Metadata of a tool: the JSON schema of its results."""
READ_ONLY = "readOnlyHint"
"""Metadata of a tool: whether its calls change nothing. The name is that of MCP's annotation, which the adapters put
there."""


def spec_of(tool: BaseTool) -> ToolSpec:
    """What the model sees of the tool (injected arguments left out), the schema of its results where its metadata
    has one under `output_schema`, and whether it only reads where its metadata has `readOnlyHint`. Raises ToolError
    where its arguments have no schema.

    >>> from langchain_core.tools import tool
    >>> @tool
    ... def get_order(order_id: int) -> str:
    ...     "Look an order up."
    ...     return "shipped"
    >>> spec_of(get_order).parameters["properties"]["order_id"]["type"]
    'integer'
    """
    try:
        schema = tool.tool_call_schema
        parameters: dict[str, Any] = dict(schema if isinstance(schema, dict) else _json_schema(schema))
    except Exception as error:
        raise ToolError(
            f"tool {tool.name!r}: its arguments have no JSON schema ({type(error).__name__}: {str(error)[:200]})."
            " Annotate them with types that pydantic can describe, or mark those that the model does not give as"
            " InjectedToolArg"
        ) from error
    for repeated in ("title", "description"):  # pydantic repeats the tool's own name and description there
        if isinstance(parameters.get(repeated), str):
            parameters.pop(repeated)
    metadata = tool.metadata or {}
    output, reads = metadata.get(OUTPUT_SCHEMA), metadata.get(READ_ONLY)
    return ToolSpec(
        name=tool.name,
        description=tool.description or "",
        parameters=parameters,
        output=dict(output) if isinstance(output, Mapping) else None,
        reads=reads if isinstance(reads, bool) else None,
    )


def _json_schema(model: Any) -> dict[str, Any]:
    schema: dict[str, Any] = model.model_json_schema() if hasattr(model, "model_json_schema") else model.schema()
    return schema


__all__ = ["OUTPUT_SCHEMA", "READ_ONLY", "spec_of"]
