"""One agent has one hash, whichever door its dialogue came in by."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("langfuse", reason='needs the extra: pip install "cm2-agent[langfuse]"')
pytest.importorskip("aiohttp", reason='needs the extra: pip install "cm2-agent[server]"')

from tests.bench.doors import DOORS, expected, through


@pytest.mark.parametrize("door", [door for door in DOORS if door != "langfuse-calls"])  # which takes a process
def test_one_agent_has_one_hash(door: str, tmp_path: Path) -> None:
    (trace,) = through(door, tmp_path)
    assert trace.content_hash == expected().content_hash
