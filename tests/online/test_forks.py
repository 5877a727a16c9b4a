"""Inside the gate to the database no event loop runs, so that nobody who guards event loops refuses the call."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from cm2_agent.online.forks import DATABASE


async def test_the_loop_is_put_aside_and_comes_back() -> None:
    loop = asyncio.get_running_loop()
    with DATABASE:
        assert asyncio._get_running_loop() is None
        with DATABASE:
            assert asyncio._get_running_loop() is None
        assert asyncio._get_running_loop() is None
        assert asyncio.run(_answer()) == 7, "a store of one's own may use a loop of its own"
    assert asyncio.get_running_loop() is loop
    with pytest.raises(ValueError, match="refused"), DATABASE:
        raise ValueError("refused")
    assert asyncio.get_running_loop() is loop
    await asyncio.sleep(0)


async def _answer() -> int:
    await asyncio.sleep(0)
    return 7


def test_a_fork_waits_for_what_is_inside_the_database_and_lets_nobody_in() -> None:
    inside, leave, forked = threading.Event(), threading.Event(), threading.Event()

    def transaction() -> None:
        with DATABASE:
            inside.set()
            leave.wait()

    def fork() -> None:
        child = os.fork()
        if child == 0:
            with DATABASE:  # nobody is inside here
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        forked.set()

    writer, forker = threading.Thread(target=transaction), threading.Thread(target=fork)
    writer.start()
    inside.wait()
    forker.start()
    leave.set()
    for thread in (writer, forker):
        thread.join()
    assert forked.is_set()
    with DATABASE:
        pass
