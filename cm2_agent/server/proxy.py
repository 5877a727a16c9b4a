"""The proxy: OpenAI's chat API in front of a server of it, whose calls are recorded as they pass.

Calls of other paths (`/v1/models`, `/v1/embeddings`) pass through unrecorded. What a client sends to prove who it is
goes upstream, and nowhere else."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
import orjson
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from cm2_agent.errors import ModelError
from cm2_agent.incidents import Incidents
from cm2_agent.models.endpoint_sampling import TOKEN_ID_KEYS
from cm2_agent.server.body import BodyTooLarge
from cm2_agent.server.chat_answer import Answer
from cm2_agent.server.chat_call import ProxiedCall
from cm2_agent.server.chat_request import Asked, Upstream, asked_of
from cm2_agent.server.otlp_endpoint import whole_body

__all__ = ["Proxy", "base_url"]

_PATH = re.compile(r"(?:/t/(?P<thread>[^/]+))?/v1(?P<path>/.*)")
_CHAT = "/chat/completions"
_THREAD, _TOKEN = "x-cm2-thread", "x-cm2-token"
_OWN = frozenset({_THREAD, _TOKEN})
# Headers of one connection, and those that the bodies' rewriting changes.
_HOP = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
        *("transfer-encoding", "upgrade", "host", "content-length", "accept-encoding", "content-encoding"),
    )
)
_LONGEST_THREAD = 256


class Proxy:
    """An ASGI application for every path below `/v1`, and below `/t/THREAD/v1`, which names the dialogue as the header
    x-cm2-thread does. `record` is called with each chat call when it is over; it may not block. `allow` answers the
    project that a token (x-cm2-token) lets a client send to, None for a refusal. `mark` makes an id for each answer's
    message, and then the client gets the end of an answer after it was recorded."""

    def __init__(
        self,
        url: str,
        record: Callable[[ProxiedCall], None],
        incidents: Incidents,
        *,
        upstream: Upstream | None = None,
        allow: Callable[[str | None], str | None] = lambda token: "default",
        most_body: int = 16 << 20,
        mark: Callable[[], str] | None = None,
    ) -> None:
        self._url = base_url(url)
        self._record, self._incidents, self._allow = record, incidents, allow
        self._upstream, self._most, self._mark = upstream or Upstream(), most_body, mark
        self._session: aiohttp.ClientSession | None = None
        self.calls = 0

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _PATH.fullmatch(scope["path"])
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        project = self._allow(headers.get(_TOKEN))
        if project is None:
            await _refuse(send, 401, "expected the header x-cm2-token with a token of scope ingest (cm2 token create)")
            return
        if found is None or ".." in scope["path"].split("/"):  # which a server may read as a path beside /v1
            await _refuse(send, 404, f"{scope['path'][:100]} is not a path of the chat API; expected /v1/…")
            return
        try:
            body = await whole_body(Request(scope, receive), self._most)
        except BodyTooLarge as error:
            await _refuse(send, 413, str(error))
            return
        path = found["path"]
        if scope["method"] != "POST" or path != _CHAT:
            await self._pass_on(scope, path, headers, body, receive, send)
            return
        try:
            given = orjson.loads(body)
        except ValueError:
            given = None
        if not isinstance(given, dict):
            await _refuse(send, 400, "the body is no JSON object; expected a request of /v1/chat/completions")
            return
        named = unquote(found["thread"]) if found["thread"] else headers.get(_THREAD)
        thread = named[:_LONGEST_THREAD] if named else None
        if self._upstream.server == "auto":
            await self._find_upstream(headers)
        upstream = self._upstream if self._upstream.server != "auto" else replace(self._upstream, server="none")
        try:
            asked = asked_of(given, upstream)
        except (TypeError, ValueError, AttributeError):  # settings of no kind that the API has: the server says which
            self._incidents.add("the settings of a proxied request are not of the chat API: it is not recorded")
            await self._pass_on(scope, path, headers, body, receive, send)
            return
        await self._chat(asked, headers, project, thread, receive, send)

    async def _chat(
        self,
        asked: Asked,
        headers: Mapping[str, str],
        project: str,
        thread: str | None,
        receive: Receive,
        send: Send,
    ) -> None:
        self.calls += 1
        mark = None if self._mark is None else self._mark()
        answer = Answer(asked, stream=False, mark=mark)
        started = time.time_ns()
        error: str | None = None
        begun = recorded = False
        left = asyncio.create_task(_until_gone(receive))

        def record() -> None:
            nonlocal recorded, error
            if not recorded:
                recorded = True
                error = error or answer.problem
                self._record(
                    ProxiedCall(
                        asked=asked,
                        parts=answer.parts if error is None or not error.startswith("HTTP") else (),
                        stream=answer.stream,
                        started=started,
                        ended=time.time_ns(),
                        project=project,
                        thread=thread,
                        error=error,
                        mark=mark,
                    )
                )

        try:
            sent = {**_forwarded(headers), "content-type": "application/json"}
            url = f"{self._url}{_CHAT}"
            async with await self._opened(left, "POST", url, data=orjson.dumps(asked.sent), headers=sent) as got:
                left.add_done_callback(lambda _: got.close())
                kind = got.headers.get("content-type", "")
                answer.stream = kind.startswith("text/event-stream")
                if got.status >= 400:
                    error = f"HTTP {got.status}"
                whole = got.status >= 400 or not answer.stream
                if not whole:
                    begun = True
                    await send(_start(got.status, got.headers))
                async for data in got.content.iter_any():
                    out = answer.feed(data)
                    if mark is not None and answer.finished:
                        record()
                    if out:
                        await send({"type": "http.response.body", "body": out, "more_body": True})
                rest = answer.end()
                if mark is not None:
                    record()
                if whole:
                    begun = True
                    await send(_start(got.status, got.headers, len(rest)))
                await send({"type": "http.response.body", "body": rest, "more_body": False})
        except (aiohttp.ClientError, TimeoutError, OSError) as failed:
            gone = left.done()
            error = "the client left" if gone else f"the server behind the proxy: {type(failed).__name__}"
            if not begun and not gone:
                await _refuse(send, 502, f"the server behind the proxy does not answer: {type(failed).__name__}")
            elif not gone:
                self._incidents.add("the server behind the proxy broke off an answer")
                raise
        finally:
            if left.done() and not answer.finished:
                error = error or "the client left"
            left.cancel()
            if answer.stream and not answer.finished:
                error = error or "the stream was broken off"
            record()

    async def _pass_on(
        self, scope: Scope, path: str, headers: Mapping[str, str], body: bytes, receive: Receive, send: Send
    ) -> None:
        """A request that is not recorded."""
        query = scope["query_string"].decode("latin-1")
        url = f"{self._url}{path}" + (f"?{query}" if query else "")
        begun = False
        left = asyncio.create_task(_until_gone(receive))
        try:
            sent = _forwarded(headers)
            async with await self._opened(left, scope["method"], url, data=body or None, headers=sent) as got:
                left.add_done_callback(lambda _: got.close())
                begun = True
                await send(_start(got.status, got.headers))
                async for data in got.content.iter_any():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (aiohttp.ClientError, TimeoutError, OSError) as failed:
            if left.done():
                return
            if begun:
                raise
            await _refuse(send, 502, f"the server behind the proxy does not answer: {type(failed).__name__}")
        finally:
            left.cancel()

    async def _opened(self, left: asyncio.Task[None], method: str, url: str, **sent: Any) -> aiohttp.ClientResponse:
        """The server's answer when it begins. A client that leaves before takes its request back from the server, which
        would work on for nobody. Raises ConnectionAbortedError then."""
        opening = asyncio.ensure_future(self._connected().request(method, url, **sent))
        try:
            await asyncio.wait({opening, left}, return_when=asyncio.FIRST_COMPLETED)
            if opening.done():
                return opening.result()
            raise ConnectionAbortedError("the client left")
        finally:
            opening.cancel()

    async def _find_upstream(self, headers: Mapping[str, str]) -> None:
        """How the server is asked for token ids, by what it says of its models: vLLM and SGLang name themselves as
        their owner."""
        try:
            sent = {name: value for name, value in _forwarded(headers).items() if name != "content-type"}
            async with self._connected().get(f"{self._url}/models", headers=sent) as got:
                listed = orjson.loads(await got.read())
                owners = {str(card.get("owned_by")).lower() for card in listed["data"] if isinstance(card, dict)}
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError):
            return  # it is asked again with the next call
        server = next((name for name in TOKEN_ID_KEYS if name in owners), "none")
        self._upstream = replace(self._upstream, server=server)

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
            jar = aiohttp.DummyCookieJar()  # the cookies of one client are not another's
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=timeout, cookie_jar=jar, read_bufsize=1 << 18, trust_env=True
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
    if not known or read.query or read.fragment or read.path.rstrip("/").endswith(_CHAT):
        raise ModelError(f"{url!r} is no address of a chat API; expected one as http://localhost:8000/v1")
    return url.rstrip("/").removesuffix("/v1") + "/v1"


def _forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in _HOP and name not in _OWN}


def _start(status: int, headers: Mapping[str, str], length: int | None = None) -> dict[str, Any]:
    passed = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in headers.items()
        if name.lower() not in _HOP
    ]
    if length is not None:
        passed.append((b"content-length", str(length).encode()))
    return {"type": "http.response.start", "status": status, "headers": passed}


async def _refuse(send: Send, status: int, message: str) -> None:
    body = orjson.dumps({"error": {"message": message, "type": "cm2_proxy_error", "param": None, "code": None}})
    await send(_start(status, {"content-type": "application/json"}, len(body)))
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
