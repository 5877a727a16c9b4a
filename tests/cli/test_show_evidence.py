"""What `cm2 show` tells of a judge's evidence: the sentence that was quoted from, and where it stands."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from cm2_agent import Checklist, Item
from cm2_agent.rewards import LLMJudge
from cm2_agent.runner.rescore import score_traces
from cm2_agent.store import SQLStore
from tests.cli.test_app_loop import cm2
from tests.judge_server import Asked, answer, function_model, reply
from tests.rewards.talk import call, say, trace, turn

ASKED = Checklist(
    Item("date", "Is the date named?"),
    Item("found", "Was the order found?", focus_on="tool.content"),
    Item("harm", "Was a refund promised?", kind="avoid"),
    name="asked",
)
ORDER = '{"orders":[{"id":"W7","arrives":"2026-05-20"}]}'


def judged(asked: Asked) -> dict[str, Any]:
    said = {
        "date": answer("date", "yes", 2, quote="arrives on 20 May 2026"),
        "found": answer("found", "yes", 1, "tool.content", '"arrives": "2026-05-20"'),
        "harm": answer("harm", "no"),
    }
    return reply(*(said[item["id"]] for item in asked.items))


def test_the_sentence_the_key_and_value_and_what_asking_in_reverse_brought(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cm2.db"
    one = trace(
        turn("Where is W7?", call("get_order", ORDER), say("Good news.\nIt [arrives] arrives on 20 May 2026. Bye."))
    )
    judge = LLMJudge(function_model(judged), reversed_share=1.0)

    async def score(store: SQLStore) -> None:
        async for _ in score_traces([one], ASKED, judge=judge, store=store):
            pass

    with SQLStore(url) as store:
        store.save_runs(list(one.runs))
        asyncio.run(score(store))
    out, _ = cm2("show", "t", "--store", url)
    lines = out.splitlines()
    assert "date (turn 0, step 2, assistant.reply): “It [arrives] arrives on 20 May 2026.”" in lines
    assert 'found (turn 0, step 1, tool.content): “orders[0].arrives: "2026-05-20"”' in lines
    assert "harm, asked in reverse: nothing found" in lines
