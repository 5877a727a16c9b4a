"""What a store keeps of a run of several agents, and how `cm2 show` tells whose each step is."""

from __future__ import annotations

from pathlib import Path

from cm2_agent.cli.app import app
from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run, ToolRun
from tests.cli_runner import CliRunner


def test_agents_in_a_store_and_on_the_screen(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cm2.db"
    said = (Message.of("user", "Hi"), Message.of("assistant", "Ask sales."), Message.of("assistant", "Sales here."))
    calls = tuple(
        ModelCall(span_id=str(place), output=said[place], message=place, agent=agent)
        for place, agent in ((1, "triage"), (2, "sales"))
    )
    run = Run(
        id="r",
        thread="t",
        messages=said,
        calls=calls,
        tools=(ToolRun(span_id="3", name="look", agent="sales", artifact={"rows": [1, None]}),),
        input={"question": "Hi"},
        output={"answer": "Sales here.", "sources": []},
        user="u7",
        session="s1",
        tags=("beta",),
    )
    alone = Run(id="one", messages=said[:2], calls=calls[:1])
    with SQLStore(url) as store:
        store.save_run(run)
        store.save_run(alone)
        trace = store.trace("t")
    assert trace is not None
    assert trace.runs[0].to_json() == run.to_json()
    shown = CliRunner().invoke(app, ["show", "t", "--store", url]).stdout
    lines = [line.strip() for line in shown.splitlines()]
    assert lines.index("agent  triage") < lines.index("agent  sales")
    assert "agent" not in CliRunner().invoke(app, ["show", "one", "--store", url]).stdout
