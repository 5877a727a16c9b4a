"""Item: its arguments, what is refused, and that it stays as it was made."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from cm2_agent.errors import ChecklistError
from cm2_agent.types.checklist_item import Item, ItemModel
from cm2_agent.types.view import View

POINTER = {"turn": 0, "step": 1, "from": "user", "snippet": "order 7"}


def looks_up(view: View) -> bool:
    """Is the order looked up?"""
    return view.called("get_order")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "item 'a' has neither a question nor a check; give one"),
        ({"question": ""}, "neither a question nor a check"),
        ({"question": 5}, r"item 'a': question: Input should be a valid string \(given 5\)"),
        ({"check": 5}, "item 'a': check.str: Input should be a valid string"),
        ({"question": "q", "turn": -1}, "item 'a': turn is -1; expected 0 or more, each, or trace"),
        ({"question": "q", "turn": True}, "item 'a': turn.int"),
        ({"question": "q", "kind": "never"}, "item 'a': kind: Input should be 'reach', 'hold' or 'avoid'"),
        ({"question": "q", "weight": -1}, "item 'a': weight: Input should be greater than or equal to 0"),
        ({"question": "q", "weight": float("nan")}, "item 'a': weight: Input should be a finite number"),
        ({"question": "q", "evidence": [{**POINTER, "page": 3}]}, "item 'a': evidence.0.page: Extra inputs"),
        ({"check": {"at_most": 3}, "kind": "hold"}, "decided at the end by themselves; leave the kind out"),
    ],
)
def test_what_an_item_cannot_be_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ChecklistError, match=words):
        Item("a", **arguments)


def test_an_id_has_no_blanks() -> None:
    with pytest.raises(ChecklistError, match="item 'a b': id: String should match pattern"):
        Item("a b", "Is it so?")


def test_a_function_is_an_item() -> None:
    item = Item.from_function(looks_up)
    assert (item.id, item.question, item.check) == ("looks_up", "Is the order looked up?", looks_up)
    assert item.to_json() == {"id": "looks_up", "question": "Is the order looked up?", "check": "looks_up"}
    assert item.source is not None
    assert "get_order" in item.source
    named = Item("looks_up", "Is the order looked up?", check="looks_up")
    assert named != item
    assert named.bound({"looks_up": looks_up}) == item
    assert named.bound({}) is named


def test_the_kind_is_decided_where_it_is_not_given() -> None:
    assert Item("a", "q").kind == "reach"
    assert Item("a", check={"at_most": 3}).kind == "hold"
    assert Item("a", check={"called": "x"}, kind="avoid").kind == "avoid"
    assert ItemModel(id="a", check={"at_most": 3}).kind is None  # as written
    assert Item.from_model(ItemModel(id="a", check={"at_most": 3})) == Item("a", check={"at_most": 3})


def test_an_item_stays_as_it_was_made() -> None:
    item = Item("a", "q", evidence=[POINTER], depends_on=["b"])
    assert (item.evidence, item.depends_on) == ((POINTER,), ("b",))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(item, "weight", 2)  # noqa: B010  type checkers know better
    assert copy.deepcopy(item) == item
    assert pickle.loads(pickle.dumps(item)) == item
    assert len({Item("a", "q"), Item("a", "q"), Item("a", "q", weight=2)}) == 2
