"""Coroutines run a few at a time: results as they finish, and a clean end for those still running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from cm2_agent.errors import BudgetExhausted, StoreError

T = TypeVar("T")


async def as_they_finish(jobs: Iterator[Coroutine[Any, Any, T]], at_a_time: int) -> AsyncGenerator[list[T], None]:
    """Run the jobs, `at_a_time` of them, and yield what they return: those that finished together in one list, in the
    order of their start.

    A job that fails stops no other, and its error is raised at the end. After BudgetExhausted or StoreError no further
    job is started."""
    running: dict[asyncio.Task[T], None] = {}  # a set that keeps the order
    failed: list[Exception] = []
    stopped = False
    try:
        while True:
            while not stopped and len(running) < at_a_time and (job := next(jobs, None)) is not None:
                running[asyncio.create_task(job)] = None
            if not running:
                break
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            ended = [task for task in running if task in done]
            batch = []
            for one in ended:
                del running[one]
                error = one.exception()
                if error is None:
                    batch.append(one.result())
                elif not isinstance(error, Exception):
                    raise error
                else:
                    failed.append(error)
                    stopped = stopped or isinstance(error, BudgetExhausted | StoreError)
            if batch:
                yield batch
    finally:
        await cancel(running)
    if failed:
        # an exhausted budget is the least of what may have gone wrong, so anything else is raised first
        failed.sort(key=lambda error: isinstance(error, BudgetExhausted))
        failed[0].add_note(f"{len(failed)} traces stay without a score; all others that were begun are scored")
        raise failed[0]


async def cancel(running: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel what still runs, and wait until it has ended."""
    unfinished = [task for task in running if not task.done()]
    for task in unfinished:
        task.cancel()
    await asyncio.gather(*unfinished, return_exceptions=True)


__all__ = ["as_they_finish", "cancel"]
