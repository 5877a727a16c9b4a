"""What a piece of code refers to, found without running any of it.

Only the interpreter's own slots are read (closures, globals that the code names, `__dict__`s, `__slots__`): no
property, no descriptor of the application's, no `__getattr__`, `__iter__` or `__eq__` runs."""

from __future__ import annotations

import collections
import dis
import functools
import gc
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

DEPTH = 24
"""How many references away from its start something is still found."""
BREADTH = 10_000
"""A collection of more members than this is taken for data."""
MOST = 200_000
"""So many things are looked at from one start: code that refers to more refers to everything."""
_AWAY = 3
"""How many calls deep the code of installed packages is followed."""

# Their code calls no tool of an application's that it was not handed: closures and instances are looked into, globals
# are not.
_FRAMEWORKS = frozenset(
    {
        "cm2_agent",
        "langchain",
        "langchain_classic",
        "langchain_core",
        "langchain_mcp_adapters",
        "langchain_openai",
        "langgraph",
    }
)
# Nothing of theirs holds a tool.
_CLOSED = frozenset(sys.stdlib_module_names) - {"__main__"} | {
    "_pytest",
    "anthropic",
    "anyio",
    "google",
    "httpcore",
    "httpx",
    "jinja2",
    "langsmith",
    "mcp",
    "numpy",
    "openai",
    "opentelemetry",
    "orjson",
    "pandas",
    "pluggy",
    "psycopg",
    "pydantic",
    "pydantic_ai",
    "pydantic_core",
    "pytest",
    "requests",
    "sqlalchemy",
    "starlette",
    "tokenizers",
    "torch",
    "transformers",
    "typing_extensions",
    "urllib3",
}
_UNFOLLOWED = _CLOSED | _FRAMEWORKS
# Methods that are called though no code of the application's names them, and those by which an instance is made.
_CALLED = frozenset(
    {
        "__aenter__",
        "__call__",
        "__enter__",
        "_arun",
        "_run",
        "abatch",
        "ainvoke",
        "astream",
        "atransform",
        "batch",
        "invoke",
        "stream",
        "transform",
    }
)
_MADE = frozenset({"__init__", "__new__", "__post_init__"})
_COLLECTIONS = (list, tuple, set, frozenset, collections.deque)
_PLAIN = (str, int, float, bool, bytes, complex, type(None), type(Ellipsis))
_Names = frozenset[str]
_NONE: _Names = frozenset()


def referred(start: Any, stop: Callable[[Any], bool] = lambda value: False) -> Iterator[tuple[Any, _Names]]:
    """Everything that `start` refers to, itself first and what is near before what is far, with the names that the code
    which led there uses. What `stop` is true of is given, and not looked into."""
    known: dict[tuple[int, _Names], Any] = {}  # keeps what it knows alive: an id is not used twice
    waiting: collections.deque[tuple[Any, _Names, int, int]] = collections.deque([(start, _NONE, 0, 0)])
    while waiting and len(known) < MOST:
        value, names, depth, away = waiting.popleft()
        if is_a(value, _PLAIN) or (id(value), names) in known:
            continue
        known[id(value), names] = value
        yield value, names
        if depth < DEPTH and not stop(value):
            waiting.extend((found, named, depth + 1, far) for found, named, far in _next(value, names, away))


def is_a(value: Any, kinds: Any) -> bool:
    """Whether the value's own type is one of these, whatever its `__class__` pretends."""
    return issubclass(type(value), kinds)


def fields_of(value: Any) -> dict[str, Any]:
    """An instance's attributes as they are stored, its slots' too."""
    found: dict[str, Any] = {}
    for cls in _mro(type(value)):
        for name, slot in list(vars_of(cls).items()):
            if is_a(slot, types.MemberDescriptorType) and name not in found:
                try:
                    found[name] = slot.__get__(value)
                except AttributeError:  # a slot that was never filled
                    continue
            elif name == "__dict__" and is_a(slot, types.GetSetDescriptorType):
                stored = slot.__get__(value)
                if type(stored) is dict:
                    found.update(stored)
    return found


def names_of(code: types.CodeType) -> _Names:
    """The names that code uses, its inner functions' and comprehensions' too: globals, attributes, imports."""
    return _uses(code)[0]


def _next(value: Any, names: _Names, away: int) -> Iterator[tuple[Any, _Names, int]]:
    """What one value refers to: (value, names, calls deep in installed packages)."""
    kind = type(value)
    if kind is types.FunctionType:
        yield from _of_function(value, away)
    elif kind is types.MethodType:
        yield value.__func__, names, away
        code = getattr(value.__func__, "__code__", None)
        yield value.__self__, names if code is None else names_of(code), away
    elif kind is types.BuiltinMethodType:
        yield value.__self__, names, away
    elif is_a(value, functools.partial):
        for part in ("func", "args", "keywords"):
            yield functools.partial.__dict__[part].__get__(value), names, away
        yield fields_of(value), names, away
    elif is_a(value, types.ModuleType):
        if _package(value.__dict__.get("__name__")) not in _UNFOLLOWED:
            yield from ((value.__dict__[name], names, away) for name in sorted(names & value.__dict__.keys()))
    elif is_a(value, dict):
        if dict.__len__(value) <= BREADTH:
            yield from ((one, names, away) for pair in list(dict.items(value)) for one in pair)
        yield from _of_instance(value, names, away)
    elif is_a(value, _COLLECTIONS):
        base: Any = next(base for base in _COLLECTIONS if is_a(value, base))
        if base.__len__(value) <= BREADTH:
            yield from ((one, names, away) for one in list(base.__iter__(value)))
        yield from _of_instance(value, names, away)
    elif kind is types.MappingProxyType:
        yield from ((one, names, away) for one in gc.get_referents(value))
    elif is_a(value, type):
        yield from _methods(value, None, names, away)
    else:
        yield from _of_instance(value, names, away)


def _of_function(function: types.FunctionType, away: int) -> Iterator[tuple[Any, _Names, int]]:
    code = function.__code__
    names, global_names, modules = _uses(code)
    home = _package(function.__module__ if type(function.__module__) is str else None)
    follow = home not in _UNFOLLOWED
    if follow and "-packages" in code.co_filename:  # site-packages, dist-packages
        away += 1
        follow = away <= _AWAY
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents, names, away
        except ValueError:  # not filled yet
            continue
    yield function.__defaults__ or (), names, away
    yield dict(function.__kwdefaults__ or {}), names, away
    yield dict(function.__dict__), names, away
    if follow:
        known = function.__globals__
        yield from ((known[name], names, away) for name in sorted(global_names) if name in known)
        package = str(known.get("__package__") or "")
        for name in sorted(modules):
            for full in (name, *(f"{above}.{name}".rstrip(".") for above in _above(package))):
                if type(module := sys.modules.get(full)) is types.ModuleType:
                    yield module, names, away


def _of_instance(value: Any, names: _Names, away: int) -> Iterator[tuple[Any, _Names, int]]:
    home = _package(vars_of(type(value)).get("__module__"))
    if home in ("collections", "functools") or type(value) is types.SimpleNamespace or home not in _CLOSED:
        yield from ((one, names, away) for one in fields_of(value).values())
    yield from _methods(type(value), value, names, away)


def _methods(cls: type, instance: Any, names: _Names, away: int) -> Iterator[tuple[Any, _Names, int]]:
    """The class's methods and attributes that the code names, and those that are called unnamed."""
    wanted = names | _CALLED | (_MADE if instance is None else _NONE)
    seen: set[str] = set()
    for base in _mro(cls):
        if _package(vars_of(base).get("__module__")) in _UNFOLLOWED:
            continue
        for name in sorted(wanted & vars_of(base).keys() - seen):
            seen.add(name)
            member = vars_of(base)[name]
            found = _unwrapped(member)
            if type(found) is types.FunctionType and instance is not None:
                found = types.MethodType(found, instance)
            elif type(found) is types.FunctionType:
                yield cls, names_of(found.__code__), away
            yield found, names, away


def _unwrapped(member: Any) -> Any:
    if type(member) is property:
        return member.fget
    if type(member) in (staticmethod, classmethod):
        return member.__func__
    if type(member) is functools.cached_property:
        return member.func
    if type(member) is functools.partialmethod:
        return functools.partial(member.func, *member.args, **member.keywords)
    return member


@functools.lru_cache(maxsize=4096)
def _uses(code: types.CodeType) -> tuple[_Names, _Names, _Names]:
    """All names, those of globals, and those of imported modules."""
    names, global_names, modules = set(code.co_names), set(), set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            global_names.add(str(instruction.argval))
        elif instruction.opname == "IMPORT_NAME":
            modules.add(str(instruction.argval))
    for inner in code.co_consts:
        if type(inner) is types.CodeType:
            for own, more in zip((names, global_names, modules), _uses(inner), strict=True):
                own.update(more)
    return frozenset(names), frozenset(global_names), frozenset(modules)


def _above(package: str) -> Iterator[str]:
    while package:
        yield package
        package = package.rpartition(".")[0]


def _package(module: Any) -> str:
    return module.partition(".")[0] if type(module) is str else ""


def _mro(cls: type) -> tuple[type, ...]:
    mro: tuple[type, ...] = type.__dict__["__mro__"].__get__(cls)
    return mro


def vars_of(cls: type) -> Any:
    """A class's own namespace."""
    return type.__dict__["__dict__"].__get__(cls)


__all__ = ["BREADTH", "DEPTH", "MOST", "fields_of", "is_a", "names_of", "referred"]
