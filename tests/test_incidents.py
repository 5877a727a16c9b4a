"""Failures that nobody may see raised: counted by kind, logged once, drained once."""

from __future__ import annotations

import logging

import pytest

from cm2_agent.incidents import Incidents


def test_incidents_are_logged_once_and_drained_once(caplog: pytest.LogCaptureFixture) -> None:
    incidents = Incidents()
    with caplog.at_level(logging.WARNING, "cm2_agent"):
        for _ in range(3):
            incidents.add("kind", ValueError("why"))
        incidents.add("other")
    assert len(caplog.records) == 2
    assert incidents.drain() == {"kind": (3, "ValueError: why"), "other": (1, "")}
    assert not incidents.pending
    incidents.restore({"kind": (3, "ValueError: why")})
    incidents.add("kind")
    assert incidents.drain() == {"kind": (4, "")}
    assert incidents.counts == {"kind": 4, "other": 1}
