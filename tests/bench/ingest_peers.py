"""Other servers that receive spans, for bench_ingest: each from the package index in an environment of its own, sent
the same spans, its CPU read in the same way."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.bench.peer_environment import installed
from tests.bench.server_cpu import cpu_of
from tests.server.exported import chunks, dialogue, protobuf

_START = 180.0
_WARM = 3
"""Traces that are sent before anything is measured."""
_IDLE = 3.0
"""Seconds without work after which a server has finished with what it acknowledged."""


def _stored_by_rollout(client: httpx.Client, resource: Mapping[str, str]) -> int:
    """How many spans agent-lightning holds of the rollout."""
    wanted: dict[str, str | int] = {"rollout_id": resource["agentlightning.rollout_id"], "limit": 1}
    return int(client.get("/v1/agl/spans", params=wanted).raise_for_status().json()["total"])


def _rollout(client: httpx.Client) -> dict[str, str]:
    """agent-lightning takes spans of a rollout alone, named on their resource."""
    begun = client.post("/v1/agl/rollouts", json={"input": "bench"}).raise_for_status().json()
    return {
        "agentlightning.rollout_id": begun["rollout_id"],
        "agentlightning.attempt_id": begun["attempt"]["attempt_id"],
    }


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A server: `command` follows its environment's folder of programs; PORT, SPARE (another port) and FOLDER stand for
    themselves in it and in `env`. `resource` says which attributes the spans' resource needs, `stored` how many spans
    the server holds of those with them; None: it is not asked."""

    name: str
    requirement: str
    command: Sequence[str]
    health: str
    env: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    resource: Callable[[httpx.Client], dict[str, str]] = lambda client: {}
    stored: Callable[[httpx.Client, Mapping[str, str]], int] | None = None
    note: str


PEERS = (
    Peer(
        name="agent-lightning",
        requirement="agentlightning",
        command=(
            "agl",
            "store",
            "--host",
            "127.0.0.1",
            "--port",
            "PORT",
            "--backend",
            "memory",
            "--log-level",
            "ERROR",
        ),
        health="/v1/agl/health",
        resource=_rollout,
        stored=_stored_by_rollout,
        note="in memory: nothing is written",
    ),
    Peer(
        name="phoenix",
        requirement="arize-phoenix",
        command=("phoenix", "serve"),
        health="/healthz",
        env={
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": "PORT",
            "PHOENIX_GRPC_PORT": "SPARE",
            "PHOENIX_WORKING_DIR": "FOLDER",
            "PHOENIX_TELEMETRY_ENABLED": "false",
        },
        note="answers before it has written",
    ),
    Peer(
        name="mlflow",
        requirement="mlflow",
        command=(
            *("mlflow", "server", "--host", "127.0.0.1", "--port", "PORT", "--workers", "1"),
            *("--backend-store-uri", "sqlite:///FOLDER/mlflow.db", "--default-artifact-root", "FOLDER/artifacts"),
        ),
        health="/health",
        headers={"x-mlflow-experiment-id": "0"},
        note="SQLite, as ours",
    ),
)


def measured(peer: Peer, folder: Path, *, traces: int, spans_a_request: int) -> dict[str, object]:
    """Spans a server-CPU-second, or the reason why there are none."""
    try:
        version = installed(peer.name, peer.requirement, folder)
        with _started(peer, folder) as (client, process):
            return {"version": version, **_sent(peer, client, process, traces, spans_a_request), "note": peer.note}
    except (OSError, httpx.HTTPError, KeyError, subprocess.SubprocessError) as error:
        return {"reason": f"{type(error).__name__}: {error}"[:300]}


def _sent(
    peer: Peer, client: httpx.Client, process: psutil.Process, traces: int, spans_a_request: int
) -> dict[str, object]:
    headers = {"Content-Type": "application/x-protobuf", **peer.headers}
    resource = peer.resource(client)

    def send(names: Sequence[str]) -> None:
        spans = [one for name in names for one in dialogue(name)]
        for chunk in chunks(spans, spans_a_request):
            body = protobuf(chunk, resource)
            client.post("/v1/traces", content=body, headers=headers).raise_for_status()

    send([f"w{number}" for number in range(_WARM)])  # what is imported or compiled once
    start = _idle(process)
    send([f"d{number}" for number in range(traces)])
    acknowledged = cpu_of(process)
    done = _idle(process)
    count = 20 * traces
    return {
        "spans": count,
        "acknowledged": round(count / max(0.01, acknowledged - start)),
        "until_idle": round(count / max(0.01, done - start)),
        **({} if peer.stored is None else {"stored": peer.stored(client, resource) - 20 * _WARM}),
    }


def _idle(process: psutil.Process) -> float:
    """The CPU that the server has used when it has nothing left to do."""
    last = cpu_of(process)
    while True:
        time.sleep(_IDLE)
        now = cpu_of(process)
        if now - last < 0.02 * _IDLE:
            return last
        last = now


@contextmanager
def _started(peer: Peer, folder: Path) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    with tempfile.TemporaryDirectory() as own:
        words = {"PORT": str(_free_port()), "SPARE": str(_free_port()), "FOLDER": own}

        def filled(text: str) -> str:
            for word, value in words.items():
                text = text.replace(word, value) if not text.startswith("PHOENIX_") else text
            return text

        program, *arguments = [filled(word) for word in peer.command]
        env = {**os.environ, **{name: filled(value) for name, value in peer.env.items()}}
        env.pop("PYTHONPATH", None)
        log = Path(own) / "log"
        with log.open("w") as output:
            command = [str(folder / peer.name / "bin" / program), *arguments]
            server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=own)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{words['PORT']}", timeout=300) as client:
                _wait(peer, client, server, log)
                yield client, psutil.Process(server.pid)
        finally:
            _end(server)


def _wait(peer: Peer, client: httpx.Client, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START
    while True:
        try:
            if client.get(peer.health).is_success:
                return
        except httpx.TransportError:
            pass
        if server.poll() is not None or time.monotonic() > deadline:
            raise OSError(f"does not answer: {(log.read_text().strip() or 'it says nothing').splitlines()[-1][:200]}")
        time.sleep(1)


def _end(server: subprocess.Popen[bytes]) -> None:
    below = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    for child in below:
        if child.is_running():
            child.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
