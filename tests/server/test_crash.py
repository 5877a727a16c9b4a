"""A collector that is killed loses nothing that it acknowledged, and stores nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.proto", reason='needs the extra: pip install "cm2-agent[server]"')

from cm2_agent.store import SQLStore
from tests.server.crashing import Load, Process, stored_spans


@pytest.mark.slow
def test_every_acknowledged_span_is_stored_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'cm2.db'}"
    load = Load(40, seed=5)
    for stop_after in (9, 25):
        process = Process(url, "--quiet", "0.2")
        load.send(process.address, stop_after=stop_after, on_stop=process.kill)
        process.kill()
    assert load.pieces, "the load ended before the kill"
    process = Process(url, "--quiet", "0.2")
    load.send(process.address)
    assert process.stop() == 0
    with SQLStore(url) as store:
        found = stored_spans(store)
    assert found == {(one["trace"], one["span"]): 1 for piece in load.acknowledged for one in piece}
