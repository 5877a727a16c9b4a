"""How far a value travels: the files that a parameter is passed through, and how often it returns to one it had left.

    python -m tests.journeys                                     # the journeys that tests/test_journeys.py limits
    python -m tests.journeys trainers/grpo.py:GRPO.train:groups  # any other: FILE:FUNCTION:PARAMETER

Nothing is run. From the entry, every call of the project's own code that is given the value is followed, depth first,
in the order the code is written; all branches are taken. What is made from the value is the value too (a part of it, a
call's result, a container that holds it), until it becomes a number, a truth or a text. A name is resolved by the
imports and definitions of its module; a method where the class of its object is plain: `self`, an annotated parameter,
what a constructor or a function with an annotated result returned. A function that was passed before is entered again
but not walked again. Functions that are given as values, properties, and methods of attributes are not followed.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.journey_names import Found, Function, Project

ROOT = Path(__file__).resolve().parent.parent
JOURNEYS = {
    # What is left out, and how far off policy the rest is, are each looked at before and after training; contrast
    # weights count payments before there are rows.
    "trainers/grpo.py:GRPO.train:groups": 13,
    "rewards/scoring/scorer.py:ChecklistScorer.__call__:trace": 3,  # a pass notes what checks and judges answer
}
"""The journeys that the design keeps short: the most returns of each."""

PLAIN = frozenset({"int", "float", "bool", "str", "bytes", "None"})
MEASURES = frozenset(
    {
        "len",
        "sum",
        "any",
        "all",
        "min",
        "max",
        "abs",
        "round",
        "str",
        "repr",
        "bool",
        "int",
        "float",
        "id",
        "isinstance",
    }
)
"""Builtins whose result is no longer the value."""


@dataclass(frozen=True)
class Journey:
    """The files entered by calls that carry the value, in order, neighbours merged."""

    stays: tuple[str, ...]

    @property
    def files(self) -> int:
        return len(set(self.stays))

    @property
    def returns(self) -> int:
        """How often a file is entered that had been left."""
        return len(self.stays) - self.files

    def __str__(self) -> str:
        seen: set[str] = set()
        lines = [f"{len(self.stays)} stays, {self.files} files, {self.returns} returns"]
        for number, file in enumerate(self.stays, 1):
            lines.append(f"{number:4}. {file}{'  (again)' if file in seen else ''}")
            seen.add(file)
        return "\n".join(lines)


def journey(root: Path, entry: str) -> Journey:
    """The journey of FILE:FUNCTION:PARAMETER. Raises ValueError where the tree has no such parameter."""
    file, _, rest = entry.partition(":")
    function, _, parameter = rest.partition(":")
    project = Project(root)
    module = next((one for one in project.modules.values() if one.file == file), None)
    if module is None:
        raise ValueError(f"{entry}: no file {file} under {root}; expected FILE:FUNCTION:PARAMETER")
    head, _, tail = function.partition(".")
    found = project.named(module, head)
    if found is not None and tail:
        found = project.method(found, tail)
    if found is None or not isinstance(found.node, Function) or parameter not in _parameters(found.node):
        raise ValueError(f"{entry}: {file} has no parameter {parameter!r} of {function!r}")
    walk = _Walk(project)
    walk.enter(found, frozenset({parameter}))
    return Journey(tuple(walk.stays))


def _parameters(node: Function) -> list[str]:
    return [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]


class _Walk:
    def __init__(self, project: Project) -> None:
        self.project, self.stays = project, list[str]()
        self.passed: set[tuple[int, frozenset[str]]] = set()

    def enter(self, found: Found, carried: frozenset[str]) -> None:
        """Enter a function whose parameters `carried` hold the value."""
        assert isinstance(found.node, Function)
        if not self.stays or self.stays[-1] != found.module.file:
            self.stays.append(found.module.file)
        if (id(found.node), carried) in self.passed:
            return
        self.passed.add((id(found.node), carried))
        _Body(self, found, carried).block(found.node.body)


class _Body:
    """One function's body, read once from top to bottom. `carried` are the names and dotted paths that hold the
    value.
    """

    def __init__(self, walk: _Walk, found: Found, carried: frozenset[str]) -> None:
        assert isinstance(found.node, Function)
        self.walk, self.project, self.found = walk, walk.project, found
        self.carried = set(carried)
        self.classes: dict[str, Found] = {}
        self.local: dict[str, Function] = {}
        for argument in (*found.node.args.posonlyargs, *found.node.args.args, *found.node.args.kwonlyargs):
            kind = self.project.annotated(found.module, argument.annotation)
            if kind is not None:
                self.classes[argument.arg] = kind
        if found.owner is not None and found.node.args.args:
            self.classes[found.node.args.args[0].arg] = Found(found.module, found.owner)

    # -- statements

    def block(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self.local[node.name] = node
                self.block(node.body)  # where it stands, with what it holds from around it
            case ast.Assign():
                held, kind = self.value(node.value)
                for target in node.targets:
                    self.bind(target, held, kind)
            case ast.AnnAssign() if node.value is not None:
                held, kind = self.value(node.value)
                self.bind(node.target, held, kind or self.project.annotated(self.found.module, node.annotation))
            case ast.AugAssign():
                held, kind = self.value(node.value)
                if held:
                    self.bind(node.target, held, None)
            case ast.For() | ast.AsyncFor():
                self.bind(node.target, self.value(node.iter)[0], None)
                self.block([*node.body, *node.orelse])
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    held, kind = self.value(item.context_expr)
                    if item.optional_vars is not None:
                        self.bind(item.optional_vars, held, kind)
                self.block(node.body)
            case _:
                for child in _children(node):
                    if isinstance(child, ast.stmt):
                        self.statement(child)
                    else:
                        self.value(child)

    def bind(self, target: ast.expr, held: bool, kind: Found | None) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            for one in target.elts:
                self.bind(one, held, None)
            return
        if isinstance(target, ast.Starred | ast.Subscript):
            if held:
                self.bind(target.value, held, None)
            return
        path = _path(target)
        if path is None:
            return
        if held:
            self.carried.add(path)
        elif isinstance(target, ast.Name):
            self.carried.discard(path)
        if isinstance(target, ast.Name):
            if kind is None:
                self.classes.pop(path, None)
            else:
                self.classes[path] = kind

    # -- expressions: whether they hold the value, and their class where it is plain

    def value(self, node: ast.expr) -> tuple[bool, Found | None]:
        match node:
            case ast.Name():
                return node.id in self.carried or self.holds_inside(node.id), self.classes.get(node.id)
            case ast.Attribute():
                path = _path(node)
                if path is not None:
                    parts = path.split(".")
                    whole = any(".".join(parts[:size]) in self.carried for size in range(1, len(parts) + 1))
                    return whole or self.holds_inside(path), None
                return self.value(node.value)[0], None
            case ast.Call():
                return self.call(node)
            case ast.Await():
                return self.value(node.value)
            case ast.Compare() | ast.JoinedStr():
                for child in _children(node):
                    if isinstance(child, ast.expr):
                        self.value(child)
                return False, None
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                for loop in node.generators:
                    self.bind(loop.target, self.value(loop.iter)[0], None)
                    for condition in loop.ifs:
                        self.value(condition)
                made = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
                held_by = [self.value(one)[0] for one in made]
                return any(held_by), None
            case ast.NamedExpr():
                held, kind = self.value(node.value)
                self.bind(node.target, held, kind)
                return held, kind
            case ast.IfExp():
                self.value(node.test)
                (first, kind), (second, other) = self.value(node.body), self.value(node.orelse)
                return first or second, kind or other
            case ast.Subscript():
                self.value(node.slice)
                return self.value(node.value)[0], None
            case ast.Lambda():
                self.value(node.body)
                return False, None
            case _:
                held_by = [self.value(child)[0] for child in _children(node) if isinstance(child, ast.expr)]
                return any(held_by), None

    def holds_inside(self, path: str) -> bool:
        return any(one.startswith(f"{path}.") for one in self.carried)

    def call(self, node: ast.Call) -> tuple[bool, Found | None]:
        receiver, found = self.callee(node.func)
        positional = [self.value(one)[0] for one in node.args]
        named = {one.arg: self.value(one.value)[0] for one in node.keywords}
        given = any(positional) or any(named.values())
        if isinstance(node.func, ast.Name) and node.func.id in MEASURES:
            return False, None
        if found is None:
            # `rows.append(value)`: what was given something holds it from now on.
            path = _path(node.func.value) if isinstance(node.func, ast.Attribute) else None
            if given and path is not None and (path in self.classes or path.isidentifier()) and path != "self":
                resolved = self.project.named(self.found.module, path) if path.isidentifier() else None
                if resolved is None and path not in self.found.module.imports:
                    self.carried.add(path)
            return given or receiver, None
        if isinstance(found.node, ast.ClassDef):
            made = Found(found.module, found.node)
            start = self.project.method(made, "__init__")
            if given and start is not None:
                self.walk.enter(start, self.carried_into(start, positional, named, owned=True, receiver=False))
            return given, made
        assert isinstance(found.node, Function)
        inner = frozenset[str]()
        if isinstance(node.func, ast.Attribute) and found.owner is not None and (path := _path(node.func.value)):
            own = found.node.args.args[0].arg if found.node.args.args else "self"
            inner = frozenset(own + one.removeprefix(path) for one in self.carried if one.startswith(f"{path}."))
        owned = found.owner is not None and not _static(found.node)
        whole = receiver and not inner
        if given or receiver:
            carried = self.carried_into(found, positional, named, owned=owned, receiver=whole) | inner
            self.walk.enter(found, carried)
        returns = found.node.returns
        plain = isinstance(returns, ast.Name | ast.Constant) and (
            getattr(returns, "id", None) in PLAIN or getattr(returns, "value", 0) is None
        )
        return (given or receiver) and not plain, self.project.annotated(found.module, returns)

    def callee(self, func: ast.expr) -> tuple[bool, Found | None]:
        """Whether the object of a method call holds the value, and the function or class that is called."""
        if isinstance(func, ast.Name):
            if func.id in self.local:
                return False, None  # its body was read where it stands
            if func.id in self.classes and func.id == "cls":
                return False, self.classes["cls"]
            return False, self.project.named(self.found.module, func.id)
        if not isinstance(func, ast.Attribute):
            return self.value(func)[0], None
        held, kind = self.value(func.value)
        if kind is None and isinstance(func.value, ast.Name):
            named = self.project.named(self.found.module, func.value.id)
            if named is not None and named.node is None:
                return False, self.project.named(named.module, func.attr)
            kind = named
        return held, None if kind is None else self.project.method(kind, func.attr)

    def carried_into(
        self, found: Found, positional: Sequence[bool], named: dict[str | None, bool], *, owned: bool, receiver: bool
    ) -> frozenset[str]:
        """The parameters of the callee that are given the value."""
        assert isinstance(found.node, Function)
        names = [one.arg for one in (*found.node.args.posonlyargs, *found.node.args.args)]
        carried = {names[0]} if owned and receiver and names else set()
        rest = names[1:] if owned else names
        carried |= {name for name, held in zip(rest, positional, strict=False) if held}
        if found.node.args.vararg is not None and any(positional[len(rest) :]):
            carried.add(found.node.args.vararg.arg)
        keywords = {*names, *(one.arg for one in found.node.args.kwonlyargs)}
        carried |= {name for name, held in named.items() if held and name in keywords and name is not None}
        if found.node.args.kwarg is not None and any(held for name, held in named.items() if name not in keywords):
            carried.add(found.node.args.kwarg.arg)
        return frozenset(carried)


def _static(node: Function) -> bool:
    return any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in node.decorator_list)


def _path(node: ast.expr) -> str | None:
    """`self.trainer.batches` as text; None for anything but names joined by dots."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        above = _path(node.value)
        return None if above is None else f"{above}.{node.attr}"
    return None


def _children(node: ast.AST) -> Iterator[ast.stmt | ast.expr]:
    """The statements and expressions below a node, in the order they are written."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.expr):
            yield child
        else:
            yield from _children(child)


def main(entries: Sequence[str]) -> None:
    for entry in entries or JOURNEYS:
        sys.stdout.write(f"{entry}: {journey(ROOT, entry)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
