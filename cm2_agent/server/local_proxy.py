"""A proxy within the process that runs an agent: the agent's own client calls it, and what it learns of token ids joins
the agent's recorded calls."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import Receive, Scope, Send

from cm2_agent.errors import ModelError
from cm2_agent.incidents import Incidents
from cm2_agent.models.reported_calls import add_report
from cm2_agent.server.chat_call import UNREADABLE, ProxiedCall
from cm2_agent.server.chat_request import Upstream
from cm2_agent.server.proxy import Proxy
from cm2_agent.server.serving import listening

__all__ = ["LocalProxy", "local_proxy"]

_VARIABLES = ("OPENAI_BASE_URL", "OPENAI_API_BASE")
_START = 60.0


class LocalProxy:
    """The proxy that runs: `calls` counts the chat calls that came."""

    def __init__(self, proxy: Proxy, url: str) -> None:
        self._proxy, self.url = proxy, url

    @property
    def calls(self) -> int:
        return self._proxy.calls


@contextmanager
def local_proxy(url: str, upstream: Upstream | None = None) -> Iterator[LocalProxy]:
    """A proxy of the server at `url` until the block ends, to which OPENAI_BASE_URL points meanwhile. Raises
    ModelError where it does not start."""

    incidents = Incidents()

    def report(call: ProxiedCall) -> None:
        try:
            choices = call.choices() if call.error is None and call.mark is not None else []
        except UNREADABLE as error:  # which is the agent's to meet
            incidents.add("an answer that passed the proxy is not of the chat API", error)
            return
        for choice in choices:
            add_report(f"{call.mark}-{choice.index}", choice.metadata)

    proxy = Proxy(url, report, incidents, upstream=upstream, mark=lambda: f"cm2-{secrets.token_hex(12)}")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await proxy(scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await proxy.close()
        await send({"type": "lifespan.shutdown.complete"})

    listener = listening("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="on", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="cm2-proxy", daemon=True)
    thread.start()
    deadline = time.monotonic() + _START
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise ModelError("the proxy did not start; expected a free port on 127.0.0.1")
        time.sleep(0.01)  # uvicorn has no event for having started
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update(dict.fromkeys(_VARIABLES, address))
    try:
        yield LocalProxy(proxy, address)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        server.should_exit = True
        thread.join(_START)
        listener.close()
