"""What receiving spans costs: 20-span traces of one growing dialogue, by HTTP into `cm2 serve` and in process.

    python -m tests.bench.bench_ingest            # one JSON line; a minute or two

By HTTP the server is a process of its own whose CPU is read; `acknowledged` ends when the last answer came (the spans
are committed), `readable` when every trace is a stored run. In process the spans are built and saved by the caller's
thread. `disk` is the size of the store's files a unique byte: messages, tool definitions and tokens counted once.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from cm2_agent.dialects.span_runs import runs_of
from cm2_agent.server import otlp_protobuf
from cm2_agent.store import SQLStore
from tests.server.crashing import HEADERS, Process
from tests.server.exported import chunks, dialogue, protobuf

TRACES = 20 * 26
PER_TRACE = 20


def payload(spans_a_request: int, *, tokens: bool, traces: int) -> list[bytes]:
    spans = [one for number in range(traces) for one in dialogue(f"d{number}", tokens=tokens)]
    return [protobuf(chunk) for chunk in chunks(spans, spans_a_request)]


def by_http(spans_a_request: int, *, tokens: bool, traces: int, clients: int = 4) -> dict[str, float]:
    bodies = payload(spans_a_request, tokens=tokens, traces=traces)
    with tempfile.TemporaryDirectory() as folder:
        server = Process(f"sqlite:///{folder}/cm2.db", "--quiet", "0.5", "--max-mb", "64")
        process = psutil.Process(server.process.pid)
        with httpx.Client(base_url=server.address, timeout=300) as client:
            for body in payload(20, tokens=tokens, traces=5):  # what is imported or compiled once
                client.post("/v1/traces", content=body.replace(b"d0", b"w0"), headers=HEADERS).raise_for_status()
            _until_stored(client, 0)
            start = _cpu(process)
            waiting = list(reversed(bodies))

            def send() -> None:
                with httpx.Client(base_url=server.address, timeout=300) as own:
                    while waiting:
                        try:
                            body = waiting.pop()
                        except IndexError:
                            return
                        own.post("/v1/traces", content=body, headers=HEADERS).raise_for_status()

            threads = [threading.Thread(target=send) for _ in range(clients)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            acknowledged = _cpu(process)
            _until_stored(client, traces)
            readable = _cpu(process)
        server.stop()
    count = PER_TRACE * traces
    return {
        "acknowledged": round(count / (acknowledged - start)),
        "readable": round(count / (readable - start)),
    }


def _until_stored(client: httpx.Client, traces: int) -> None:
    while True:
        found = client.get("/healthz").json()
        if found["open_traces"] == 0 and found["runs"] >= traces:
            return
        time.sleep(0.2)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def in_process(traces: int, *, tokens: bool) -> dict[str, float]:
    spans = [otlp_protobuf.decode(protobuf(dialogue(f"d{number}", tokens=tokens))).spans for number in range(traces)]
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/cm2.db"
        with SQLStore(url) as store:
            began = time.process_time()
            for start in range(0, traces, 64):
                store.save_runs([run for own in spans[start : start + 64] for run in runs_of(own).runs])
            took = time.process_time() - began
            unique = sum(_unique(trace) for trace in store.traces())
        disk = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {"spans_a_cpu_second": round(PER_TRACE * traces / took), "disk": round(disk / unique, 2)}


def _unique(trace: Any) -> int:
    """The bytes that nothing else of the dialogue holds: each message once, and the tokens that each call added."""
    size = sum(len(message.json_text.encode()) for message in trace.messages)
    seen = 0
    for call in trace.calls:
        if call.prompt_ids is not None:
            size += 4 * (len(call.prompt_ids) - seen + 2 * len(call.completion_ids))
            seen = len(call.prompt_ids) + len(call.completion_ids)
    return size


def main() -> None:
    traces = int(sys.argv[1]) if len(sys.argv) > 1 else TRACES
    result: dict[str, Any] = {
        "http_516": by_http(516, tokens=False, traces=traces),
        "http_512_tokens": by_http(512, tokens=True, traces=traces),
        "http_20_tokens": by_http(20, tokens=True, traces=traces),
        "in_process": in_process(traces, tokens=False),
        "in_process_tokens": in_process(traces, tokens=True),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
