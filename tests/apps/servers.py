"""Fifty conversations with the FastAPI application of docs/how-to/serve.md, ended by a signal in the middle."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from cm2_agent.store import SQLStore
from tests.apps.environment import Environment, running, write_page
from tests.apps.waiting import free_port, until
from tests.test_docs import ROOT

PAGE = ROOT / "docs" / "how-to" / "serve.md"
CLIENTS, ENOUGH = 50, 300
"""Conversations at a time, and the answers after which the signal comes."""
_ORDER = re.compile("order ([0-9]+)")


@dataclass
class Clients:
    """Fifty conversations, each of one question after another until the server is gone; `answered` are the orders that
    an answer came for."""

    url: str
    answered: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def start(self) -> None:
        self._threads = [threading.Thread(target=self._talk, args=(number,)) for number in range(1, CLIENTS + 1)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _talk(self, number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=60.0) as client:
            for turn in range(10_000):
                order = number * 10_000 + turn
                try:
                    response = client.post(f"/conversations/c{number}", json={"text": f"Where is order {order}?"})
                except httpx.TransportError:
                    return
                if response.status_code != 200:
                    return
                self.answered.append(order)
                if response.json() != f"Your order {order} was shipped.":
                    self.wrong.append(response.text)


def stored(url: str) -> set[int]:
    """The orders of all stored dialogues in which question, call and answer are there."""
    found = set()
    with SQLStore(url) as store:
        for trace in store.traces():
            for turn in trace.turns:
                (order,) = {int(number) for message in turn.user for number in _ORDER.findall(message.text)}
                if [message.role for message in (turn.steps[0].message, turn.steps[-1].message)] == ["assistant"] * 2:
                    assert turn.steps[0].message.tool_calls[0].arguments == {"order_id": order}
                    assert turn.steps[-1].message.text == f"Your order {order} was shipped."
                    found.add(order)
    return found


def scored(url: str) -> bool:
    """Whether every trace has the score of all its runs."""
    with SQLStore(url) as store:
        scores = [(trace, store.score(trace.id)) for trace in store.traces()]
    return all(score is not None and score.reward == 1.0 and score.runs == len(trace.runs) for trace, score in scores)


def end(
    name: str,
    command: list[str],
    stop: Callable[[psutil.Process], None],
    where: Environment,
    folder: Path,
    orderly: bool,
) -> dict[str, object]:
    """Serve, talk, `stop` the server in the middle; what was answered, stored, found in the spool, and lost. After an
    `orderly` end everything must be stored and scored."""
    folder.mkdir()
    write_page(PAGE, folder)
    port, url = free_port(), f"sqlite:///{folder / 'cm2.db'}"
    log = folder / "server.log"
    with running([where.path(command[0]), *command[1:], *_address(command[0], port)], folder, where, log) as process:
        until(lambda: _answers(port), 60, f"{name} did not start", log, process)
        clients = Clients(f"http://127.0.0.1:{port}")
        clients.start()
        until(lambda: len(clients.answered) >= ENOUGH, 120, f"{name}: too few answers", log, process)
        stop(psutil.Process(process.pid))
        process.wait(90)
        clients.join()
    answered = set(clients.answered)
    before, all_scored = stored(url) & answered, scored(url)
    replay = "import app, cm2_agent; assert cm2_agent.flush(120), 'not everything could be saved'"
    subprocess.run([where.path("python"), "-c", replay], cwd=folder, env=where.variables(), check=True)
    after = stored(url) & answered
    result = {
        "server": name,
        "answered": len(answered),
        "stored": len(before),
        "spooled": len(after - before),
        "lost": len(answered - after),
    }
    assert not clients.wrong, clients.wrong[:3]
    assert len(answered) >= ENOUGH, result
    assert not answered - after, f"{result}: lost {sorted(answered - after)[:5]}"
    if orderly:
        assert before == answered, f"{result}: an orderly end stores everything"
        assert all_scored, f"{result}: a score is missing"
    return result


def _address(program: str, port: int) -> list[str]:
    return ["--port", str(port)] if program == "uvicorn" else ["--bind", f"127.0.0.1:{port}"]


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/openapi.json", timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False


def _terminate(server: psutil.Process) -> None:
    server.send_signal(signal.SIGTERM)


def _kill_a_worker(server: psutil.Process) -> None:
    """The first worker dies at once; the others shut down in order."""
    server.children()[0].kill()
    server.send_signal(signal.SIGTERM)


def check(where: Environment, folder: Path) -> Iterator[dict[str, object]]:
    """One result an end, as each is there."""
    uvicorn = ["uvicorn", "app:app", "--log-level", "warning"]
    gunicorn = ["gunicorn", "--config", "gunicorn.conf.py", "--log-level", "warning", "app:app"]
    ends: list[tuple[str, list[str], Callable[[psutil.Process], None], bool]] = [
        ("uvicorn, SIGTERM", uvicorn, _terminate, True),
        ("uvicorn, SIGKILL", uvicorn, psutil.Process.kill, False),
        ("gunicorn preloaded, 2 workers, SIGTERM", gunicorn, _terminate, True),
        ("gunicorn preloaded, 2 workers, SIGKILL of one", gunicorn, _kill_a_worker, False),
    ]
    for number, (name, command, stop, orderly) in enumerate(ends):
        yield end(name, command, stop, where, folder / f"server-{number}", orderly)
