"""A real MCP server, over standard input and output, that keeps to the letter of the protocol and not to its spirit:
errors of the protocol, broken promises, tools in pages, schemas without properties. `silent` as its argument: it never
says a word; `quits`: it ends."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from mcp import McpError
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequest,
    CallToolResult,
    ErrorData,
    ListToolsRequest,
    ListToolsResult,
    ServerResult,
    TextContent,
    Tool,
)

server: Server[Any, Any] = Server("odd")
PROMISE = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOOLS = [
    Tool(name="get_order", description="Another desk's orders.", inputSchema={}),
    Tool(name="strict", description="Refuses every argument.", inputSchema={"type": "object"}),
    Tool(name="ill", description="Is out of order.", inputSchema={"type": "object"}),
    Tool(name="lie", description="Breaks its promise.", inputSchema={"type": "object"}, outputSchema=PROMISE),
    Tool(
        name="keep",
        description="Keeps its promise, and says nothing else.",
        inputSchema={"type": "object"},
        outputSchema=PROMISE,
    ),
]


async def list_tools(request: ListToolsRequest) -> ServerResult:
    """One tool a page."""
    page = int((request.params and request.params.cursor) or 0)
    return ServerResult(
        ListToolsResult(tools=[TOOLS[page]], nextCursor=str(page + 1) if page + 1 < len(TOOLS) else None)
    )


async def call_tool(request: CallToolRequest) -> ServerResult:
    """Answers as the tool's description says."""
    name = request.params.name
    if name == "strict":
        raise McpError(
            ErrorData(code=INVALID_PARAMS, message=f"strict takes no {sorted(request.params.arguments or {})}")
        )
    if name == "ill":
        raise McpError(ErrorData(code=INTERNAL_ERROR, message="out of ink"))
    if name in ("lie", "keep"):
        return ServerResult(CallToolResult(content=[], structuredContent={"n": "seven" if name == "lie" else 7}))
    return ServerResult(CallToolResult(content=[TextContent(type="text", text="odd order")]))


server.request_handlers[ListToolsRequest] = list_tools
server.request_handlers[CallToolRequest] = call_tool


async def main() -> None:
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


if __name__ == "__main__":
    if sys.argv[1:] == ["silent"]:
        time.sleep(3600)
    if sys.argv[1:] != ["quits"]:
        asyncio.run(main())
