"""A real MCP server for the tests: over standard input and output, or with `http` as its argument over streamable HTTP
on a free port, which it prints."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from dataclasses import dataclass
from typing import Any

import uvicorn
from mcp.server.fastmcp import Context, FastMCP, Image
from mcp.types import AudioContent, ToolAnnotations

server = FastMCP("shop", log_level="ERROR")
orders = {7: "shipped", 8: "open"}


@dataclass
class Order:
    order_id: int
    status: str


@server.tool(annotations=ToolAnnotations(readOnlyHint=True))
def get_order(order_id: int, full: bool = False) -> Order:
    """Look an order up."""
    return Order(order_id, orders[order_id])


@server.tool(annotations=ToolAnnotations(readOnlyHint=False))
async def cancel_order(order_id: int) -> str:
    """Cancel an order."""
    if order_id not in orders:
        raise ValueError(f"no order {order_id}")
    orders[order_id] = "cancelled"
    return "cancelled"


@server.tool()
def list_orders() -> list[int]:
    """All orders."""
    return sorted(orders)


@server.tool()
def count_orders() -> int:
    """How many orders there are."""
    return len(orders)


@server.tool()
def draw() -> Any:
    """Draw something."""
    return ["a picture", Image(data=b"png", format="png")]


@server.tool()
def sing() -> Any:
    """Sing something."""
    return AudioContent(type="audio", data="AAAA", mimeType="audio/wav")


@server.tool()
def pid() -> str:
    """The server's process."""
    return str(os.getpid())


@server.tool()
def secrets(context: Context) -> str:  # type: ignore[type-arg]
    """What the server was told of secrets."""
    request = context.request_context.request
    return str(os.environ.get("SHOP_TOKEN") if request is None else request.headers.get("x-shop-token"))


@server.tool()
async def hang() -> str:
    """Never answer."""
    await asyncio.sleep(3600)
    return "late"


@server.tool()
def die() -> str:
    """Die in the middle of a call."""
    os._exit(3)


if __name__ == "__main__":
    if sys.argv[1:] == ["http"]:
        listening = socket.create_server(("127.0.0.1", 0))
        print(listening.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="critical")).run(sockets=[listening])
    else:
        server.run()
