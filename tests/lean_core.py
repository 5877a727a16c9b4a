"""What works without an extra: README's first sections, commands that need no model, and errors that name the extra.

It needs the package alone, and runs in an empty folder: `python tests/lean_core.py README.md`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

EXTRAS = ("torch", "transformers", "trl", "datasets", "accelerate", "peft", "safetensors", "matplotlib")
"""The packages of the extras `train` and `plot`."""
BLOCK = re.compile(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHECKLIST = "name: support\nversion: 2\nitems:\n  - {id: looks_up, check: {called: get_order}}\n"
CHAT = [
    {"role": "user", "content": "Where is order 7?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "get_order", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "shipped"},
    {"role": "assistant", "content": "It was shipped."},
]
NEEDS_TRAIN = {
    "LocalChatModel": "import cm2_agent; cm2_agent.LocalChatModel",
    "GRPO": "import cm2_agent; cm2_agent.GRPO(model='tiny', out='new').train([])",
    "SFT": "import cm2_agent; cm2_agent.SFT(model='tiny', out='new').train([])",
}


def python(source: str) -> str:
    """stdout of a program; it runs from a file, since a checklist reads the source of its functions."""
    Path("program.py").write_text(source, encoding="utf-8")
    words = [sys.executable, "program.py"]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    return _checked(words, 0, done.returncode, done.stdout, done.stderr)[0]


def cm2(*arguments: str, code: int = 0) -> tuple[str, str]:
    """stdout and stderr of a command; all share this process, from which no extra can be imported either."""
    from typer.testing import CliRunner

    from cm2_agent.cli.app import app

    done = CliRunner().invoke(app, arguments, prog_name="cm2")
    return _checked(["cm2", *arguments], code, done.exit_code, done.stdout, done.stderr)


def _checked(words: list[str], expected: int, code: int, out: str, err: str) -> tuple[str, str]:
    if code != expected:
        raise SystemExit(f"{words}: exit {code}, expected {expected}\n{out}{err}")
    return out, err


def expect(text: str, part: str) -> None:
    if part not in text:
        raise SystemExit(f"expected {part!r} in:\n{text}")


def readme(path: Path) -> None:
    """README's code before its section on training prints what README prints."""
    before = path.read_text(encoding="utf-8").split("\n## Train\n")[0]
    blocks = [(match[1], match[2], match[3]) for match in BLOCK.finditer(before)]
    program = "\n".join(code for language, _, code in blocks if language == "python")
    expected = "".join(code for language, words, code in blocks if (language, words) == ("text", "output"))
    if "watch(" not in program or "score_traces(" not in program or not expected:
        raise SystemExit(f"{path} has no embed and score blocks before '## Train'")
    expect(python(program), expected)


def commands() -> None:
    """The commands on a store that README's code has filled, and on one of imported chats."""
    stored, imported = "sqlite:///cm2.db", "sqlite:///chats.db"
    Path("support.yaml").write_text(CHECKLIST, encoding="utf-8")
    Path("chats.json").write_text(json.dumps(CHAT), encoding="utf-8")
    expect(cm2("--help")[0], "quickstart")
    expect(cm2("--version")[0], "cm2 ")
    expect(cm2("import", "openai", "chats.json", "--store", imported)[0], "imported: 1")
    expect(cm2("score", "support.yaml", "--store", imported)[0], "mean reward: 1")
    for store in (stored, imported):
        expect(cm2("show", "--store", store)[0], "1 of 1 traces")
        expect(cm2("report", "--store", store, "--html", "report.html")[0], "mean reward")
        expect(cm2("export", "traces.jsonl", "--store", store)[0], "exported: 1")
        expect(cm2("doctor", "--store", store)[0], "no problems")
    expect(Path("report.html").read_text(encoding="utf-8"), "</html>")
    expect(cm2("cookbook", "copy", "01_embed")[0], "01_embed.py")


def needs_an_extra() -> None:
    """What trains says which extra it needs, and shows no traceback on the command line."""
    program = "from cm2_agent import CM2Error\n"
    for name, code in NEEDS_TRAIN.items():
        program += f"try:\n    {code}\nexcept CM2Error as error:\n    print({name!r}, error)\n"
    printed = python(program).splitlines()
    for name, line in zip(NEEDS_TRAIN, printed, strict=True):
        expect(line, name)
        expect(line, 'pip install "cm2-agent[train]"')
    train = ("train", "--model", "tiny", "--out", "new", "--store", "sqlite:///cm2.db")
    for arguments, extra in ((train, "train"), (("quickstart",), "train,plot")):
        _, err = cm2(*arguments, code=2)
        expect(err, f'pip install "cm2-agent[{extra}]"')
        if len(err.splitlines()) != 1:
            raise SystemExit(f"{arguments}: expected one line, not:\n{err}")
    if Path("new").exists() or Path("runs").exists():
        raise SystemExit("a refused command left a folder behind")


def main() -> None:
    readme(Path(sys.argv[1]))
    commands()
    needs_an_extra()
    print("the core works without an extra")


if __name__ == "__main__":
    main()
