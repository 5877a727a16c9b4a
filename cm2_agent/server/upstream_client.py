"""The connections to the server behind the proxy: what a client sends goes there, and nowhere else."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from cm2_agent.errors import ModelError
from cm2_agent.models.endpoint_sampling import TOKEN_ID_KEYS
from cm2_agent.server.wire_json import loads

__all__ = ["UNREACHABLE", "UpstreamClient", "base_url"]

UNREACHABLE = (aiohttp.ClientError, TimeoutError, OSError)
"""What is raised where the server cannot be reached, or breaks off."""
_OWN_HEADERS = ("User-Agent", "Accept", "Content-Type")  # which aiohttp would add of itself
_IDLE = 4.0
"""Seconds for which a connection that is not used is kept: uvicorn, and with it vLLM, closes one after five, and a
request that it crosses on its way is lost."""


class UpstreamClient:
    """A client of one server. It follows no redirection, and proves nothing of its own: no password of `~/.netrc`, no
    cookie. A forward proxy named in the environment (HTTPS_PROXY, NO_PROXY) is used."""

    def __init__(self, url: str) -> None:
        self.url = base_url(url)
        self._session: aiohttp.ClientSession | None = None
        self._way: Mapping[str, Any] = {}

    async def open(
        self, left: asyncio.Task[None], method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """The server's answer when it begins. A client that leaves before takes its request back from the server, which
        would work on for nobody. Raises ConnectionAbortedError then, and one of UNREACHABLE."""
        session = self._connected()
        opening = asyncio.ensure_future(
            session.request(method, f"{self.url}{path}", data=body, headers=headers, allow_redirects=False, **self._way)
        )
        try:
            await asyncio.wait({opening, left}, return_when=asyncio.FIRST_COMPLETED)
            if opening.done():
                return opening.result()
            raise ConnectionAbortedError("the client left")
        finally:
            opening.cancel()

    async def server(self, headers: Mapping[str, str]) -> str | None:
        """How the server is asked for token ids, by what it says of its models: vLLM and SGLang name themselves as
        their owner. None where it does not answer."""
        try:
            async with self._connected().get(
                f"{self.url}/models", headers=headers, allow_redirects=False, **self._way
            ) as got:
                listed = loads(await got.read())
                owners = {str(card.get("owned_by")).lower() for card in listed["data"] if isinstance(card, dict)}
        except (*UNREACHABLE, ValueError, KeyError, TypeError):
            return None
        return next((name for name in TOKEN_ID_KEYS if name in owners), "none")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._way, known = _forward_proxy(self.url)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
                cookie_jar=aiohttp.DummyCookieJar(),  # the cookies of one client are not another's
                read_bufsize=1 << 18,
                headers={"Accept-Encoding": "identity", **known},
                skip_auto_headers=_OWN_HEADERS,
            )
        return self._session


def base_url(url: str) -> str:
    """The address of a chat API, with the `/v1` that its paths begin with. Raises ModelError for what is none.

    >>> base_url("http://localhost:8000"), base_url("https://host/api/v1/")
    ('http://localhost:8000/v1', 'https://host/api/v1')
    """
    try:
        read = urlsplit(url)
        known = read.scheme in ("http", "https") and read.hostname is not None and read.port != 0
    except ValueError:
        known = False
    if not known or read.query or read.fragment or read.path.rstrip("/").endswith("/chat/completions"):
        raise ModelError(f"{url!r} is no address of a chat API; expected one as http://localhost:8000/v1")
    return url.rstrip("/").removesuffix("/v1") + "/v1"


def _forward_proxy(url: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings and the headers of a request for the forward proxy that the environment names for this address."""
    read = urlsplit(url)
    found = getproxies().get(read.scheme)
    if not found or proxy_bypass(read.hostname or ""):
        return {}, {}
    named = urlsplit(found if "//" in found else f"http://{found}")
    way: dict[str, Any] = {"proxy": named._replace(netloc=named.netloc.rpartition("@")[2]).geturl()}
    if not named.username:
        return way, {}
    login = b64encode(f"{unquote(named.username)}:{unquote(named.password or '')}".encode()).decode()
    known = {"Proxy-Authorization": f"Basic {login}"}
    # Through a tunnel the request itself goes to the server, which may not see this.
    return ({**way, "proxy_headers": known}, {}) if read.scheme == "https" else (way, known)
