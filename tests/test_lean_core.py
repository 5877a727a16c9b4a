"""The core works where the packages of the extras cannot be imported; `.ci/run` does the same where they are absent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lean_core import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
REFUSE = f"""
import sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture
def lean(tmp_path: Path) -> dict[str, str]:
    """An environment whose interpreters refuse to import the extras."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(REFUSE)
    return {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}


def python(arguments: list[str], folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, check=False, capture_output=True, text=True
    )


@pytest.mark.parametrize("name", EXTRAS)
def test_the_extras_cannot_be_imported_here(tmp_path: Path, lean: dict[str, str], name: str) -> None:
    """Else the test below would show nothing."""
    assert f"No module named '{name}'" in python(["-c", f"import {name}"], tmp_path, lean).stderr


@pytest.mark.slow
def test_the_core_works_without_extras(tmp_path: Path, lean: dict[str, str]) -> None:
    work = tmp_path / "work"
    work.mkdir()
    done = python([str(ROOT / "tests" / "lean_core.py"), str(ROOT / "README.md")], work, lean)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "the core works without an extra\n"


def test_importing_the_package_sets_no_environment_variable(tmp_path: Path) -> None:
    """Whether LangSmith traces, or tokenizers run in parallel, is the user's business."""
    code = (
        "import os; before = dict(os.environ)\n"
        "import cm2_agent.graphs, cm2_agent.rewards, cm2_agent.trainers, cm2_agent.store, cm2_agent.cli.app\n"
        "from cm2_agent import GRPO, LLMJudge, LocalChatModel, SQLStore, guard, run, score_traces, watch\n"
        "changed = {name for name in {**before, **os.environ} if os.environ.get(name) != before.get(name)}\n"
        "ours = ('CM2_', 'LANG', 'TOKENIZERS_', 'OMP_', 'HF_', 'TRANSFORMERS_')\n"
        "print([name for name in changed if name.startswith(ours)])\n"
    )
    env = {name: value for name, value in os.environ.items() if name not in {"LANGSMITH_TRACING", "OMP_NUM_THREADS"}}
    done = python(["-c", code], tmp_path, {**env, "PYTHONPATH": str(ROOT)})
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
