"""The folder that a trainer writes: it is either whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cm2_agent.errors import TrainError
from cm2_agent.types.json_values import JSON

REPORT = "report.json"


def check_out(out: Path) -> None:
    """Raises TrainError where `out` holds something that a trainer of ours did not write: it would be replaced."""
    if not out.exists() or (out.is_dir() and ((out / REPORT).exists() or not any(out.iterdir()))):
        return
    raise TrainError(
        f"out {str(out)!r} exists and is not a trained policy; name a folder that does not exist yet, or remove it"
        " first"
    )


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into; it becomes `out` (replacing an earlier result) if the block ends well,
    and is removed if not.
    """
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        fresh = scratch / "new"
        fresh.mkdir()
        yield fresh
        if out.exists():
            os.replace(out, scratch / "old")
        os.replace(fresh, out)
    finally:
        if (scratch / "old").exists() and not out.exists():  # interrupted between the two renames
            os.replace(scratch / "old", out)
        shutil.rmtree(scratch, ignore_errors=True)


def save_report(folder: Path, report: dict[str, JSON]) -> None:
    """Write report.json into a folder that exists."""
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
