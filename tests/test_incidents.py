"""Failures that nobody may see raised: counted by kind, logged once, drained once."""

from __future__ import annotations

import logging

import pytest

from cm2_agent.datasets import Redactor
from cm2_agent.errors import StoreError
from cm2_agent.incidents import Incidents


def test_incidents_are_logged_once_and_drained_once(caplog: pytest.LogCaptureFixture) -> None:
    incidents = Incidents()
    with caplog.at_level(logging.WARNING, "cm2_agent"):
        incidents.add("kind", ValueError("why"))
        incidents.add("kind", ValueError("why"), number=2)
        incidents.add("other")
    assert len(caplog.records) == 2
    assert incidents.drain() == {"kind": (3, "ValueError: why"), "other": (1, "")}
    assert not incidents.pending
    incidents.restore({"kind": (3, "ValueError: why")})
    incidents.add("kind")
    assert incidents.drain() == {"kind": (4, "")}
    assert incidents.counts == {"kind": 4, "other": 1}


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_what_an_exception_quotes_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    incidents = Incidents()
    with caplog.at_level(logging.WARNING, "cm2_agent"):
        incidents.add("a check failed", raised(ValueError("the reply was 'I am Ada'")))
        incidents.add("a run was not saved", raised(StoreError("store sqlite:///cm2.db: database is locked")))
        incidents.add("a key", raised(OSError("refused: Bearer abc123def456")))
    assert "Ada" not in caplog.text
    assert "a check failed: ValueError in test_incidents.py:" in caplog.text
    assert "database is locked" in caplog.text
    assert "abc123def456" not in caplog.text
    assert "Traceback" not in caplog.text
    assert incidents.drain()["a check failed"] == (1, "ValueError: the reply was 'I am Ada'"), "the store may have it"


def test_debugging_shows_the_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "cm2_agent"):
        Incidents().add("a check failed", raised(ValueError("the reply was 'I am Ada'")))
    assert "Traceback" in caplog.text
    assert "I am Ada" in caplog.text


def test_what_is_handed_over_is_masked() -> None:
    incidents = Incidents()
    incidents.add("a", ValueError("401 for sk-abcdefghijklmnopqrstuvwxyz0123"))
    redactor = Redactor(key=b"k")
    redacting = Incidents(mask=lambda text: redactor.redact(text))
    redacting.add("b", ValueError("no such user: ada@x.org"))
    assert incidents.drain() == {"a": (1, "ValueError: 401 for sk-***")}
    assert redacting.drain() == {"b": (1, f"ValueError: no such user: {redactor.redact('ada@x.org')}")}


def test_an_exception_that_cannot_be_shown_is_counted_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    incidents = Incidents()
    incidents.add("kind", Mute())
    assert incidents.drain() == {"kind": (1, "Mute")}
