"""The ASGI application of `cm2 serve`: the collector, and where there is one the proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cm2_agent.server.call_spans import spans_of
from cm2_agent.server.chat_call import ProxiedCall
from cm2_agent.server.chat_request import Upstream
from cm2_agent.server.collector import Collector
from cm2_agent.server.dialogues import Dialogues
from cm2_agent.server.intake import Outcome
from cm2_agent.server.otlp_endpoint import receive
from cm2_agent.server.proxy import Proxy

__all__ = ["application"]

_TOKENS = 1.0
"""Seconds from one reading of the tokens to the next."""


def application(
    open_collector: Callable[[], Collector], *, proxy_url: str | None = None, upstream: Upstream | None = None
) -> ASGIApp:
    """The application. The collector is opened when the server starts, and drained when it stops. With a `proxy_url`
    the chat API of that server stands beside it; `upstream` says how the server is asked, None: it says so itself."""
    proxies: list[Proxy] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        collector = await asyncio.to_thread(open_collector)
        app.state.collector = collector
        if proxy_url is not None:
            proxies.append(_proxy(collector, proxy_url, upstream))
        watcher = asyncio.create_task(_watch_tokens(collector))
        try:
            yield
        finally:
            watcher.cancel()
            for proxy in proxies:
                await proxy.close()
            await asyncio.to_thread(collector.close)

    app = FastAPI(title="CM2", lifespan=lifespan, docs_url=None, redoc_url=None)

    async def traces(request: Request) -> Response:
        return await receive(request.app.state.collector, request)

    async def healthz(request: Request) -> Response:
        found: Collector = request.app.state.collector
        return JSONResponse(found.health(), status_code=503 if found.draining else 200)

    app.add_route("/v1/traces", traces, methods=["POST"])  # no validation by models: the body is OTLP's
    app.add_route("/healthz", healthz, methods=["GET"])
    if proxy_url is None:
        return app

    async def with_proxy(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if path.startswith(("/v1/", "/t/")) and path != "/v1/traces":
            await proxies[0](scope, receive, send)
        else:
            await app(scope, receive, send)

    return with_proxy


def _proxy(collector: Collector, url: str, upstream: Upstream | None) -> Proxy:
    dialogues = Dialogues()

    def answered(outcome: Outcome) -> None:
        if outcome.decoded is None:
            collector.incidents.add(f"a proxied call was not stored (status {outcome.status})")

    def record(call: ProxiedCall) -> None:
        if collector.intake.is_full:
            collector.incidents.add("a proxied call was not stored: too much waits for the store")
            return
        size = 2_000 + len(call.raw) + 1_000 * len(call.messages)
        collector.intake.put(call.project, lambda: spans_of(call, dialogues, collector.incidents), size, answered)

    def allow(token: str | None) -> str | None:
        found = collector.access.find(token, "ingest")
        return None if found is None else found.project

    return Proxy(
        url,
        record,
        collector.incidents,
        upstream=upstream,
        allow=allow,
        most_body=collector.settings.most_body,
        most_unpacked=collector.settings.most_unpacked,
    )


async def _watch_tokens(collector: Collector) -> None:
    while True:
        await asyncio.sleep(_TOKENS)
        await asyncio.to_thread(collector.access.refresh)
