"""Checklists without personal data."""

from __future__ import annotations

import re

from cm2_agent import Redactor
from cm2_agent.redaction.redacted_checklist import redacted_checklist_json
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item


def test_a_pattern_matches_the_placeholder_of_what_it_matched() -> None:
    redactor = Redactor(key=b"a key")
    item = Item("tells", check={"reply_matches": r"(?i)sent to ada@x\.org, \$12\.50"}, turn=0)
    got = redacted_checklist_json(Checklist(item, name="c"), redactor)
    pattern = got["items"][0]["check"]["reply_matches"]
    assert "ada" not in pattern
    assert re.search(pattern, redactor.redact("Sent to Ada@x.org, $12.50"))
    again = redacted_checklist_json(Checklist.from_json(got), redactor)
    assert again == got
