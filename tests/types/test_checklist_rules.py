"""What a checklist may not be: each rule with what breaks it, what only looks like it, and the sentence that names the
items."""

from __future__ import annotations

from typing import Any

import pytest

from cm2_agent.errors import ChecklistError
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.view import View


def item(id: str, **keys: Any) -> Item:
    return Item(id, keys.pop("question", None if "check" in keys else "Is it so?"), **keys)


def called(id: str, tool: str, *after: Any, **keys: Any) -> Item:
    extra = {name.rstrip("_"): keys.pop(name) for name in ("with_", "before", "succeeded") if name in keys}
    return Item(id, check={"called": tool, **extra}, depends_on=after, **keys)


def says_hello(view: View) -> bool:
    return "hello" in view.reply


BROKEN = {
    "no items": ([], "no items"),
    "duplicate": ([item("a"), item("b"), item("a")], "'a' is there twice"),
    "missing": ([item("a", depends_on=["ghost"])], "'a' depends on 'ghost', which does not exist"),
    "self": ([item("a", depends_on=["a"])], "in a circle: a → a"),
    "circle": ([item("a", depends_on=["b"]), item("b", depends_on=["c"]), item("c", depends_on=["a"])], "in a circle"),
    "other turn": ([item("a", turn=0), item("b", turn=1, depends_on=["a"])], "'b' (turn 1) depends on 'a' (turn 0)"),
    "each on one": (
        [item("a", turn=0), item("b", depends_on=["a"])],
        "an item of every turn cannot wait for an item of one",
    ),
    "turn on block": (
        [item("a", turn="trace"), item("b", turn=0, depends_on=["a"])],
        "stay inside a turn or the closing block",
    ),
    "block on each": (
        [item("a"), item("b", turn="trace", depends_on=["a"])],
        "stay inside a turn or the closing block",
    ),
    "on hold": ([item("a", kind="hold"), item("b", depends_on=["a"])], "only reach items can be depended on"),
    "on avoid": ([item("a", kind="avoid"), item("b", depends_on=["a"])], "only reach items can be depended on"),
    "on ends-decided": (
        [item("a", check={"never_called": "x"}), item("b", depends_on=["a"])],
        "only reach items can be depended on",
    ),
    "any_of a ghost": ([item("a"), Item("b", any_of=["a", "ghost"])], "'b' is any_of 'ghost', which does not exist"),
    "any_of another scope": ([item("a", turn="trace"), Item("b", any_of=["a"])], "its items are of the same scope"),
    "any_of itself": ([Item("a", any_of=["a"])], "in a circle, through any_of: a → a"),
    "a circle of both": (
        [item("a", depends_on=["c"]), Item("b", any_of=["a"]), item("c", depends_on=["b"])],
        "in a circle, through any_of",
    ),
    "any_of what it waits for": (
        [item("a"), item("c"), Item("b", any_of=["a", "c"], depends_on=["a"])],
        "'b' is any_of 'a' and depends on it",
    ),
    "on any_of what ends decided": (
        [item("a", kind="hold"), Item("b", any_of=["a"]), item("c", depends_on=["b"])],
        "only reach items can be depended on",
    ),
    "on any_of the same call": (
        [called("a", "x"), Item("b", any_of=["a"]), called("c", "x", "b")],
        "'c' can never be paid after 'b': both have the same check",
    ),
    "softly on the same call": (
        [called("a", "x"), called("b", "x", {"item": "a", "soft": 0.5})],
        "'b' can never be paid in full after 'a'",
    ),
    "hard and soft": ([item("a"), item("b", depends_on=["a", {"item": "a", "soft": 0.5}])], "twice, and softly once"),
    "an id that its when has": ([item("a", when="Is it so?"), item("a:when")], "an item has that id; rename it"),
    "a soft circle": (
        [item("a", depends_on=[{"item": "b", "soft": 0.5}]), item("b", depends_on=["a"])],
        "in a circle",
    ),
    "same call": ([called("a", "x"), called("b", "x", "a")], "both have the same check"),
    "same call, narrower": ([called("a", "x"), called("b", "x", "a", with_={"id": 7})], "one call of x satisfies both"),
    "same call, wider": ([called("a", "x", with_={"id": 7}), called("b", "x", "a")], "one call of x satisfies both"),
    "calls and succeeds": ([called("a", "x"), called("b", "x", "a", succeeded=True)], "one call of x satisfies both"),
    "before its parent": ([called("a", "y"), called("b", "x", "a", before="y")], "turn the dependency round"),
    "same function": ([item("a", check=says_hello), item("b", check=says_hello, depends_on=["a"])], "same check"),
    "call and result": (
        [
            called("a", "get_order"),
            item("b", question="Did get_order return a date?", focus_on="tool.content", depends_on=["a"]),
        ],
        "a call of get_order and its result are one step",
    ),
    "judged call and result": (
        [
            item("a", question="Does it call get_order?", focus_on="assistant.tool_calls"),
            item(
                "b", question="Does the result of `get_order` hold a date?", focus_on="tool.content", depends_on=["a"]
            ),
        ],
        "a call of get_order and its result are one step",
    ),
    "result, then its call": (
        [item("a", question="Did get_order answer?", focus_on="tool.content"), called("b", "get_order", "a")],
        "must be called before it can answer",
    ),
    "after replied": ([item("a", check={"replied": True}), called("b", "x", "a")], "the reply ends the turn"),
    "after reply_matches": (
        [item("a", check={"reply_matches": "x"}), item("b", depends_on=["a"])],
        "the reply ends the turn",
    ),
    "after a judged reply": (
        [item("a", focus_on="assistant.reply"), item("b", depends_on=["a"])],
        "the reply ends the turn",
    ),
    "part of nothing": ([item("a", part_of="ghost")], "part_of 'ghost', which does not exist"),
    "part of itself": ([item("a", part_of="b"), item("b", part_of="a")], "part of itself"),
    "weightless turn": ([item("a", turn=0, weight=0), item("b", turn=1)], "turn 0 has only items of weight 0"),
    "weightless each": ([item("a", weight=0), item("b", turn=1)], "the each items alone has only items of weight 0"),
    "weightless block": (
        [item("a"), item("b", turn="trace", weight=0)],
        "the closing block (the items of turn trace) has only items of weight 0",
    ),
    "strict block": ([item("a", turn="trace", required_for_next_turn=True)], "no turn follows the closing block"),
    "far turn": ([item("a", turn=10**6)], "turn is 1000000"),
    "huge weight": ([item("a", weight=1e300)], "weight is 1e+300"),
    "unknown check": ([item("a", check={"caled": "x"})], "none of the known checks; give exactly one of called"),
    "two checks": ([item("a", check={"called": "x", "replied": True})], "several checks (called, replied)"),
    "unknown key": ([item("a", check={"called": "x", "wth": {}})], "unknown key 'wth'; allowed: called, with, before"),
    "wrong type": ([item("a", check={"called": 7})], "the check called"),
    "wrong source": (
        [item("a", check={"called": "x", "with": {"id": {"from": "judge"}}})],
        "from is 'judge'; expected user",
    ),
    "negative count": ([item("a", check={"at_most": {"x": -1}})], "the check at_most"),
    "bool count": ([item("a", check={"at_most": True})], "the check at_most"),
    "not a pattern": ([item("a", check={"reply_matches": "(a"})], "not RE2 syntax"),
    "backtracking": ([item("a", check={"reply_matches": r"(a)\1"})], "not RE2 syntax"),
    "false": ([item("a", check={"replied": False})], "expected true"),
    "not JSON": ([item("a", check={"called": "x", "with": {"id": float("nan")}})], "not JSON"),
    "before itself": ([called("a", "x", before="x")], "can never be true"),
}


@pytest.mark.parametrize(("items", "sentence"), BROKEN.values(), ids=BROKEN.keys())
def test_broken(items: list[Item], sentence: str) -> None:
    with pytest.raises(ChecklistError) as caught:
        Checklist(*items, name="mine")
    assert sentence in str(caught.value)
    assert "checklist 'mine'" in str(caught.value)


SOUND = {
    "turn on each": [item("a"), item("b", turn=2, depends_on=["a"])],
    "turn on turn": [item("a", turn=2), item("b", turn=2, depends_on=["a"])],
    "each on each": [item("a"), item("b", depends_on=["a"])],
    "block on block": [item("a", turn="trace"), item("b", turn="trace", depends_on=["a"])],
    "hold after reach": [item("a"), item("b", kind="hold", depends_on=["a"])],
    "two orders": [called("a", "x", with_={"id": 7}), called("b", "x", "a", with_={"id": 8})],
    "two facts of one tool": [called("a", "x", with_={"id": 7}), called("b", "x", "a", with_={"page": 2})],
    "two tools": [called("a", "x"), called("b", "y", "a")],
    "before another": [called("a", "x", before="y"), called("b", "y", "a")],
    "reply after the call": [called("a", "x"), item("b", check={"reply_matches": "x"}, depends_on=["a"])],
    "after a reply, in the block": [
        item("a", check={"replied": True}, turn="trace"),
        called("b", "x", "a", turn="trace"),
    ],
    "an earlier result": [
        called("a", "get_user"),
        item("b", question="Did get_order return a date?", focus_on="tool.content", depends_on=["a"]),
    ],
    "a result among several tools": [
        called("a", "get_user"),
        item("b", question="After get_user, did get_order return a date?", focus_on="tool.content", depends_on=["a"]),
    ],
    "a second try after the error": [
        item("a", question="Did get_order return an error?", focus_on="tool.content"),
        called("b", "get_order", "a", with_={"id": 8}),
    ],
    "no weight beside weight": [item("a", turn=0, weight=0), item("b", turn=0)],
    "part of": [item("a"), item("b", part_of="a")],
}


@pytest.mark.parametrize("items", SOUND.values(), ids=SOUND.keys())
def test_sound(items: list[Item]) -> None:
    assert len(Checklist(*items).items) == len(items)


def test_every_broken_rule_is_told_at_once() -> None:
    with pytest.raises(ChecklistError) as caught:
        Checklist(
            item("a", depends_on=["ghost"]),
            item("b", part_of="none"),
            item("c", turn="trace", required_for_next_turn=True),
        )
    assert len(str(caught.value).splitlines()) == 3


def test_a_long_chain_of_dependencies_is_no_deep_recursion() -> None:
    chain = [item("i0"), *(item(f"i{n}", depends_on=[f"i{n - 1}"]) for n in range(1, 3000))]
    assert len(Checklist(*chain).items) == 3000


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), -0.001])
def test_weights_are_numbers_of_zero_or_more(weight: float) -> None:
    with pytest.raises(ChecklistError, match=r"'a'.*weight"):
        Checklist(item("a", weight=weight))


@pytest.mark.parametrize("turn", [True, "0", 1.5, -1, "every"])
def test_a_turn_is_a_number_each_or_trace(turn: Any) -> None:
    with pytest.raises(ChecklistError, match=r"'a'.*turn"):
        item("a", turn=turn)


@pytest.mark.parametrize("kind", ["reach", "hold", "avoid"])
@pytest.mark.parametrize("check", [{"never_called": "x"}, {"at_most": 3}, {"no_tool_error": True}])
def test_ends_decided_checks_take_no_kind(kind: Any, check: dict[str, Any]) -> None:
    with pytest.raises(ChecklistError, match="leave the kind out"):
        item("a", check=check, kind=kind)
