"""A collector in a process of its own that is killed under load, and what its store holds afterwards."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx

from cm2_agent.store import SQLStore
from tests.server.exported import chunks, dialogue, protobuf

COMMAND = "from cm2_agent.cli import main; main()"
HEADERS = {"Content-Type": "application/x-protobuf"}


class Process:
    """`cm2 serve` on a free port."""

    def __init__(self, url: str, *options: str) -> None:
        arguments = ["serve", "--store", url, "--port", "0", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments], stderr=subprocess.PIPE, text=True, env={**os.environ}
        )
        assert self.process.stderr is not None
        line, said = "", ""
        while "serving http://" not in line:
            line = self.process.stderr.readline()
            said += line
            assert line, f"the collector did not start: {said}"
        self.address = line.split()[1]
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and wait for the drain."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(300)


class Load:
    """Clients that send dialogues in pieces, and send a piece again until it was acknowledged."""

    def __init__(self, dialogues: int, seed: int, *, clients: int = 4) -> None:
        draw = random.Random(seed)
        self.pieces: list[Sequence[dict[str, Any]]] = []
        for number in range(dialogues):
            spans = dialogue(f"{seed}/{number}", calls=draw.randint(2, 5), tokens=bool(number % 2), words=8)
            draw.shuffle(spans)
            self.pieces += chunks(spans, draw.randint(1, 6))
        draw.shuffle(self.pieces)
        self.acknowledged: list[Sequence[dict[str, Any]]] = []
        self._lock = threading.Lock()
        self._clients = clients

    def send(self, address: str, *, stop_after: int | None = None, on_stop: Any = None) -> None:
        """Send what is left; after `stop_after` more acknowledged pieces call `on_stop`, and return when all clients
        have met the end of the server."""
        goal = None if stop_after is None else len(self.acknowledged) + stop_after

        def client() -> None:
            with httpx.Client(base_url=address, timeout=60) as connection:
                while True:
                    with self._lock:
                        if not self.pieces:
                            return
                        piece = self.pieces.pop()
                    try:
                        taken = connection.post("/v1/traces", content=protobuf(piece), headers=HEADERS).is_success
                    except httpx.HTTPError:
                        taken = False
                    with self._lock:
                        (self.acknowledged if taken else self.pieces).append(piece)
                        reached = goal is not None and len(self.acknowledged) >= goal
                    if not taken:
                        return
                    if reached and on_stop is not None:
                        on_stop()
                        return

        threads = [threading.Thread(target=client) for _ in range(self._clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def stored_spans(store: SQLStore) -> Counter[tuple[str, str]]:
    """How often each span is stored, as (trace id, span id): model calls, tools, and the runs' roots."""
    found: Counter[tuple[str, str]] = Counter()
    for trace in store.traces():
        for run in trace.runs:
            own = run.id[:32]
            found[own, run.id[32:]] += 1
            found.update((own, call.span_id) for call in run.calls)
            found.update((own, tool.span_id) for tool in run.tools)
    return found
