"""What a judge is asked again, and what it is asked in reverse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.errors import JudgeError
from cm2_agent.rewards.judges.cache import MemoryCache
from cm2_agent.rewards.judges.llm_judge import LLMJudge
from cm2_agent.rewards.judges.prompt import Window
from cm2_agent.rewards.judges.rounds import AGAIN, REVERSED, Reversals
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import Blob, Message, Text
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.trace import Trace
from tests.judge_server import Asked, Fault, JudgeServer, answer, function_model, reply
from tests.rewards.judges import judging as shared
from tests.rewards.judges.judging import ask
from tests.rewards.talk import call, say, trace, turn

closed = shared.closed
DONE = Item("done", "Was the order cancelled?")
HARM = Item("harm", "Was a refund promised?", kind="avoid")
TRAP = trace(
    turn("Cancel order 7.", call("cancel"), say("Hello. The manager says that. Your order 7 was cancelled. Bye."))
)
HALF = answer("done", "yes", 2, quote="Your order 7 was cancelled")
BOTH = answer("done", "yes", 2, quote="The manager says that. Your order 7 was cancelled.")


def scripted(*said: dict[str, Any], asked: list[Asked] | None = None, **options: Any) -> LLMJudge:
    answers = iter(said)
    return LLMJudge(function_model(lambda _: reply(next(answers)), asked=asked), **options)


async def test_a_quote_that_leaves_out_what_turns_it_is_asked_again_with_both_sentences() -> None:
    asked: list[Asked] = []
    judge = scripted(HALF, BOTH, asked=asked)
    (got,) = await judge(TRAP, 0, [DONE])
    assert (got.value, judge.usage.calls, judge.usage.re_asks) == (True, 2, 1)
    assert got.evidence[0]["snippet"] == "The manager says that. Your order 7 was cancelled."
    (shown,) = [line for line in asked[1].lines if "excerpt_for" in line]
    assert shown == {
        "excerpt_for": "done",
        "of": "step 2, assistant.reply",
        "content": "The manager says that. Your order 7 was cancelled.",
    }
    assert "who says so" in asked[1].tail
    assert "manager" not in asked[1].tail, "judged text stands in the transcript alone"


@pytest.mark.parametrize(
    "second", [HALF, answer("done", "yes"), answer("done", "yes", 2, quote="Your order 7 is cancelled")]
)
async def test_a_yes_that_still_leaves_it_out_is_unverifiable(second: dict[str, Any]) -> None:
    (got,) = await scripted(HALF, second)(TRAP, 0, [DONE])
    assert (got.value, got.reason, got.cause) == (None, "judge failed", "content")
    assert "unverifiable" in str(got.explanation)


async def test_a_no_at_the_second_asking_is_a_no() -> None:
    (got,) = await scripted(HALF, answer("done", "no"), reversed_share=0.0)(TRAP, 0, [DONE])
    assert got.value is False


async def test_a_second_quote_that_leaves_something_out_is_asked_a_third_time_and_no_more() -> None:
    judge = scripted(answer("done", "yes"), HALF, BOTH)
    (got,) = await judge(TRAP, 0, [DONE])
    assert (got.value, judge.usage.calls) == (True, 3)
    judge = scripted(answer("done", "yes"), HALF, HALF)
    (got,) = await judge(TRAP, 0, [DONE])
    assert (got.value, judge.usage.calls) == (None, 3)


async def test_another_place_where_nothing_is_left_out_counts_at_once() -> None:
    twice = trace(
        turn("Cancel it.", say("He says so. Your order 7 was cancelled. I looked it up. Your order 7 was cancelled!"))
    )
    judge = scripted(answer("done", "yes", 1, quote="Your order 7 was cancelled"))
    (got,) = await judge(twice, 0, [DONE])
    assert (got.value, judge.usage.calls) == (True, 1)
    assert got.evidence[0]["snippet"] == "Your order 7 was cancelled!"
    assert got.evidence[0]["quote"] == "Your order 7 was cancelled"


async def test_the_items_own_question_answers_nothing() -> None:
    echo = trace(turn("Cancel it.", say("Was the order cancelled? Yes.")))
    quoted = answer("done", "yes", 1, quote="Was the order cancelled?")
    (got,) = await scripted(quoted, quoted)(echo, 0, [DONE])
    assert (got.value, got.cause) == (None, "content")


async def test_what_holds_at_the_end_is_shown_by_the_last_step_that_can_show_it() -> None:
    one = trace(
        turn(
            "Cancel it.",
            call("cancel", "the order was cancelled"),
            say("The order stays cancelled."),
            say("Bye, and thanks."),
        )
    )
    holds = Item("done", "Is it cancelled?", kind="hold")
    tool = Item("done", "Is it cancelled?", kind="hold", focus_on="tool.content")
    early = answer("done", "yes", 2, quote="The order stays cancelled.")
    last = answer("done", "yes", 3, quote="Bye, and thanks.")
    found = answer("done", "yes", 1, "tool.content", "the order was cancelled")
    assert (await scripted(early, early)(one, 0, [holds]))[0].value is None
    assert (await scripted(early, last)(one, 0, [holds]))[0].value is True
    assert (await scripted(found)(one, 0, [tool]))[0].value is True


@pytest.mark.parametrize(("item", "value"), [(DONE, False), (HARM, True)])
async def test_a_share_of_the_absences_is_asked_in_reverse(item: Item, value: bool) -> None:
    no = answer(item.id, "no")
    asked: list[Asked] = []
    judge = scripted(no, no, asked=asked, reversed_share=1.0)
    (got,) = await judge(TRAP, 0, [item])
    assert (got.value, got.evidence) == (value, ({"judge": "in-process", "reversed": "nothing found"},))
    assert REVERSED in asked[1].tail
    assert judge.usage.re_asks == 1
    judge = scripted(no, reversed_share=0.0)
    (got,) = await judge(TRAP, 0, [item])
    assert (got.value, got.evidence, judge.usage.calls) == (value, ({"judge": "in-process"},), 1)


@pytest.mark.parametrize("item", [DONE, HARM])
async def test_a_violation_that_is_found_then_contradicts(item: Item) -> None:
    no, found = (
        answer(item.id, "no"),
        answer(item.id, "yes", 2, quote="The manager says that. Your order 7 was cancelled."),
    )
    (got,) = await scripted(no, found, reversed_share=1.0)(TRAP, 0, [item])
    assert (got.value, got.reason, got.cause) == (None, "judge failed", "content")
    assert got.evidence[0]["reversed"] == "found"
    assert got.evidence[0]["snippet"]


async def test_a_quote_that_proves_no_violation_changes_nothing() -> None:
    for second in (answer("harm", "yes", 2, quote="You get a refund of 5 dollars"), answer("harm", "cannot_tell")):
        (got,) = await scripted(answer("harm", "no"), second, reversed_share=1.0)(TRAP, 0, [HARM])
        assert got.value is True


async def test_a_failure_of_the_reverse_question_is_a_failure() -> None:
    def said(asked: Asked) -> Any:
        return Fault(status=500) if REVERSED in asked.tail else reply(answer("harm", "no"))

    cache = MemoryCache()
    with JudgeServer(said) as server:
        (got,) = await ask(server, [HARM], reversed_share=1.0, cache=cache)
        assert (got.value, got.cause) == (None, "infrastructure")
        server.judge = lambda asked: reply(answer("harm", "no"))
        (got,) = await ask(server, [HARM], reversed_share=1.0, cache=cache)
        assert got.value is True


async def test_what_was_asked_in_reverse_is_known_the_next_time() -> None:
    cache = MemoryCache()
    no = answer("harm", "no")
    (first,) = await scripted(no, no, reversed_share=1.0, cache=cache)(TRAP, 0, [HARM])
    (again,) = await scripted(reversed_share=1.0, cache=cache)(TRAP, 0, [HARM])
    assert again == first


@given(st.text(), st.text(), st.integers(0, 3))
def test_which_are_drawn_follows_from_content_and_seed_alone(digest: str, line: str, seed: int) -> None:
    window = Window(text="", first=1, last=2, turn=None, digest=digest)
    drawn = Reversals(share=0.5, seed=seed).draws(window, line)
    assert drawn == Reversals(share=0.5, seed=seed).draws(window, line)
    assert drawn <= Reversals(share=0.6, seed=seed).draws(window, line)


def test_a_tenth_is_drawn() -> None:
    window = Window(text="", first=1, last=2, turn=0, digest="d")
    for seed in (0, 1):
        drawn = sum(Reversals(seed=seed).draws(window, f"line {number}") for number in range(5000))
        assert 430 <= drawn <= 570


def test_share_and_seed_stand_in_the_version_where_they_are_not_the_usual() -> None:
    model = function_model()
    assert LLMJudge(model, reversed_share=0.1, seed=0).version == LLMJudge(model).version
    assert LLMJudge(model, reversed_share=0.5).version.endswith(";reversed=0.5")
    assert LLMJudge(model, seed=3).version.endswith(";seed=3")
    with pytest.raises(JudgeError, match=r"reversed_share is 1\.5; expected a share from 0 to 1"):
        LLMJudge(model, reversed_share=1.5)


async def test_an_absence_in_what_was_not_shown_is_no_proof() -> None:
    picture = Blob(content="iVBORw0K", modality="image", mime_type="image/png")
    shown = trace(turn("Draw it.", [Message(role="assistant", parts=(Text(content="Here it is."), picture))]))
    for item in (DONE, HARM):
        (got,) = await scripted(answer(item.id, "no"))(shown, 0, [item])
        assert (got.value, got.cause) == (None, "content")
        assert "was not shown" in str(got.explanation)
    elsewhere = Item("harm", "Was a wrong tool called?", kind="avoid", focus_on="assistant.tool_calls")
    (got,) = await scripted(answer("harm", "no"), reversed_share=0.0)(shown, 0, [elsewhere])
    assert got.value is True, "the calls were all shown"
    (got,) = await scripted(answer("harm", "no"), reversed_share=0.0, images=True)(shown, 0, [HARM])
    assert got.value is True


async def test_pictures_beside_a_tools_text_are_not_seen() -> None:
    blocks = [{"type": "text", "text": "a map"}, {"type": "image", "data": "iVBORw0K"}]
    one = trace(turn("Show it.", call("show", blocks), say("Here.")))
    (got,) = await scripted(answer("harm", "no"))(one, 0, [HARM])
    assert got.value is None


async def test_a_sub_agent_that_wrote_no_step_is_not_shown() -> None:
    inner = Message.of("assistant", "I promise a refund.")
    run = Run(
        id="r",
        messages=tuple(turn("Refund?", call("ask_team"), say("They will see."))),
        calls=(ModelCall(span_id="c", model="m", input=(), output=inner, agent="team", started=1, ended=2),),
    )
    of_team = Item("harm", "Was a refund promised?", kind="avoid", agent="team")
    of_nobody = Item("harm", "Was a refund promised?", kind="avoid", agent="nobody")
    one = Trace.of(run)
    (got,) = await scripted(answer("harm", "no"))(one, 0, [of_team])
    assert (got.value, got.cause) == (None, "content")
    (got,) = await scripted(answer("harm", "no"), reversed_share=0.0)(one, 0, [of_nobody])
    assert got.value is True


def test_nothing_judged_stands_in_the_instructions_of_a_second_asking() -> None:
    assert "{problems}" in AGAIN
    assert json.dumps(REVERSED)
