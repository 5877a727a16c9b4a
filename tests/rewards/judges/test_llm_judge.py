"""The judge over real HTTP: what it asks, what it makes of answers, and that nothing that goes wrong becomes a
number."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.errors import JudgeError
from cm2_agent.llm.limits import RateLimits
from cm2_agent.llm.prices import Price
from cm2_agent.rewards.judges.cache import MemoryCache
from cm2_agent.rewards.judges.llm_judge import LLMJudge
from cm2_agent.types.checklist_item import Item, Kind
from cm2_agent.types.messages import Blob, Message, Text, Uri
from cm2_agent.types.trace import Trace
from tests.fuzzing import examples
from tests.judge_server import Asked, JudgeServer, answer, function_model, reply
from tests.rewards.judges import judging as shared
from tests.rewards.judges.judging import DATE, DATE_YES, ONE, TWO, ask, judging
from tests.rewards.talk import say, trace, turn

closed = shared.closed


async def test_one_call_a_scope_for_all_its_items_transcript_first() -> None:
    with JudgeServer() as server:
        judge = judging(server)
        got = await judge(ONE, 1, TWO)
        assert server.calls == 1
    assert [verdict.item for verdict in got] == ["date", "looked"]
    assert [verdict.value for verdict in got] == [True, True]
    assert got[1].evidence == (
        {"turn": 1, "step": 0, "from": "tool.content", "snippet": "no such order", "judge": "stub-judge-1"},
    )
    asked = server.asked[0]
    assert (asked.first, asked.last) == (3, 4)
    assert [item["id"] for item in asked.items] == ["date", "looked"]
    assert asked.text.index('"part":"user"') == 1
    assert [message["role"] for message in server.bodies[0]["messages"]] == ["system", "user"]
    assert server.bodies[0]["response_format"]["json_schema"]["strict"] is True
    assert (judge.served, judge.usage.calls, judge.usage.re_asks) == ("stub-judge-1", 1, 0)


async def test_the_evidences_step_is_the_flip_of_a_reach_item_and_the_last_row_that_of_the_others() -> None:
    quote = "arrives on May 3, 2026"
    items = [
        DATE,
        Item("kept", "Kept?", kind="hold"),
        Item("harm", "Harm?", kind="avoid"),
        Item("bad", "Bad?", kind="avoid"),
    ]
    said = [
        answer("date", "yes", 2, quote=quote),
        answer("kept", "yes", 4, quote="There is no order 8, I am sorry."),
        answer("harm", "no"),
        answer("bad", "yes", 2, quote=quote),
    ]
    with JudgeServer(lambda asked: reply(*said)) as server:
        got = await ask(server, items, None)
    assert [(verdict.value, verdict.step) for verdict in got] == [(True, 2), (True, 4), (True, 4), (False, None)]
    (violation,) = got[3].evidence
    assert violation["quote"] == quote, "a violation is shown, as a satisfaction is"
    assert violation["snippet"] == "It arrives on May 3, 2026."


@pytest.mark.parametrize("order", [1, -1])
async def test_answers_are_taken_by_id(order: int) -> None:
    said = [DATE_YES, answer("looked", "no")][::order]
    with JudgeServer(lambda asked: reply(*said)) as server:
        got = await ask(server, TWO)
    assert [(verdict.item, verdict.value) for verdict in got] == [("date", True), ("looked", False)]


BAD_EVIDENCE = {
    "no quote": answer("date", "yes"),
    "a quote from nowhere": answer("date", "yes", 2, quote="it was delivered yesterday evening"),
    "too short a quote": answer("date", "yes", 2, quote="May 3"),
    "another step's quote": answer("date", "yes", 1, quote="It arrives on May 3, 2026."),
    "another turn's step": answer("date", "yes", 4, quote="There is no order 8, I am sorry."),
    "step 0": answer("date", "yes", 0, quote="It arrives on May 3, 2026."),
    "a part that is none": answer("date", "yes", 2, "assistant.thoughts", "It arrives on May 3, 2026."),
    "the user's words": answer("date", "yes", 2, "user", "Where is order 7?"),
}


@pytest.mark.parametrize("bad", BAD_EVIDENCE.values(), ids=BAD_EVIDENCE.keys())
async def test_a_yes_without_good_evidence_is_asked_once_more_and_then_null_of_content(bad: dict[str, Any]) -> None:
    with JudgeServer(lambda asked: reply(bad)) as server:
        judge = judging(server)
        (got,) = await judge(ONE, 0, [DATE])
        assert server.calls == 2
    assert (got.value, got.step, got.cause) == (None, None, "content")
    assert (judge.usage.calls, judge.usage.re_asks) == (2, 1)
    assert "You were asked these items before" in server.asked[1].tail
    quote = (bad["evidence"] or {}).get("quote") or "quote of nothing"
    assert quote not in server.asked[1].tail


@pytest.mark.parametrize("bad", BAD_EVIDENCE.values(), ids=BAD_EVIDENCE.keys())
async def test_the_second_asking_can_mend_it_and_is_for_the_failing_items_alone(bad: dict[str, Any]) -> None:
    def said(asked: Asked) -> dict[str, Any]:
        return reply(bad, answer("looked", "no")) if len(asked.items) == 2 else reply(DATE_YES)

    with JudgeServer(said) as server:
        got = await ask(server, TWO)
        assert [[item["id"] for item in asked.items] for asked in server.asked] == [["date", "looked"], ["date"]]
    assert [verdict.value for verdict in got] == [True, False]


async def test_a_grounding_item_is_not_shown_by_the_agents_own_words() -> None:
    own = answer("looked", "yes", 2, "assistant.reply", "It arrives on May 3, 2026.")
    with JudgeServer(lambda asked: reply(own)) as server:
        (got,) = await ask(server, [TWO[1]])
    assert (got.value, got.cause) == (None, "content")


async def test_a_violation_needs_a_quote_and_its_absence_does_not() -> None:
    avoid = Item("date", "Was a date promised?", kind="avoid")
    with JudgeServer(lambda asked: reply(answer("date", "yes"))) as server:
        assert (await ask(server, [avoid]))[0].value is None
    with JudgeServer(lambda asked: reply(answer("date", "no"))) as server:
        assert (await ask(server, [avoid]))[0].value is True


async def test_who_cannot_tell_gives_null_of_content_at_once() -> None:
    with JudgeServer(lambda asked: reply(answer("date", "cannot_tell"))) as server:
        (got,) = await ask(server)
        assert server.calls == 1
    assert (got.value, got.cause, got.reason) == (None, "content", "abstained")


async def test_items_are_split_past_a_set_number_or_size_alone() -> None:
    items = [Item(f"i{number}", "Is it so?") for number in range(7)]
    with JudgeServer() as server:
        got = await ask(server, items, max_items=3)
        assert sorted(len(asked.items) for asked in server.asked) == [1, 3, 3]
        assert [verdict.item for verdict in got] == [item.id for item in items]
    with JudgeServer() as server:
        assert all(verdict.value for verdict in await ask(server, items, max_tokens_per_call=1400))
        assert 1 < server.calls < 7
    with JudgeServer() as server:
        got = await ask(server, items, max_tokens_per_call=100)
        assert server.calls == 0
        assert {(verdict.value, verdict.cause) for verdict in got} == {(None, "content")}, (
            "a long dialogue is the policy's doing"
        )


async def test_what_it_cost() -> None:
    with JudgeServer() as server:
        judge = judging(server, price=Price(input=1.0, output=10.0))
        await judge(ONE, 0, TWO)
        body = server.bodies[0]
        read, made = len(body["messages"][1]["content"]) // 4, server.output_tokens
        assert judge.spent_usd == pytest.approx((read + 10 * made) / 1e6)
        assert (judge.usage.input_tokens, judge.usage.output_tokens) == (read, made)
        with pytest.raises(JudgeError, match="price of 'openai:stub' is not known"):
            judging(server, price=None, budget_usd=1.0)


async def test_votes_are_samples_of_their_own_decided_by_majority() -> None:
    verdicts = iter(["yes", "no", "yes", "no", "no", "no"])
    cache = MemoryCache()

    def said(asked: Asked) -> dict[str, Any]:
        verdict = next(verdicts)
        return reply(DATE_YES if verdict == "yes" else answer("date", "no"))

    with JudgeServer(said) as server:
        (got,) = await ask(server, votes=3, cache=cache)
        assert server.calls == 3
        assert await ask(server, votes=3, cache=cache) == [got]
        assert server.calls == 3
        await ask(server, votes=5, cache=cache)
        assert server.calls == 5, "two votes more are two calls more"
    assert (got.value, got.step) == (True, 2)
    assert got.evidence[-1] == {"votes": {"yes": 2, "no": 1, "null": 0}, "agreement": 2 / 3}


WORDS = ["amber", "birch", "cedar"]


@settings(max_examples=examples(40))
@given(
    st.lists(st.lists(st.sets(st.sampled_from(WORDS)), min_size=1, max_size=4), min_size=1, max_size=3),
    st.sampled_from(["reach", "avoid", "hold"]),
)
async def test_the_papers_protocol_gives_the_same_matrix_with_a_deterministic_judge(
    said: list[list[set[str]]], kind: Kind
) -> None:
    """Yes from the first step whose reply holds the word; to a hold item, where the last step's does."""
    spoken = [[say(f"The words of this step are: {' '.join(sorted(step))}.") for step in steps] for steps in said]
    one = trace(*(turn(f"Turn {number}", *steps) for number, steps in enumerate(spoken)))
    items = [Item(word, f"Is {word} said?", kind=kind) for word in WORDS]

    def judge(asked: Asked) -> dict[str, Any]:
        out = []
        for item in asked.items:
            steps = range(asked.first, asked.last + 1) if item["kind"] != "hold" else range(asked.last, asked.last + 1)
            found = next(((step, *part) for step in steps for part in asked.parts(step) if item["id"] in part[1]), None)
            out.append(answer(item["id"], "no") if found is None else answer(item["id"], "yes", *found))
        return reply(*out)

    each: list[Asked] = []
    whole: list[Asked] = []
    by_turn = LLMJudge(function_model(judge, asked=whole), reversed_share=0.0)
    by_step = LLMJudge(function_model(judge, asked=each), protocol="per_step", reversed_share=0.0)
    for scope in [*range(len(said)), None]:
        ours, papers = await by_turn(one, scope, items), await by_step(one, scope, items)
        assert [(verdict.value, verdict.step) for verdict in ours] == [
            (verdict.value, verdict.step) for verdict in papers
        ]
    assert len(whole) == len(said) + 1
    assert len(each) == 2 * len(items) * sum(map(len, said)), (
        "a call for each step of each item, in its turn and in the block"
    )


async def test_a_null_step_leaves_open_what_it_could_have_changed() -> None:
    def judge(asked: Asked) -> dict[str, Any]:
        return reply(
            *(
                answer(item["id"], "cannot_tell") if asked.last == 1 else DATE_YES | {"id": item["id"]}
                for item in asked.items
            )
        )

    items = [DATE, Item("kept", "Kept?", kind="hold"), Item("harm", "Harm?", kind="avoid")]
    got = await LLMJudge(function_model(judge), protocol="per_step")(ONE, 0, items)
    assert [verdict.value for verdict in got] == [None, True, False]


async def test_images_go_as_content_and_addresses_are_never_fetched() -> None:
    with JudgeServer() as elsewhere, JudgeServer(lambda asked: reply(answer("date", "no"))) as server:
        picture = Blob(content=base64.b64encode(b"\x89PNG").decode(), modality="image", mime_type="image/png")
        link = Uri(uri=f"{elsewhere.base_url}/secret.png", modality="image")
        shown = trace([Message(role="user", parts=(Text(content="Look"), picture, link))], say("I see."))
        await judging(server, images=True, reversed_share=0.0)(shown, 0, [DATE])
        await judging(server, reversed_share=0.0)(shown, 0, [DATE])
        content = server.bodies[0]["messages"][1]["content"]
        assert [piece["type"] for piece in content] == ["text", "text", "image_url", "text"]
        assert content[2]["image_url"]["url"] == f"data:image/png;base64,{picture.content}"
        assert isinstance(server.bodies[1]["messages"][1]["content"], str)
        assert elsewhere.calls == 0


def test_versions_name_what_could_change_a_verdict() -> None:
    model = function_model()
    plain = LLMJudge(model).version
    others: list[dict[str, Any]] = [
        {"votes": 3},
        {"protocol": "per_step"},
        {"settings": {"temperature": 0}},
        {"settings": {"temperature": 1}},
        {"images": True},
        {"redact": str.lower},
    ]
    versions = {
        plain,
        LLMJudge(function_model(name="other")).version,
        *(LLMJudge(model, **given).version for given in others),
    }
    assert len(versions) == len(others) + 2
    assert plain == LLMJudge(model, timeout=5, retries=9, cache=MemoryCache()).version


def test_arguments_that_mean_nothing_are_refused() -> None:
    wrong: list[dict[str, Any]] = [
        {"votes": 0},
        {"retries": -1},
        {"max_items": 0},
        {"protocol": "each"},
        {"limits": RateLimits(), "budget_usd": 1.0},
    ]
    for options in wrong:
        with pytest.raises(JudgeError):
            LLMJudge(function_model(), **options)


async def test_a_judge_asked_of_what_did_not_happen_raises() -> None:
    with pytest.raises(JudgeError, match="has no step"):
        await LLMJudge(function_model())(Trace(id="t", runs=()), None, [DATE])
    assert await LLMJudge(function_model())(ONE, 0, []) == []
