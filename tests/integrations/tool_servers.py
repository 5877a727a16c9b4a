"""Langfuse, Phoenix and LangSmith on loopback, as far as verdicts are sent to them: who may send (401 else), which
paths there are, which fields a body must have, of what kinds, and what is replaced by what. They record every request.

Written from the tools' documented APIs and the types in their own SDKs; no server of theirs was run."""

from __future__ import annotations

import base64
import json
import threading
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

KEY, SECRET = "pk-lf-1", "sk-very-secret"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


class Refusal(Exception):
    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


def expect(holds: object, words: str, status: int = 422) -> None:
    if not holds:
        raise Refusal(status, words)


class ToolServer:
    """A server that answers `answer(request)`; after `most` requests it answers 503."""

    variables: ClassVar[dict[str, str]] = {}
    """What the environment of a client has to say, beside the address."""
    address: ClassVar[str]

    def __init__(self, known: Collection[str] | None = None, most: int | None = None) -> None:
        self.known, self.most = known, most
        self.port = 0
        self.requests: list[Request] = []
        self.kept: dict[Any, dict[str, Any]] = {}

    def answer(self, request: Request) -> tuple[int, Any]:
        raise NotImplementedError

    @contextmanager
    def running(self) -> Iterator[dict[str, str]]:
        """The environment that names the server."""
        tool = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                text = self.rfile.read(length)
                parts = urlsplit(self.path)
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = json.loads(text) if text else None
                request = Request(self.command, parts.path, parse_qs(parts.query), headers, body)
                tool.requests.append(request)
                try:
                    expect(tool.most is None or len(tool.requests) <= tool.most, "gone", 503)
                    status, answer = tool.answer(request)
                except Refusal as refusal:
                    status, answer = refusal.status, {"message": str(refusal)}
                sent = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            do_GET = do_POST = do_PATCH = _serve

            def log_message(self, format: str, *args: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = server.server_port  # started again, it is still the same tool
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield {**self.variables, self.address: f"http://127.0.0.1:{server.server_port}"}
        finally:
            server.shutdown()
            server.server_close()


class LangfuseServer(ToolServer):
    """`POST /api/public/scores` with a list: 202, or 207 with counts and words. A score is replaced by one of the same
    id and timestamp."""

    variables: ClassVar = {"LANGFUSE_PUBLIC_KEY": KEY, "LANGFUSE_SECRET_KEY": SECRET}
    address: ClassVar = "LANGFUSE_BASE_URL"
    fields: ClassVar = {"id", "traceId", "name", "value", "dataType", "comment", "metadata", "timestamp"}

    def answer(self, request: Request) -> tuple[int, Any]:
        given = base64.b64encode(f"{KEY}:{SECRET}".encode()).decode()
        expect(request.headers.get("authorization") == f"Basic {given}", "Invalid credentials", 401)
        expect((request.method, request.path) == ("POST", "/api/public/scores"), "no such path", 404)
        expect(isinstance(request.body, list) and request.body, "expected a list of scores", 400)
        errors = []
        for score in request.body:
            try:
                self._keep(score)
            except Refusal as refusal:
                errors.append({"message": str(refusal)})
        if not errors:
            return 202, {"message": "Accepted"}
        return 207, {"accepted": len(request.body) - len(errors), "rejected": len(errors), "errors": errors}

    def _keep(self, score: dict[str, Any]) -> None:
        expect(set(score) <= self.fields, f"unknown fields {sorted(set(score) - self.fields)}")
        expect(isinstance(score.get("name"), str) and score["name"], "name is required")
        expect(isinstance(score.get("traceId"), str), "traceId is required")
        expect(type(score.get("value")) in (int, float), "value must be a number")
        expect(score["dataType"] in ("NUMERIC", "BOOLEAN"), "dataType")
        expect(score["dataType"] == "NUMERIC" or score["value"] in (0, 1), "a boolean score is 0 or 1")
        expect(datetime.fromisoformat(score["timestamp"]).tzinfo is not None, "timestamp needs an offset")
        expect(self.known is None or score["traceId"] in self.known, "this trace is not wanted")
        self.kept[score["id"], score["timestamp"]] = score


class PhoenixServer(ToolServer):
    """`POST /v1/span_annotations?sync=true`: 200 with the ids, 404 where one span is not known. An annotation is
    replaced by one of the same span, name and identifier."""

    variables: ClassVar = {"PHOENIX_API_KEY": SECRET}
    address: ClassVar = "PHOENIX_COLLECTOR_ENDPOINT"

    def answer(self, request: Request) -> tuple[int, Any]:
        expect(request.headers.get("authorization") == f"Bearer {SECRET}", "Invalid token", 401)
        expect((request.method, request.path) == ("POST", "/v1/span_annotations"), "no such path", 404)
        expect(request.query.get("sync") == ["true"], "only a synchronous request says what became of it")
        data = request.body["data"]
        expect(isinstance(data, list) and data, "data must be a list")
        missing = sorted(
            {one["span_id"] for one in data if self.known is not None and one["span_id"] not in self.known}
        )
        expect(not missing, f"Spans with IDs {', '.join(missing)} do not exist.", 404)
        for one in data:
            expect(
                set(one) <= {"span_id", "name", "annotator_kind", "result", "metadata", "identifier"}, "extra fields"
            )
            expect(one["annotator_kind"] in ("LLM", "CODE", "HUMAN"), "annotator_kind")
            result = one["result"]
            expect(result and set(result) <= {"label", "score", "explanation"}, "result")
            expect(type(result.get("score")) in (int, float), "score")
            expect(all(isinstance(result.get(name, ""), str) for name in ("label", "explanation")), "texts")
            self.kept[one["span_id"], one["name"], one["identifier"]] = one
        return 200, {"data": [{"id": f"annotation-{number}"} for number in range(len(data))]}


class LangSmithServer(ToolServer):
    """`/info`, `POST /feedback` and `PATCH /feedback/ID`: 404 for a run or feedback that is not known, 409 for
    feedback that is there already."""

    variables: ClassVar = {"LANGSMITH_API_KEY": SECRET}
    address: ClassVar = "LANGSMITH_ENDPOINT"

    def answer(self, request: Request) -> tuple[int, Any]:
        if request.path == "/info":
            return 200, {"version": "0.12.0", "batch_ingest_config": {"use_multipart_endpoint": True}}
        expect(request.headers.get("x-api-key") == SECRET, "Invalid token", 401)
        if request.method == "PATCH":
            id = request.path.removeprefix("/feedback/")
            expect(id in self.kept, "Feedback not found", 404)
            expect(set(request.body) <= {"score", "value", "comment", "correction"}, "extra fields")
            self.kept[id] |= request.body
            return 200, self.kept[id]
        expect((request.method, request.path) == ("POST", "/feedback"), "no such path", 404)
        feedback = request.body
        for name in ("id", "run_id", "trace_id", "session_id"):
            expect(str(uuid.UUID(feedback[name])) == feedback[name], f"{name} is no UUID")
        expect(self.known is None or feedback["run_id"] in self.known, "Run not found", 404)
        expect(feedback["id"] not in self.kept, "Feedback already exists", 409)
        expect(isinstance(feedback.get("key"), str) and feedback["key"], "key is required")
        expect(type(feedback.get("score")) in (int, float), "score must be a number")
        expect(feedback["feedback_source"]["type"] in ("api", "model"), "feedback_source")
        self.kept[feedback["id"]] = feedback
        return 200, feedback


SERVERS: dict[str, type[ToolServer]] = {
    "langfuse": LangfuseServer,
    "phoenix": PhoenixServer,
    "langsmith": LangSmithServer,
}
