"""A list of LangChain tools under unique names, which can also be called by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import overload

from langchain_core.tools import BaseTool, ToolException
from pydantic import ValidationError

from cm2_agent.errors import ToolError
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import ToolSpec

from .specs import spec_of


class Toolbox(Sequence[BaseTool]):
    """Tools under unique names: goes wherever LangChain takes a list of tools (`agent(model, tools)`,
    `ToolNode(tools)`), and is itself called by name: `await tools(name, arguments)`. Raises ToolError where two tools
    bear one name."""

    def __init__(self, tools: Iterable[BaseTool]) -> None:
        self._tools: dict[str, BaseTool] = {}
        for tool in tools:
            if tool.name in self._tools:
                raise ToolError(
                    f"two tools are named {tool.name!r}; rename one, since a call says which it means by nothing but"
                    " the name"
                )
            self._tools[tool.name] = tool

    @property
    def specs(self) -> list[ToolSpec]:
        """The tools as a task writes them down. Raises ToolError where arguments have no JSON schema."""
        return [spec_of(tool) for tool in self]

    async def __call__(self, name: str, arguments: JSON) -> JSON:
        """Calls the tool by its name for real, and returns its result. A failure that the agent is told of,
        arguments that break the schema among them, raises LangChain's ToolException; what else a tool raises passes
        through.

        Raises ToolError for a name that no tool bears, and where the tool itself does.
        """
        tool = self._named.get(name)
        if tool is None:
            raise ToolError(f"there is no tool {name!r}; the tools are {', '.join(sorted(self._named)) or 'none'}")
        if not isinstance(arguments, Mapping):
            raise ToolException(f"the arguments of {name} are {type(arguments).__name__}; expected an object")
        try:
            return await tool.model_copy(update={"handle_tool_error": False}).ainvoke(dict(arguments))
        except ValidationError as error:
            raise ToolException(f"the arguments of {name} break its schema: {error}") from error

    @property
    def _named(self) -> Mapping[str, BaseTool]:
        return self._tools

    @overload
    def __getitem__(self, index: int) -> BaseTool: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[BaseTool]: ...
    def __getitem__(self, index: int | slice) -> BaseTool | Sequence[BaseTool]:
        return list(self._named.values())[index]

    def __len__(self) -> int:
        return len(self._named)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._tools)})"


__all__ = ["Toolbox"]
