"""An environment of its own for another tool, from PyPI, in which a benchmark measures it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def installed(name: str, requirement: str, folder: Path) -> str:
    """The version of a tool, which is installed in `folder / name` where it was not. Raises OSError with the reason
    where it cannot be."""
    home = folder / name
    if not (home / "installed").exists():
        for command in (
            [sys.executable, "-m", "venv", str(home)],
            [str(home / "bin" / "pip"), "install", "--quiet", requirement],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise OSError((done.stderr.strip() or "no reason given").splitlines()[-1])
        (home / "installed").touch()
    code = f"from importlib.metadata import version; print(version({requirement.partition('[')[0]!r}))"
    done = subprocess.run([str(home / "bin" / "python"), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
