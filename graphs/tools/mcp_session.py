"""One open session with one MCP server, through which its tools are called.

The session lives in a task of its own: the transports' cancel scopes belong to the task that entered them, and a
transport that breaks cancels its task, which must not be the caller's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import httpx

from cm2_agent.errors import MissingExtra, ToolError
from cm2_agent.incidents import logger

if TYPE_CHECKING:
    from mcp import ClientSession
    from mcp.types import Tool

T = TypeVar("T")
Streams = tuple[Any, Any]
"""What a transport reads from and writes to."""
Connect = Callable[[Callable[[str], None]], AbstractAsyncContextManager[Streams]]
"""Opens a transport; it is given what to call when a connection breaks."""


class McpSession:
    """One server: how to reach it, and the session while it is open. `label` is what errors call it; neither its
    environment nor its headers are ever said. `start_timeout` bounds the opening and `timeout` each call, in
    seconds."""

    def __init__(
        self, label: str, connect: Connect, *, timeout: float, start_timeout: float, prefix: str | None = None
    ) -> None:
        for name, given in (("timeout", timeout), ("start_timeout", start_timeout)):
            if isinstance(given, bool) or not isinstance(given, int | float) or not given > 0:
                raise ToolError(
                    f"{name}={given!r} of the MCP server {label} is no time; give seconds, such as {name}=60"
                )
        self.label, self.timeout, self.start_timeout, self.prefix = label, timeout, start_timeout, prefix
        self.client: ClientSession | None = None
        self._connect = connect
        self._owner: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._waiting: set[asyncio.Future[str]] = set()
        self._ended: str | None = "it was not opened"

    async def open(self) -> list[Tool]:
        """Start or reach the server, and ask for its tools. Raises ToolError."""
        if self._owner is not None:
            raise ToolError(f"the MCP server {self.label} is open already; enter it once at a time")
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[list[Tool]] = loop.create_future()
        self._closing = asyncio.Event()
        self._owner = loop.create_task(self._own(ready))
        opened = False
        try:
            either: set[asyncio.Future[Any]] = {self._owner, ready}
            await asyncio.wait(either, timeout=self.start_timeout, return_when=asyncio.FIRST_COMPLETED)
            opened = ready.done()
        finally:
            if not opened:
                reason = (
                    self._reason_of_end() if self._owner.done() else f"it was not ready within {self.start_timeout:g} s"
                )
                await self._stop()
        if not opened:
            raise ToolError(
                f"the MCP server {self.label} could not be opened: {reason}. Check that it starts and answers by itself"
            )
        self._ended = None
        self._owner.add_done_callback(lambda _: self._lose(self._reason_of_end()))
        return ready.result()

    async def close(self) -> None:
        """End the session, and the server where it was started here, whatever state they are in."""
        if self._owner is None:
            return
        broken, self._ended = self._ended is not None, "it was closed"
        self._closing.set()
        try:
            await asyncio.wait({self._owner})
            if not broken and not self._owner.cancelled() and (error := self._owner.exception()) is not None:
                logger.warning("the MCP server %s did not close cleanly: %s", self.label, _reason(error))
        finally:
            await self._stop()

    async def through(self, tool: str, call: Awaitable[T]) -> T:
        """What a call gives. Raises ToolError where the session is not open or breaks, the time is up or the answer
        breaks the protocol; McpError where the server answers with an error of the protocol."""
        from mcp import McpError

        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(call)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        lost: asyncio.Future[str] = loop.create_future()
        self._waiting.add(lost)
        try:
            if self._ended is not None or self._owner is None or self._owner.get_loop() is not loop:
                raise self._failed(tool, self._ended or "it was opened in another event loop")
            either: set[asyncio.Future[Any]] = {task, lost}
            await asyncio.wait(either, timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise self._failed(tool, lost.result() if lost.done() else f"no answer within {self.timeout:g} s")
        except (ToolError, asyncio.CancelledError):
            raise
        except McpError as error:
            if error.error.code == _connection_closed():
                raise self._failed(tool, "the connection was closed") from None
            raise
        except Exception as error:  # from None: what the transports raise may quote the request
            raise self._failed(tool, _reason(error)) from None
        finally:
            self._waiting.discard(lost)
            task.cancel()

    async def _own(self, ready: asyncio.Future[list[Tool]]) -> None:
        from mcp import ClientSession

        async with AsyncExitStack() as stack:
            read, write = await stack.enter_async_context(self._connect(self._lose))
            self.client = await stack.enter_async_context(ClientSession(read, write))
            await self.client.initialize()
            ready.set_result(await _all_tools(self.client))
            await self._closing.wait()

    async def _stop(self) -> None:
        owner, self._owner = self._owner, None
        self.client = None
        if owner is None:
            return
        owner.cancel()
        await asyncio.wait({owner})
        if not owner.cancelled():
            owner.exception()  # seen: what it says was told where it mattered

    def _lose(self, reason: str) -> None:
        """Calls on their way will not be answered any more."""
        if self._owner is not None and self._owner.done() and self._ended is None:
            self._ended = reason
        for lost in self._waiting:
            if not lost.done():
                lost.set_result(reason)

    def _reason_of_end(self) -> str:
        error = None if self._owner is None or self._owner.cancelled() else self._owner.exception()
        return "the session ended" if error is None else _reason(error)

    def _failed(self, tool: str, reason: str) -> ToolError:
        return ToolError(f"tool {tool!r} of the MCP server {self.label} failed: {reason}")


def stdio(
    command: str, args: tuple[str, ...], env: Mapping[str, str] | None, cwd: str | Path | None
) -> tuple[str, Connect]:
    """The label of a server that is started as a process, and its transport. Raises ToolError for an environment that
    is none."""
    require()
    bad = [str(name) for name, value in (env or {}).items() if not isinstance(name, str) or not isinstance(value, str)]
    if bad:
        raise ToolError(
            f"the environment of the MCP server {command!r} has {', '.join(bad)} that is no text; give text for each"
        )
    from mcp.client.stdio import StdioServerParameters, stdio_client

    parameters = StdioServerParameters(
        command=command, args=list(args), env=None if env is None else dict(env), cwd=cwd
    )

    @asynccontextmanager
    async def connect(lose: Callable[[str], None]) -> AsyncIterator[Streams]:
        async with stdio_client(parameters) as (read, write):
            yield read, write

    return " ".join(Path(part).name for part in (command, *args[:1]) if not part.startswith("-")), connect


def http(url: str, headers: Mapping[str, str] | None, timeout: float) -> tuple[str, Connect]:
    """The label of a server at an address (without what may be secret in it), and its transport. Raises ToolError for
    what is none."""
    require()
    try:
        split = urlsplit(url)
        port = f":{split.port}" if split.port else ""
    except ValueError:
        raise ToolError("the URL of an MCP server cannot be read; expected http(s)://HOST:PORT/PATH") from None
    if split.scheme not in ("http", "https") or not split.hostname:
        given = f"{split.scheme or 'no scheme'}://{split.hostname or 'no host'}"
        raise ToolError(f"{given} is no address of an MCP server; expected http(s)://HOST:PORT/PATH")
    for name, value in (headers or {}).items():
        if (
            not isinstance(value, str)
            or not value.isascii()
            or not value.isprintable()
            or not name.isascii()
            or not name.isprintable()
        ):
            raise ToolError(
                f"the header {name!r} for an MCP server holds what no header may; give printable ASCII text"
            )
    from mcp.client.streamable_http import streamable_http_client

    @asynccontextmanager
    async def connect(lose: Callable[[str], None]) -> AsyncIterator[Streams]:
        # no limit on reading: a stream waits as long as its call does, which is limited
        client = _WatchedClient(lose, headers=dict(headers or {}), timeout=httpx.Timeout(timeout, read=None))
        async with client, streamable_http_client(url, http_client=client) as (read, write, _):
            yield read, write

    return f"{split.scheme}://{split.hostname}{port}{split.path}", connect


def require() -> None:
    """Raises MissingExtra where the packages are not installed."""
    try:
        import langchain_mcp_adapters  # noqa: F401
        import mcp  # noqa: F401
    except ImportError as error:
        raise MissingExtra("mcp", "MCP servers") from error


class _WatchedClient(httpx.AsyncClient):
    """Tells when the connection on which an answer was to come breaks, which the transport keeps to itself."""

    def __init__(self, lose: Callable[[str], None], **settings: Any) -> None:
        super().__init__(**settings)
        self._lose = lose

    async def send(self, request: httpx.Request, **settings: Any) -> httpx.Response:
        if request.method != "POST":
            return await super().send(request, **settings)
        try:
            response = await super().send(request, **settings)
        except httpx.TransportError as error:
            self._lose(_reason(error))
            raise
        if isinstance(response.stream, httpx.AsyncByteStream):
            response.stream = _WatchedStream(response.stream, self._lose)
        return response


class _WatchedStream(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, lose: Callable[[str], None]) -> None:
        self._stream, self._lose = stream, lose

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
        except httpx.TransportError as error:
            self._lose(_reason(error))
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _all_tools(client: ClientSession) -> list[Tool]:
    from mcp.types import PaginatedRequestParams

    tools: list[Tool] = []
    seen: set[str] = set()
    page = await client.list_tools()
    tools += page.tools
    while page.nextCursor and page.nextCursor not in seen:
        seen.add(page.nextCursor)
        page = await client.list_tools(params=PaginatedRequestParams(cursor=page.nextCursor))
        tools += page.tools
    return tools


def _connection_closed() -> int:
    from mcp.types import CONNECTION_CLOSED

    return CONNECTION_CLOSED


def _reason(error: BaseException) -> str:
    """What happened, in words that quote nothing of the request: neither headers nor the address's query."""
    while isinstance(error, BaseExceptionGroup):
        leaves = [inner for inner in error.exceptions if not isinstance(inner, asyncio.CancelledError)]
        error = leaves[0] if leaves else error.exceptions[0]
    if isinstance(error, httpx.HTTPStatusError):
        return f"it answered HTTP {error.response.status_code}"
    if isinstance(error, httpx.TransportError):
        return f"the connection broke ({type(error).__name__})"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    kind = type(error)
    if kind.__module__.startswith("anyio"):
        return "the connection was closed"
    if kind.__module__.startswith("mcp") or kind is RuntimeError:  # what the server or the protocol says
        return str(error)[:500] or kind.__name__
    return f"its answer breaks the protocol ({kind.__name__})"


__all__ = ["McpSession", "http", "require", "stdio"]
