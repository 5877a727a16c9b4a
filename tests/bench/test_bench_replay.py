"""What the benchmark of replay shows stands: replayed dialogues are answered from the recording alone, byte
for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm2_agent.datasets import Redactor
from cm2_agent.importers import Imported, read_recordings
from cm2_agent.types.trace import Trace
from tests.bench.bench_replay import again
from tests.importers.recordings import dialogues, saved


def traces(path: Path) -> list[Trace]:
    return [record.trace for record in read_recordings("tau-bench", path) if isinstance(record, Imported)]


@pytest.mark.slow
async def test_every_recorded_call_is_hit_and_told_byte_for_byte(tmp_path: Path) -> None:
    given = traces(dialogues(tmp_path))
    found = await again(given, None)
    assert found["tasks"] == len(given)
    assert found["calls"] == found["byte_equal"] == found["recorded_messages"] == sum(found["answered"].values()) > 0
    assert (set(found["answered"]), found["simulator_calls"]) == ({"replay"}, 0)


async def test_placeholders_are_replayed_too(tmp_path: Path) -> None:
    found = await again(traces(saved(tmp_path)), Redactor())
    assert found["calls"] == found["byte_equal"] == found["recorded_messages"] > 0
    assert found["simulator_calls"] == 0
