"""Item: its arguments, what is refused, and that it stays as it was made."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
from pydantic import ValidationError

from cm2_agent.errors import ChecklistError
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item, ItemModel, SoftDependency
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
        ({"any_of": ["b"], "check": "c"}, "has any_of and check; its items say what is looked at: drop check"),
        ({"any_of": ["b"], "kind": "hold"}, "has any_of and kind"),
        ({"any_of": ["b", "b"]}, "any_of names an item twice"),
        ({"question": "q", "otherwise": "paid"}, "otherwise is paid and nothing can find that the item does not apply"),
        ({"question": "q", "when": " "}, "when is empty"),
        ({"question": "q", "when": lambda view: True}, "when is <function <lambda> .*, which has no name"),
        ({"check": partial(looks_up)}, "check is functools.partial.*, which has no name to be written under"),
        ({"question": "q", "when": "q", "otherwise": "half"}, "otherwise: Input should be 'unpaid' or 'paid'"),
        ({"question": "q", "depends_on": [{"item": "b", "soft": 1}]}, "depends_on.0.soft dependency.soft: Input"),
        ({"question": "q", "depends_on": [{"item": "b", "soft": 0}]}, "should be greater than 0"),
        ({"question": "q", "depends_on": [{"item": "b"}]}, "depends_on.0.soft dependency.soft: Field required"),
    ],
)
def test_what_an_item_cannot_be_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ChecklistError, match=words):
        Item("a", **arguments)


def test_an_id_has_no_blanks() -> None:
    with pytest.raises(ChecklistError, match="item 'a b': id: String should match pattern"):
        Item("a b", "Is it so?")


def test_what_when_is() -> None:
    one = Item("a", "q", when="shipped")
    assert (one.when_question, one.named_functions) == (None, {"when": "shipped"})
    assert one.bound({"shipped": looks_up}).when is looks_up
    asked = Item("a", "q", when="Is it shipped?", otherwise="unpaid")
    assert (asked.when_question, asked.named_functions) == ("Is it shipped?", {})
    assert asked.to_json() == {"id": "a", "question": "q", "when": "Is it shipped?"}
    assert Item("a", check="c", otherwise="paid").to_json() == {"id": "a", "check": "c", "otherwise": "paid"}
    data = Item("a", "q", when={"user_matches": "x"})
    assert (data.when_question, data.named_functions, data.source, data.when_source) == (None, {}, None, None)


def test_what_an_item_depends_on() -> None:
    one = Item("a", "q", depends_on=["b", {"item": "c", "soft": 0.25}, SoftDependency(item="d", soft=0.5), "b"])
    assert (one.parents, one.softness) == (("b", "c", "d"), {"c": 0.25, "d": 0.5})
    written = one.to_json()["depends_on"]
    assert written == ["b", {"item": "c", "soft": 0.25}, {"item": "d", "soft": 0.5}, "b"]
    assert Item.from_model(ItemModel.model_validate(one.to_json())) == one


def test_an_item_without_the_new_keys_is_written_as_before() -> None:
    one = ItemModel(id="a", question="q", depends_on=("b",)).model_dump(mode="json")
    assert not {"any_of", "when", "otherwise"} & set(one)
    assert one["depends_on"] == ["b"]


def test_a_checklist_without_the_new_keys_has_the_hash_it_had() -> None:
    old = Checklist(
        Item("a", check={"called": "x"}, turn=0, required_for_next_turn=True),
        Item("b", "Is it?", depends_on=["a"], turn=0, weight=2),
        Item("c", check={"at_most": 2}, turn="trace"),
        name="n",
        version=3,
    )
    assert old.hash == "6036428346c35b906fbf9b7efbe63d69d78c64be211007c3197023fdc30034c2"
    assert Checklist(*old.items, Item("d", "q", when=looks_up)).hash != Checklist(*old.items, Item("d", "q")).hash


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
