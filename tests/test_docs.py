"""What the documents say is true: their code runs, in order, prints what they print, and imports from the faces alone.

In README.md, cookbook/*.md and docs/**/*.md (docs/reference is made from the code), by the words after a fence's
language:

- `python`: executed, in one namespace a document, in an empty folder of the document's own.
- `python NAME.py`: written to the file NAME.py there, which later blocks and commands can import.
- `bash run`: every line is a `cm2 …` command, run there in its turn. Other `bash` blocks are only shown; their `cm2`
  commands and options exist.
- `yaml NAME`, `json NAME`, `jsonl NAME`: written to the file NAME there; each is parsed, and a checklist is
  loaded (an item library, which has `parameters`, where a checklist includes it).
- `text output`: what the block before it printed, to the letter.

Recipes (cookbook/01_embed.py …) run as scripts; the last line that one prints is the one that its docstring promises
after "You should see:". A recipe that takes `--steps` is run with `--steps 1`, and then only the words before the
number are compared."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from cm2_agent.cli.app import app
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_yaml import load_checklist
from tests.cli_runner import CliRunner

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
PAGES = [path for path in (ROOT / "docs").rglob("*.md") if not path.is_relative_to(REFERENCE)]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "cookbook").glob("*.md"), *PAGES])
HAVE_TESTS = {"07_judge.py", "09_small_model.py", "10_from_langfuse.py"}  # tests/cookbook: for a key, weights, speed
RECIPES = sorted(path for path in (ROOT / "cookbook").glob("[0-9]*.py") if path.name not in HAVE_TESTS)
FACES = {
    "cm2_agent": "tracing, checklists, runs, scores, training",
    "cm2_agent.graphs": "agents, tools, users",
    "cm2_agent.rewards": "scorers, judges, reward components",
    "cm2_agent.trainers": "GRPO, SFT, preference pairs",
    "cm2_agent.store": "the SQL store",
    "cm2_agent.models": "models for the agents",
    "cm2_agent.llm": "models for judges, simulators and users",
    "cm2_agent.importers": "other tools' recordings",
    "cm2_agent.integrations": "rewards in other frameworks",
    "cm2_agent.benchmarks": "public benchmarks",
    "cm2_agent.quickstart": "the sample desk",
}
"""The packages that documents and recipes may import from, and what for."""
FENCE = re.compile(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE_LINE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)
IMPORT = re.compile(r"^\s*(?:>>> |\.\.\. )?(?:from cm2_agent[\w.]* import .|import cm2_agent)", re.MULTILINE)
PROMISE = re.compile(r"You should see: (.+)")


@dataclass(frozen=True, kw_only=True)
class Block:
    language: str
    words: tuple[str, ...]
    code: str
    line: int
    """The 1-based line of the document on which the code begins."""


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text, in order."""
    return [
        Block(
            language=found.group(1),
            words=tuple(found.group(2).split()),
            code=found.group(3),
            line=text.count("\n", 0, found.start(3)) + 1,
        )
        for found in FENCE.finditer(text)
    ]


def execute(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Do what the document's blocks say, in the current folder."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(document.read_text(encoding="utf-8")):
        where = f"{document.name}:{block.line}"
        if block.language == "python" and block.words:
            for name in block.words:
                Path(name).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            # Under the document's own name and line, so that tracebacks and inspect.getsource find it.
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, str(document), "exec"), namespace)
            printed = capsys.readouterr().out
        elif block.language == "bash" and "run" in block.words:
            printed = "".join(command(where, line) for line in block.code.splitlines() if not line.startswith("#"))
        elif block.language in {"yaml", "json", "jsonl"}:
            data = parsed(block)
            for name in block.words:
                Path(name).write_text(block.code, encoding="utf-8")
            if block.language != "jsonl" and "items" in data and "parameters" not in data:
                read = load_checklist(block.words[0]) if block.words else Checklist.from_json(data)
                assert read.items, where
        elif block.language == "text" and "output" in block.words:
            assert printed == block.code, f"{where}: the block before it printed something else"


def parsed(block: Block) -> Any:
    if block.language == "yaml":
        return yaml.safe_load(block.code)
    return (
        json.loads(block.code) if block.language == "json" else [json.loads(line) for line in block.code.splitlines()]
    )


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The modules that a document writes can be imported, and are forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{tmp_path}{os.sep}"):
            del sys.modules[name]


def command(where: str, line: str) -> str:
    """Run one `cm2 …` line, and return what it printed."""
    words = shlex.split(line)
    assert words[0] == "cm2", f"{where}: only cm2 commands are run, not {line!r}"
    done = CliRunner().invoke(app, words[1:], prog_name="cm2")
    assert done.exit_code == 0, f"{where}: {line}: exit {done.exit_code}\n{done.stderr[-2000:]}\n{done.exception}"
    return done.stdout


@pytest.mark.usefixtures("own_modules")
@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_does_what_it_says(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    execute(document, capsys)
    text = document.read_text(encoding="utf-8")
    assert blocks(text) or document in PAGES, f"{document.name} shows nothing that could be run"
    assert len(FENCE_LINE.findall(FENCE.sub("", text))) == 0, (
        f"{document.name}: a block without a language, or indented, is not run"
    )


def deep_imports(text: str) -> list[str]:
    """The imports in a text, prose and all, of modules that are no face, or of names that a face does not list."""
    found = []
    for start in IMPORT.finditer(text):
        statement = statement_at(text, text.rfind("\n", 0, start.end()) + 1)
        if not all(imported(node) for node in ast.parse(statement).body):
            found.append(statement)
    return found


def statement_at(text: str, start: int) -> str:
    """The import that begins on the line at `start`, through its closing parenthesis."""
    lines = [re.sub(r"^\s*(>>> |\.\.\. )?", "", line) for line in text[start:].splitlines()]
    end = 1 + (next(at for at, line in enumerate(lines) if ")" in line) if "(" in lines[0] else 0)
    return " ".join(lines[:end])


def imported(node: ast.stmt) -> bool:
    """Whether an import takes from faces alone: a face, or names that a face lists."""
    if isinstance(node, ast.Import):
        return all(alias.name in FACES for alias in node.names)
    assert isinstance(node, ast.ImportFrom)
    face = node.module or ""
    listed = getattr(importlib.import_module(face), "__all__", ()) if face in FACES else ()
    return all(alias.name in listed or f"{face}.{alias.name}" in FACES for alias in node.names)


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, *sorted((ROOT / "cookbook").glob("*.py"))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_documents_and_recipes_import_from_faces_alone(path: Path) -> None:
    deep = deep_imports(path.read_text(encoding="utf-8"))
    assert not deep, f"{path.name}: not from {', '.join(FACES)}:\n" + "\n".join(deep)


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        ("```python\nfrom cm2_agent import watch\nimport cm2_agent\nfrom cm2_agent import graphs\n```\n", 0),
        ("```python\nfrom cm2_agent.store import (\n    SQLStore,\n)\n```\n", 0),
        ("from cm2_agent.store.sql import SQLStore\n", 1),
        (">>> from cm2_agent.messages import Message\n", 1),
        ("    import cm2_agent.score\n", 1),
        ("from cm2_agent import (\n    watch,\n    no_such_name,\n)\n", 1),
        ("Import from cm2_agent.store, or\nimport yours.\n", 0),
    ],
)
def test_a_deep_import_is_found(text: str, deep: int) -> None:
    assert len(deep_imports(text)) == deep


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_prints_what_it_promises(recipe: Path, tmp_path: Path) -> None:
    source = recipe.read_text(encoding="utf-8")
    promised = PROMISE.search(ast.get_docstring(ast.parse(source)) or "")
    assert promised, (
        f"{recipe.name}: its docstring promises no number; write the last line it prints after 'You should see: '"
    )
    short = "--steps" in source
    words = [sys.executable, str(recipe), *(["--steps", "1"] if short else [])]
    done = subprocess.run(words, cwd=tmp_path, check=False, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    last = done.stdout.splitlines()[-1]
    assert re.search(r"\d", last), f"{recipe.name}: its last line has no number: {last!r}"
    if short:
        assert re.split(r"[-+]?\d", last)[0] == re.split(r"[-+]?\d", promised.group(1))[0]
    else:
        assert last == promised.group(1)


PROGRAM = get_command(app)
COMMAND = re.compile(r"^(cm2 [^\n]+)$|`(cm2 [^`]+)`", re.MULTILINE)


def unknown_words(line: str) -> list[str]:
    """The subcommands and options of a `cm2 …` line that the program does not have, or hides."""
    found: Any = PROGRAM
    words = shlex.split(line.replace("…", ""), comments=True)[1:]
    while isinstance(found, TyperGroup) and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        if words[0] not in found.commands or found.commands[words[0]].hidden:
            return [words[0]]
        found = found.commands[words.pop(0)]
    options = {"--help", *(option for parameter in found.params for option in parameter.opts)}
    return [word for word in words if word.startswith("--") and word.partition("=")[0] not in options]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_are_shown_exist(document: Path) -> None:
    for found in COMMAND.finditer(document.read_text(encoding="utf-8")):
        line = found.group(1) or " ".join(found.group(2).split())
        assert not unknown_words(line), f"{document.name}: {line}"


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        ("cm2 score support.yaml --judge openai:gpt-5-mini  # --no-such-option", []),
        ("cm2 tasks from-traces train.jsonl --held-out held.jsonl", []),
        ("cm2 tasks from-nowhere", ["from-nowhere"]),
        ("cm2 scores support.yaml", ["scores"]),
        ("cm2 label --model openai:gpt-5-mini", ["label"]),
        ("cm2 score support.yaml --jugde test --json", ["--jugde"]),
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str, unknown: list[str]) -> None:
    assert unknown_words(line) == unknown


def with_examples() -> list[str]:
    """The modules of the package whose docstrings show a session, by import name."""
    files = [
        path for top in ("cm2_agent", "graphs", "rewards", "trainers") for path in sorted((ROOT / top).rglob("*.py"))
    ]
    names = [
        path.relative_to(ROOT / "cm2_agent" if path.is_relative_to(ROOT / "cm2_agent") else ROOT) for path in files
    ]
    return [
        ".".join(["cm2_agent", *name.with_suffix("").parts]).removesuffix(".__init__")
        for path, name in zip(files, names, strict=True)
        if ">>> " in path.read_text(encoding="utf-8")
    ]


@pytest.mark.parametrize("name", with_examples())
def test_the_examples_of_a_module_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```python\nprint(2)\n```\nIt prints:\n```text output\n3\n```\n", "printed something else"),
        ("```python\nx = 1\n```\n```python\nassert x == 2, 'no'\n```\n", "no"),
        ("```bash run\nrm -r docs\n```\n", "only cm2 commands are run"),
        ("```bash run\ncm2 no-such-command\n```\n", "cm2 no-such-command: exit 2"),
        ("```python own.py\nx = 1\n```\n```python\nimport own\n\nassert own.x == 2, 'another x'\n```\n", "another x"),
    ],
)
@pytest.mark.usefixtures("own_modules")
def test_a_false_document_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, complaint: str
) -> None:
    document = tmp_path / "false.md"
    document.write_text(text, encoding="utf-8")
    with pytest.raises(AssertionError, match=complaint):
        execute(document, capsys)


def test_blocks_follow_each_other_and_know_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    document = tmp_path / "true.md"
    document.write_text(
        "```yaml a.yaml\nname: a\nitems: [{id: x, check: {called: t}}]\n```\n\n"
        "```python\ndef looks(view):\n    return True\n```\n"
        "```python\nimport inspect\nprint(len(open('a.yaml').read()), inspect.getsource(looks), end='')\n```\n"
        "```text output\n45 def looks(view):\n    return True\n```\n```python\nboom\n```\n",
        encoding="utf-8",
    )
    with pytest.raises(NameError, match="boom") as raised:
        execute(document, capsys)
    assert (raised.traceback[-1].path, raised.traceback[-1].lineno + 1) == (document, 19)
