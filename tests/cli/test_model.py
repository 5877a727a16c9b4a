"""`cm2 model check`: lines, JSON and exits."""

from __future__ import annotations

import json
from pathlib import Path

from cm2_agent.cli.app import app
from cm2_agent.models import byte_tokenizer
from tests.cli_runner import CliRunner


def test_a_whole_model_exits_0_and_prints_its_tokens(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    done = CliRunner().invoke(app, ["model", "check", str(tmp_path)])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[-1] == "nothing would be lost"
    assert "tools          shown" in lines
    assert any(line.split() == ["sampled", "258", "'<|im_end|>'"] for line in lines)
    assert any(line.split()[:1] == ["prompt"] for line in lines)


def test_a_model_that_loses_something_exits_1_with_the_list(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    done = CliRunner().invoke(app, ["model", "check", str(tmp_path), "--json", "--no-tokens"])
    assert done.exit_code == 1
    result = json.loads(done.output)
    assert result["ok"] is False
    assert "tokens" not in result
    assert any("ignores `tools`" in problem for problem in result["problems"])
    assert CliRunner().invoke(app, ["model", "check", str(tmp_path), "--no-tools"]).exit_code == 0


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["model", "check", str(tmp_path)]).exit_code == 2
