"""One agent, the order desk of `tests/dialects/order_server`, through every door into the store.

What each door is given, and where that comes from:

- `watch`, `observe`, `proxy`: the agent runs, on LangGraph or as a hand-written loop on the OpenAI client.
- `otlp`, `otlp-openinference`: spans that the official GenAI instrumentation and OpenInference's have recorded
  (`make spans`), sent to a collector in OTLP's protobuf.
- `langsmith`: the requests of LangChain's own tracer to LangSmith, on loopback; a run is what was posted and patched of
  it, as `client.list_runs` has it.
- `langfuse`: the spans that Langfuse's own handler sends, on loopback; an observation is built of a span as Langfuse
  documents it (`langfuse.observation.*`), by the names of its API's observations.
- `phoenix`: OpenInference's recorded spans as rows of `GET /v1/projects/…/spans`, built by the documented names.
- `langsmith-calls`, `langfuse-calls`, `phoenix-calls`: the same of a hand-written loop on their wrappers of the OpenAI
  client, in which every model call is a trace of its own and nothing says what belongs together.
- `chat`: the messages of the OpenAI API, a line.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from openai import OpenAI
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from cm2_agent import SQLStore, Trace, flush, observe, watch
from cm2_agent.cli.app import app
from cm2_agent.dialects.span_record import SpanRecord
from cm2_agent.importers.openai_messages import read_messages
from cm2_agent.types.run import Run
from tests.cli_runner import CliRunner
from tests.dialects.order_server import MODEL, SYSTEM, TOOLS, TURNS, OrderServer, dialogue, get_order, loop, running
from tests.server.exported import protobuf
from tests.server.running import collecting

SPANS = Path(__file__).resolve().parents[1] / "dialects" / "recorded"
THREAD = "thread-1"
Rows = list[dict[str, Any]]
Sent = list[tuple[str, str, bytes]]
"""What an address got: method, path, body."""


def expected() -> Trace:
    """The dialogue that all of them recorded."""
    return Trace(id="t", runs=(Run(id="r", messages=read_messages(dialogue())),))


def agent(server: OrderServer) -> Any:
    model: Any = ChatOpenAI(model=MODEL, base_url=server.base_url, api_key="none", max_retries=0)  # type: ignore[arg-type]
    return create_agent(model, [tool(get_order)], system_prompt=SYSTEM, checkpointer=InMemorySaver())


def play(graph: Any, **config: Any) -> None:
    for turn in TURNS:
        graph.invoke({"messages": [("user", turn)]}, {"configurable": {"thread_id": THREAD}, **config})


def talk(client: OpenAI, **settings: Any) -> None:
    messages: list[Any] = [{"role": "system", "content": SYSTEM}]
    for turn in range(len(TURNS)):
        loop(client.chat.completions.create, turn, messages, **settings)


def stored(url: str) -> list[Trace]:
    with SQLStore(url) as store:
        return list(store.traces())


def imported(folder: Path, rows: Rows, format: str) -> list[Trace]:
    """`cm2 import FILE`, which has to see the format."""
    file, url = folder / f"{format}.jsonl", f"sqlite:///{folder / f'{format}.db'}"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = CliRunner().invoke(app, ["import", str(file), "--store", url, "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["format"] == format
    return stored(url)


def watched(server: OrderServer, folder: Path) -> list[Trace]:
    url = f"sqlite:///{folder / 'watch.db'}"
    play(watch(agent(server), store=url))
    assert flush(60)
    return stored(url)


def observed(server: OrderServer, folder: Path) -> list[Trace]:
    url = f"sqlite:///{folder / 'observe.db'}"
    talk(observe(OpenAI(base_url=server.base_url, api_key="none", max_retries=0), store=url))
    assert flush(60)
    return stored(url)


def proxied(server: OrderServer, folder: Path) -> list[Trace]:
    url = f"sqlite:///{folder / 'proxy.db'}"
    with SQLStore(url) as store, collecting(store, proxy_url=server.base_url) as proxy:
        talk(OpenAI(base_url=f"{proxy.address}/v1", api_key="none", max_retries=0))
        proxy.flush()
    return stored(url)


def recorded(name: str) -> list[SpanRecord]:
    return [SpanRecord.from_json(span) for span in json.loads((SPANS / f"{name}.json").read_text(encoding="utf-8"))]


def collected(server: OrderServer, folder: Path, name: str = "openai-v2") -> list[Trace]:
    url = f"sqlite:///{folder / f'{name}.db'}"
    spans = [
        {
            "trace": span.trace_id,
            "span": span.span_id,
            "parent": span.parent_id,
            "name": span.name,
            "start": span.start,
            "end": span.end,
            "attributes": span.attributes,
        }
        for span in recorded(name)
    ]
    with SQLStore(url) as store, collecting(store) as collector:
        answer = collector.send(protobuf(spans))
        assert answer.status_code == 200, answer.text
        collector.flush()
    return stored(url)


def openinference_collected(server: OrderServer, folder: Path) -> list[Trace]:
    return collected(server, folder, "openinference-langchain")


@contextmanager
def listening() -> Iterator[tuple[str, Sent]]:
    """An address that takes whatever is sent, and the list of it."""
    got: Sent = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _take(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            zipped = self.headers.get("Content-Encoding") == "gzip"
            got.append((self.command, self.path, gzip.decompress(body) if zipped else body))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_PATCH = do_GET = _take

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        server.server_close()


def langsmith_runs(server: OrderServer) -> Rows:
    from langchain_core.tracers import LangChainTracer
    from langchain_core.tracers.langchain import wait_for_all_tracers
    from langsmith import Client

    with listening() as (url, got):
        client = Client(api_url=url, api_key="none", auto_batch_tracing=False, info={"version": "0.12.0"})
        play(agent(server), callbacks=[LangChainTracer(client=client, project_name="desk")])
        wait_for_all_tracers()
    return _runs(got)


def langsmith_calls(server: OrderServer) -> Rows:
    from langsmith import Client, tracing_context
    from langsmith.wrappers import wrap_openai

    with listening() as (url, got):
        client = Client(api_url=url, api_key="none", auto_batch_tracing=False, info={"version": "0.12.0"})
        openai = OpenAI(base_url=server.base_url, api_key="none", max_retries=0)
        with tracing_context(enabled=True, client=client, project_name="desk"):
            talk(wrap_openai(openai))
    return _runs(got)


def _runs(got: Sent) -> Rows:
    runs: dict[str, dict[str, Any]] = {}
    for _, _, body in got:
        sent = json.loads(body)
        runs.setdefault(sent["id"], {}).update(sent)
    return list(runs.values())


def langfuse_observations(server: OrderServer) -> Rows:
    from langfuse.langchain import CallbackHandler

    return _observations(lambda key: play(agent(server), callbacks=[CallbackHandler(public_key=key)]))


def langfuse_generations(server: OrderServer) -> Rows:
    """In a process of its own: importing Langfuse's client changes OpenAI's for the whole process."""
    command = [sys.executable, "-m", "tests.bench.doors", server.base_url]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    rows: Rows = json.loads(done.stdout)
    return rows


def _generations(base_url: str) -> Rows:
    from langfuse.openai import OpenAI as Traced  # type: ignore[attr-defined]

    client = Traced(base_url=base_url, api_key="none", max_retries=0)
    return _observations(lambda key: talk(client, langfuse_public_key=key))


def _observations(work: Callable[[str], None]) -> Rows:
    """What Langfuse has after some work that is traced by the client of a key."""
    from langfuse import Langfuse
    from opentelemetry.sdk.trace import TracerProvider

    with listening() as (url, got):
        key = f"pk-{url.rpartition(':')[2]}"
        client = Langfuse(public_key=key, secret_key="sk", base_url=url, tracer_provider=TracerProvider())
        work(key)
        client.flush()
        client.shutdown()
    requests = [ExportTraceServiceRequest.FromString(body) for _, path, body in got if path.endswith("/v1/traces")]
    every = (scope for request in requests for resource in request.resource_spans for scope in resource.scope_spans)
    return [_observation(span) for scope in every for span in scope.spans]


def _observation(span: Any) -> dict[str, Any]:
    values = {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}
    prefix = "langfuse.observation."
    own = {key.removeprefix(prefix): _read(value) for key, value in values.items() if key.startswith(prefix)}
    return {
        "id": span.span_id.hex(),
        "traceId": span.trace_id.hex(),
        "projectId": "desk",
        "parentObservationId": span.parent_span_id.hex() or None,
        "isRootObservation": not span.parent_span_id,
        "type": str(own["type"]).upper(),
        "name": span.name,
        "level": own.get("level", "DEFAULT"),
        "startTime": _time(span.start_time_unix_nano),
        "endTime": _time(span.end_time_unix_nano),
        "input": own.get("input"),
        "output": own.get("output"),
        "model": own.get("model.name"),
        "usageDetails": own.get("usage_details"),
        "metadata": {key.removeprefix("metadata."): one for key, one in own.items() if key.startswith("metadata.")},
        "sessionId": values.get("session.id"),
        "userId": values.get("user.id"),
    }


def _read(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _time(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat().replace("+00:00", "Z")


def phoenix_spans(server: OrderServer) -> Rows:
    return _phoenix("openinference-langchain")


def phoenix_calls(server: OrderServer) -> Rows:
    """Without the session, by which the application said what belongs together."""
    rows = _phoenix("openinference-openai")
    for row in rows:
        del row["attributes"]["session.id"]
    return rows


def _phoenix(name: str) -> Rows:
    return [
        {
            "id": f"U3Bhbjo{number}",
            "name": span.name,
            "context": {"trace_id": span.trace_id, "span_id": span.span_id},
            "span_kind": span.attributes["openinference.span.kind"],
            "parent_id": span.parent_id,
            "start_time": _time(span.start),
            "end_time": _time(span.end),
            "status_code": span.status.upper(),
            "status_message": span.status_message or "",
            "attributes": dict(span.attributes),
            "events": [],
        }
        for number, span in enumerate(recorded(name))
    ]


def chats(server: OrderServer) -> Rows:
    return [{"messages": dialogue(), "tools": TOOLS}]


FILES: dict[str, tuple[str, Callable[[OrderServer], Rows]]] = {
    "langfuse": ("langfuse", langfuse_observations),
    "langsmith": ("langsmith", langsmith_runs),
    "phoenix": ("phoenix", phoenix_spans),
    "langfuse-calls": ("langfuse", langfuse_generations),
    "langsmith-calls": ("langsmith", langsmith_calls),
    "phoenix-calls": ("phoenix", phoenix_calls),
    "chat": ("openai", chats),
}
"""The doors of `cm2 import`: the format that it has to see, and the rows."""
LIVE: dict[str, Callable[[OrderServer, Path], list[Trace]]] = {
    "watch": watched,
    "observe": observed,
    "proxy": proxied,
    "otlp": collected,
    "otlp-openinference": openinference_collected,
}
DOORS = (*LIVE, *FILES)


def through(door: str, folder: Path) -> list[Trace]:
    """What the store holds after the dialogue came in by this door."""
    with running() as server:
        if door in LIVE:
            return LIVE[door](server, folder)
        format, rows = FILES[door]
        return imported(folder, rows(server)[::-1], format)  # as the tools' own lists are: the newest first


if __name__ == "__main__":
    print(json.dumps(_generations(sys.argv[1])))

__all__ = ["DOORS", "expected", "through"]
