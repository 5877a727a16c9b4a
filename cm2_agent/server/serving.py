"""The server process: uvicorn until SIGTERM or an interruption, then the drain."""

from __future__ import annotations

import gc
import signal
import socket
from collections.abc import Callable

import uvicorn

from cm2_agent.errors import StoreError
from cm2_agent.server.access import is_loopback
from cm2_agent.server.app import application
from cm2_agent.server.chat_request import Upstream
from cm2_agent.server.collector import Collector
from cm2_agent.server.settings import Settings
from cm2_agent.store.sql_store import SQLStore
from cm2_agent.types.checklist import Checklist

__all__ = ["listening", "run_server"]

_GARBAGE = 50_000
"""How many more objects are made than freed between two collections of garbage."""


def run_server(
    store: SQLStore,
    *,
    host: str,
    port: int,
    checklist: Checklist | None,
    policy: str | None,
    settings: Settings,
    say: Callable[[str], None],
    proxy_url: str | None = None,
    upstream: Upstream | None = None,
) -> None:
    """Serve until the process is asked to end. Raises StoreError where the address cannot be listened on."""
    with listening(host, port) as listener:
        app = application(
            lambda: Collector(
                store, checklist=checklist, settings=settings, open_to_loopback=is_loopback(host), policy=policy
            ),
            proxy_url=proxy_url,
            upstream=upstream,
        )
        shown = f"[{host}]" if ":" in host else host
        say(f"serving http://{shown}:{listener.getsockname()[1]} into {store.url}")
        config = uvicorn.Config(
            app,
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=int(settings.drain),
            backlog=2048,
        )
        # Spans wait by the thousand, none of them garbage: looking through them at Python's default pace takes a third
        # of the server's time.
        gc.freeze()
        gc.set_threshold(_GARBAGE, 20, 50)
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again when all is drained: that ends well
        uvicorn.Server(config).run(sockets=[listener])


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises StoreError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise StoreError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; name another address or port"
        ) from error
    return listener
