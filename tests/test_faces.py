"""The doors of the faces describe themselves: what takes many parameters says each, what is called shows how.

A door is a function of a face, or a class that does something; data types and exceptions are described field by field
in the reference and need no example of their own. An example can be pasted: it imports what it uses.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
from pydantic import BaseModel

FACES = [
    "cm2_agent",
    "cm2_agent.graphs",
    "cm2_agent.importers",
    "cm2_agent.integrations",
    "cm2_agent.llm",
    "cm2_agent.models",
    "cm2_agent.rewards",
    "cm2_agent.store",
    "cm2_agent.trainers",
]
MANY = 5
EXAMPLE = re.compile(r">>> |::\n|```")


def doors() -> dict[str, Any]:
    """The functions and classes of the faces by their first name, each once."""
    found: dict[int, tuple[str, Any]] = {}
    for face in FACES:
        module = importlib.import_module(face)
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isroutine(thing) or inspect.isclass(thing):
                found.setdefault(id(thing), (f"{face}.{name}", thing))
    return dict(found.values())


def is_data(thing: Any) -> bool:
    """What holds values and does nothing: data types, exceptions, protocols."""
    if not inspect.isclass(thing):
        return False
    made = "__init__" in vars(thing) and not dataclasses.is_dataclass(thing)
    held = dataclasses.is_dataclass(thing) or (issubclass(thing, BaseModel) and not made)
    return held or issubclass(thing, BaseException) or Protocol in thing.__mro__


def texts(thing: Any) -> str:
    """The docstrings that say how to call it: its own, and those of `__init__` and alternative constructors."""
    parts = [inspect.getdoc(thing) or ""]
    if inspect.isclass(thing):
        members = {name: member for name, member in vars(thing).items() if not name.startswith("_")}
        made = [
            vars(thing).get("__init__"),
            *(m for m in members.values() if isinstance(m, classmethod | staticmethod)),
        ]
        parts += [inspect.getdoc(member) or "" for member in made if member is not None]
    return "\n".join(parts)


def parameters(thing: Any) -> list[str]:
    return [name for name in inspect.signature(thing).parameters if name != "self"]


def undescribed(name: str, thing: Any) -> Iterator[str]:
    text = texts(thing)
    if not is_data(thing):
        if not EXAMPLE.search(text):
            yield f"{name}: its docstring shows no example (>>>)"
        if len(parameters(thing)) > MANY:
            if "Args:" not in text:
                yield f"{name}: {len(parameters(thing))} parameters and no Args: block"
            else:
                listed = text.split("Args:", 1)[1]
                missing = [one for one in parameters(thing) if not re.search(rf"\b{one}\b", listed)]
                if missing:
                    yield f"{name}: Args: does not describe {', '.join(missing)}"


def unbound(text: str) -> set[str]:
    """The names that the examples of a docstring use, and neither import nor define."""
    used, bound = set(), set(dir(builtins))
    for node in ast.walk(ast.parse("".join(example.source for example in doctest.DocTestParser().get_examples(text)))):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.alias(name=name, asname=other):
                bound.add(other or name.split(".")[0])
    return used - bound


@pytest.mark.parametrize("name", doors())
def test_a_door_describes_itself(name: str) -> None:
    assert list(undescribed(name, doors()[name])) == []


@pytest.mark.parametrize("name", doors())
def test_the_example_of_a_door_can_be_pasted(name: str) -> None:
    assert unbound(texts(doors()[name])) == set()


def test_an_example_that_cannot_be_pasted_is_found() -> None:
    text = """Does something.

    >>> import json
    >>> from cm2_agent import Task as Work
    >>> def first(works):
    ...     return [work.id for work in works][0]
    >>> json.dumps(first([Work(id="a"), Task(id=few(1))]))
    """
    assert unbound(text) == {"Task", "few"}


def test_a_door_that_does_not_is_found() -> None:
    def many(a: int, b: int, c: int, d: int, e: int, f: int) -> None:
        """Does something.

        Args:
            a, b, c, d, e: Numbers.
        """

    def few(a: int) -> None:
        """Does something.

        >>> few(1)
        """

    assert list(undescribed("few", few)) == []
    assert list(undescribed("many", many)) == [
        "many: its docstring shows no example (>>>)",
        "many: Args: does not describe f",
    ]
