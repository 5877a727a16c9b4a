"""A snapshot of what users rely on: names and parameters, commands, formats, versions, stored strings and stored bytes.

`python -m tests.public_surface` prints how the code differs from the record (public_surface.json) and exits 1 where it
does. The record holds `frozen` (never rewritten), `added` (what came later), `renamed` ({old name: new name}) and
`removed` ({name: what to use instead}); each line of the last two also stands in CHANGELOG.md. `--write` lists what is
new under `added`; it refuses while something frozen is gone or changed. A line of `renamed` is a name with all its
members (`"OldTools": "NewTools"`) or one entry alone (`"run(old)": "run(new)"`, `"cm2 old": "cm2 new"`); the entry that
is named may then have another value.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, TypeAlias

from alembic.script import ScriptDirectory
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.main import get_command

import cm2_agent
from cm2_agent import graphs, rewards, store, trainers
from cm2_agent.cli.app import app
from cm2_agent.store.migrate import REVISIONS, alembic_config
from tests.public_names import CONSTANTS, OBJECTS
from tests.public_samples import printed, stored, versions

RECORD = Path(__file__).with_suffix(".json")
FACES = {
    "cm2_agent": cm2_agent,
    "cm2_agent.graphs": graphs,
    "cm2_agent.rewards": rewards,
    "cm2_agent.store": store,
    "cm2_agent.trainers": trainers,
}
RENAMED = ("faces", "names", "commands")
"""The sections in which something may be renamed; what is stored or sent never is."""
PROTOCOL_METHODS = {
    "__call__",
    "__iter__",
    "__len__",
    "__getitem__",
    "__enter__",
    "__exit__",
    "__aenter__",
    "__aexit__",
}

Section: TypeAlias = dict[str, Any]
Snapshot: TypeAlias = dict[str, Section]
Record: TypeAlias = dict[str, Any]


def snapshot() -> Snapshot:
    """The outside as it is now: `{section: {entry: value}}`, all of it JSON."""
    public: dict[str, Any] = {**OBJECTS, **CONSTANTS}
    faces: Section = {}
    for face, module in FACES.items():
        for name in getattr(module, "__all__", ()):
            faces[f"{face}: {name}"] = "public"
            value = getattr(module, name)
            if public.setdefault(name, value) is not value:
                raise ValueError(f"two things are public under the name {name!r}, one of them in {face}; expected one")
    names: Section = {}
    for name, value in public.items():
        names.update(described(name, value))
    return {
        "faces": faces,
        "names": names,
        "commands": dict(commands("cm2", get_command(app))),
        "migrations": migrations(),
        "strings": strings(),
        **versions(),
        **stored(),
        "json": printed(),
    }


def described(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """A public name and its parts: `name`, `name(parameter)`, `name.member`, `name.member(parameter)`."""
    if isinstance(value, type):
        yield from _class(name, value)
    elif inspect.isroutine(value):
        yield name, _kind(value)
        yield from _parameters(name, value)
    elif name in ("FORMATS", "HEAD"):  # what they hold has sections of its own
        yield name, "constant"
    else:
        yield name, f"constant {shown(value)}"


def _class(name: str, cls: type) -> Iterator[tuple[str, str]]:
    ours = [one for one in cls.__mro__ if one.__module__.split(".")[0] == "cm2_agent"]
    if issubclass(cls, Exception):
        yield name, f"exception of {cls.__mro__[1].__name__}"
    else:
        yield name, "class"
    attributes = {one for base in ours for one in inspect.get_annotations(base) if not one.startswith("_")}
    attributes |= {one for base in ours for one in _assigned(base)}
    own_init = any("__init__" in base.__dict__ for base in ours)
    if issubclass(cls, BaseModel):
        attributes -= {one for one in attributes if hasattr(BaseModel, one)}
    if issubclass(cls, BaseModel) and not own_init:
        for field in sorted(attributes & cls.model_fields.keys()):
            info = cls.model_fields[field]
            default = "<factory>" if info.default_factory is not None else shown(info.default)
            yield (
                f"{name}({info.alias or field})",
                "keyword" + ("" if info.default is PydanticUndefined and default != "<factory>" else f" = {default}"),
            )
    elif own_init and not getattr(cls, "_is_protocol", False):
        yield from _parameters(name, inspect.getattr_static(cls, "__init__"), bound=True)
    for base in reversed(ours):
        for member, value in base.__dict__.items():
            inherited = issubclass(cls, BaseModel) and hasattr(BaseModel, member)
            if inherited or (member.startswith("_") and member not in PROTOCOL_METHODS):
                continue
            inner = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            if inspect.isfunction(inner):
                attributes.discard(member)
                yield f"{name}.{member}", _kind(value)
                yield from _parameters(f"{name}.{member}", inner, bound=not isinstance(value, staticmethod))
            elif not isinstance(value, type):
                attributes.add(member)
    for attribute in sorted(attributes):
        yield f"{name}.{attribute}", "attribute"


def _assigned(cls: type) -> Iterator[str]:
    """The public attributes that the class's own code gives its objects."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls)))):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
            and not node.attr.startswith("_")
        ):
            yield node.attr


def _kind(value: Any) -> str:
    if isinstance(value, classmethod | staticmethod):
        return f"{type(value).__name__} {_kind(value.__func__)}"
    return "coroutine function" if inspect.iscoroutinefunction(value) else "function"


def _parameters(name: str, function: Callable[..., Any], *, bound: bool = False) -> Iterator[tuple[str, str]]:
    listed = list(inspect.signature(function).parameters.values())[int(bound) :]
    for place, one in enumerate(listed):
        kind = {
            one.POSITIONAL_ONLY: f"positional only {place}",
            one.POSITIONAL_OR_KEYWORD: f"positional {place}",
            one.VAR_POSITIONAL: f"any number from {place}",
            one.KEYWORD_ONLY: "keyword",
            one.VAR_KEYWORD: "any keyword",
        }[one.kind]
        yield f"{name}({one.name})", kind + ("" if one.default is one.empty else f" = {shown(one.default)}")


def shown(value: Any) -> str:
    """A default or a constant as text, the same on every machine: no addresses, no modules, sets in order."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, PurePath):
        return repr(str(value))
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{shown(key)}: {shown(one)}" for key, one in value.items()) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(shown, value))) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(shown, value)) + ")"
    if isinstance(value, type) or inspect.isroutine(value):
        return value.__name__
    if type(value).__name__ == "_HAS_DEFAULT_FACTORY_CLASS":
        return "<factory>"
    if type(value).__module__.startswith(("typing", "types", "collections")):  # an alias of a type
        return re.sub(r"\b[A-Za-z_][\w.]*\.(?=\w)", "", repr(value))
    return f"<{type(value).__name__}>"


def commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The command, its arguments and options, and its sub-commands."""
    yield path, {"hidden": bool(command.hidden)}
    for one in command.params:
        option = one.param_type_name == "option"
        key = max(one.opts, key=len) if option else str(one.metavar or one.name)
        facts: dict[str, Any] = {
            "type": _type(one.type_descriptor.annotation),
            "default": one.default if isinstance(one.default, bool | int | float | str | None) else shown(one.default),
            "required": one.required,
            "hidden": bool(getattr(one, "hidden", False)),
            "nargs": one.nargs,
        }
        if (one.min, one.max) != (None, None):
            facts["range"] = [one.min, one.max]
        if option:
            facts |= {"flags": [*one.opts, *one.secondary_opts], "multiple": one.multiple, "variable": one.envvar}
            facts["switch"] = one.is_flag
        yield f"{path} {key}", facts
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(f"{path} {name}", below)


def _type(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "one of " + ", ".join(str(one.value) for one in annotation)
    return shown(annotation)


def migrations() -> Section:
    """The revisions of the store's schema, each with the one it follows."""
    scripts = ScriptDirectory.from_config(alembic_config())
    found = {script.revision: f"after {script.down_revision}" for script in scripts.walk_revisions()}
    if list(REVISIONS) != sorted(found) or scripts.get_current_head() != store.HEAD:
        raise ValueError(
            f"the migrations are {sorted(found)}, REVISIONS {REVISIONS}, HEAD {store.HEAD}; expected the same"
        )
    return {revision: found[revision] for revision in REVISIONS}


def strings() -> Section:
    """The attribute names that the code writes or reads, wherever they stand in it."""
    wanted = re.compile(r"(cm2|gen_ai)\.[a-z_.]*[a-z]\.?")
    found: set[str] = set()
    for folder, _, files in os.walk(Path(cm2_agent.__file__).parent, followlinks=True):
        for path in (Path(folder, name) for name in files if name.endswith(".py")):
            text = path.read_text(encoding="utf-8")
            if "cm2." not in text and "gen_ai." not in text:
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and wanted.fullmatch(node.value):
                    found.add(node.value)
    return dict.fromkeys(sorted(found - {"cm2.db"}), "attribute")


def expected(record: Record, now: Snapshot) -> Snapshot:
    """What the record asks for: the frozen entries under their present names, and those added since."""
    asked: Snapshot = {}
    for section, entries in record["frozen"].items():
        out = asked[section] = {}
        for key, value in entries.items():
            if section in RENAMED and _within(key, record.get("removed", {})):
                continue
            new = _renamed(key, record["renamed"]) if section in RENAMED else key
            listed = section in RENAMED and key in record["renamed"]
            out[new] = now.get(section, {}).get(new, value) if listed else value
    for section, entries in record["added"].items():
        asked.setdefault(section, {}).update(entries)
    return asked


def _renamed(key: str, renamed: Mapping[str, str]) -> str:
    if key in renamed:
        return renamed[key]
    face, colon, name = key.rpartition(": ")
    head = re.match(r"\w+", name)
    new = renamed.get(head.group()) if head is not None and not key.startswith("cm2 ") else None
    return key if head is None or new is None or not new.isidentifier() else face + colon + new + name[head.end() :]


def _within(key: str, names: Iterable[str]) -> bool:
    """Whether the entry is one of the names or a part of it."""
    name = key.rpartition(": ")[2]
    return any(name == one or name.startswith((f"{one}(", f"{one}.")) for one in names)


def problems(record: Record, now: Snapshot) -> list[str]:
    """How the outside differs from the record, one sentence an entry; nothing where it stands."""
    found = []
    asked = expected(record, now)
    frozen = {key for section in RENAMED for key in record["frozen"].get(section, {})}
    for kind in ("renamed", "removed"):
        for old in record.get(kind, {}):
            if old not in frozen:
                found.append(
                    f"{kind}: {old!r} was never public; expected an entry of the sections {', '.join(RENAMED)}"
                )
    callables = {key.split("(")[0] for key in asked.get("names", {}) if key not in record["added"].get("names", {})}
    for section in sorted(asked.keys() | now.keys()):
        before, after = asked.get(section, {}), now.get(section, {})
        for key in sorted(before.keys() | after.keys()):
            if key not in after:
                hint = (
                    "restore it, or list it in `renamed` or `removed` and in CHANGELOG.md"
                    if section in RENAMED
                    else "restore it"
                )
                found.append(f"{section}: {key!r} is gone (it was {before[key]!r}); {hint}")
            elif key not in before:
                found.append(
                    f"{section}: {key!r} is new ({after[key]!r}); type: python -m tests.public_surface --write"
                )
            elif before[key] != after[key]:
                found.append(f"{section}: {key!r} is {after[key]!r}; expected {before[key]!r}")
    for key, value in record["added"].get("names", {}).items():
        if "(" in key and key.split("(")[0] in callables and " = " not in value and not value.startswith("any "):
            found.append(f"names: {key!r} was added without a default; calls that worked would fail")
    return found


def with_added(record: Record, now: Snapshot) -> Record:
    """The record with all that is new listed."""
    asked = expected({**record, "added": {}}, now)
    new = {
        section: {k: v for k, v in found.items() if k not in asked.get(section, {})} for section, found in now.items()
    }
    return {**record, "added": {section: entries for section, entries in new.items() if entries}}


def load() -> Record:
    """The record as it lies beside this file."""
    record: Record = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def difference(record: Record, now: Snapshot) -> str:
    """A unified diff from the record to the present."""
    before, after = (_text(one).splitlines(keepends=True) for one in (expected(record, now), now))
    return "".join(difflib.unified_diff(before, after, "recorded", "now", n=1))


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, indent=1, sort_keys=True) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--write", action="store_true", help="list what is new as added; without a record, freeze all")
    write = parser.parse_args().write
    now: Snapshot = json.loads(json.dumps(snapshot()))
    record = load() if RECORD.exists() else {"frozen": now, "added": {}, "renamed": {}}
    if write:
        record = with_added(record, now)
    wrong = problems(record, now)
    sys.stdout.write(difference(record, now))
    sys.stderr.writelines(f"{line}\n" for line in wrong)
    if write and not wrong:
        RECORD.write_text(_text(record), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
