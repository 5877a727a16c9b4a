"""The recipe of a real small model, run as it is written for one round: the quickstart's policy stands in for SmolLM2,
and a server on loopback with vLLM's wire takes the adapter."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from cm2_agent import SQLStore
from cm2_agent.models import fingerprint
from cm2_agent.quickstart import training_tasks
from cm2_agent.quickstart.config import ColdStartConfig, Config
from cm2_agent.quickstart.policy import cold_start
from tests.models.lora_servers import VLLM

RECIPE = Path(__file__).resolve().parents[2] / "cookbook" / "09_small_model.py"
SHOP = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("recipe", sys.argv[1])
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)
answered, answer = 0, recipe.HostedModel._answer
def until(*arguments):
    global answered
    answered += 1
    if answered > int(sys.argv[2]):
        os._exit(9)
    return answer(*arguments)
recipe.HostedModel._answer = until
recipe.production(12)
recipe.flush()
"""
"""Twelve customers are served, and the process dies at an answer of the model."""
SHORT = Config(cold_start=ColdStartConfig(drill_steps=10, demonstrations=200, steps=40))


@pytest.mark.slow
def test_one_round_leads_from_a_production_store_to_a_served_adapter(tmp_path: Path) -> None:
    base = cold_start(0, tmp_path / "base", config=SHORT)
    name = fingerprint(AutoModelForCausalLM.from_pretrained(base))
    with VLLM(serves=name, root=str(base)) as server:
        words = ["--model", str(base), "--steps", "1", "--imitation", "1", "--customers", "3", "--group", "4"]
        command = [sys.executable, str(RECIPE), *words, "--url", server.url]
        done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stderr[-3000:]
        (adapter, folder), *others = server.adapters.items()
    assert not others
    assert adapter.startswith(f"{name}+")
    assert Path(folder).name == "policy-1"
    report = json.loads((tmp_path / "policy-1" / "report.json").read_text(encoding="utf-8"))
    assert report["informative_groups"] > 0
    assert report["policy"]["after"] == adapter
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert {"base", "imitation", "GRPO", "gain"} <= figures.keys()
    last = done.stdout.splitlines()[-1]
    promised = re.search(r"You should see: (.+)", RECIPE.read_text(encoding="utf-8"))
    assert promised is not None
    assert re.split(r"[-+]?\d", last)[0] == re.split(r"[-+]?\d", promised.group(1))[0]
    with SQLStore(f"sqlite:///{tmp_path / 'shop.db'}", project="shop") as shop:
        assert {trace.policy for trace in shop.traces()} == {None}, "production has words, and no policy of ours"
    with SQLStore(f"sqlite:///{tmp_path / 'shop.db'}") as store:
        assert sum(trace.task_id is not None for trace in store.traces()) == 8 * 4 + 3 * 3


@pytest.mark.slow
def test_a_day_that_was_interrupted_goes_on_and_serves_nobody_twice(tmp_path: Path) -> None:
    for answers, status in ((8, 9), (19, 9), (999, 0), (0, 0)):
        command = [sys.executable, "-c", SHOP, str(RECIPE), str(answers)]
        done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, env=os.environ)
        assert done.returncode == status, done.stderr[-3000:]
    asked = {task.id: len(task.turns) for task in training_tasks(0)[:12]}
    with SQLStore(f"sqlite:///{tmp_path / 'shop.db'}", project="shop") as shop:
        assert {trace.id: len(trace.turns) for trace in shop.traces()} == asked


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    command = [sys.executable, str(RECIPE), "--model", "smol"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, env=os.environ)
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
    assert "there is no folder 'smol'" in done.stderr
