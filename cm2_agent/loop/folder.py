"""LoopFolder: where a loop writes down what is finished, so that the same command goes on there."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cm2_agent.errors import StoreError
from cm2_agent.types.json_file import write_json

MARK, RESULT, LOCK = "loop.json", "result.json", ".lock"
_MEND = (
    "a loop writes its files whole, so that the disk or somebody else changed it. Bring it back from a backup, or begin"
    " a loop in another folder (--out)"
)


class LoopFolder:
    """The folder of one loop: its settings, a file a finished stage, the policies, and the result."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder: one process at a time. The lock goes with the process, in whatever way it ends. Raises
        StoreError where another one holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StoreError(
                    f"another process runs the loop in {self.path}; wait for its end, or name another folder (--out)"
                ) from error
            yield
        finally:
            os.close(handle)

    def claim(self, what: Mapping[str, Any]) -> bool:
        """Write down which loop this is; True where it had begun already. Raises StoreError where another one has, with
        what differs."""
        mark, now = self.path / MARK, json.loads(json.dumps(what))
        if not mark.exists():
            others = sorted(one.name for one in self.path.iterdir() if one.name != LOCK)
            if others:
                raise StoreError(
                    f"{self.path} holds {others[0]!r} and no loop; name a folder that is empty or not there yet (--out)"
                )
            write_json(mark, now)
            return False
        then, given = _flat(read(mark)), _flat(now)
        differing = [name for name in {**then, **given} if then.get(name) != given.get(name)]
        if differing:
            name = differing[0]
            raise StoreError(
                f"{self.path} holds a loop with {name} {then.get(name)!r:.80}, and {given.get(name)!r:.80} was given;"
                " repeat its own command, or name another folder (--out)"
            )
        return True

    def stage(self, place: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What came of a stage: read where it is finished, else done now and written down."""
        path = self.path / f"{place}.json"
        if not path.exists():
            write_json(path, work())
        return read(path)

    def finished(self, place: str) -> bool:
        return (self.path / f"{place}.json").exists()


def read(path: Path) -> dict[str, Any]:
    """What a file of a loop's folder holds. Raises StoreError where that is not what a loop wrote."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}; {_MEND}") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path} holds a {type(found).__name__}, expected a JSON object; {_MEND}")
    return found


def _flat(what: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings side by side: `settings seed`."""
    found: dict[str, Any] = {}
    for name, value in what.items():
        found |= _flat(value, f"{above}{name} ") if isinstance(value, dict) else {f"{above}{name}": value}
    return found
