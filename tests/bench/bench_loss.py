"""What is lost however a process ends: thirteen ends, each with a store that is there, an SQLite file that another
process has locked, a PostgreSQL server that is down, and a disk of the store that is full while the spool lies
elsewhere; prints one JSON line.

Every end answers some calls of a watched agent and notes each. Then the store is there again, and the application
starts once more. `answered` counts the noted calls, `stored` those in the store when the process had ended, `spooled`
those that waited in the spool then, `after` those in the store after the next start; `lost` is what was answered and is
in neither.

python tests/bench/bench_loss.py [--locked 25] [--down 20] [--calls 10] [--stores sqlite,locked,postgres,full]
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("LANGSMITH_TRACING", "false")
TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP))

from cm2_agent.spool.status import read_status  # noqa: E402 (after the path is set)
from cm2_agent.store import SQLStore  # noqa: E402 (after the path is set)
from tests.online.ends import ENDS, run_to_its_end  # noqa: E402 (after the path is set)

APPLICATION = """
import os
os.environ["LANGSMITH_TRACING"] = "false"
from cm2_agent import Checklist, Item, flush, watch
from tests.bench.bench_watch import build

graph = watch(
    build(1),
    Checklist(Item("looked_up", check={"called": "get_order"}), name="loss"),
    store=os.environ["STORE"],
    spool=os.environ["SPOOL"],
)
"""
READY = """
import pathlib, time
folder = pathlib.Path(os.environ["FOLDER"])
(folder / "started").touch()
while not (folder / "down").exists():
    time.sleep(0.05)
"""
WORK = """
def work(k):
    for number in range(int(os.environ["CALLS"])):
        name = f"{os.getpid()}-{k}-{number}"
        question = {"messages": [("user", f"Where is order {number}?" + os.environ.get("LONG", "") * 20_000)]}
        graph.invoke(question, {"configurable": {"thread_id": name}})
        answered(name)
        time.sleep(0.02)
"""


def stored(url: str) -> set[str]:
    with SQLStore(url) as store:
        return {trace.id for trace in store.traces()}


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[Callable[[], None]]:
    """The write lock of a file, for at least so many seconds and until the process has ended."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    since = time.monotonic()

    def let_go() -> None:
        time.sleep(max(0.0, since + seconds - time.monotonic()))
        connection.execute("ROLLBACK")
        connection.close()

    yield let_go


class Postgres:
    """A server of its own, which can be taken down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user = "postgres" if os.geteuid() == 0 else None
        if self.user is not None:
            shutil.chown(folder, self.user, self.user)
        self._call("initdb", "-D", f"{folder}/data", "-U", "cm2", "--auth=trust", "--no-sync", "-E", "UTF8")
        self.url = f"postgresql+psycopg://cm2@/postgres?host={folder}"
        self.up()

    def _call(self, name: str, *arguments: str) -> None:
        program = shutil.which(name) or max(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))
        subprocess.run([program, *arguments], user=self.user, cwd=self.folder, check=True, capture_output=True)

    def up(self) -> None:
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off"
        log = ("-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-w", "-o", options, "start")
        self._call("pg_ctl", *log)

    def down(self) -> None:
        self._call("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "stop")


def measure(
    end: str, url: str, spool: Path, environment: dict[str, str], again: Callable[[], object]
) -> dict[str, int]:
    before = stored(url) if environment.pop("SHARED", "") else set[str]()
    code = APPLICATION + environment.pop("READY", "") + WORK + ENDS[end]
    answered, said = run_to_its_end(code, STORE=url, SPOOL=str(spool), **environment)
    spooled = sum(read_status(url, str(spool)).runs.values())
    again()
    at_end = stored(url) - before
    subprocess.run(
        [sys.executable, "-c", APPLICATION + "import sys; sys.exit(not flush(120))"],
        env={**os.environ, "STORE": url, "SPOOL": str(spool), "CALLS": "0"},
        check=True,
        capture_output=True,
    )
    after = stored(url) - before
    counts = {"answered": len(answered), "stored": len(at_end & answered), "spooled": spooled}
    return {**counts, "after": len(after & answered), "lost": len(answered - after), "said": "not saved" in said}


def on_sqlite(end: str, folder: Path, options: argparse.Namespace) -> dict[str, int]:
    url = f"sqlite:///{folder}/cm2.db"
    return measure(end, url, folder / "spool", {"CALLS": options.calls}, lambda: None)


def on_locked(end: str, folder: Path, options: argparse.Namespace) -> dict[str, int]:
    url = f"sqlite:///{folder}/cm2.db"
    SQLStore(url).close()
    with locked(folder / "cm2.db", options.locked) as let_go:
        return measure(end, url, folder / "spool", {"CALLS": options.calls}, let_go)


def on_full(end: str, folder: Path, options: argparse.Namespace) -> dict[str, int]:
    """A file system of 3 MB, which takes the right to mount one."""
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], check=True)
    try:
        url = f"sqlite:///{small}/cm2.db"
        SQLStore(url).close()
        ballast = small / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        again = lambda: subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)  # noqa: E731 (a short one of several)
        return measure(end, url, folder / "spool", {"CALLS": options.calls, "LONG": "word "}, again)
    finally:
        subprocess.run(["umount", str(small)], check=False)


def on_postgres(end: str, folder: Path, options: argparse.Namespace) -> dict[str, int]:
    """The server goes down when the application has started, and before its first call."""
    server: Postgres = options.server

    def restart() -> None:
        while not (folder / "started").exists():
            time.sleep(0.05)
        server.down()
        (folder / "down").touch()
        time.sleep(options.down)
        server.up()

    thread = threading.Thread(target=restart)
    thread.start()
    environment = {"CALLS": options.calls, "FOLDER": str(folder), "READY": READY, "SHARED": "1"}
    return measure(end, server.url, folder / "spool", environment, thread.join)


STORES: dict[str, Any] = {"sqlite": on_sqlite, "locked": on_locked, "postgres": on_postgres, "full": on_full}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--locked", type=float, default=25, help="seconds for which the file is locked")
    parser.add_argument("--down", type=float, default=20, help="seconds for which the server is down")
    parser.add_argument("--calls", default="10", help="calls of each piece of work")
    parser.add_argument("--stores", default=",".join(STORES))
    parser.add_argument("--ends", default="", help="only those that hold this word")
    options = parser.parse_args()
    table: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="cm2-loss-") as top:
        os.chmod(top, 0o755)
        wanted = options.stores.split(",")
        if "postgres" in wanted:
            server = Path(top) / "server"
            server.mkdir()
            options.server = Postgres(server)
        for store in wanted:
            for end in (end for end in ENDS if options.ends in end):
                folder = Path(tempfile.mkdtemp(dir=top))
                table.setdefault(store, {})[end] = STORES[store](end, folder, options)
        if "postgres" in wanted:
            options.server.down()
    rows = [row for ends in table.values() for row in ends.values()]
    total = {name: sum(row[name] for row in rows) for name in ("answered", "stored", "spooled", "after", "lost")}
    print(json.dumps({"bench": "loss", "rows": len(rows), **total, "table": table}))


if __name__ == "__main__":
    main()
