"""The judge over real HTTP: what it asks, what it makes of answers, and that nothing that goes wrong becomes a
number."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import os
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models import FakeListChatModel
from transformers import Qwen3Config, Qwen3ForCausalLM

from cm2_agent.errors import BudgetExhausted, JudgeError, MissingExtra
from cm2_agent.llm.limits import RateLimits
from cm2_agent.llm.prices import Price
from cm2_agent.llm.usage import metered
from cm2_agent.models.local import LocalChatModel
from cm2_agent.models.tokenizer import byte_tokenizer
from cm2_agent.rewards.judges.cache import MemoryCache
from cm2_agent.rewards.judges.client import judge_model, openai_judge_model
from cm2_agent.rewards.judges.llm_judge import LLMJudge
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item, Kind
from cm2_agent.types.messages import Blob, Message, Text, Uri
from cm2_agent.types.trace import Trace
from tests.fuzzing import examples
from tests.judge_server import FREE, Asked, Fault, JudgeServer, answer, function_model, honest, reply
from tests.rewards.judges import judging as shared
from tests.rewards.judges.judging import DATE, DATE_YES, GOOD, ONE, TWO, ask, judging
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
        answer(item.id, "no" if item.id == "harm" else "yes", None if item.id == "harm" else 2, quote=quote)
        for item in items
    ]
    with JudgeServer(lambda asked: reply(*said)) as server:
        got = await ask(server, items, None)
    assert [(verdict.value, verdict.step) for verdict in got] == [(True, 2), (True, 4), (True, 4), (False, None)]
    assert got[3].evidence[0]["snippet"] == quote, "a violation is shown, as a satisfaction is"


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


async def test_the_same_content_is_not_asked_twice_by_this_judge_or_by_the_next_process() -> None:
    cache = MemoryCache()
    with JudgeServer() as server:
        first = await ask(server, TWO, cache=cache)
        with metered() as usage:
            assert await ask(server, TWO, cache=cache) == first
        assert server.calls == 1
        assert (usage.calls, usage.cached) == (0, 2)
        await ask(server, [*TWO, Item("new", "Is it new?")], cache=cache)
        assert [item["id"] for item in server.asked[-1].items] == ["new"]
        await ask(server, TWO, turn=1, cache=cache)
        await ask(server, TWO, cache=cache, settings={"temperature": 0.5})
        await ask(server, [Item("date", "Is the date told kindly?")], cache=cache)
        assert server.calls == 5
        await ask(server, [Item("date", "Is the date told?", weight=5, required_for_next_turn=True)], cache=cache)
        assert server.calls == 5, "a weight changes no verdict"


async def test_another_returned_model_is_another_judge() -> None:
    cache, name = MemoryCache(), ["model-1"]
    with JudgeServer(model=lambda: name[0]) as server:
        await ask(server, TWO, cache=cache)
        name[0] = "model-2"
        judge = judging(server, cache=cache)
        await judge(ONE, 0, TWO)
        assert server.calls == 1
        await judge(ONE, 1, TWO)  # this answer shows that another model is behind the name
        assert (judge.served, server.calls) == ("model-2", 2)
        await judge(ONE, 0, TWO)
        await ask(server, TWO, cache=cache)
        assert server.calls == 3


async def test_a_failure_is_asked_again_and_a_judgement_of_null_is_not() -> None:
    cache = MemoryCache()
    with JudgeServer(lambda asked: reply(answer("date", "cannot_tell")), faults=[Fault(status=500)]) as server:
        for expected in (1, 2, 2):
            assert (await ask(server, cache=cache, retries=0))[0].value is None
            assert server.calls == expected


async def test_a_turn_that_the_gate_judged_is_not_judged_twice() -> None:
    strict = Checklist(Item("date", "Is the date told?", required_for_next_turn=True), Item("kind", "Is it kind?"))
    with JudgeServer() as server:
        scorer = ChecklistScorer(strict, judge=judging(server, cache=MemoryCache()))
        assert await scorer.gate(ONE, 0) is True
        await scorer(ONE)
        asked = [(asked.last, [item["id"] for item in asked.items]) for asked in server.asked]
    assert asked == [(2, ["date"]), (2, ["kind"]), (4, ["date", "kind"])]


async def test_a_budget_stops_the_judge_and_what_was_judged_is_kept() -> None:
    cache = MemoryCache()
    with JudgeServer() as server:
        judge = judging(server, limits=RateLimits(budget_calls=1), cache=cache)
        await judge(ONE, 0, TWO)
        with pytest.raises(BudgetExhausted):
            await judge(ONE, 1, TWO)
        assert server.calls == 1
        assert (await judge(ONE, 0, TWO))[0].value is True, "what is known costs nothing"
        await ask(server, TWO, turn=0, cache=cache)
        assert server.calls == 1


async def test_what_half_a_reply_answered_is_kept_where_the_budget_stops_the_rest() -> None:
    cache = MemoryCache()
    with JudgeServer(lambda asked: reply(*honest(asked)["items"][:1])) as server:
        with pytest.raises(BudgetExhausted):
            await ask(server, TWO, limits=RateLimits(budget_calls=1), cache=cache)
        assert [verdict.value for verdict in await ask(server, TWO, cache=cache)] == [True, True]
        assert [[item["id"] for item in asked.items] for asked in server.asked] == [["date", "looked"], ["looked"]]


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
    by_turn = LLMJudge(function_model(judge, asked=whole))
    by_step = LLMJudge(function_model(judge, asked=each), protocol="per_step")
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
        await judging(server, images=True)(shown, 0, [DATE])
        await judging(server)(shown, 0, [DATE])
        content = server.bodies[0]["messages"][1]["content"]
        assert [piece["type"] for piece in content] == ["text", "text", "image_url", "text"]
        assert content[2]["image_url"]["url"] == f"data:image/png;base64,{picture.content}"
        assert isinstance(server.bodies[1]["messages"][1]["content"], str)
        assert elsewhere.calls == 0


def test_a_judge_serves_one_event_loop_after_another() -> None:
    """A connection left from a closed loop would lose a reply that was paid for."""
    with JudgeServer() as server:
        judge = LLMJudge(openai_judge_model(server.base_url, "stub"), price=FREE, retries=0)

        async def once() -> bool | None:
            (got,) = await judge(ONE, 0, [DATE])
            await judge.aclose()
            return got.value

        async def left_open() -> bool | None:
            return (await judge(ONE, 0, [DATE]))[0].value

        assert [asyncio.run(once()) for _ in range(3)] == [True] * 3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            assert [asyncio.run(left_open()) for _ in range(3)] == [True] * 3
        assert server.calls == 6


async def test_a_langchain_model_judges_too() -> None:
    judge = LLMJudge(FakeListChatModel(responses=[GOOD, "no idea"]), retries=0)
    assert [verdict.value for verdict in await judge(ONE, 0, [DATE])] == [True]
    assert [verdict.cause for verdict in await judge(ONE, 0, [DATE])] == ["infrastructure"]


async def test_a_local_transformer_judges_through_the_same_door() -> None:
    """Untrained, it babbles: its reply is malformed or cut off, which is NULL, and its tokens are counted."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer: Any = byte_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    local = LocalChatModel(
        model=Qwen3ForCausalLM(config).eval(), tokenizer=tokenizer, max_tokens=8, model_version="babbler-1"
    )
    judge = LLMJudge(local, settings={"temperature": 0.5, "max_tokens": 6}, price=FREE, retries=0)
    (got,) = await judge(ONE, 0, [DATE])
    assert (got.value, got.cause) == (None, "infrastructure")
    assert judge.usage.calls == 1
    assert judge.usage.input_tokens > 1000
    assert 1 <= judge.usage.output_tokens <= 6
    assert judge.name == "langchain:babbler-1"


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


@pytest.mark.skipif(importlib.util.find_spec("anthropic") is not None, reason="the provider's package is installed")
def test_a_missing_provider_package_is_told_with_the_pip_line() -> None:
    with pytest.raises(MissingExtra, match=r'pip install "cm2-agent\[anthropic\]"'):
        judge_model("anthropic:claude-haiku-4-5")


@pytest.mark.parametrize("name", ["nonsense", "nobody:model", ""])
def test_a_name_that_is_no_model_is_refused(name: str) -> None:
    with pytest.raises(JudgeError, match=r"[Ee]xpected"):
        judge_model(name)


@pytest.mark.skipif("OPENAI_API_KEY" in os.environ, reason="a key is set")
def test_a_key_that_is_not_set_is_told() -> None:
    with pytest.raises(JudgeError, match="OPENAI_API_KEY"):
        judge_model("openai:gpt-5-mini")


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
