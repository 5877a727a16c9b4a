"""What the proxy costs: 32 clients stream from a stub of vLLM directly and through `cm2 serve --proxy`.

    python -m tests.bench.bench_proxy                  # one JSON line; three minutes
    python -m tests.bench.bench_proxy --peers FOLDER   # LiteLLM's and agent-lightning's proxies too, installed there

Stub, proxies and clients are processes of their own, and the stub is bound by its CPU. `ratio` is the share of the
direct throughput that is left, the median of alternating rounds. It depends on what the stub spends on a chunk, which
is printed beside it as `cpu_us_a_token`:

- `server`, the headline: the code that vLLM's API server runs for a chunk, less engine and tokenizer (25 µs).
- `busy`: the same with 200 µs more, as a server that follows a grammar or gives twenty logprobs a token.
- `lean`: written by hand, cheaper than any server (11 µs).

`cpu_ms` is the proxy's CPU for a call of one chunk, all of it, to the row in the store: what comes before the first
byte is a part of that. Where other programs keep the cores busy the ratio is theirs (above 1, where they left the
direct rounds less); the CPU figures are not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.bench.peer_environment import installed
from tests.bench.proxy_peers import PEERS, started
from tests.server.crashing import Process

CLIENTS, TOKENS, ROUNDS = 32, 64, 7
FEW = 1
"""Calls of each client where a token takes longer than a tenth of a millisecond."""
CHAT = "/v1/chat/completions"
STUBS = {"server": ("server", 0, 6), "busy": ("server", 200, FEW), "lean": ("lean", 0, 6)}
"""Their kind, the microseconds more a chunk, and the calls of each client."""
HEADLINE = "server"


@contextmanager
def stub(name: str) -> Iterator[tuple[int, int]]:
    """A stub's port and process."""
    kind, busy, _ = STUBS[name]
    command = [sys.executable, "-m", "tests.bench.proxy_stubs", kind, str(busy)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.kill()
        process.wait()


@contextmanager
def proxied(port: int) -> Iterator[tuple[int, int]]:
    """The port and the process of `cm2 serve --proxy` in front of a port."""
    with tempfile.TemporaryDirectory() as folder:
        options = ("--proxy", f"http://127.0.0.1:{port}/v1", "--quiet", "1")
        proxy = Process(f"sqlite:///{folder}/cm2.db", *options)
        try:
            yield int(proxy.address.rpartition(":")[2]), proxy.process.pid
        finally:
            proxy.stop()


def load(
    port: int, path: str = CHAT, *, count: int = CLIENTS, calls: int, tokens: int = TOKENS, asks: int = 1
) -> float:
    """Have clients call, and give the tokens a second."""
    arguments = [str(one) for one in (port, path, count, calls, tokens, asks)]
    command = [sys.executable, "-m", "tests.bench.proxy_clients", *arguments]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return float(found["tokens"] / found["seconds"])


def cpu(pid: int) -> float:
    """The CPU seconds of a process and its children."""
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def a_token(pid: int, port: int, path: str = CHAT, *, calls: int, after: float = 0.0, asks: int = 1) -> float:
    """Microseconds of CPU that the process spends on a token under load, and in the seconds `after` it."""
    began = cpu(pid)
    load(port, path, calls=calls, asks=asks)
    time.sleep(after)
    return round(1e6 * (cpu(pid) - began) / (CLIENTS * calls * TOKENS), 1)


def against(kind: str, peers: Path | None) -> dict[str, Any]:
    """The figures with one stub."""
    skipped: dict[str, str] = {}
    versions: dict[str, str] = {}
    with ExitStack() as opened:
        direct, server = opened.enter_context(stub(kind))
        time.sleep(3)
        own, process = opened.enter_context(proxied(direct))
        ways: dict[str, tuple[int, int, str]] = {"cm2": (own, process, CHAT)}
        for peer in PEERS if peers is not None else ():
            assert peers is not None
            try:
                versions[peer.name] = installed(peer.name, peer.requirement, peers)
                ways[peer.name] = (*opened.enter_context(started(peer, peers, direct)), peer.path)
            except OSError as error:
                skipped[peer.name] = str(error)
        for port, _, path in ((direct, server, CHAT), *ways.values()):
            load(port, path, calls=1)  # what is imported or connected once
        most = STUBS[kind][2]
        calls = {name: most if name == "cm2" else FEW for name in ways}
        rounds: list[dict[str, float]] = []
        for _ in range(ROUNDS):
            plain = load(direct, calls=most)
            rounds.append({name: load(port, path, calls=calls[name]) / plain for name, (port, _, path) in ways.items()})
        result: dict[str, Any] = {
            "ratio": {name: round(statistics.median(one[name] for one in rounds), 3) for name in ways},
            "ratios_cm2": [round(one["cm2"], 3) for one in rounds],
            "direct_tokens_a_second": round(load(direct, calls=most)),
            "cpu_us_a_token": {"stub": a_token(server, direct, calls=most)},
        }
        spent = result["cpu_us_a_token"]
        for name, (port, pid, path) in ways.items():
            spent[name] = a_token(pid, port, path, calls=calls[name], after=5 if name == "cm2" else 0)
        if kind == HEADLINE:
            spent["cm2_ids_not_asked_for"] = a_token(process, own, calls=most, after=5, asks=0)
            began = cpu(process)
            load(own, count=1, calls=400, tokens=1)
            time.sleep(5)
            result["cpu_ms"] = round(1000 * (cpu(process) - began) / 400, 2)
    notes = {peer.name: peer.note for peer in PEERS if peer.note and peer.name in ways}
    return result | {
        key: value for key, value in (("peers", versions), ("notes", notes), ("skipped", skipped)) if value
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="install other proxies below this folder and measure them too")
    given = parser.parse_args()
    if given.peers is not None:
        given.peers.mkdir(parents=True, exist_ok=True)
    found = {}
    for kind in STUBS:
        found[kind] = against(kind, given.peers if kind != "lean" else None)
        print(json.dumps({kind: found[kind]}), file=sys.stderr, flush=True)
    headline = found[HEADLINE]
    shown = {"ratio": headline["ratio"]["cm2"], "stub": HEADLINE, "cpu_ms": headline.pop("cpu_ms"), "clients": CLIENTS}
    print(json.dumps({**shown, "stubs": found}))


if __name__ == "__main__":
    main()
