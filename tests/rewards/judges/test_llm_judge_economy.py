"""What judging must not do, over real HTTP and a real store: lose a trace, score one twice, turn a failure into a
number, pay twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.errors import BudgetExhausted, StoreError
from cm2_agent.llm.limits import RateLimits
from cm2_agent.rewards.judges.cache import MemoryCache
from cm2_agent.rewards.judges.client import openai_judge_model
from cm2_agent.rewards.judges.llm_judge import LLMJudge
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.runner.rescore import score_traces
from cm2_agent.store import SQLStore
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import Message
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace
from tests.judge_server import FREE, Asked, Fault, JudgeServer, answer, function_model, honest, reply
from tests.rewards.talk import call, say, trace, turn

ITEMS = tuple(Item(f"i{number}", f"Question {number}?") for number in range(5))
FIVE = Checklist(*ITEMS, name="five")


def dialogue(number: int, turns: int = 1) -> Trace:
    def one(at: int) -> list[Message]:
        return turn(
            f"Where is order {number}.{at}?", call("get", id=number, at=at), say(f"Order {number}.{at} comes on May 3.")
        )

    return trace(*map(one, range(turns)), id=f"t{number:04}")


class Broken:
    """Answers honestly (yes to all, with true quotes) once in a while, and else in one of the ways in which judges
    fail. A failure that were taken for a verdict would be a no, or a yes that nothing proves."""

    def __init__(self, seed: int, share: float) -> None:
        self.random, self.share = random.Random(seed), share
        self.injected: Counter[str] = Counter()
        self.well = False
        """Whether it has answered since the last 403: a first one, and many without an answer, refuse the judge."""

    def __call__(self, asked: Asked) -> Mapping[str, Any] | str | Fault:
        name = self.random.choice(list(FAULTS))
        if self.random.random() >= self.share or (name == "forbidden" and not self.well):
            self.well = True
            return honest(asked)
        self.well = self.well and name != "forbidden"
        self.injected[name] += 1
        return FAULTS[name](asked)


def yes_to(asked: Asked, *place: Any) -> dict[str, Any]:
    return reply(*(answer(item["id"], "yes", *place) for item in asked.items))


def no_to(asked: Asked) -> list[dict[str, Any]]:
    return [answer(item["id"], "no") for item in asked.items]


FAULTS: dict[str, Any] = {
    "rate limit": lambda asked: Fault(status=429, headers={"Retry-After": "0"}),
    "rate limit for an hour": lambda asked: Fault(status=429, headers={"Retry-After": "3600"}),
    "server error": lambda asked: Fault(status=500),
    "overloaded": lambda asked: Fault(status=503),
    "bad request": lambda asked: Fault(status=400),
    "forbidden": lambda asked: Fault(status=403),
    "dropped": lambda asked: Fault(drop=True),
    "html": lambda asked: Fault(body="<html>Bad gateway</html>"),
    "no choices": lambda asked: Fault(
        body='{"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": []}'
    ),
    "empty body": lambda asked: Fault(body="{}"),
    "refusal": lambda asked: Fault(refusal="I cannot help with that."),
    "filtered": lambda asked: Fault(text="", finish="content_filter"),
    "cut off": lambda asked: Fault(text='{"items": [{"id": "i0", "verd', finish="length"),
    "prose": lambda asked: "No. The assistant did not do any of this.",
    "half a reply": lambda asked: '{"items": [{"id": "i0", "analysis": "", "evidence": null, "verdict": "no"}',
    "nothing": lambda asked: "",
    "null": lambda asked: "null",
    "no items": lambda asked: reply(),
    "score for a verdict": lambda asked: reply(*({**one, "verdict": 0} for one in no_to(asked))),
    "maybe": lambda asked: reply(*({**one, "verdict": "maybe"} for one in no_to(asked))),
    "unknown item": lambda asked: reply(*no_to(asked), answer("other", "no")),
    "twice": lambda asked: reply(*no_to(asked), *no_to(asked)),
    "invented quote": lambda asked: yes_to(asked, asked.last, "assistant.reply", "It was delivered yesterday."),
    "no quote": lambda asked: yes_to(asked),
    "step of another turn": lambda asked: yes_to(asked, asked.last + 7, "assistant.reply", "comes on May 3."),
    "one item left out": lambda asked: reply(*honest(asked)["items"][1:]),
}


@pytest.mark.slow
def test_a_thousand_faults_make_no_number_and_lose_no_trace(tmp_path: Path) -> None:
    """Rounds of scoring until 1,000 faults were injected; each scores what has no reward, as `cm2 score` does. Then the
    judge is well."""
    broken = Broken(seed=3, share=0.93)
    traces = [dialogue(number) for number in range(150)]
    with JudgeServer(broken, keep=False) as server, SQLStore(f"sqlite:///{tmp_path}/cm2.db") as store:
        store.save_runs([run for one in traces for run in one.runs])
        calls = 0

        async def again(retries: int) -> None:
            nonlocal calls
            broken.well = False
            judge = LLMJudge(
                openai_judge_model(server.base_url, "stub"),
                price=FREE,
                retries=retries,
                backoff=0.001,
                cache=store.verdict_cache(),
            )
            scorer = ChecklistScorer(FIVE, judge=judge)
            waiting = [one.trace_id for one in store.scores(reward=scorer.version) if one.reward is None]
            waiting += [one.id for one in store.traces(unscored=True, reward=scorer.version)]
            found = [
                (one.id, score)
                async for one, score in score_traces(store.traces(ids=waiting), FIVE, scorer=scorer, store=store)
            ]
            assert sorted(name for name, _ in found) == sorted(waiting)  # each once, none lost
            await judge.aclose()
            calls += judge.usage.calls
            assert (
                sum(score.usage.get("calls", 0) for score in store.scores(reward=scorer.version))
                == calls
                == server.calls
            )
            for score in store.scores(reward=scorer.version):
                assert score.reward in (None, 1.0)
                for verdict in score.verdicts:
                    assert verdict.value is not False, verdict  # no failure became a verdict
                    assert verdict.value or (verdict.paid, verdict.step) == (None, None)
                    assert verdict.value or verdict.cause in ("infrastructure", "content")
            assert store.health()["scores"] == len(traces)

        for _ in range(60):
            asyncio.run(again(retries=1))
            if broken.injected.total() >= 1000:
                break
            server.model = (
                f"m-{broken.injected.total()}"  # what was unverifiable stays so for this model: another is asked anew
            )
        assert broken.injected.total() >= 1000
        assert broken.injected.keys() == FAULTS.keys()
        broken.share = 0.0
        server.model = "m-well"
        asyncio.run(again(retries=0))
        asyncio.run(again(retries=0))
        assert [score.reward for score in store.scores()] == [1.0] * len(traces)


async def test_a_budget_that_ends_within_a_trace_leaves_it_unscored_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    traces = [dialogue(number, turns=3) for number in range(5)]
    asked: list[Asked] = []
    notes: list[str] = []
    with SQLStore(f"sqlite:///{tmp_path}/cm2.db") as store:
        store.save_runs([run for one in traces for run in one.runs])

        async def go(budget: int | None, at_a_time: int = 2) -> tuple[list[str], LLMJudge]:
            judge = LLMJudge(
                function_model(asked=asked),
                price=FREE,
                limits=RateLimits(budget_calls=budget),
                cache=store.verdict_cache(),
            )
            scorer = ChecklistScorer(FIVE, judge=judge)
            waiting = store.traces(unscored=True, reward=scorer.version)
            done = []
            try:
                async for one, score in score_traces(waiting, FIVE, scorer=scorer, store=store, concurrency=at_a_time):
                    assert score.reward == 1.0
                    done.append(one.id)
            except BudgetExhausted as error:
                notes.extend(error.__notes__)
            return done, judge

        first, judge = await go(
            7, at_a_time=1
        )  # with more at a time, how many are under way at the end is a matter of timing
        assert judge.usage.calls == 7
        assert notes == ["1 traces stay without a score; all others that were begun are scored"]
        notes.clear()
        assert len(first) == 2  # three calls each, and one was spent on a third
        assert store.health()["scores"] == 2
        assert store.health()["null_rewards"] == {}
        second, _ = await go(None)
        assert notes == []
        assert sorted(first + second) == [one.id for one in traces]
        assert len(asked) == 15  # a call a turn, whatever happened in between
        assert len({one.text.partition("END OF TRANSCRIPT")[0] for one in asked}) == 15
        assert (await go(0))[0] == []
        assert len(asked) == 15


async def test_a_turn_that_the_gate_judged_is_not_judged_twice() -> None:
    strict = Checklist(Item("ok", "Is it said?", turn=0, required_for_next_turn=True), *ITEMS, name="strict")
    asked: list[Asked] = []
    judge = LLMJudge(function_model(asked=asked), price=FREE, cache=MemoryCache())
    scorer = ChecklistScorer(strict, judge=judge)
    one = dialogue(1, turns=2)
    assert await scorer.gate(one, 0) is True
    score = await scorer(one)
    assert score.reward == 1.0
    items = Counter((item["id"], shown.last) for shown in asked for item in shown.items)
    assert set(items.values()) == {1}
    assert len(items) == 6
    assert (score.usage["calls"], score.usage["cached"]) == (1, 1)


async def test_a_trace_that_fails_stops_no_other(tmp_path: Path) -> None:
    class Picky:
        version = "picky"

        async def __call__(self, trace: Trace, task: Task | None = None) -> Score:
            await asyncio.sleep(0)
            if trace.id in ("t0001", "t0003"):
                raise ValueError(f"not {trace.id}")
            return Score(trace_id=trace.id, reward_version=self.version, reward=1.0)

    traces = [dialogue(number) for number in range(6)]
    stray = dialogue(99)  # not in the store: its score cannot be saved, those that finish with it can
    with SQLStore(f"sqlite:///{tmp_path}/cm2.db") as store:
        store.save_runs([run for one in traces for run in one.runs])
        done: list[str] = []

        async def go(given: Sequence[Trace], concurrency: int) -> None:
            done.clear()
            async for one, _ in score_traces(given, scorer=Picky(), store=store, concurrency=concurrency):
                done.append(one.id)

        with pytest.raises(ValueError, match="not t0001") as caught:
            await go(traces, 2)
        assert done == ["t0000", "t0002", "t0004", "t0005"]
        assert "2 traces stay without a score" in caught.value.__notes__[0]
        with pytest.raises(StoreError, match="t0099"):
            await go([traces[0], stray, traces[2]], 3)
        assert done == ["t0000", "t0002"]
        with pytest.raises(StoreError, match="expected how many traces"):
            await go(traces, 0)


async def test_traces_are_scored_side_by_side_and_each_has_its_own_usage() -> None:
    judge = LLMJudge(function_model(), price=FREE)
    traces = [dialogue(number, turns=1 + number % 3) for number in range(12)]
    found: Sequence[tuple[Trace, Score]] = [
        pair async for pair in score_traces(traces, FIVE, judge=judge, concurrency=5)
    ]
    assert sorted(one.id for one, _ in found) == [one.id for one in traces]
    assert [score.usage["calls"] for one, score in sorted(found, key=lambda pair: pair[0].id)] == [
        len(one.turns) for one in traces
    ]
    assert judge.usage.calls == sum(len(one.turns) for one in traces)
