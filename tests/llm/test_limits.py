"""Limits of a judge: what is let through, what waits, what is refused, and that nothing is lost by cancelling, threads
or loops."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.errors import BudgetExhausted, JudgeError
from cm2_agent.llm.limits import RateLimits
from cm2_agent.llm.prices import Price, cost
from cm2_agent.llm.usage import Usage, metered, note
from tests.fuzzing import examples


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Meter:
    """How many calls are under way, and the most there ever were."""

    def __init__(self) -> None:
        self.now = self.most = self.done = 0

    async def __call__(self, limits: RateLimits, usd: float = 0.0, pauses: int = 3) -> None:
        async with limits.slot(estimated_usd=usd):
            self.now += 1
            self.most = max(self.most, self.now)
            for _ in range(pauses):
                await asyncio.sleep(0)
            limits.spend(input_tokens=10, output_tokens=1, usd=usd)
            self.now -= 1
            self.done += 1


@pytest.mark.parametrize("concurrency", [1, 3, 64])
async def test_no_more_calls_at_a_time_than_allowed(concurrency: int) -> None:
    meter, limits = Meter(), RateLimits(concurrency=concurrency)
    await asyncio.gather(*(meter(limits) for _ in range(100)))
    assert (meter.most, meter.done, limits.calls) == (concurrency, 100, 100)
    assert (limits.input_tokens, limits.output_tokens, limits.spent_usd) == (1000, 100, 0.0)


@settings(max_examples=examples(40))
@given(st.integers(1, 4), st.lists(st.integers(0, 30), max_size=12))
def test_places_survive_cancelling(concurrency: int, cancelled: list[int]) -> None:
    """Whichever calls are cancelled, waiting or under way, the others are made and every place is free at the end."""

    async def main() -> None:
        meter, limits = Meter(), RateLimits(concurrency=concurrency, budget_calls=1000)
        tasks = [asyncio.create_task(meter(limits, pauses=2)) for _ in range(30)]
        for index in cancelled:
            await asyncio.sleep(0)
            tasks[index % 30].cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert meter.done == sum(one is None for one in ended)
        again = Meter()
        await asyncio.gather(*(again(limits) for _ in range(concurrency * 3)))
        assert again.most == concurrency  # neither a place nor a reservation was lost
        assert limits._reserved_calls == 0

    asyncio.run(main())


def test_threads_with_loops_of_their_own_share_the_places() -> None:
    limits = RateLimits(concurrency=2, budget_calls=300)
    meter = Meter()

    def work(_: int) -> None:
        async def main() -> None:
            await asyncio.gather(*(meter(limits) for _ in range(50)))

        asyncio.run(main())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert limits.calls == 200
    assert limits._free == 2


async def test_a_budget_of_calls_is_never_overshot() -> None:
    meter, limits = Meter(), RateLimits(concurrency=8, budget_calls=20)
    ended = await asyncio.gather(*(meter(limits) for _ in range(100)), return_exceptions=True)
    assert (meter.done, limits.calls) == (20, 20)
    refused = [one for one in ended if one is not None]
    assert len(refused) == 80
    assert all(isinstance(one, BudgetExhausted) for one in refused)
    with pytest.raises(
        BudgetExhausted, match=r"budget of 20 calls is spent \(20 calls made\).*Raise the budget and run again"
    ):
        limits.check()


async def test_the_last_call_is_given_back_when_it_fails() -> None:
    """A call that was never made, or failed without being counted, leaves its share to the next one."""
    limits = RateLimits(budget_calls=1)
    with pytest.raises(RuntimeError):
        async with limits.slot():
            raise RuntimeError("the network is down")
    meter = Meter()
    await meter(limits)
    assert limits.calls == 1


@settings(max_examples=examples(60))
@given(st.floats(0.01, 2.0), st.lists(st.floats(0.001, 0.2), min_size=1, max_size=60), st.integers(1, 16))
def test_a_budget_in_dollars_is_never_overshot_by_honest_estimates(
    budget: float, prices: list[float], concurrency: int
) -> None:
    async def main() -> None:
        meter, limits = Meter(), RateLimits(concurrency=concurrency, budget_usd=budget)
        ended = await asyncio.gather(*(meter(limits, usd) for usd in prices), return_exceptions=True)
        assert limits.spent_usd is not None
        assert limits.spent_usd <= budget + 1e-9
        if sum(prices) <= budget - 1e-9:
            assert ended == [None] * len(prices)
        if any(isinstance(one, BudgetExhausted) for one in ended):
            assert limits.spent_usd + max(prices) > budget - 1e-9  # nothing that would have fitted was refused for good

    asyncio.run(main())


async def test_without_estimates_the_mean_so_far_stands_for_a_call() -> None:
    limits = RateLimits(concurrency=4, budget_usd=0.35)

    async def ask() -> None:
        async with limits.slot():
            await asyncio.sleep(0)
            limits.spend(usd=0.1)

    for _ in range(3):
        await ask()
    with pytest.raises(BudgetExhausted, match=r"0\.35 USD is spent \(0\.3 USD in 3 calls"):
        await ask()


async def test_a_call_without_a_known_price_ends_a_budget_in_dollars() -> None:
    limits = RateLimits(budget_usd=5.0)
    async with limits.slot(estimated_usd=0.01):
        limits.spend(usd=None)
    assert limits.spent_usd is None
    with pytest.raises(BudgetExhausted, match="answered by a model without a known price"):
        limits.check()
    with pytest.raises(
        JudgeError, match=r"budget is 5 USD, but the price of 'somebody:x' is not known.*--price INPUT,OUTPUT"
    ):
        limits.refuse_unpriced("somebody:x")
    RateLimits(budget_calls=5).refuse_unpriced("somebody:x")


async def test_a_free_judge_may_be_asked_on_a_budget_of_nothing() -> None:
    meter, limits = Meter(), RateLimits(budget_usd=0.0)
    await meter(limits)
    assert limits.spent_usd == 0.0
    with pytest.raises(BudgetExhausted):
        limits.check(0.001)


async def test_requests_are_spread_over_the_minute() -> None:
    clock = Clock()
    limits = RateLimits(rpm=30, clock=clock, sleep=clock.sleep)
    starts = []
    for _ in range(5):
        async with limits.slot():
            starts.append(clock.now)
    assert starts == [100, 102, 104, 106, 108]
    clock.now += 60  # idle time is not saved up
    for _ in range(2):
        async with limits.slot():
            starts.append(clock.now)
    assert starts[-1] - starts[-2] == 2


async def test_tokens_are_counted_as_they_were_and_not_only_as_estimated() -> None:
    clock = Clock()
    limits = RateLimits(tpm=6000, clock=clock, sleep=clock.sleep)  # 100 a second
    async with limits.slot(estimated_tokens=200):
        limits.spend(input_tokens=400, output_tokens=100)
    async with limits.slot(estimated_tokens=200):
        limits.spend(input_tokens=100)
    async with limits.slot(estimated_tokens=1):
        assert clock.now == 107  # 5 s for the first, 2 s for the second


@pytest.mark.parametrize(
    "wrong",
    [{"concurrency": 0}, {"rpm": 0}, {"tpm": -1}, {"budget_usd": -1.0}, {"budget_calls": -1}, {"rpm": float("nan")}],
)
def test_limits_that_are_none(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(JudgeError, match=f"{name} is .*; expected"):
        RateLimits(**wrong)  # type: ignore[arg-type]


async def test_meters_belong_to_the_task_that_opened_them() -> None:
    """Two dialogues judged side by side over one judge: each meter has its own calls, the limits have both."""
    limits = RateLimits()

    async def dialogue(calls: int) -> Usage:
        with metered() as usage:
            await asyncio.gather(*(Meter()(limits, usd=0.5) for _ in range(calls)))
            note(cached=1, escalated=2)
        return usage

    one, two = await asyncio.gather(dialogue(2), dialogue(3))
    assert (one.calls, two.calls, limits.calls) == (2, 3, 5)
    assert one.to_json() == {
        "calls": 2,
        "re_asks": 0,
        "escalated": 2,
        "cached": 1,
        "input_tokens": 20,
        "output_tokens": 2,
        "usd": 1.0,
    }
    assert Usage().to_json() == {}
    note(calls=1)  # nobody listens
    assert limits.usage == Usage(calls=5, input_tokens=50, output_tokens=5, usd=2.5)


def test_an_unknown_price_is_never_nothing() -> None:
    assert cost("openai:gpt-5-mini", 1_000_000, 100_000) == pytest.approx(0.45)
    assert cost("gpt-5-mini", 1_000_000, 0, provider="openai") == pytest.approx(0.25)
    assert cost("openai:gpt-5-mini", 1_000_000, 0, cached_tokens=1_000_000) == pytest.approx(0.025)
    assert cost("ollama:llama9", 1000, 10) is None
    assert cost("no-such-model", 1000, 10) is None
    assert cost("no-such-model", 1000, 10, price=Price(input=0, output=0)) == 0.0
    assert Price.parse("0.25,2") == Price(input=0.25, output=2.0)
    for wrong in ("1", "a,b", "1,2,3,4,5", "-1,2", "nan,1"):
        with pytest.raises(JudgeError, match="expected US dollars a million"):
            Price.parse(wrong)
    total = Usage()
    total.add(calls=1, usd=0.5)
    total.add(calls=1, usd=None)
    total.add(calls=1, usd=0.5)
    assert total.usd is None
