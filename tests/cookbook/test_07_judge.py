"""The recipe that scores stored traces with a hosted judge, run as it is written, against a judge on loopback in the
host's place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cm2_agent import Checklist, Item, SQLStore
from cm2_agent.types.checklist_yaml import dump_checklist
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from tests.judge_server import JudgeServer

RECIPE = Path(__file__).resolve().parents[2] / "cookbook" / "07_judge.py"


@pytest.mark.slow
def test_the_recipe_scores_stored_traces_and_asks_nothing_twice(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'cm2.db'}"
    with SQLStore(url) as store:
        for number in range(3):
            said = (
                Message.of("user", "Where is order 7?"),
                Message.of("assistant", f"It arrives on 2026-05-2{number}, by post."),
            )
            store.save_run(Run(id=f"r{number}", thread=f"t{number}", messages=said))
    checklist = tmp_path / "support.yaml"
    checklist.write_text(
        dump_checklist(Checklist(Item("tells_date", "Does the reply give a date?"), name="support")), encoding="utf-8"
    )
    lines = [line for line in RECIPE.read_text(encoding="utf-8").split('"""')[2].splitlines() if line.strip()]
    assert len(lines) < 20
    with JudgeServer(serves=("gpt-5-mini",)) as server:
        env = {**os.environ, "OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": "not a key"}
        calls = []
        for _ in range(2):
            words = [sys.executable, str(RECIPE), url, str(checklist)]
            done = subprocess.run(words, cwd=tmp_path, check=False, capture_output=True, text=True, env=env)
            assert done.returncode == 0, done.stderr[-3000:]
            assert done.stdout.splitlines()[-1] == "mean reward 1.00 of 3 traces"
            calls.append(server.calls)
    assert calls == [3, 3]
