"""What is wrong on the command line: said in words with what to type, exit 2, and nothing changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cm2_agent.cli.app import app
from cm2_agent.cli.common import one_line, printable
from tests.cli_runner import CliRunner
from tests.importers.recordings import saved


def refused(*arguments: str) -> str:
    """stderr of a command that exits 2 and writes nothing to stdout."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    return result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("score",),
        ("eval", "--against", "official_reward"),
        ("train", "--rows-only"),
        ("train", "--model", "m", "--out", "o"),
        ("show",),
        ("show", "t"),
        ("doctor",),
        ("export", "out.jsonl"),
        ("db", "revision"),
    ],
)
def test_a_store_that_is_not_there_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "does not exist" in refused(*arguments, "--store", "sqlite:///absent.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("import", "xml", "results.json"), "expected one of cm2, tau2"),
        (("import", "tau-bench", "absent.json"), "cannot be read"),
        (("import", "openai", "results.json"), "none of its 6 records is of format openai"),
        (("import", "tau-bench", "empty.json"), "is empty"),
        (("import", "tau-bench", "results.json", "--store", "mysql://x/y"), "expected sqlite:///FILE.db"),
        (("import", "tau-bench", "results.json", "--store", "sqlite:///no/such/folder.db"), "does not exist"),
        (("run", "absent.jsonl", "--agent", "a:b"), "cannot read tasks"),
        (("run", "tasks.jsonl", "--agent", "nothing"), "MODULE:NAME"),
        (("run", "tasks.jsonl", "--agent", "no.such.module:graph"), "cannot be imported"),
        (("run", "tasks.jsonl", "--agent", "absent.py:graph"), "there is no file"),
        (("run", "tasks.jsonl", "--agent", "json:dumps_"), "it holds"),
        (("run", "tasks.jsonl", "--agent", "json:__doc__"), "expected a compiled LangGraph graph"),
        (("train",), "--model and --out not given"),
        (("train", "--allow-retokenised", "--model", "m", "--out", "o"), "--rows-only"),
        (("train", "--rows-only", "--checklist", "c.yaml", "--reward", "r"), "give one of them"),
        (("score", "absent.yaml"), "absent.yaml"),
        (("score", "--checks", "absent.py"), "there is no such file"),
    ],
)
def test_wrong_arguments_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, name="results.json")
    (tmp_path / "empty.json").write_text("\n")
    (tmp_path / "tasks.jsonl").write_text('{"id": "t", "turns": ["hi"]}\n')
    before = sorted(path.name for path in tmp_path.iterdir())
    assert problem in refused(*arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_store_without_what_is_needed_says_what_to_type(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/cm2.db"
    CliRunner().invoke(app, ["import", "tau-bench", str(saved(tmp_path)), "--store", store])
    assert "cm2 score CHECKLIST.yaml" in refused("score", "--store", store)
    assert "cm2 score CHECKLIST.yaml" in refused("eval", "--against", "official_reward", "--store", store)
    checklist = tmp_path / "c.yaml"
    checklist.write_text("name: c\nitems:\n  - {id: told, check: {replied: true}, turn: trace}\n")
    assert CliRunner().invoke(app, ["score", str(checklist), "--store", store]).exit_code == 0
    assert "outcomes there are: official_reward" in refused("eval", "--against", "success", "--store", store)
    assert "lists them" in refused("show", "nobody", "--store", store)
    assert "there is no folder" in refused(
        "train", "--rows-only", "--allow-retokenised", "--model", str(tmp_path / "no-model"), "--store", store
    )
    checklist.write_text("name: c\nitems:\n  - {id: told, check: {replied: true}, turn: trace, weight: -1}\n")
    assert "c.yaml:3" in refused("score", str(checklist), "--store", store)
    checklist.write_text("name: c\nitems:\n  - {id: said, check: {replied: true}, turn: trace}\n")
    assert "version: 2" in refused("score", str(checklist), "--store", store)


def test_a_password_is_never_printed(tmp_path: Path) -> None:
    url = "postgresql+psycopg://user:hunter2@127.0.0.1:1/none"
    for arguments in (("show",), ("doctor",), ("score",), ("import", "tau-bench", str(saved(tmp_path)))):
        assert "hunter2" not in refused(*arguments, "--store", url)


@pytest.mark.parametrize("name", ["nope", "imports"])
def test_an_unknown_command_lists_the_commands(name: str) -> None:
    problem = refused(name)
    for command in (
        "quickstart",
        "run",
        "import",
        "export",
        "score",
        "checklists",
        "train",
        "eval",
        "report",
        "show",
        "doctor",
        "db",
        "cookbook",
    ):
        assert command in problem
    assert "label" not in problem
    assert "upgrade" in refused("db", name)


def test_text_from_outside_is_spelled_out() -> None:
    assert printable("a\x1b[31mb\u202ec\n\td\r") == "a\\x1b[31mb\\u202ec\n\td\\r"
    assert one_line("a\n\nb\x00 " + "c" * 20, 8) == "a b\\x00…"


def test_the_real_command(tmp_path: Path) -> None:
    """The installed program: one line of JSON on stdout, the rest on stderr, exit codes, and nothing heavy loaded for
    --help."""
    program = str(Path(sys.executable).with_name("cm2"))
    store = f"sqlite:///{tmp_path}/cm2.db"
    done = subprocess.run(
        [program, "import", "tau-bench", saved(tmp_path), "--store", store, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {"imported": 6, "skipped": 0, "duplicates": 0}
    wrong = subprocess.run([program, "import", "tau-bench"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "which file? Type: cm2 import tau-bench FILE" in wrong.stderr
    heavy = ("asyncio", "langgraph", "numpy", "pydantic", "rich", "sqlalchemy", "torch")
    loaded = f"import sys, cm2_agent.cli.app; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
