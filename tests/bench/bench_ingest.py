"""What receiving spans costs: 20-span traces of one growing dialogue, by HTTP into `cm2 serve` and in process.

    python -m tests.bench.bench_ingest [TRACES] [--peers FOLDER]      # one JSON line; a minute or two

By HTTP the server is a process of its own whose CPU is read; `acknowledged` ends when the last answer came (the spans
are committed), `readable` when every trace is a stored run, as the store is then asked: `complete` says that it holds
every trace with the hash of what was sent. In process the spans are built and saved by the caller's thread.

`disk` is the size of the store's files by the unique bytes of its traces: the JSON of each message of a dialogue once,
however many spans show it, and 4 bytes for each token and logprob that a call added. `disk` by HTTP is the same right
after the load, where the spans still wait for late ones (`cm2 serve --late`).

With `--peers` other servers get the same spans (516 a request, without tokens): they are installed below FOLDER, each
in an environment of its own, and where one cannot be, the reason is printed. `until_idle` ends when the server has no
work left. `load` is the machine's load average before and after: other processes make a CPU-second shorter.
"""

from __future__ import annotations

import argparse
import json
import os
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
from tests.bench.ingest_peers import PEERS, measured
from tests.bench.server_cpu import cpu_of
from tests.server.crashing import HEADERS, Process
from tests.server.exported import chunks, dialogue, protobuf

TRACES = 20 * 26
PER_TRACE = 20
WARM = 5
"""Traces that are sent before anything is measured."""
PEERS_TRACES = 104
"""Traces that other servers are sent: some take a hundred times as long."""


def payload(spans_a_request: int, *, tokens: bool, traces: int, name: str = "d") -> list[bytes]:
    spans = [one for number in range(traces) for one in dialogue(f"{name}{number}", tokens=tokens)]
    return [protobuf(chunk) for chunk in chunks(spans, spans_a_request)]


def by_http(spans_a_request: int, *, tokens: bool, traces: int, clients: int = 4) -> dict[str, Any]:
    bodies = payload(spans_a_request, tokens=tokens, traces=traces)
    with tempfile.TemporaryDirectory() as folder:
        server = Process(f"sqlite:///{folder}/cm2.db", "--quiet", "0.5", "--max-mb", "64")
        process = psutil.Process(server.process.pid)
        with httpx.Client(base_url=server.address, timeout=300) as client:
            for body in payload(20, tokens=tokens, traces=WARM, name="w"):  # what is imported or compiled once
                client.post("/v1/traces", content=body, headers=HEADERS).raise_for_status()
            _until_stored(client, WARM)
            start = cpu_of(process)
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
            acknowledged = cpu_of(process)
            _until_stored(client, WARM + traces)
            readable = cpu_of(process)
        server.stop()
        with SQLStore(f"sqlite:///{folder}/cm2.db") as store:
            found = list(store.traces())
        wanted = _hashes(traces, tokens=tokens)
        complete = len(found) == traces + WARM and wanted <= {trace.content_hash for trace in found}
        disk = _disk(folder, sum(_unique(trace) for trace in found))
    count = PER_TRACE * traces
    return {
        "acknowledged": round(count / (acknowledged - start)),
        "readable": round(count / (readable - start)),
        "complete": complete,
        "disk": disk,
    }


def _until_stored(client: httpx.Client, traces: int) -> None:
    while True:
        found = client.get("/healthz").json()
        if found["open_traces"] == 0 and found["runs"] >= traces:
            return
        time.sleep(0.2)


def _hashes(traces: int, *, tokens: bool) -> set[str]:
    """The content hashes of the traces as they are built out of the spans that are sent."""
    spans = [otlp_protobuf.decode(protobuf(dialogue(f"d{number}", tokens=tokens))).spans for number in range(traces)]
    return {trace.content_hash for own in spans for trace in runs_of(own).traces}


def _disk(folder: str, unique: int) -> float:
    return round(sum(path.stat().st_size for path in Path(folder).iterdir()) / unique, 2)


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
        disk = _disk(folder, unique)
    return {"spans_a_cpu_second": round(PER_TRACE * traces / took), "disk": disk}


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
    parser = argparse.ArgumentParser()
    parser.add_argument("traces", nargs="?", type=int, default=TRACES)
    parser.add_argument("--peers", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    traces: int = given.traces
    load = os.getloadavg()[0]
    result: dict[str, Any] = {
        "http_516": by_http(516, tokens=False, traces=traces),
        "http_512_tokens": by_http(512, tokens=True, traces=traces),
        "http_20_tokens": by_http(20, tokens=True, traces=traces),
        "in_process": in_process(traces, tokens=False),
        "in_process_tokens": in_process(traces, tokens=True),
    }
    if given.peers is not None:
        given.peers.mkdir(parents=True, exist_ok=True)
        folder = given.peers.resolve()
        result["peers"] = {
            peer.name: measured(peer, folder, traces=min(traces, PEERS_TRACES), spans_a_request=516) for peer in PEERS
        }
    print(json.dumps({**result, "load": [round(load, 1), round(os.getloadavg()[0], 1)]}))


if __name__ == "__main__":
    main()
