"""`POST /v1/traces`: OTLP over HTTP, as protobuf and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from cm2_agent.server import otlp_json, otlp_protobuf
from cm2_agent.server.access import bearer
from cm2_agent.server.body import BodyTooLarge, unpack
from cm2_agent.server.collector import Collector
from cm2_agent.server.decoded import Decoded
from cm2_agent.server.intake import IntakeFull

__all__ = ["receive", "whole_body"]

# google.rpc.Code, which OTLP's errors hold
_CODES = {400: 3, 401: 16, 403: 7, 413: 8, 415: 3, 429: 8, 503: 14}


@dataclass(frozen=True)
class _Form:
    """One of the two encodings of OTLP."""

    media_type: str
    decode: Callable[[bytes], Decoded]
    answer: Callable[[Decoded], bytes]
    error: Callable[[int, str], bytes]


_FORMS = {
    form.media_type: form
    for form in (
        _Form("application/x-protobuf", otlp_protobuf.decode, otlp_protobuf.answer, otlp_protobuf.status_bytes),
        _Form(
            "application/json",
            otlp_json.decode,
            otlp_json.answer,
            lambda code, message: orjson.dumps({"code": code, "message": message}),
        ),
    )
}
_JSON = _FORMS["application/json"]
_TOO_MANY = "too many spans; send them again later"


async def receive(collector: Collector, request: Request) -> Response:
    """One export request: answered when its spans are committed."""
    headers = request.headers
    form = _FORMS.get(headers.get("content-type", "").partition(";")[0].strip().lower())
    if form is None:
        kinds = " or ".join(_FORMS)
        return _refusal(_JSON, 415, f"Content-Type {headers.get('content-type', '')[:60]!r}; expected {kinds}")
    allowed = collector.access.find(bearer(headers.get("authorization")), "ingest")
    if allowed is None:
        words = "expected the header Authorization: Bearer TOKEN, with a token of scope ingest (cm2 token create)"
        return _refusal(form, 401, words, {"WWW-Authenticate": "Bearer"})
    if collector.draining:
        return _refusal(form, 503, "the collector is shutting down", {"Retry-After": "5"})
    wait = collector.rates.wait(allowed.project)
    if wait or collector.intake.is_full:
        return _refusal(form, 429, _TOO_MANY, {"Retry-After": str(max(1, round(wait)))})
    settings = collector.settings
    try:
        with collector.intake.reading() as held:
            body = await whole_body(request, settings.most_body, held.add)
    except BodyTooLarge as error:
        return _refusal(form, 413, str(error))
    except IntakeFull:
        return _refusal(form, 429, _TOO_MANY, {"Retry-After": "1"})
    except ClientDisconnect:
        return Response(status_code=400)
    encoding = headers.get("content-encoding")

    def decode() -> Decoded:
        unpacked = unpack(body, encoding, settings.most_unpacked)
        decoded = form.decode(unpacked)
        decoded.size = len(unpacked)
        return decoded

    outcome = await collector.intake.take(allowed.project, decode, len(body))
    if outcome.decoded is None:
        again = {"Retry-After": "1"} if outcome.status == 503 else {}
        return _refusal(form, outcome.status, outcome.message, again)
    collector.rates.spend(allowed.project, len(outcome.decoded.spans))
    return Response(form.answer(outcome.decoded), media_type=form.media_type)


async def whole_body(request: Request, most: int, came: Callable[[int], None] = lambda size: None) -> bytes:
    """The body of a request; `came` is told the size of each piece. Raises BodyTooLarge before more than `most` bytes
    were read."""
    stated = request.headers.get("content-length", "0")
    if not stated.isdigit() or int(stated) > most:
        raise BodyTooLarge(f"the body is larger than {most} bytes; send fewer spans at a time")
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > most:
            raise BodyTooLarge(f"the body is larger than {most} bytes; send fewer spans at a time")
        came(len(piece))
        pieces.append(piece)
    return b"".join(pieces)


def _refusal(form: _Form, status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    content: Any = form.error(_CODES.get(status, 2), message)
    return Response(content, status_code=status, headers=headers, media_type=form.media_type)
