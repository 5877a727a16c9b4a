"""The proxy: OpenAI's chat API in front of a server of it, whose chat completions are recorded as they pass.

Calls of other paths (`/v1/models`, `/v1/embeddings`, `/v1/responses`) pass through unrecorded. What a client sends to
prove who it is goes upstream, and nowhere else: no redirection is followed."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from cm2_agent.incidents import Incidents
from cm2_agent.server.body import BodyTooLarge, MalformedBody, unpack
from cm2_agent.server.chat_answer import Answer
from cm2_agent.server.chat_call import ProxiedCall
from cm2_agent.server.chat_request import Asked, Upstream, asked_of
from cm2_agent.server.otlp_endpoint import whole_body
from cm2_agent.server.upstream_client import UNREACHABLE, UpstreamClient
from cm2_agent.server.wire_json import dumps, loads

__all__ = ["Proxy"]

_PATH = re.compile(r"(?:/t/(?P<thread>[^/]+))?/v1(?P<path>/.*)")
_CHAT = "/chat/completions"
_UNRECORDED = ("/completions", "/messages", "/responses")  # other APIs by which a model is asked
_THREAD, _TOKEN = "x-cm2-thread", "x-cm2-token"
_OWN = frozenset({_THREAD, _TOKEN})
# Headers of one connection, and of a body that is decoded here and written anew.
_HOP = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
        *("transfer-encoding", "upgrade", "host", "content-length", "accept-encoding", "content-encoding"),
    )
)
_ENCODINGS = ("identity", "gzip", "x-gzip")
_LONGEST_THREAD = 256


class Proxy:
    """An ASGI application for every path below `/v1`, and below `/t/THREAD/v1`, which names the dialogue as the header
    x-cm2-thread does. `record` is called with each chat call when it is over; it may not block. `allow` answers the
    project that a token (x-cm2-token) lets a client send to, None for a refusal. `mark` makes an id for each answer's
    message, and then the client gets the end of an answer after it was recorded. A body is `most_body` bytes long at
    most, and `most_unpacked` when it is decompressed."""

    def __init__(
        self,
        url: str,
        record: Callable[[ProxiedCall], None],
        incidents: Incidents,
        *,
        upstream: Upstream | None = None,
        allow: Callable[[str | None], str | None] = lambda token: "default",
        most_body: int = 16 << 20,
        most_unpacked: int = 64 << 20,
        mark: Callable[[], str] | None = None,
    ) -> None:
        self._client = UpstreamClient(url)
        self._record, self._incidents, self._allow = record, incidents, allow
        self._upstream, self._mark = upstream or Upstream(), mark
        self._most, self._most_unpacked = most_body, most_unpacked
        self.calls = 0

    async def close(self) -> None:
        await self._client.close()

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
        except BodyTooLarge:
            await _refuse(send, 413, f"the body is larger than {self._most} bytes (cm2 serve --max-mb)")
            return
        except ClientDisconnect:
            return
        query = scope["query_string"].decode("latin-1")
        target = found["path"] + (f"?{query}" if query else "")
        if scope["method"] != "POST" or found["path"].rstrip("/") != _CHAT:
            if scope["method"] == "POST" and found["path"].rstrip("/") in _UNRECORDED:
                name = found["path"].rstrip("/")
                self._incidents.add(f"calls of /v1{name} pass the proxy unrecorded: it reads /v1{_CHAT} alone")
            await self._pass_on(scope["method"], target, headers, body, receive, send)
            return
        try:
            given = loads(_unpacked(body, headers.get("content-encoding"), self._most_unpacked))
        except _Refused as refused:
            await _refuse(send, refused.status, str(refused))
            return
        except ValueError:
            given = None
        if not isinstance(given, dict):
            await _refuse(send, 400, "the body is no JSON object; expected a request of /v1/chat/completions")
            return
        named = unquote(found["thread"]) if found["thread"] else headers.get(_THREAD)
        thread = named[:_LONGEST_THREAD] if named else None
        try:
            asked = asked_of(given, await self._how(headers))
        except (TypeError, ValueError, AttributeError):  # settings of no kind that the API has: the server says which
            self._incidents.add("the settings of a proxied request are not of the chat API: it is not recorded")
            await self._pass_on("POST", target, headers, body, receive, send)
            return
        await self._chat(asked, target, headers, project, thread, receive, send)

    async def _chat(
        self,
        asked: Asked,
        target: str,
        headers: Mapping[str, str],
        project: str,
        thread: str | None,
        receive: Receive,
        send: Send,
    ) -> None:
        self.calls += 1
        mark = None if self._mark is None else self._mark()
        answer = Answer(asked, mark=mark)
        started = time.time_ns()
        failure: str | None = None
        begun = recorded = False
        left = asyncio.create_task(_until_gone(receive))

        def record() -> None:
            nonlocal recorded
            if not recorded:
                recorded = True
                self._record(
                    ProxiedCall(
                        asked=asked,
                        raw=b"" if failure is not None and failure.startswith("HTTP") else answer.raw,
                        stream=answer.stream,
                        started=started,
                        ended=time.time_ns(),
                        project=project,
                        thread=thread,
                        failure=failure,
                        mark=mark,
                    )
                )

        try:
            sent = {**_forwarded(headers), "content-type": "application/json"}
            async with await self._client.open(left, "POST", target, dumps(asked.sent), sent) as got:
                left.add_done_callback(lambda _: got.close())
                streamed = got.headers.get("content-type", "").startswith("text/event-stream")
                answer.stream = streamed and got.status < 300
                if got.status >= 300:
                    failure = f"HTTP {got.status}"
                if 300 <= got.status < 400:
                    record()
                    begun = True
                    await _refuse(send, 502, _redirected(got.headers.get("location", "")))
                    return
                if answer.stream:
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
                if not answer.stream:
                    begun = True
                    await send(_start(got.status, got.headers, len(rest)))
                await send({"type": "http.response.body", "body": rest, "more_body": False})
        except UNREACHABLE as failed:
            gone = left.done()
            failure = "the client left" if gone else f"the server behind the proxy: {type(failed).__name__}"
            if not begun and not gone:
                await _refuse(send, 502, f"the server behind the proxy does not answer: {type(failed).__name__}")
            elif not gone:
                self._incidents.add("the server behind the proxy broke off an answer")
                raise
        finally:
            if left.done() and not answer.finished:
                failure = failure or "the client left"
            left.cancel()
            if answer.stream and not answer.finished:
                failure = failure or "the stream was broken off"
            record()

    async def _pass_on(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes, receive: Receive, send: Send
    ) -> None:
        """A request that is not recorded: its body as it came, and the answer as it comes, redirections too."""
        begun = False
        left = asyncio.create_task(_until_gone(receive))
        sent = _forwarded(headers)
        if "content-encoding" in headers:
            sent["content-encoding"] = headers["content-encoding"]
        try:
            async with await self._client.open(left, method, target, body or None, sent) as got:
                left.add_done_callback(lambda _: got.close())
                begun = True
                await send(_start(got.status, got.headers))
                async for data in got.content.iter_any():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except UNREACHABLE as failed:
            if left.done():
                return
            if begun:
                raise
            await _refuse(send, 502, f"the server behind the proxy does not answer: {type(failed).__name__}")
        finally:
            left.cancel()

    async def _how(self, headers: Mapping[str, str]) -> Upstream:
        """How the server is asked; as long as it does not say, as one without token ids."""
        if self._upstream.server == "auto":
            sent = {name: value for name, value in _forwarded(headers).items() if name != "content-type"}
            server = await self._client.server(sent)
            if server is None:
                return replace(self._upstream, server="none")
            self._upstream = replace(self._upstream, server=server)
        return self._upstream


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _unpacked(body: bytes, encoding: str | None, most: int) -> bytes:
    """The body decoded. Raises _Refused."""
    if (encoding or "identity").strip().lower() not in _ENCODINGS:
        raise _Refused(415, f"Content-Encoding {str(encoding)[:40]!r}; expected gzip, or none")
    try:
        return unpack(body, encoding, most)
    except BodyTooLarge as error:
        raise _Refused(413, str(error)) from error
    except MalformedBody as error:
        raise _Refused(400, str(error)) from error


def _redirected(location: str) -> str:
    """What a client is told of a redirection: where to, without what the address may hold of secrets."""
    try:
        read = urlsplit(location)
        shown = f"{read.scheme}://{read.netloc.rpartition('@')[2]}{read.path}" if read.netloc else read.path
    except ValueError:
        shown = ""
    return (
        f"the server behind the proxy sends chat calls on to {shown[:200] or 'another address'}; the proxy does not"
        " follow, as the client's key would go there: start it with that address (--proxy)"
    )


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
