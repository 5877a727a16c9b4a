"""docs/how-to/deploy.md does what it says, against vLLM on loopback: its commands, their output, and its files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("langchain_openai", reason='needs the extra: pip install "cm2-agent[openai]"')

from tests.models.lora_servers import VLLM
from tests.models.test_deploy import adapter
from tests.test_docs import ROOT, blocks, command

PAGE = ROOT / "docs" / "how-to" / "deploy.md"
URL = "http://localhost:8000/v1"


@pytest.mark.slow
def test_the_page_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    adapter(tmp_path / "out" / "policy")
    adapter(tmp_path / "out" / "next", weights=b"two")
    (tmp_path / "tasks.jsonl").write_text('{"id": "t", "turns": ["Hi"]}\n')
    with VLLM(mode="processed") as server:

        def here(text: str) -> str:
            return text.replace(URL, server.url).replace("VERSION", first)

        first, printed, commands = "VERSION", "", 0
        for block in blocks(PAGE.read_text(encoding="utf-8")):
            if block.language == "bash" and "served" in block.words:
                for line in block.code.splitlines():
                    printed, commands = command(PAGE.name, here(line)), commands + 1
                    first = first if first != "VERSION" else next(iter(server.adapters))
            elif block.language == "text" and "served" in block.words:
                assert printed == here(block.code)
            elif block.language == "python":
                Path(block.words[0]).write_text(block.code)
        assert commands == 4
        (second,) = server.adapters
        assert second != first
        assert f'"{second}"' in printed
        assert run("collect.py", server.url, second) == ""
        server.adapters[first] = str(tmp_path / "out" / "policy")  # what the recipe replaces
        assert second in run("recipe.py", server.url, first)
        assert list(server.adapters) == [second]


def run(*words: str) -> str:
    """What a file of the page prints."""
    done = subprocess.run([sys.executable, *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
