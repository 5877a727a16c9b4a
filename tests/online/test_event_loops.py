"""`watch` inside an event loop that forbids blocking calls, as that of `langgraph dev` does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, BlockingError

from cm2_agent import watch
from cm2_agent.online.watch import flush
from tests.online.test_watch import ASKED, LOOKS, QUESTION, Kind, app, scores, traces


@pytest.fixture
def strict_loops() -> Iterator[None]:
    guard = BlockBuster()
    guard.activate()
    try:
        yield
    finally:
        guard.deactivate()


async def test_the_guard_is_on(strict_loops: None) -> None:
    with pytest.raises(BlockingError):
        Path("x").mkdir()  # noqa: ASYNC240 (a test of just that)


def test_a_graph_of_the_module_and_one_a_request(
    strict_loops: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "sqlite:///cm2.db"
    module = watch(app(), LOOKS, store=url)

    async def serve() -> None:
        for _ in range(5):
            await module.ainvoke(QUESTION)
            await watch(app(), LOOKS, store=url).ainvoke(QUESTION)

    asyncio.run(serve())
    assert flush(300)
    assert len(traces(url)) == 10
    assert len(scores(url)) == 10


def test_a_graph_that_is_watched_inside_the_loop_first(strict_loops: None, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cm2.db"

    async def serve() -> None:
        graph = watch(app(), ASKED, judge=Kind(), sample=1.0, budget_usd=9.0, store=url)
        for _ in range(5):
            await graph.ainvoke(QUESTION)

    asyncio.run(serve())
    assert flush(300)
    assert [score.reward for score in scores(url)] == [1.0] * 5
