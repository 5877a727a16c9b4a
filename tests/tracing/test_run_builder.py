"""What a Run takes from its root span: its facts and its id."""

from __future__ import annotations

import json
from typing import Any

from cm2_agent.types.json_values import canonical_json
from cm2_agent.types.run import Run
from tests.tracing.apps import agent, says
from tests.tracing.conftest import Watched


def test_what_the_callers_config_says_about_the_run(watched: Watched) -> None:
    config: Any = {
        "configurable": {"thread_id": 7},
        "metadata": {
            "cm2.task.id": "t1",
            "cm2.rollout": 3,
            "customer": {"tier": "gold"},
            "thing": object,
            "share": float("nan"),
        },
        "tags": ["beta"],
        "run_name": "desk",
    }
    agent(says("hi")).with_config(callbacks=[watched.handler]).invoke({"messages": [("user", "hi")]}, config)
    run = watched.run
    assert (run.name, run.thread, run.trace_id) == ("desk", "7", "7")
    assert run.attributes["cm2.task.id"] == "t1"
    assert run.attributes["cm2.rollout"] == 3
    assert run.attributes["customer"] == {"tier": "gold"}
    assert run.attributes["tags"] == ["beta"]
    assert run.attributes["share"] == "nan"
    names = {"cm2.task.id", "cm2.rollout", "cm2.system", "customer", "thing", "share", "tags"}
    assert set(run.attributes) == names
    assert Run.from_json(json.loads(canonical_json(run.to_json()))) == run


def test_a_run_has_the_id_of_its_root_span(watched: Watched) -> None:
    agent(says("hi")).with_config(callbacks=[watched.handler]).invoke({"messages": [("user", "hi")]})
    root = next(span for span in watched.spans if span.name.startswith("invoke_agent"))
    assert root.context is not None
    assert watched.run.id == f"{root.context.trace_id:032x}{root.context.span_id:016x}"
    assert watched.run.trace_id == watched.run.id
    assert watched.run.started == root.start_time
    assert watched.run.ended == root.end_time
