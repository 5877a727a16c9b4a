"""A collector whose disk is full, whose database is locked, and that sixteen clients send to at once."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

from cm2_agent.store import SQLStore
from tests.server.crashing import HEADERS, Load, Process, stored_spans
from tests.server.exported import chunks, dialogue, protobuf

Spans = Sequence[dict[str, Any]]
_DISK = 8 << 20


class Room(NamedTuple):
    """A folder whose disk can be filled, and emptied again."""

    folder: Path
    kind: str
    fill: Callable[[int], None]
    empty: Callable[[int], None]


@contextmanager
def room() -> Iterator[Room]:
    """A small disk of its own where one may be mounted; else a limit on the size of the server's files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", name]
        if os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0:
            filler = folder / "filler"

            def fill(server: int) -> None:
                with suppress(OSError), filler.open("wb", buffering=0) as file:
                    while True:
                        file.write(b"\0" * 4096)

            try:
                yield Room(folder, "tmpfs", fill, lambda server: filler.unlink())
            finally:
                subprocess.run(["umount", name], check=True)
        else:
            largest = psutil.RLIM_INFINITY

            def limit(server: int, size: int) -> None:
                psutil.Process(server).rlimit(psutil.RLIMIT_FSIZE, (size, largest))

            def stop(server: int) -> None:
                limit(server, max(file.stat().st_size for file in folder.iterdir()))

            yield Room(folder, "RLIMIT_FSIZE", stop, lambda server: limit(server, largest))


def _send(address: str, pieces: Iterable[Spans], clients: int = 4) -> tuple[list[Spans], list[Spans], Counter[str]]:
    """Each piece once: which were acknowledged, which not, and how often each status came, with its Retry-After."""
    waiting, acknowledged, refused = list(pieces), list[Spans](), list[Spans]()
    statuses = Counter[str]()

    def client() -> None:
        with httpx.Client(base_url=address, timeout=120) as connection:
            while waiting:
                try:
                    piece = waiting.pop()
                except IndexError:
                    return
                answer = connection.post("/v1/traces", content=protobuf(piece), headers=HEADERS)
                (acknowledged if answer.is_success else refused).append(piece)
                again = answer.headers.get("Retry-After")
                statuses[f"{answer.status_code}" + ("" if again is None else f", Retry-After {again}")] += 1

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return acknowledged, refused, statuses


def _settled(server: Process) -> int:
    """Wait until every trace is stored, which the drain at the end may not have the time for; the server's exit."""
    while httpx.get(f"{server.address}/healthz", timeout=60).json()["open_traces"]:
        time.sleep(0.2)
    return server.stop()


def _compare(url: str, pieces: Iterable[Spans]) -> dict[str, int]:
    with SQLStore(url) as store:
        found = stored_spans(store)
    sent = {(one["trace"], one["span"]) for piece in pieces for one in piece}
    return {
        "acknowledged": len(sent),
        "lost": len([one for one in sent if not found[one]]),
        "twice": len([one for one in sent if found[one] > 1]),
    }


def full_disk(dialogues: int = 60) -> dict[str, object]:
    """Half of the spans are sent, the disk is filled, all others are sent until nothing is taken any more; then there
    is room again, and what was refused is sent again."""
    pieces = [piece for number in range(dialogues) for piece in chunks(dialogue(f"full{number}", words=8), 5)]
    half = len(pieces) // 2
    with room() as disk:
        url = f"sqlite:///{disk.folder}/cm2.db"
        server = Process(url, "--quiet", "0.2")
        taken, left, _ = _send(server.address, pieces[:half])
        assert not left
        disk.fill(server.process.pid)
        more, left, statuses = _send(server.address, pieces[half:])
        alive = httpx.get(f"{server.address}/healthz", timeout=60).status_code
        disk.empty(server.process.pid)
        last, lost, _ = _send(server.address, left)
        code = _settled(server)
        compared = _compare(url, [*taken, *more, *last])
    return {
        "disk": disk.kind,
        "answers": dict(sorted(statuses.items())),
        "healthz": alive,
        **compared,
        "refused_at_last": len(lost),
        "exit": code,
    }


def locked(seconds: float = 30.0, clients: int = 110) -> dict[str, object]:
    """Another process holds the database's lock while more is sent than may wait; then it lets go."""
    names = [[f"l{client}.{number}" for number in range(8)] for client in range(clients)]
    pieces = [[one for name in own for one in dialogue(name, words=200)] for own in names]
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/cm2.db"
        server = Process(url, "--quiet", "0.2")
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        other = sqlite3.connect(f"{folder}/cm2.db", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        seen = [(before, process.num_threads())]

        def hold() -> None:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(0.2)
                seen.append((process.memory_info().rss, process.num_threads()))
            other.execute("COMMIT")

        holder = threading.Thread(target=hold)
        holder.start()
        taken, left, statuses = _send(server.address, pieces, clients)
        holder.join()
        last, lost, _ = _send(server.address, left)
        code = _settled(server)
        compared = _compare(url, [*taken, *last])
    megabytes = round(sum(len(protobuf(piece)) for piece in pieces) / 1e6)
    return {
        "seconds": seconds,
        "sent_mb": megabytes,
        "answers": dict(sorted(statuses.items())),
        "rss_mb": [round(before / 1e6), round(max(rss for rss, _ in seen) / 1e6)],
        "threads": max(count for _, count in seen),
        **compared,
        "refused_at_last": len(lost),
        "exit": code,
    }


def at_once(writers: int = 16) -> dict[str, object]:
    """So many clients at once, spans in any order."""
    load = Load(160, seed=3, clients=writers)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/cm2.db"
        server = Process(url, "--quiet", "0.2")
        load.send(server.address)
        code = _settled(server)
        compared = _compare(url, load.acknowledged)
    return {"writers": writers, **compared, "exit": code}
