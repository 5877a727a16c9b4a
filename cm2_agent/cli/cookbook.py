"""`cm2 cookbook`: the recipes that ship with the package."""

from __future__ import annotations

import ast
import os
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer

from cm2_agent.cli.common import JsonOption, command_group, print_result
from cm2_agent.errors import CM2Error

_INSTALLED = Path(__file__).parent.parent / "cookbook"
_CHECKOUT = Path(__file__).parent.parent.parent / "cookbook"


def register(app: typer.Typer) -> None:
    group = command_group("List the recipes, or copy one into a folder.")
    group.command("list", help="List the recipes and the files that they use.")(list_recipes)
    group.command(
        "copy", help="Copy a recipe into a folder. A file of that name with other content there is never overwritten."
    )(copy)
    app.add_typer(group, name="cookbook")


def list_recipes(as_json: JsonOption = False) -> None:
    recipes = {path.name: _title(path) for path in _recipes()}
    width = max(map(len, recipes))
    print_result(
        {"recipes": recipes}, as_json=as_json, lines=[f"{name:<{width}}  {title}" for name, title in recipes.items()]
    )


def copy(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A recipe from `cm2 cookbook list`; .py may be left out.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The folder, made where it does not exist.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    recipes = {path.name: path for path in _recipes()}
    source = recipes.get(name) or recipes.get(f"{name}.py")
    if source is None:
        raise CM2Error(f"there is no recipe {name!r}; expected one of: {', '.join(recipes)}")
    target = folder / source.name
    content = source.read_bytes()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("xb") as file:
                file.write(content)
        except FileExistsError:
            if target.read_bytes() != content:
                raise CM2Error(f"{target} has other content; name another folder, or remove the file") from None
    except OSError as error:
        raise CM2Error(f"cannot write {target}: {error.strerror or error}; name another folder") from error
    print_result({"file": os.fspath(target)}, as_json=as_json, lines=[os.fspath(target)])


def _recipes() -> list[Path]:
    """The files of the cookbook: beside the package's own folders when installed, beside the package in a checkout."""
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    return sorted(path for path in folder.iterdir() if path.suffix in {".py", ".yaml", ".json"})


def _title(path: Path) -> str:
    """A recipe's first sentence: of its docstring, of its opening comment, or a schema's title."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    elif path.suffix == ".yaml":
        lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
        text = "\n".join(line.lstrip("#").strip() for line in lines)
    else:
        text = "The JSON schema of a checklist file, for editors."
    return " ".join(text.split(".\n")[0].split()).split(". ")[0].rstrip(".")
