"""The check for GPU machines, on a CPU and in small: the same steps, and a refusal where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.sh")


def started(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(["bash", str(RUN), *words], check=False, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_the_dry_run_does_all_steps() -> None:
    done = started("--small")
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert all(result["checks"].values())
    assert len(result["checks"]) == 6
    assert result["device"] == "cpu"
    assert result["training"]["recomputed"]["mean_abs"] <= result["training"]["recomputed"]["tolerance"]
    for part in ("sampling", "training", "reading"):
        assert result[part]["seconds"] > 0
        assert result[part]["gib"] > 0
    assert result["sampling"]["tokens_per_s"] > 0
    assert result["training"]["tokens_per_s"] > 0


@pytest.mark.slow
def test_without_a_gpu_it_says_so() -> None:
    done = started()
    assert done.returncode == 2
    assert "torch sees no GPU" in done.stderr
