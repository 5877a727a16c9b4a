"""The recipe that starts from Langfuse's export, run as it is written on few customers and steps; its export is one by
the types of Langfuse's own SDK."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langfuse", reason='needs the extra: pip install "cm2-agent[langfuse]"')

from langfuse.api import ObservationV2
from langfuse.api.core.pydantic_utilities import parse_obj_as

from cm2_agent import SQLStore, load_tasks

RECIPE = Path(__file__).resolve().parents[2] / "cookbook" / "10_from_langfuse.py"


def recipe() -> Any:
    spec = importlib.util.spec_from_file_location("from_langfuse", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_an_export_becomes_scores_tasks_and_a_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe().main(customers=16, steps=1, drill=1)
    said = capsys.readouterr().out
    assert "GRPO: no group was given" in said
    last = said.splitlines()[-1]
    promised = re.search(r"You should see: (.+)", RECIPE.read_text(encoding="utf-8"))
    assert promised is not None
    assert re.sub(r"\d\.\d\d", "N", last) == re.sub(r"\d\.\d\d", "N", promised.group(1))
    with SQLStore("sqlite:///shop.db") as store:
        traces = list(store.traces())
        assert len(traces) == len(list(store.scores())) == 16
    # all of a task's calls are recorded, so that it can be run without the shop
    tasks = [*load_tasks("tasks.jsonl"), *load_tasks("held.jsonl")]
    assert tasks
    assert all(task.recorded and task.tools for task in tasks)
    assert {"imitation", "policy"} <= {path.name for path in tmp_path.iterdir()}


def test_the_export_is_of_langfuses_own_shape(tmp_path: Path) -> None:
    recipe().export(tmp_path / "langfuse.jsonl", customers=4)
    rows = [json.loads(line) for line in (tmp_path / "langfuse.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        read = parse_obj_as(type_=ObservationV2, object_=row)
        assert (read.trace_id, read.parent_observation_id) == (row["traceId"], row["parentObservationId"])
        assert not read.model_extra, "it has fields that Langfuse does not know"
    assert {row["type"] for row in rows} == {"AGENT", "GENERATION", "TOOL"}
