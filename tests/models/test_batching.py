"""Lockstep and micro-batching: who shares a batch is decided by who is alive, and nobody is left waiting."""

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.models.batching import Lockstep, batched, current_seat
from tests.fuzzing import examples


class Recorder:
    """An engine that answers each request with itself, and remembers its batches."""

    def __init__(self, fail_on: Any = ()) -> None:
        self.batches: list[Any] = []
        self.fail_on = fail_on

    def run(self, requests: Any) -> Any:
        self.batches.append(list(requests))
        if "break" in requests:
            raise RuntimeError("the engine broke")
        return [ValueError(request) if request in self.fail_on else request for request in requests]


async def talk(lockstep: Any, engine: Any, index: Any, calls: Any, rng: Any = None) -> Any:
    async with lockstep.seat(index, seed=index):
        answers = []
        for number in range(calls):
            if rng is not None:
                await asyncio.sleep(rng.random() / 1000)
            answers.append(await asyncio.wait_for(batched(engine, (index, number)), 300))
        return answers


@settings(max_examples=examples(25))
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(0, 2**32))
def test_batches_depend_on_the_dialogues_alone(calls: Any, seed: Any) -> None:
    def once(rng: Any) -> Any:
        engine = Recorder()

        async def all_of_them() -> Any:
            lockstep = Lockstep(len(calls))
            order = list(range(len(calls)))
            rng.shuffle(order)
            tasks = {i: asyncio.create_task(talk(lockstep, engine, i, calls[i], rng)) for i in order}
            return [await tasks[i] for i in range(len(calls))]

        answers = asyncio.run(all_of_them())
        assert answers == [[(i, n) for n in range(count)] for i, count in enumerate(calls)]
        return engine.batches

    expected = [[(i, n) for i, count in enumerate(calls) if n < count] for n in range(max(calls))]
    assert once(random.Random(seed)) == once(random.Random(seed + 1)) == expected


async def test_child_tasks_sit_in_their_dialogues_seat_and_draw_from_its_seed() -> None:
    engine, lockstep = Recorder(), Lockstep(1)

    async def child(name: Any) -> Any:
        seat = current_seat()
        assert seat is not None
        return await batched(engine, name), seat.next_seed()

    async with lockstep.seat(0, seed=7):
        (a, seed_a), (b, seed_b) = await asyncio.gather(child("a"), child("b"))
    assert (a, b) == ("a", "b")
    assert {seed_a, seed_b} == {(7, 0), (7, 1)}
    assert current_seat() is None


async def test_a_failed_dialogue_does_not_hold_up_the_others() -> None:
    engine, lockstep = Recorder(), Lockstep(3)

    async def fails() -> None:
        async with lockstep.seat(2, seed=2):
            await batched(engine, (2, 0))
            raise RuntimeError("this dialogue fails")

    answers = await asyncio.gather(
        talk(lockstep, engine, 0, 3), talk(lockstep, engine, 1, 2), fails(), return_exceptions=True
    )
    assert answers[0] == [(0, 0), (0, 1), (0, 2)]
    assert answers[1] == [(1, 0), (1, 1)]
    assert isinstance(answers[2], RuntimeError)


async def test_a_cancelled_dialogue_does_not_hold_up_the_others() -> None:
    engine, lockstep = Recorder(), Lockstep(2)
    waiting = asyncio.create_task(talk(lockstep, engine, 0, 1))
    await asyncio.sleep(0.01)
    assert engine.batches == []  # seat 1 is alive and silent
    waiting.cancel()
    assert await talk(lockstep, engine, 1, 2) == [(1, 0), (1, 1)]
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert engine.batches == [[(1, 0)], [(1, 1)]]


async def test_a_seat_never_taken_can_be_given_up() -> None:
    engine, lockstep = Recorder(), Lockstep(2)
    talking = asyncio.create_task(talk(lockstep, engine, 0, 1))
    await asyncio.sleep(0.01)
    lockstep.leave(1)
    assert await talking == [(0, 0)]
    with pytest.raises(ValueError, match="seat 1"):
        async with lockstep.seat(1, seed=0):
            pass


async def test_an_engines_error_reaches_its_batch_and_the_next_batch_runs() -> None:
    engine, lockstep = Recorder(), Lockstep(2)

    async def first_breaks(index: Any) -> Any:
        async with lockstep.seat(index, seed=index):
            with pytest.raises(RuntimeError, match="the engine broke"):
                await batched(engine, "break")
            return await batched(engine, index)

    assert list(await asyncio.gather(first_breaks(0), first_breaks(1))) == [0, 1]


async def test_one_requests_error_is_its_own() -> None:
    engine, lockstep = Recorder(fail_on={(1, 0)}), Lockstep(2)
    answers: Any = await asyncio.gather(
        talk(lockstep, engine, 0, 1), talk(lockstep, engine, 1, 1), return_exceptions=True
    )
    good, bad = answers
    assert good == [(0, 0)]
    assert isinstance(bad, ValueError)


async def test_two_engines_share_a_lockstep() -> None:
    left, right, lockstep = Recorder(), Recorder(), Lockstep(2)
    await asyncio.gather(talk(lockstep, left, 0, 2), talk(lockstep, right, 1, 2))
    assert left.batches == [[(0, 0)], [(0, 1)]]
    assert right.batches == [[(1, 0)], [(1, 1)]]


async def test_without_a_seat_concurrent_callers_are_batched() -> None:
    engine = Recorder()
    assert await asyncio.gather(*(batched(engine, n) for n in range(9))) == list(range(9))
    assert engine.batches == [list(range(9))]
    assert await batched(engine, "later") == "later"
    with pytest.raises(RuntimeError, match="the engine broke"):
        await batched(engine, "break")


def test_an_engine_serves_one_event_loop_after_another() -> None:
    engine = Recorder()
    assert [asyncio.run(_one(engine, n)) for n in range(3)] == [0, 1, 2]


async def _one(engine: Any, request: Any) -> Any:
    return await batched(engine, request)
