"""`watch` with a judge that its provider refuses: the application goes on, and what was not judged stays pending."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cm2_agent import LLMJudge, watch
from cm2_agent.online.watch import flush
from cm2_agent.rewards import openai_judge_model
from cm2_agent.store import SQLStore
from tests.judge_server import FREE, Fault, JudgeServer
from tests.online.test_watch import ASKED, QUESTION, app


@pytest.mark.parametrize("status", [401, 402, 404])
def test_a_refused_judge_stops_no_application(tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int) -> None:
    url = f"sqlite:///{tmp_path / 'cm2.db'}"
    with JudgeServer(faults=[Fault(status=status)] * 9) as server, caplog.at_level(logging.WARNING, "cm2_agent"):
        judge = LLMJudge(openai_judge_model(server.base_url, "stub"), price=FREE, retries=2)
        graph = watch(app(), ASKED, judge=judge, sample=1.0, budget_usd=0, store=url)
        for _ in range(3):
            assert graph.invoke(QUESTION)["messages"][-1].content == "it is value 1"
            assert flush(300)
        assert server.calls == 3, "nothing that is refused is repeated"
    with SQLStore(url) as store:
        found = [store.score(trace.id) for trace in store.traces()]
        (kind,) = [kind for kind in store.incidents() if "refused by its provider" in kind]
        assert store.incidents()[kind]["count"] == 3
    verdicts = [
        verdict for score in found if score is not None for verdict in score.verdicts if verdict.item == "right"
    ]
    assert [(verdict.value, verdict.cause) for verdict in verdicts] == [(None, "infrastructure")] * 3
    warned = [record for record in caplog.records if "refused by its provider" in record.getMessage()]
    assert len(warned) == 1
