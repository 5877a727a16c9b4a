"""`cm2 --help`, `cm2 --version` and every command's own help, as an 80 column terminal shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

import cm2_agent
from cm2_agent.cli.app import app, build
from tests.cli_runner import CliRunner

VERBS = {
    "Check",
    "Compare",
    "Compile",
    "Deploy",
    "Erase",
    "Import",
    "List",
    "Receive",
    "Report",
    "Run",
    "Score",
    "Send",
    "Show",
    "Test",
    "Train",
    "Write",
}


def commands(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below one, by its path."""
    for name, below in getattr(command, "commands", {}).items():
        yield (*path, name), below
        yield from commands(below, *path, name)


def help_of(*path: str) -> str:
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_every_line_of_help_is_whole_at_80_columns() -> None:
    root = get_command(app)
    shown = help_of()
    listed = dict(line.split(None, 1) for line in shown.split("Commands:\n")[1].splitlines() if line.strip())
    visible = {path[0]: command for path, command in commands(root) if len(path) == 1 and not command.hidden}
    assert set(listed) == set(visible)
    for name, command in visible.items():
        assert listed[name] == command.get_short_help_str(1000)
        assert listed[name].endswith("."), name
        assert listed[name].split()[0] in VERBS, name
    assert "…" not in shown
    assert "..." not in shown.replace("[ARGS]...", "")


@pytest.mark.parametrize("path", [path for path, _ in commands(get_command(app))], ids=" ".join)
def test_every_option_of_a_command_is_explained(path: tuple[str, ...]) -> None:
    command = dict(commands(get_command(app)))[path]
    assert command.help.endswith("."), path
    for parameter in command.params:
        text = getattr(parameter, "help", None)
        assert text, f"cm2 {' '.join(path)}: {parameter.name} has no help"
        assert text.endswith("."), f"cm2 {' '.join(path)}: {parameter.name}: {text}"
    shown = help_of(*path)
    assert max(map(len, shown.splitlines())) <= 80
    repeated = ("[ARGS]...", "{FILES}...", "[FORMAT]...")
    for one in repeated:
        shown = shown.replace(one, "")
    assert "..." not in shown, "a line is cut off"


def test_the_old_name_of_a_command_is_hidden_and_works() -> None:
    assert "  label" not in help_of()
    old, new = (help_of(*path).split("\n\n", 1)[1] for path in (("label",), ("checklists", "write")))
    assert old == new


def test_the_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"cm2 {cm2_agent.__version__}\n")


def test_an_application_of_fewer_commands() -> None:
    result = CliRunner().invoke(build(["db"]), ["--help"])
    (listed,) = (line for line in result.stdout.split("Commands:\n")[1].splitlines() if line.strip())
    assert listed.split(None, 1) == ["db", "Show or upgrade the store's schema."]
