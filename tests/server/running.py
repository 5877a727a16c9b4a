"""A collector on loopback, in a thread of the test's process."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from cm2_agent.server.app import application
from cm2_agent.server.chat_request import Upstream
from cm2_agent.server.collector import Collector
from cm2_agent.server.serving import listening
from cm2_agent.server.settings import Settings
from cm2_agent.store import SQLStore

QUICK = Settings(quiet=0.0, drain=20.0)
JSON = "application/json"


class Running:
    """The collector that runs, and a client of it."""

    def __init__(self, collector: Collector, address: str) -> None:
        self.collector, self.address = collector, address
        self.store = collector.store
        self.client = httpx.Client(base_url=address, timeout=60)

    def send(
        self, body: bytes, *, token: str | None = None, zipped: bool = False, kind: str = "application/x-protobuf"
    ) -> httpx.Response:
        sent = {"Content-Type": kind}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if zipped:
            body, sent["Content-Encoding"] = gzip.compress(body), "gzip"
        return self.client.post("/v1/traces", content=body, headers=sent)

    def flush(self) -> None:
        assert self.collector.flush(60)


@contextmanager
def collecting(
    store: SQLStore,
    settings: Settings = QUICK,
    *,
    proxy_url: str | None = None,
    upstream: Upstream | None = None,
    **options: Any,
) -> Iterator[Running]:
    """A collector of the store until the block ends, which drains it; with a proxy of a server beside it."""
    opened: list[Collector] = []

    def open_collector() -> Collector:
        opened.append(Collector(store, settings=settings, **options))
        return opened[0]

    listener = listening("127.0.0.1", 0)
    app = application(open_collector, proxy_url=proxy_url, upstream=upstream)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        running = Running(opened[0], f"http://127.0.0.1:{listener.getsockname()[1]}")
        with running.client:
            yield running
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
