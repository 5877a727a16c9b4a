"""The tools of MCP servers, over stdio and streamable HTTP, as LangChain tools."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

from langchain_core.tools import BaseTool, InjectedToolArg, StructuredTool, ToolException

from cm2_agent.errors import ToolError
from cm2_agent.types.json_values import JSON

from . import mcp_session
from .mcp_session import McpSession
from .specs import OUTPUT_SCHEMA
from .toolbox import Toolbox

if TYPE_CHECKING:
    from mcp.types import Tool


class McpTools(Toolbox):
    """The tools of MCP servers as a list of LangChain tools, while the servers' sessions are open.

    A tool's own failure (`isError`, or an error of the protocol that says its arguments are invalid) is an error that
    the agent sees. A server that dies, a time-out and any other error of the protocol raise ToolError. A session that
    ended is not opened again by itself: leave and enter anew. What a tool says in text alone is text, its parts joined
    by line breaks; else it is LangChain's list of content blocks. The tools are async: run the graph with `ainvoke` or
    `astream`. Needs the extra `mcp`.

    >>> from cm2_agent.graphs import McpTools, agent
    >>> async def main(model):
    ...     async with McpTools.stdio("python", "server.py") as tools:
    ...         return await agent(model, tools).ainvoke({"messages": [("user", "Where is order 7?")]})
    """

    def __init__(self, *sessions: McpSession) -> None:
        super().__init__(())
        self._sessions = sessions
        self._open = False

    @classmethod
    def stdio(
        cls,
        command: str,
        *args: str,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        timeout: float = 60.0,
        start_timeout: float = 60.0,
        prefix: str | None = None,
    ) -> McpTools:
        """A server that is started as a process and called over its standard input and output.

        Args:
            command: The program.
            args: Its arguments.
            env: Added to a few variables of ours (such as PATH); the rest of our environment is not passed on.
            cwd: The folder in which it runs.
            timeout: Seconds of each call.
            start_timeout: Seconds of the start.
            prefix: Put before the tools' names.

        Raises MissingExtra and ToolError."""
        label, connect = mcp_session.stdio(command, args, env, cwd)
        return cls(McpSession(label, connect, timeout=timeout, start_timeout=start_timeout, prefix=prefix))

    @classmethod
    def http(
        cls,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        start_timeout: float = 60.0,
        prefix: str | None = None,
    ) -> McpTools:
        """A server at an address, over streamable HTTP; `headers` go with every request to it. Raises MissingExtra and
        ToolError."""
        label, connect = mcp_session.http(url, headers, max(timeout, start_timeout))
        return cls(McpSession(label, connect, timeout=timeout, start_timeout=start_timeout, prefix=prefix))

    @classmethod
    def join(cls, *servers: McpTools) -> McpTools:
        """The tools of several servers, which are opened and closed together. None of `servers` is to be entered by
        itself."""
        return cls(*(session for server in servers for session in server._sessions))

    async def __aenter__(self) -> McpTools:
        """Raises ToolError where a server cannot be opened, or two offer tools of one name; nothing is left open
        then."""
        tools: dict[str, BaseTool] = {}
        owners: dict[str, str] = {}
        opened: list[McpSession] = []
        try:
            for session in self._sessions:
                offered = await session.open()
                opened.append(session)
                for tool in offered:
                    made = _tool(session, tool)
                    if made.name in tools:
                        raise ToolError(
                            f"two tools are named {made.name!r}: one of the MCP server {owners[made.name]}, one of"
                            f" {session.label}; give one of the servers a prefix, as in McpTools.stdio(…,"
                            " prefix='shop')"
                        )
                    tools[made.name], owners[made.name] = made, session.label
        except BaseException:
            await _close(opened)
            raise
        self._tools, self._open = tools, True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        await _close(list(self._sessions))

    @property
    def _named(self) -> Mapping[str, BaseTool]:
        if not self._open:
            servers = ", ".join(session.label for session in self._sessions)
            raise ToolError(
                f"the MCP servers ({servers}) are not open; use their tools within `async with … as tools:`"
            )
        return self._tools

    def __repr__(self) -> str:
        return f"McpTools({', '.join(session.label for session in self._sessions)})"


async def _close(sessions: list[McpSession]) -> None:
    """All of them, the last first, even where closing one is interrupted."""
    if sessions:
        try:
            await sessions[-1].close()
        finally:
            await _close(sessions[:-1])


def _tool(session: McpSession, tool: Tool) -> BaseTool:
    from langchain_mcp_adapters.tools import convert_mcp_tool_to_langchain_tool

    schema = {"type": "object", **tool.inputSchema, "properties": tool.inputSchema.get("properties") or {}}
    made = convert_mcp_tool_to_langchain_tool(
        session.client,
        tool.model_copy(update={"inputSchema": schema}),
        tool_interceptors=[_intercepting(session)],
        server_name=session.prefix,
        tool_name_prefix=session.prefix is not None,
    )
    assert isinstance(made, StructuredTool)
    assert made.coroutine is not None
    output = _output(tool)
    return made.model_copy(
        update={
            "coroutine": _with_plain_text(made.name, made.coroutine),
            "handle_tool_error": _error_handler(made.handle_tool_error),
            "metadata": {**(made.metadata or {}), **({} if output is None else {OUTPUT_SCHEMA: output})},
        }
    )


def _intercepting(session: McpSession) -> Any:
    """Around each call: the session says what became of it. Arguments that the server calls invalid are the agent's
    doing."""
    from mcp import McpError
    from mcp.types import INVALID_PARAMS, AudioContent, CallToolResult, TextContent

    async def intercept(request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        try:
            result = await session.through(request.name, handler(request))
        except McpError as error:
            if error.error.code == INVALID_PARAMS:
                return CallToolResult(isError=True, content=[TextContent(type="text", text=error.error.message)])
            problem = f"error {error.error.code}: {error.error.message[:500]}"
            raise ToolError(f"tool {request.name!r} of the MCP server {session.label} failed: {problem}") from None
        if any(isinstance(block, AudioContent) for block in result.content):
            raise ToolError(
                f"tool {request.name!r} of the MCP server {session.label} answered with sound, which no tool message"
                " can hold"
            )
        return result

    return intercept


def _with_plain_text(name: str, inner: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def call(runtime: Annotated[object | None, InjectedToolArg()] = None, **arguments: Any) -> tuple[Any, Any]:
        try:
            content, artifact = await inner(runtime=runtime, **arguments)
        except (NotImplementedError, ValueError) as error:
            raise ToolError(f"tool {name!r} answered with what no tool message can hold: {str(error)[:200]}") from error
        if not content and artifact is not None:  # structured alone
            return json.dumps(artifact["structured_content"], ensure_ascii=False), artifact
        return _plain_text(content), artifact

    return call


def _error_handler(handle: Any) -> Callable[[ToolException], Any]:
    return lambda error: _plain_text(handle(error))


def _plain_text(blocks: Any) -> str | list[JSON]:
    """Blocks of text alone as text. The ids that the adapters draw at random are left out: the same answer is the same
    message."""
    if not isinstance(blocks, list):
        return str(blocks)
    if all(isinstance(block, dict) and block.get("type") == "text" for block in blocks):
        return "\n".join(block["text"] for block in blocks)
    return [{key: value for key, value in block.items() if key != "id"} for block in blocks]


def _output(tool: Tool) -> dict[str, Any] | None:
    """The schema of what the tool says. Servers wrap what is no object as `{"result": …}`, in the structured form
    alone; the agent is told the inside, which is JSON where it is a number or a truth value, and text otherwise (a
    list's items, each in a block)."""
    schema = tool.outputSchema
    properties = (schema or {}).get("properties")
    if (
        schema is None
        or not isinstance(properties, dict)
        or set(properties) != {"result"}
        or schema.get("required") != ["result"]
    ):
        return schema
    inner = properties["result"]
    return inner if isinstance(inner, dict) and inner.get("type") in ("integer", "number", "boolean") else None


__all__ = ["McpTools"]
