"""The page of the command line: each command's usage, arguments and options, from the application itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.core import TyperGroup
from typer.main import get_command

from cm2_agent.cli.app import app
from tests.docs_reference.markdown import code, escape, fence, table


def cli_page() -> str:
    """The page."""
    return "\n".join(_page())


def _page() -> Iterator[str]:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    commands = dict(_commands("cm2", group))
    yield "# Command line\n"
    yield f"{escape(_help(group))}\n"
    yield "`cm2 COMMAND --help` says the same in a terminal.\n"
    yield table(
        ["command", "what it does"],
        [[f"[{code(name)}](#{name.replace(' ', '-')})", escape(_first(one))] for name, one in commands.items()],
    )
    for name, command in commands.items():
        yield from _command(name, command)


def _commands(name: str, group: TyperGroup) -> Iterator[tuple[str, Any]]:
    """The commands that do something, by their full names; hidden ones are left out."""
    for own, command in group.commands.items():
        if command.hidden:
            continue
        if isinstance(command, TyperGroup):
            yield from _commands(f"{name} {own}", command)
        else:
            yield f"{name} {own}", command


def _command(name: str, command: Any) -> Iterator[str]:
    context = command.make_context(name, [], resilient_parsing=True)
    yield f"## {name}\n"
    yield fence(" ".join([name, *command.collect_usage_pieces(context)]), "text")
    yield f"{escape(_help(command))}\n"
    visible = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    for kind, title in (("argument", "argument"), ("option", "option")):
        rows = [_row(parameter, context) for parameter in visible if parameter.param_type_name == kind]
        if rows:
            yield table([title, "meaning", "default"], rows)


def _row(parameter: Any, context: Any) -> list[str]:
    record = parameter.get_help_record(context)
    name = record[0] if record else parameter.name
    meaning = escape(parameter.help or "")
    if parameter.min is not None:
        meaning += f" At least {parameter.min:g}."
    if parameter.max is not None:
        meaning += f" At most {parameter.max:g}."
    if parameter.envvar:
        names = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar
        meaning += f" Environment: {', '.join(map(code, names))}."
    return [code(name), meaning, _default(parameter)]


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or value is False or value == [] or callable(value):
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(code(str(one)) for one in value)
    return code(str(getattr(value, "value", value)))


def _help(command: Any) -> str:
    return " ".join((command.help or "").split("\f")[0].split())


def _first(command: Any) -> str:
    return str(command.get_short_help_str(1000))
