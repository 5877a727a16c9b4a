"""The folder that a trainer writes: it is either whole or not there, and another run's is never replaced unasked."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cm2_agent.errors import TrainError
from cm2_agent.types.json_values import JSON

from .run_identity import MANIFEST, RunIdentity, read_identity

REPORT = "report.json"
_DISK = re.compile(
    r"I/O error|inline_container|PytorchStreamWriter|iostream error|^write\(\): fd|^Parent directory .* does not exist"
    r"|^File .* cannot be opened"
)
"""How safetensors (the first), and torch's own writer in a RuntimeError, say that a file could not be written."""


def check_out(out: Path) -> None:
    """Raises TrainError where `out` holds something that a trainer of ours did not write: it is never replaced."""
    if not out.exists() or (out.is_dir() and ((out / REPORT).exists() or not any(out.iterdir()))):
        return
    raise TrainError(
        f"out {str(out)!r} exists and is not a trained policy; name a folder that does not exist yet, or remove it"
        " first"
    )


def check_run(out: Path, run: RunIdentity, *, overwrite: bool) -> None:
    """Raises TrainError where `out` holds the policy of another run and `overwrite` is False. The same run may write
    its own again.
    """
    check_out(out)
    if overwrite or not (out / REPORT).exists():
        return
    found = read_identity(out / MANIFEST)
    if found == run:
        return
    differs = "it does not say which" if found is None else found.difference(run)
    raise TrainError(
        f"out {str(out)!r} holds the policy of another run ({differs}); name another folder, or pass overwrite=True"
        " (--overwrite) to replace it once this run has ended well"
    )


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into; it becomes `out` (replacing an earlier result) if the block ends well,
    and is removed if not.

    Raises TrainError where another process is writing `out`. What a killed process left behind is cleared away first;
    a policy that it was just replacing is put back.
    """
    check_out(out)
    scratch = out.parent / f".{out.name}.writing"
    with saving(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir(exist_ok=True)
    with _locked(scratch, out):
        fresh, old = scratch / "new", scratch / "old"
        try:
            if old.exists() and not out.exists():  # killed between the two renames
                os.replace(old, out)
            for left in (fresh, old):
                shutil.rmtree(left, ignore_errors=True)
            fresh.mkdir()
            yield fresh
            if out.exists():
                os.replace(out, old)
            os.replace(fresh, out)
        finally:
            if old.exists() and not out.exists():  # interrupted between the two renames
                os.replace(old, out)
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """What the disk refuses while `path` is written (no room, no right to write), as a TrainError; other errors stay
    what they are.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not isinstance(error, OSError) and not _DISK.search(str(error)):
            raise
        raise TrainError(
            f"{str(path)!r} cannot be written: {error}. Make room or name another folder; a run with checkpoints"
            " (save_steps) goes on from its newest whole one when it is started again"
        ) from error


@contextmanager
def _locked(scratch: Path, out: Path) -> Iterator[None]:
    """Holds the lock in `scratch`, which the kernel releases when the process ends in whatever way."""
    while True:
        scratch.mkdir(exist_ok=True)
        try:
            handle = os.open(scratch / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # its owner removed the folder just now
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise TrainError(
                f"another process is writing out {str(out)!r}; wait for its end, or name another folder"
            ) from error
        if (scratch / "lock").exists() and os.path.samestat(os.fstat(handle), os.stat(scratch / "lock")):
            break
        os.close(handle)  # the lock of a folder that is gone
    try:
        yield
    finally:
        os.close(handle)


def save_report(folder: Path, report: dict[str, JSON], run: RunIdentity | None = None) -> None:
    """Write report.json, and which run it was, into a folder that exists."""
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if run is not None:
        run.save(folder / MANIFEST)
