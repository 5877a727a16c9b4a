"""What a proxy in this process learned of a model's answers, for whoever records them: a client's framework keeps of an
answer what it knows, and token ids are not among that."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

__all__ = ["add_report", "report_of"]

_MOST = 10_000
_reports: OrderedDict[str, Mapping[str, Any]] = OrderedDict()
_lock = threading.Lock()


def add_report(message_id: str, metadata: Mapping[str, Any]) -> None:
    """Note what is known of the message of this id, under the names of a local model's response metadata."""
    with _lock:
        _reports[message_id] = metadata
        while len(_reports) > _MOST:
            _reports.popitem(last=False)


def report_of(message_id: str | None) -> Mapping[str, Any]:
    """What was noted of a message, empty where nothing was.

    >>> add_report("m1", {"prompt_ids": [1, 2]})
    >>> report_of("m1"), report_of("m2"), report_of(None)
    ({'prompt_ids': [1, 2]}, {}, {})
    """
    if message_id is None or not _reports:
        return {}
    with _lock:
        return _reports.get(message_id, {})
