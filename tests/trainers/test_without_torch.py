"""Without the extra `train`: advantages, rows, datasets and preference pairs work, and a trainer says the pip line."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "trl", "accelerate", "datasets"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""


def printed(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", BLOCK + program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_needs_no_torch_imports_without_it() -> None:
    names = "advantages, dpo_pairs, pairs_of"
    modules = "dataset, off_policy, retokenize, rows, validation"
    program = (
        f"from cm2_agent.trainers import {names}\nfrom cm2_agent.trainers import {modules}\nprint(advantages.__name__)"
    )
    assert printed(program) == "advantages\n"


@pytest.mark.parametrize("name", ["GRPO", "SFT"])
@pytest.mark.parametrize("face", ["cm2_agent", "cm2_agent.trainers"])
def test_a_trainer_names_its_extra(face: str, name: str) -> None:
    program = f"from cm2_agent.errors import MissingExtra\ntry:\n    from {face} import {name}\n"
    program += "except MissingExtra as error:\n    print(error)\n"
    assert printed(program) == 'Trainers need an extra: pip install "cm2-agent[train]"\n'
