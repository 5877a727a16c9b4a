"""What a judge answered before is not asked again, by it or by the next process, also where a budget stopped it."""

from __future__ import annotations

import pytest

from cm2_agent.errors import BudgetExhausted
from cm2_agent.llm.limits import RateLimits
from cm2_agent.llm.usage import metered
from cm2_agent.rewards.judges.cache import MemoryCache
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from tests.judge_server import Fault, JudgeServer, answer, honest, reply
from tests.rewards.judges import judging as shared
from tests.rewards.judges.judging import ONE, TWO, ask, judging

closed = shared.closed


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
