"""Checklists without personal data."""

from __future__ import annotations

import re

from cm2_agent import Redactor
from cm2_agent.redaction.redacted_checklist import redacted_checklist, redacted_checklist_json
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.view import View


def test_a_pattern_matches_the_placeholder_of_what_it_matched() -> None:
    redactor = Redactor(key=b"a key")
    item = Item("tells", check={"reply_matches": r"(?i)sent to ada@x\.org, \$12\.50"}, turn=0)
    got = redacted_checklist_json(Checklist(item, name="c"), redactor)
    pattern = got["items"][0]["check"]["reply_matches"]
    assert "ada" not in pattern
    assert re.search(pattern, redactor.redact("Sent to Ada@x.org, $12.50"))
    again = redacted_checklist_json(Checklist.from_json(got), redactor)
    assert again == got


def applies(view: View) -> bool:
    return bool(view.replies)


def test_what_decides_whether_an_item_applies_is_redacted_too() -> None:
    redactor = Redactor(key=b"a key")
    written = Checklist(
        Item("a", check={"called": "look"}, when={"user_matches": r"ada@x\.org"}, otherwise="paid"),
        Item("b", "Is it kind?", when="Did the agent write to ada@x.org?", depends_on=[{"item": "a", "soft": 0.5}]),
        Item("c", any_of=["a", "b"], when=applies),
        name="c",
    )
    got = redacted_checklist(written, redactor)
    first, second, third = got.items
    assert isinstance(first.when, dict)
    assert re.search(str(first.when["user_matches"]), redactor.redact("I am ada@x.org"))
    assert "ada" not in str(got.to_json())
    assert (second.depends_on, third.any_of, third.when) == (written.items[1].depends_on, ("a", "b"), applies)
    assert first.otherwise == "paid"
