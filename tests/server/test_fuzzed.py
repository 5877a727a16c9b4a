"""Broken requests: each is refused or taken in part, none is a failure of the server."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.proto", reason='needs the extra: pip install "cm2-agent[server]"')

from cm2_agent.server.settings import Settings
from cm2_agent.store import SQLStore
from tests.server.exported import dialogue, protobuf
from tests.server.fuzzed import fuzzed
from tests.server.running import collecting

BODIES = 400


def test_no_broken_request_is_a_failure_of_the_server(tmp_path: Path) -> None:
    draw = random.Random(13)
    limits = Settings(quiet=0.0, most_body=1 << 20, most_unpacked=2 << 20)
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as store, collecting(store, limits) as running:
        statuses = set()
        for _ in range(BODIES):
            body, headers = fuzzed(draw)
            answer = running.client.post("/v1/traces", content=body, headers=headers)
            statuses.add(answer.status_code)
            assert answer.status_code in (200, 400, 413, 415), (answer.status_code, body[:100], headers)
        assert {200, 400, 413, 415} == statuses
        assert running.send(protobuf(dialogue("well", calls=2))).status_code == 200
        running.flush()
        assert not [kind for kind in running.collector.incidents.drain() if "could not" in kind]
        assert any(len(trace.calls) == 2 for trace in store.traces())
