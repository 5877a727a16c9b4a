"""A PostgreSQL server of our own, started with the programs of an installed one. Shared by tests and benchmarks."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import tempfile
from pathlib import Path


class PostgresServer:
    """The server; a context manager that starts it in a folder of its own, on a socket there, and removes it. Where the
    machine crashes it forgets what it wrote (`fsync=off`), and nothing where it does itself."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cm2-pg-"))
        self.url = f"postgresql+psycopg://cm2@/postgres?host={self.folder}"
        self._user: str | None = None
        self._control = _program("pg_ctl") or "pg_ctl"

    @staticmethod
    def is_installed() -> bool:
        return _program("initdb") is not None and _program("pg_ctl") is not None

    def __enter__(self) -> PostgresServer:
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            self._user = "postgres"
            shutil.chown(self.folder, self._user, self._user)
        initdb = _program("initdb") or "initdb"
        data = str(self.folder / "data")
        try:
            self._call(initdb, "-D", data, "-U", "cm2", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
            self._start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def restart(self) -> None:
        """Stop it as a crash does, and start it again: it recovers what was committed."""
        self._stop()
        self._start()

    def _start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off -c max_connections=200"
        data, log = str(self.folder / "data"), str(self.folder / "log")
        self._call(self._control, "-D", data, "-l", log, "-w", "-o", options, "start")

    def _stop(self) -> None:
        self._call(self._control, "-D", str(self.folder / "data"), "-m", "immediate", "stop")

    def _call(self, *command: str) -> None:
        user = self._user
        done = subprocess.run(
            command, user=user, group=user, cwd=self.folder, capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")


def _program(name: str) -> str | None:
    found = shutil.which(name)
    return found or max(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), default=None)


__all__ = ["PostgresServer"]
