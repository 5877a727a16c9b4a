"""Checks that run: each kind of data by hand, functions, and what a broken check becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm2_agent.errors import ChecklistError
from cm2_agent.rewards.scoring.checks import load_functions, resolve
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.score import Verdict
from cm2_agent.types.view import View
from tests.rewards.talk import call, say, trace, turn

TALK = trace(
    turn(
        "Where is order 7?",
        call("get_user", "u1"),
        call("get_order", {"date": "May 3", "ref": "A9"}, order_id=7),
        say("On May 3."),
    ),
    turn(
        "Cancel it",
        call("cancel", "down", error=True, order_id=7),
        call("cancel", "done", order_id=7.0, ref="A9"),
        say("PROMISED."),
    ),
)
NOTHING = {"called": "nothing"}


def flip(check: Any, at: int | None = 0) -> int | None:
    """The row from which an item of this check is true in a turn (or the block)."""
    item = Item("it", check=check, turn="trace" if at is None else at)
    score = ChecklistScorer(Checklist(item)).score_sync(TALK)
    return score.turns[-1].verdicts[0].step


@pytest.mark.parametrize(
    ("check", "first", "second", "block"),
    [
        ({"called": "get_order"}, 2, None, 2),
        ({"called": "cancel"}, None, 2, 5),  # the first one failed
        ({"called": "cancel", "failed": "allowed"}, None, 1, 4),
        ({"called": "get_order", "before": "reply"}, 2, None, 2),
        ({"called": "cancel", "before": "reply"}, None, 2, None),  # in the dialogue a reply came first
        ({"called": "get_user", "before": "get_order"}, 1, None, 1),
        ({"called": "get_order", "before": "get_user"}, None, None, None),
        ({"called": "get_order", "with": {"order_id": 7}}, 2, None, 2),
        ({"called": "get_order", "with": {"order_id": 8}}, None, None, None),
        ({"called": "get_order", "with": {"order_id": "7"}}, None, None, None),  # text is not a number
        ({"called": "cancel", "with": {"order_id": 7}}, None, 2, 5),  # 7.0 is 7
        ({"called": "cancel", "with": {"order_id": 7}, "failed": "allowed"}, None, 1, 4),  # and 7 came first
        ({"called": "cancel", "with": {"ref": {"from": "tool"}}}, None, 2, 5),
        ({"called": "cancel", "with": {"ref": {"from": "user"}}}, None, None, None),
        ({"called": "get_order", "with": {"order_id": {"from": "user"}}}, 2, None, 2),
        ({"called": "cancel", "succeeded": True}, None, 2, 5),
        ({"never_called": "cancel"}, 3, None, None),
        ({"never_called": ["refund", "pay"]}, 3, 3, 6),
        ({"at_most": {"cancel": 1}}, 3, None, None),
        ({"at_most": {"cancel": 2, "get_order": 1}}, 3, 3, 6),
        ({"at_most": 2}, 3, 3, None),  # all calls together
        ({"at_most": 0}, None, None, None),
        ({"no_tool_error": True}, 3, None, None),
        ({"no_tool_error": "get_order"}, 3, 3, 6),
        ({"no_tool_error": ["get_order", "cancel"]}, 3, None, None),
        ({"replied": True}, 3, 3, 3),
        ({"reply_matches": "(?i)promised"}, None, 3, 6),
        ({"reply_matches": "promised"}, None, None, None),
        ({"reply_matches": r"May \d"}, 3, None, 3),
    ],
)
def test_data_by_hand(check: dict[str, Any], first: int | None, second: int | None, block: int | None) -> None:
    assert (flip(check, 0), flip(check, 1), flip(check, None)) == (first, second, block)


def test_text_beside_a_call_is_no_reply() -> None:
    one = trace(turn("Hi", call("x", text="One moment"), say("Here")))
    score = ChecklistScorer(
        Checklist(Item("r", check={"replied": True}), Item("m", check={"reply_matches": "moment"}))
    ).score_sync(one)
    assert [verdict.step for verdict in score.verdicts] == [2, None]


def test_a_pattern_that_would_explode_elsewhere_is_linear() -> None:
    one = trace(turn("Hi", say("a" * 50_000 + "b")))
    assert ChecklistScorer(Checklist(Item("m", check={"reply_matches": "^(a+)+$"}))).score_sync(one).reward == 0.0


def test_a_reply_with_a_lone_surrogate_can_be_searched() -> None:
    one = trace(turn("Hi", say("broken \ud83d end")))
    assert ChecklistScorer(Checklist(Item("m", check={"reply_matches": "end$"}))).score_sync(one).reward == 1.0


def crashes(view: View) -> bool:
    raise ZeroDivisionError("no order")


def crashes_late(view: View) -> bool:
    if view.seen < 3:
        return False
    raise KeyError("date")


def crashes_after(view: View) -> bool:
    if view.seen > 1:
        raise KeyError("unreachable, since the column is true from the first step on")
    return True


def says_yes(view: View) -> Any:
    return "yes"


def says_nothing(view: View) -> Any:
    return None


def numpy_true(view: View) -> Any:
    return np.bool_(view.seen == 2)


def verdict(check: Any, **keys: Any) -> Verdict:
    return ChecklistScorer(Checklist(Item("it", check=check, turn=0, **keys))).score_sync(TALK).verdicts[0]


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (crashes, "ZeroDivisionError: no order"),
        (crashes_late, "KeyError"),
        (says_yes, "returned str 'yes'; expected true, false or NOT_APPLICABLE"),
        (says_nothing, "returned NoneType"),
    ],
)
@pytest.mark.parametrize("kind", ["reach", "hold", "avoid"])
def test_a_broken_check_is_null_and_never_a_number(check: Any, words: str, kind: Any) -> None:
    got = verdict(check, kind=kind)
    assert (got.value, got.paid, got.step, got.cause) == (None, None, None, "infrastructure")
    assert words in (got.explanation or "")
    score = ChecklistScorer(Checklist(Item("it", check=check, kind=kind))).score_sync(TALK)
    assert (score.reward, score.null_reason) == (None, "verdicts")


def test_a_reach_check_is_asked_until_it_holds_and_numpy_is_a_truth() -> None:
    assert verdict(crashes_after).step == 1
    assert verdict(numpy_true).step == 2


def test_one_broken_check_leaves_the_others_alone() -> None:
    both = Checklist(
        Item("broken", check=crashes, turn=0), *(Item(f"r{n}", check={"called": "get_order"}, turn=0) for n in range(9))
    )
    assert ChecklistScorer(both).score_sync(TALK).reward == 1.0, "one of ten missing is within the tolerance of 0.2"
    assert ChecklistScorer(both, tolerance=0.05).score_sync(TALK).reward is None


def test_names_are_resolved_from_the_given_functions() -> None:
    named = Checklist(Item("it", check="numpy_true"))
    assert (
        ChecklistScorer(named, functions={"numpy_true": numpy_true}).score_sync(TALK).turns[0].verdicts[0].value is True
    )
    with pytest.raises(ChecklistError, match=r"'it'.*'numpy_true'.*says_yes.*--checks"):
        ChecklistScorer(named, functions={"says_yes": says_yes})
    with pytest.raises(ChecklistError, match=r"\{replied: …\}"):
        ChecklistScorer(Checklist(Item("it", check="replied")))


async def later(view: View) -> bool:
    return True


class Later:
    async def __call__(self, view: View) -> bool:
        return True


@pytest.mark.parametrize("check", [later, Later()])
def test_async_checks_are_refused(check: Any) -> None:
    with pytest.raises(ChecklistError, match="is async"):
        resolve(check, item="it")


# -- modules of checks

MODULE = """
from dataclasses import dataclass
from os.path import basename

@dataclass
class Rule:
    word: str

def polite(view):
    "Says please."
    return Rule("please").word in view.reply

def with_default(view, word="x"):
    return word in view.reply

def two_arguments(view, word):
    return True

def keyword_only(*, view):
    return True

def _private(view):
    return True
"""


def test_a_module_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "checks.py"
    path.write_text(MODULE, encoding="utf-8")
    functions = load_functions(path)
    assert sorted(functions) == ["polite", "with_default"]
    first = Checklist(Item("p", check=functions["polite"])).hash
    path.write_text(MODULE.replace('"please"', '"pretty please"'), encoding="utf-8")
    changed = load_functions(str(path))["polite"]
    assert Checklist(Item("p", check=changed)).hash != first, "the hash covers a function's source"


def test_a_module_by_its_name() -> None:
    assert "crashes" in load_functions("tests.rewards.scoring.test_checks")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("x = 1", "holds no check"),
        ("def broken(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_module_that_will_not_do(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "checks.py"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ChecklistError, match=words):
        load_functions(path)
    with pytest.raises(ChecklistError, match="ModuleNotFoundError"):
        load_functions("no_such_module_anywhere")
