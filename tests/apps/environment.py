"""An environment of its own for real servers: the wheel without extras, and the packages that serve it.

langgraph-api pins what the development environment has otherwise, so the two cannot share one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.test_docs import ROOT, blocks

PACKAGES = ("langgraph-cli[inmem]", "langgraph-sdk", "fastapi", "uvicorn", "uvicorn-worker", "gunicorn")
READY = "CM2_APPS_ENVIRONMENT"
"""A variable that names such an environment, made before, so that the stage need not make it."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the package and the servers."""

    bin: Path

    def path(self, program: str) -> str:
        return str(self.bin / program)

    def variables(self) -> dict[str, str]:
        """What a program in it is started with."""
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        return {**_without_paths(), "PATH": path, "LANGSMITH_TRACING": "false", "LANGGRAPH_CLI_NO_ANALYTICS": "1"}


def environment(folder: Path) -> Environment:
    """A new environment in the folder; the one that CM2_APPS_ENVIRONMENT names, where it does."""
    if ready := os.environ.get(READY):
        return Environment(Path(ready) / "bin")
    wheels, made = folder / "wheels", folder / "venv"
    pip = ["-m", "pip", "-qq", "--disable-pip-version-check"]
    _run(sys.executable, *pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT))
    _run(sys.executable, "-m", "venv", str(made))
    (wheel,) = wheels.glob("*.whl")
    _run(str(made / "bin" / "python"), *pip, "install", str(wheel), *PACKAGES)
    return Environment(made / "bin")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, env=_without_paths())


def _without_paths() -> dict[str, str]:
    """This process's variables less the paths of its modules: pip would take the checkout there for installed."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def write_page(page: Path, folder: Path) -> None:
    """Write the files that a page of the documentation names into the folder."""
    for block in blocks(page.read_text(encoding="utf-8")):
        for name in block.words:
            if block.language in ("python", "json"):
                (folder / name).write_text(block.code, encoding="utf-8")


@contextmanager
def running(command: list[str], folder: Path, where: Environment, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a session of its own; it is killed if it still runs at the end."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=where.variables(), stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
