"""Tools that are declared and nothing more: a name and a schema without an implementation, to be replayed or simulated.
So an agent can be trained on tools that nobody wrote."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from langchain_core.tools import BaseTool

from cm2_agent.errors import ToolError
from cm2_agent.types.messages import ToolSpec


class DeclaredTool(BaseTool):
    """A tool known by its schema alone; calling it for real raises ToolError."""

    spec: ToolSpec

    def _run(self, **arguments: Any) -> Any:
        raise ToolError(
            f"tool {self.name!r} is declared but not implemented, so it cannot be called for real; run it with"
            " tools='hybrid', 'simulate' or 'replay'"
        )


def declared(specs: Iterable[ToolSpec]) -> list[BaseTool]:
    """The tools of a task, for `agent(model, declared(task.tools))`.

    >>> from cm2_agent import ToolSpec
    >>> from cm2_agent.graphs import declared
    >>> [tool.name for tool in declared([ToolSpec(name="get_order")])]
    ['get_order']
    """
    return [
        DeclaredTool(
            name=spec.name,
            description=spec.description or spec.name,
            args_schema=_object(spec),
            spec=spec,
            metadata={"output_schema": spec.output, "readOnlyHint": spec.reads},
        )
        for spec in specs
    ]


def _object(spec: ToolSpec) -> dict[str, Any]:
    schema = dict(spec.parameters)
    return {**schema, "type": "object", "properties": dict(schema.get("properties") or {})}


__all__ = ["DeclaredTool", "declared"]
