"""`watch(graph, checklist, judge="openai-chat:…")`: a judge by its name, against a server on loopback, and its
budget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cm2_agent.llm.prices import Price
from cm2_agent.online.watch import flush, watch
from cm2_agent.rewards import openai_judge_model
from cm2_agent.rewards.judges.llm_judge import LLMJudge
from cm2_agent.store import SQLStore
from tests.judge_server import JudgeServer
from tests.online.test_watch import ASKED, QUESTION, app


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/cm2.db"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """A server that the environment names as OpenAI's, with a model that has a price."""
    with JudgeServer(model="gpt-5-mini", serves=("gpt-5-mini",)) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        yield running


def test_a_judge_by_its_name_scores_live_traces(server: JudgeServer, url: str) -> None:
    graph = watch(app(), ASKED, judge="openai-chat:gpt-5-mini", sample=1.0, budget_usd=1.0, store=url)
    graph.invoke(QUESTION)
    assert flush(300)
    assert server.calls == 1
    with SQLStore(url) as store:
        (version,) = store.reward_versions()
        assert "judge=openai:gpt-5-mini" in version
        (score,) = store.scores()
        assert (score.reward, score.usage["calls"]) == (1.0, 1)
        assert score.usage["usd"] > 0
        assert len(store.verdict_cache()) > 0


@pytest.mark.parametrize(("price", "calls"), [(Price(input=0, output=0), 1), (Price(input=1, output=1), 0), (None, 0)])
def test_a_budget_of_nothing_is_for_a_judge_that_costs_nothing(
    server: JudgeServer, url: str, price: Price | None, calls: int
) -> None:
    judge = LLMJudge(openai_judge_model(server.base_url, "gpt-5-mini" if price else "stub"), price=price)
    graph = watch(app(), ASKED, judge=judge, sample=1.0, budget_usd=0, store=url)
    graph.invoke(QUESTION)
    assert flush(300)
    assert server.calls == calls
    with SQLStore(url) as store:
        (score,) = store.scores()
        assert (score.reward == 1.0) is bool(calls)


def test_a_trace_beyond_the_budget_has_the_score_of_its_checks_alone(server: JudgeServer, url: str) -> None:
    graph = watch(app(), ASKED, judge="openai-chat:gpt-5-mini", sample=1.0, budget_usd=1e-9, store=url)
    graph.invoke(QUESTION)
    assert flush(300)
    assert server.calls == 0
    with SQLStore(url) as store:
        (version,) = store.reward_versions()
        assert "judge" not in version
        (kind,) = store.incidents()
        assert kind == "the judge's budget did not suffice for a trace"
