"""The API pages, one for each package that users import from: signatures as the source writes them, and docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.docs_reference.markdown import arguments, code, docstring, escape, fence, first_sentence, table

FACES = {
    "cm2_agent": "api.md",
    "cm2_agent.graphs": "api-graphs.md",
    "cm2_agent.rewards": "api-rewards.md",
    "cm2_agent.trainers": "api-trainers.md",
    "cm2_agent.store": "api-store.md",
    "cm2_agent.models": "api-models.md",
    "cm2_agent.llm": "api-llm.md",
    "cm2_agent.importers": "api-importers.md",
    "cm2_agent.integrations": "api-integrations.md",
    "cm2_agent.benchmarks": "api-benchmarks.md",
}
"""The packages that users import from → their pages. A name that several export is described on the first of them, an
alias where its class stands."""

WIDTH = 88
Function = ast.FunctionDef | ast.AsyncFunctionDef
_EMPTY = {"dict": "{}", "list": "[]", "tuple": "()", "set": "set()", "frozenset": "frozenset()"}


@dataclass(frozen=True, kw_only=True)
class Field:
    """An attribute that a class body annotates."""

    name: str
    annotation: str
    default: str | None
    doc: str


def api_pages() -> dict[str, str]:
    """File name → page."""
    home: dict[tuple[object, ...], tuple[str, str]] = {}
    made = {}
    for face, page in FACES.items():
        module = importlib.import_module(face)
        names: list[str] = sorted(getattr(module, "__all__", ()), key=str.lower)
        slugs = _slugs(names, module)
        for name in sorted(names, key=lambda name: name != getattr(getattr(module, name), "__name__", name)):
            home.setdefault(_identity(module, name), (page, slugs[name]))
        made[page] = "\n".join(_page(face, page, module, names, home))
    return made


def class_fields(cls: type) -> list[Field]:
    """The public annotated attributes of a class and of its bases in the package, bases first. Each is described by the
    text below it, or by the `Args:` of its class."""
    found: dict[str, Field] = {}
    for base in reversed(_own_bases(cls)):
        listed = arguments(inspect.getdoc(base) or "")
        body = _node(base).body
        for at, node in enumerate(body):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            name, annotation = node.target.id, ast.unparse(node.annotation)
            if name.startswith("_") or name == "model_config" or annotation.startswith("ClassVar"):
                continue
            after = body[at + 1] if at + 1 < len(body) else None
            described = (
                isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            )
            doc = inspect.cleandoc(after.value.value) if described else listed.get(name, "")  # type: ignore[union-attr]
            found[name] = Field(name=name, annotation=annotation, default=_default(node.value), doc=doc)
    return list(found.values())


def _plain(value: Any) -> str:
    """A constant as Python writes it; of a mapping that holds functions, its keys."""
    return repr(sorted(value) if isinstance(value, Mapping) and any(map(callable, value.values())) else value)


def _page(
    face: str, page: str, module: Any, names: list[str], home: dict[tuple[object, ...], tuple[str, str]]
) -> Iterator[str]:
    yield f"# {face}\n"
    yield docstring(inspect.getdoc(module) or "")
    rows, sections = [], []
    slugs = _slugs(names, module)
    for name in names:
        where, slug = home[_identity(module, name)]
        here = where == page and slug == slugs[name]
        link = f"#{slug}" if where == page else f"{where}#{slug}"
        rows.append([f"[{code(name)}]({link})", escape(first_sentence(_doc(getattr(module, name))))])
        if here:
            sections.append("\n".join(_entry(name, getattr(module, name))))
    if rows:
        yield table(["name", "what it is"], rows)
    yield from sections


def _entry(name: str, thing: Any) -> Iterator[str]:
    yield f"## {name}\n"
    if inspect.isclass(thing):
        yield from _class(name, thing)
    elif inspect.isroutine(thing):
        node = _node(thing)
        assert isinstance(node, Function)
        yield fence(_signature(name, node))
        yield docstring(_doc(thing))
    elif inspect.ismodule(thing):
        yield docstring(_doc(thing))
    else:
        yield fence(f"{name} = {_plain(thing)}")


def _class(name: str, cls: type) -> Iterator[str]:
    fields = class_fields(cls)
    init = next((node for base in _own_bases(cls) for node in _functions(base) if node.name == "__init__"), None)
    if init is not None:
        yield fence(_signature(name, init, method=True, returns=False))
    elif fields and not getattr(cls, "_is_protocol", False):
        yield fence(_call(name, ["*", *(_parameter(field) for field in fields)], ""))
    else:
        yield fence(f"class {name}")
    yield docstring(_doc(cls))
    if init is not None and (doc := ast.get_docstring(init)):
        yield docstring(doc)
    listed = arguments(_doc(cls))
    described = [
        f"- {code(field.name)}: {escape(' '.join(field.doc.split()))}\n"
        for field in fields
        if field.doc and field.name not in listed
    ]
    if described:
        yield "**Attributes**\n\n" + "".join(described)
    seen: set[str] = set()
    for base in _own_bases(cls):
        for node in _functions(base):
            if node.name.startswith("_") or node.name in seen or _is_validator(node):
                continue
            seen.add(node.name)
            yield from _member(name, node)


def _member(owner: str, node: Function) -> Iterator[str]:
    decorators = {ast.unparse(decorator).split("(")[0].split(".")[-1] for decorator in node.decorator_list}
    if decorators & {"setter", "deleter", "overload"}:
        return
    yield f"### {owner}.{node.name}\n"
    if decorators & {"property", "cached_property"}:
        yield fence(f"{node.name}: {ast.unparse(node.returns) if node.returns else 'Any'}")
    else:
        yield fence(_signature(node.name, node, method="staticmethod" not in decorators))
    yield docstring(ast.get_docstring(node) or "")


def _signature(name: str, node: Function, *, method: bool = False, returns: bool = True) -> str:
    """The call as the source writes it, on one line where it fits."""
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    parts = [_argument(argument, default) for argument, default in zip(positional, defaults, strict=True)]
    if given.posonlyargs:
        parts.insert(len(given.posonlyargs), "/")
    if method:
        parts = parts[1:]
    if given.vararg is not None:
        parts.append("*" + _argument(given.vararg, None))
    elif given.kwonlyargs:
        parts.append("*")
    parts += [
        _argument(argument, default) for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    if given.kwarg is not None:
        parts.append("**" + _argument(given.kwarg, None))
    prefix = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    end = f" -> {ast.unparse(node.returns)}" if returns and node.returns is not None else ""
    return prefix + _call(name, parts, end)


def _call(name: str, parts: list[str], end: str) -> str:
    line = f"{name}({', '.join(parts)}){end}"
    return line if len(line) <= WIDTH else f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){end}"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    text = argument.arg if argument.annotation is None else f"{argument.arg}: {ast.unparse(argument.annotation)}"
    if default is None:
        return text
    return f"{text} = {ast.unparse(default)}" if argument.annotation is not None else f"{text}={ast.unparse(default)}"


def _parameter(field: Field) -> str:
    return f"{field.name}: {field.annotation}" + ("" if field.default is None else f" = {field.default}")


def _default(value: ast.expr | None) -> str | None:
    """The default that an annotated attribute is given, also inside `field(…)` and `Field(…)`."""
    if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in {"field", "Field"}):
        return None if value is None else ast.unparse(value)
    given = {keyword.arg: keyword.value for keyword in value.keywords}
    if value.args:
        given["default"] = value.args[0]
    if "default" in given:
        return ast.unparse(given["default"])
    if "default_factory" in given:
        factory = ast.unparse(given["default_factory"])
        return _EMPTY.get(factory, "..." if factory.startswith("lambda") else f"{factory}()")
    return None


def _own_bases(cls: type) -> list[type]:
    return [base for base in cls.__mro__ if base.__module__.split(".")[0] == "cm2_agent"]


def _functions(cls: type) -> list[Function]:
    return [node for node in _node(cls).body if isinstance(node, Function)]


def _is_validator(node: Function) -> bool:
    return any("validator" in ast.unparse(decorator) for decorator in node.decorator_list)


def _node(thing: Any) -> Any:
    """The definition of a class or function in the syntax tree of its source."""
    return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]


def _doc(thing: Any) -> str:
    """The docstring written for a class or function itself: one that is inherited or made says nothing of it."""
    if inspect.isclass(thing) or inspect.isroutine(thing):
        return ast.get_docstring(_node(thing)) or ""
    return (inspect.getdoc(thing) or "") if inspect.ismodule(thing) else ""


def _identity(module: Any, name: str) -> tuple[object, ...]:
    """The same for two names of one class or function; a constant is its own name's."""
    thing = getattr(module, name)
    return (id(thing),) if inspect.isclass(thing) or inspect.isroutine(thing) else (module.__name__, name)


def _slugs(names: list[str], module: Any) -> dict[str, str]:
    """The anchors of the names' headings, as Python-Markdown makes them: `Run` after `run` is `run_1`."""
    used: set[str] = set()
    slugs = {}
    for name in names:
        slug, number = name.lower(), 0
        while slug in used:
            number += 1
            slug = f"{name.lower()}_{number}"
        used.add(slug)
        slugs[name] = slug
    return slugs
