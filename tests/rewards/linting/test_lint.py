"""What lint finds in a checklist: what counterfeits are paid, and what stored scores show."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent import Checklist, Item, Task
from cm2_agent.rewards import ChecklistScorer, LintReport, lint
from cm2_agent.rewards.linting.dialogue import MadeCall, dialogue, with_failed_calls, without_calls
from cm2_agent.rewards.linting.guesses import STOCK, guesses
from cm2_agent.rewards.linting.probe import CALLS, FAILED, GUESS, REFUSAL, SILENCE, TEXT
from cm2_agent.rewards.linting.stored import ItemCounts
from cm2_agent.types.check_specs import compile_pattern

LOOKS_UP = Item("looks_up", check={"called": "get_order", "with": {"order_id": {"from": "user"}}})


def linted(*items: Item, **more: Any) -> LintReport:
    return asyncio.run(lint(Checklist(*items, name="tried"), **more))


def paid(report: LintReport) -> dict[str, float]:
    return {one.kind: round(one.reward, 3) for one in report.paid}


def errors(report: LintReport) -> set[tuple[str, str | None]]:
    return {(one.code, one.item) for one in report.findings if one.severity == "error"}


def test_what_is_decided_by_doing_nothing_is_found() -> None:
    report = linted(LOOKS_UP, Item("calls_little", check={"at_most": 3}))
    assert paid(report)[SILENCE] == paid(report)[REFUSAL] == 0.5
    assert {code for code, _ in errors(report)} >= {SILENCE, REFUSAL, TEXT}
    assert not report.passed


def test_what_waits_for_a_deed_passes() -> None:
    shown = Item("shown", check=lambda view: "R-1001" in (view.reply or ""), depends_on=["looks_up"])
    report = linted(LOOKS_UP, shown, Item("calls_little", check={"at_most": 3}, depends_on=["looks_up"]))
    assert paid(report)[SILENCE] == paid(report)[REFUSAL] == paid(report)[TEXT] == 0
    assert 0 < paid(report)[CALLS] <= 0.67
    assert SILENCE not in {code for code, _ in errors(report)}


def test_a_text_that_anyone_can_say_is_found() -> None:
    report = linted(Item("tells", check={"reply_matches": r"\d{4}-\d{2}-\d{2}"}))
    assert paid(report)[TEXT] == 1.0
    assert (TEXT, None) in errors(report)
    own = linted(Item("tells", check={"reply_matches": "order (is|was) shipped by (sea|air)"}))
    assert paid(own)[TEXT] == 0.0
    assert paid(own)[GUESS] == 1.0


def test_a_function_that_a_failed_call_satisfies_is_found() -> None:
    def tried(view: Any) -> bool:
        return bool(view.calls("cancel_order"))

    listed = Item("asks", check={"called": "cancel_order", "with": {"order_id": 7}})
    report = linted(listed, Item("tried", check=tried))
    assert paid(report)[FAILED] == 0.5
    assert ("failed call", "tried") in errors(report)
    assert ("failed call", "asks") not in errors(report)


def test_questions_are_answered_as_an_honest_judge_would() -> None:
    done = Item("done", "Was the order cancelled?")
    broke = Item("promised", "Does a reply promise a refund?", kind="avoid")
    report = linted(done, broke)
    silence = next(one for one in report.paid if one.kind == SILENCE)
    assert (silence.reward, silence.at_most) == (0.5, 1.0)
    assert silence.items == ("promised",)


def test_rules_alone_are_no_error_but_silence_is() -> None:
    report = linted(Item("never", "Is a refund promised?", kind="avoid"))
    assert {code for code, _ in errors(report)} == {SILENCE}
    assert {one.code for one in report.findings if one.severity == "note"} >= {REFUSAL, TEXT}


@pytest.mark.parametrize(
    ("check", "code"),
    [
        ({"reply_matches": "(?i)x*"}, "cannot fail"),
        ({"never_called": "drop_table"}, "cannot fail"),
        ({"at_most": {"drop_table": 1}}, "cannot fail"),
        ({"no_tool_error": "drop_table"}, "cannot fail"),
        ({"only_called": [], "among": ["drop_table"]}, "cannot fail"),
        ({"called": "get_ordr"}, "cannot pass"),
    ],
)
def test_items_that_can_only_go_one_way_are_found(check: dict[str, Any], code: str) -> None:
    report = linted(Item("odd", check=check), tools=["get_order"])
    assert (code, "odd") in errors(report)


def test_the_users_of_tasks_are_answered() -> None:
    tasks = [Task(id="a", turns=("Where is order A-77?", "And B-99?"), system="Be brief.")]
    report = linted(LOOKS_UP, tasks=tasks)
    assert paid(report)[CALLS] == 1.0  # each turn's call has the id that its user wrote


def trace(name: str, *, found: bool) -> Any:
    call = MadeCall(name="get_order", arguments={"order_id": "7"}, result="shipped, arrives on 2026-05-20")
    reply = "It was shipped." if found else "I do not know."
    return dialogue(name, [("Where is order 7?", [[call], reply] if found else [reply])])


def test_a_store_shows_dead_saturated_and_contradicting_items_and_counterfeits() -> None:
    checklist = Checklist(
        LOOKS_UP,
        Item("unknown", check={"reply_matches": "do not know"}),
        Item("says", check={"replied": True}),
        Item("sings", check={"reply_matches": "la la la"}),
        Item("says_shipped", check={"reply_matches": "was shipped"}),
        name="tried",
    )
    scorer = ChecklistScorer(checklist)
    traces = [trace(f"t{number}", found=number % 2 == 0) for number in range(40)]
    report = asyncio.run(lint(checklist, traces=[(one, scorer.score_sync(one)) for one in traces]))
    found = {(one.code, one.item) for one in report.findings if one.severity == "warning"}
    assert {("dead", "sings"), ("saturated", "says"), ("at odds", "looks_up")} <= found
    counterfeit = next(one for one in report.paid if one.kind == "the replies without the calls")
    assert set(counterfeit.items) == {"says", "says_shipped"}
    assert counterfeit.example == "It was shipped."


def test_counterfeits_keep_what_was_said_alone() -> None:
    real = trace("t", found=True)
    bare, failed = without_calls(real), with_failed_calls(real)
    assert [message.role for message in bare.messages] == ["user", "assistant"]
    assert [call.status for call in failed.scope(None).calls] == ["failed"]
    assert [reply.text for reply in failed.scope(None).replies] == ["It was shipped."]


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.booleans(), min_size=1), max_size=60))
def test_counts_agree_with_counting_by_hand(turns: list[dict[str, bool]]) -> None:
    counts = ItemCounts()
    for turn in turns:
        counts.add_turn(turn)
    for item in "abc":
        values = [turn[item] for turn in turns if item in turn]
        assert (counts.judged[item], counts.true[item]) == (len(values), sum(values))
        codes = {one.code for one in counts.findings() if one.item == item}
        assert ("dead" in codes) == (len(values) >= 20 and not any(values))
        assert ("saturated" in codes) == (len(values) >= 20 and all(values))


@pytest.mark.parametrize(
    "pattern",
    [
        "2026-05-20",
        r"(?i)\bshipped\b.*\d{4}-\d{2}",
        "(order|parcel) (is|was) (?:on its way|lost)",
        r"[A-Z]{3}-[0-9]+",
        r"\$\d+\.\d{2}",
        "colou?r",
        "a|b",
    ],
)
def test_a_guess_matches_its_pattern(pattern: str) -> None:
    [text] = guesses([pattern])
    assert compile_pattern(pattern).search(text)


@given(st.text("ab(|)[]{}?*+.\\d^$-,1", max_size=12))
def test_guessing_never_fails_and_never_lies(pattern: str) -> None:
    try:
        compiled = compile_pattern(pattern)
    except ValueError:
        return
    for text in guesses([pattern]):
        assert compiled.search(text)


def test_stock_phrases_say_nothing_of_a_task() -> None:
    assert len(set(STOCK)) == len(STOCK)


@pytest.mark.parametrize(
    ("items", "noted"),
    [
        ([Item("told", "Is the date told?", focus_on="assistant.reply")], True),
        ([Item("done", "Was the order cancelled?")], True),
        ([Item("done", "Was the order cancelled?", focus_on="tool.content")], False),
        ([Item("promises", "Is a refund promised?", focus_on="assistant.reply", kind="avoid")], False),
        ([Item("told", "Is the date told?"), Item("states", check={"reply_states": {"from": {"tool": "t"}}})], False),
        ([Item("told", "Is the date told?", turn=1), Item("ok", check={"reply_matches": "May 3"}, turn=0)], True),
        ([Item("told", "Is the date told?"), Item("calls", check={"called": "t"})], True),
    ],
)
def test_a_question_that_own_words_answer_is_noted(items: list[Item], noted: bool) -> None:
    report = asyncio.run(lint(Checklist(*items, name="asks")))
    assert ("own words" in {one.code for one in report.findings}) is noted
