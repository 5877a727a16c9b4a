"""The checklist writer with a scripted model: which items are selected, rewritten and dropped."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.messages import ModelRequest

from cm2_agent.errors import BudgetExhausted, ModelError
from cm2_agent.llm.limits import RateLimits
from cm2_agent.rewards.authoring.prompt import instructions, prompt_version
from cm2_agent.rewards.authoring.writer import LABEL, ChecklistWriter, WrittenChecklist, task_of, task_with_checklist
from cm2_agent.rewards.judges.transcript import call_text, quoted_in
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import ToolCall
from cm2_agent.types.score import Verdict
from cm2_agent.types.task import Task
from cm2_agent.types.tool_use import ToolUse
from cm2_agent.types.trace import Trace
from tests.rewards.authoring.writing import GOOD, Data, Reader, at, cancels, date, label, lookup
from tests.rewards.talk import say, trace, turn


async def test_a_sound_checklist_takes_one_call() -> None:
    found, script = await label([lookup(), date(), cancels()], judge=Reader())
    assert found.checklist is not None
    assert [item.id for item in found.checklist] == ["looks_up", "tells_date", "cancels"]
    assert (found.calls, found.written, found.rewritten, dict(found.dropped), dict(found.unchecked)) == (
        1,
        3,
        (),
        {},
        {},
    )
    assert found.checked == 3
    assert len(script.shown) == 1
    strict = found.checklist.by_id["looks_up"]
    assert strict.required_for_next_turn
    assert strict.evidence[0]["snippet"] == 'get_order {"order_id":7}'
    score = await ChecklistScorer(found.checklist, judge=Reader())(GOOD)
    assert score.reward == 1.0, "the reference satisfies its own checklist"


async def test_without_a_judge_questions_are_kept_and_said_to_be_unchecked() -> None:
    found, _ = await label([lookup(), date(), cancels()])
    assert dict(found.unchecked) == {"tells_date": "no judge"}
    assert found.checked == 2


WRONG: dict[str, tuple[Data, str]] = {
    "no such step": (date(evidence=at(0, 5, "assistant.reply", "arrives")), "no such step"),
    "no such turn": (date(evidence=at(4, 0, "assistant.reply", "arrives")), "no such step"),
    "invented snippet": (date(evidence=at(0, 1, "assistant.reply", "arrives on 2027")), "does not stand there"),
    "snippet of another part": (date(evidence=at(0, 0, "tool.content", "order 7 arrives")), "does not stand there"),
    "turn beyond the dialogue": (cancels(turn=2), "turns 0 to 1"),
    "unobservable": (date(focus_on="assistant.reasoning"), "cannot be observed"),
    "no focus": (date(focus_on=None), "needs focus_on"),
    "evidence elsewhere": (date(focus_on="tool.content", depends_on=[]), "no evidence pointer is from tool.content"),
    "near-duplicate": (date(id="again", question="Does the reply say order 7 arrives on 2026-05-20?"), "asks the same"),
    "same check": (lookup(id="again", question="Does the agent fetch that order?"), "asks the same"),
    "unknown tool": (cancels(check={"never_called": ["refund_all"]}), "do not exist: refund_all"),
    "unknown dependency": (date(depends_on=["nobody"]), "does not exist"),
    "unpayable dependency": (
        cancels(id="b", check={"called": "cancel", "with": {"order_id": 7}}, depends_on=["cancels"]),
        "never be paid",
    ),
    "after the reply": (
        date(depends_on=["tells_date"], id="late", question="Is 2026-05-20 told again?"),
        "the reply ends the turn",
    ),
    "not satisfied": (cancels(check={"called": "get_order"}), "the reference does not satisfy it"),
    "not satisfied by the text": (date(question="Does it say 2027-01-01?"), "the reference does not satisfy it"),
    "bad pattern": (cancels(check={"reply_matches": "(?=x)"}), "RE2"),
    "kind decided twice": (cancels(check={"no_tool_error": True}, kind="avoid"), "leave the kind out"),
    "unpayable on the reference": (
        date(
            id="b",
            question="Is 2026-05-20 what came back?",
            focus_on="tool.content",
            evidence=at(0, 0, "tool.content", "2026-05-20"),
        ),
        "in the same step as an item that it depends on",
    ),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_failing_item_is_told_and_dropped_when_it_is_not_written_anew(name: str) -> None:
    wrong, problem = WRONG[name]
    others = [one for one in (lookup(), date(), cancels()) if one["id"] != wrong["id"]]
    found, script = await label([*others, wrong], [], judge=Reader())
    assert found.checklist is not None
    assert problem in found.dropped[wrong["id"]]
    assert wrong["id"] not in found.checklist.by_id
    assert found.calls == len(script.shown) == 2
    assert problem in script.question(1)
    assert {one["id"] for one in others} - set(found.dropped) == set(found.checklist.by_id)


async def test_an_item_that_survives_every_corruption_is_vacuous() -> None:
    loose = cancels(
        check={"reply_matches": ""} | {"reply_matches": "x*"}, evidence=at(1, 1, "assistant.reply", "cancelled")
    )
    found, _ = await label([lookup(), date(), loose], [], judge=Reader(always=True))
    assert "still satisfied" in found.dropped["tells_date"], (
        "a judge that says yes to everything is no judge of the item"
    )
    assert "cancels" not in found.dropped, "without a reply there is nothing for the pattern to match"


async def test_a_rewritten_item_is_tried_again_and_kept() -> None:
    found, script = await label(
        [lookup(), date(question="Does it say 2027-01-01?"), cancels()], [date()], judge=Reader()
    )
    assert found.checklist is not None
    assert found.rewritten == ("tells_date",)
    assert not found.dropped
    assert found.checklist.by_id["tells_date"].question == date()["question"]
    assert "The others stand" in script.question(1)


async def test_a_rewriting_that_fails_again_or_speaks_of_others_changes_nothing_else() -> None:
    bad = date(question="Does it say 2027-01-01?")
    found, _ = await label(
        [lookup(), bad, cancels()], [bad, cancels(check={"replied": True}), lookup(id="new")], judge=Reader()
    )
    assert found.checklist is not None
    assert set(found.checklist.by_id) == {"looks_up", "cancels"}
    assert found.checklist.by_id["cancels"].check == {"called": "cancel", "succeeded": True}
    assert "does not satisfy" in found.dropped["tells_date"]
    found, _ = await label([lookup(), bad, cancels()], "sorry", judge=Reader())
    assert set(found.dropped) == {"tells_date"}


async def test_what_waited_for_a_dropped_item_no_longer_does() -> None:
    found, _ = await label([lookup(check={"called": "refund"}), date(), cancels()], [], judge=Reader())
    assert found.checklist is not None
    assert found.checklist.by_id["tells_date"].depends_on == ()
    assert (found.unlinked, set(found.dropped)) == (1, {"looks_up"})


async def test_weights_that_are_zero_once_others_are_gone() -> None:
    found, _ = await label(
        [lookup(), date(weight=0), cancels(check={"called": "get_order"}), lookup(id="w", weight=0)], [], judge=Reader()
    )
    assert found.checklist is not None
    assert set(found.checklist.by_id) == {"looks_up", "tells_date"}
    alone, _ = await label(
        [lookup(check={"called": "cancel"}), date(weight=0, depends_on=[]), cancels()], [], judge=Reader()
    )
    assert alone.checklist is not None
    assert set(alone.checklist.by_id) == {"cancels"}
    assert "weight 0" in alone.dropped["tells_date"]


async def test_a_model_that_fails_gives_a_reason_and_no_checklist() -> None:
    found, _ = await label(RuntimeError("no route"), retries=0)
    assert (found.checklist, found.calls) == (None, 1)
    assert "no route" in str(found.reason)
    busy = ModelAPIError("scripted", "try later")
    found, _ = await label(busy, [lookup()], retries=1, backoff=0.0)
    assert found.checklist is not None
    assert found.calls == 2
    found, _ = await label(busy, busy, retries=1, backoff=0.0)
    assert "try later" in str(found.reason)
    none, _ = await label([cancels(check={"called": "get_order"})], [])
    assert "no item was sound" in str(none.reason)


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        (trace(turn("Hi", say("x")), failure="ToolError"), "died"),
        (trace(turn("Hi")), "no turn"),
        (trace(turn("Hi", say("x")), status="cancelled"), "cancelled"),
    ],
)
async def test_a_dialogue_that_is_no_reference_costs_no_call(reference: Trace, problem: str) -> None:
    found, script = await label(reference=reference)
    assert problem in str(found.reason)
    assert script.shown == []


async def test_a_budget_stops_before_the_call() -> None:
    limits = RateLimits(budget_calls=1)
    with pytest.raises(BudgetExhausted):
        await label([lookup(check={"called": "cancel"}), cancels()], [], limits=limits)
    assert limits.calls == 1


async def test_a_simulated_user_has_items_of_the_closing_block_alone() -> None:
    task = Task(id="free", version=3, persona="You want to know where order 7 is.")
    closing = {"turn": "trace", "required_for_next_turn": False}
    found, script = await label([lookup(**closing), cancels()], [], task=task)
    assert found.checklist is not None
    assert [item.turn for item in found.checklist] == ["trace"]
    assert "expected trace" in found.dropped["cancels"]
    assert (found.checklist.name, found.checklist.version) == ("free", 3)
    asked = script.shown[0][0]
    assert isinstance(asked, ModelRequest)
    assert asked.instructions == instructions(True) != instructions(False)


async def test_a_task_with_the_checklist_is_what_run_and_score_take() -> None:
    found, _ = await label([lookup(), cancels()])
    task = task_with_checklist(task_of(GOOD), found, "scripted")
    again = Task.model_validate_json(json.dumps(task.to_json()))
    assert again.turns == ("Where is order 7?", "Cancel it.")
    assert [(one.name, one.result) for one in again.recorded] == [
        ("get_order", {"arrives": "2026-05-20"}),
        ("cancel", {"ok": True}),
    ]
    assert again.metadata[LABEL] == {"trace": "good", "model": "scripted", "prompt": prompt_version(), "unchecked": []}
    own = again.own_checklist()
    assert own is not None
    assert found.checklist is not None
    assert own.hash == found.checklist.hash
    assert ChecklistScorer().score_sync(GOOD, again).reward == 1.0
    with pytest.raises(ValueError, match="has no checklist"):
        task_with_checklist(again, WrittenChecklist(trace_id="x", reason="why"), "m")


def test_a_model_that_cannot_be_used_is_told() -> None:
    with pytest.raises(ModelError, match="PROVIDER:MODEL"):
        ChecklistWriter("no-such-provider:x")


def test_a_snippet_of_json_may_be_spaced_and_escaped_otherwise() -> None:
    text = call_text(ToolUse(call=ToolCall(name="get", arguments={"b": "x y", "a": 7})))
    assert text == 'get {"a":7,"b":"x y"}'
    for quote in ('{"a": 7, "b": "x y"}', '{\\"a\\":7', 'GET  {"a"'):
        assert quoted_in(quote, (text,)), quote
    for quote in ("", "  ", '"a":8', 'get {"b"'):
        assert not quoted_in(quote, (text,)), quote


async def test_questions_that_name_other_things_are_no_duplicates() -> None:
    other = date(id="other", question="Does the reply say that order 8 arrives on 2026-05-20?")
    found, _ = await label([lookup(), date(), other, cancels()], judge=Reader())
    assert not found.dropped
    assert found.calls == 1


async def test_on_a_corrupted_reference_the_judge_is_not_told_where_it_was_right() -> None:
    class Keeps(Reader):
        seen: list[Item] = []  # noqa: RUF012 (pydantic copies defaults)

        async def __call__(self, trace: Trace, turn: int | None, items: Sequence[Item]) -> list[Verdict]:
            self.seen.extend(items)
            return await super().__call__(trace, turn, items)

    await label([lookup(), date(), cancels()], judge=Keeps())
    assert [len(item.evidence) for item in Keeps.seen] == [1, 0]
