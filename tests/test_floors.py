"""The shape of the code base: who may import what, how long a file may be, and what no committed file may hold.

The checks read a tree of files and return what is wrong with it, so that each is tried on small bad trees as well as
on ours.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WINGS = ("graphs", "rewards", "trainers")
LONGEST = 400

# The rooms of the package: a folder of cm2_agent/, a module beside them, or a wing. A room imports only from lower
# floors, so that no arrow runs up or along and there is no circle between rooms. What only type checkers import
# (`TYPE_CHECKING`) does not count.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("models", "types"),
    ("analysis", "dialects", "incidents", "langchain_messages", "llm", "redaction", "store", "trainers"),
    ("datasets", "graphs", "importers", "rewards", "spool", "tracing"),
    ("benchmarks", "integrations", "online"),
    ("runner",),
    ("__init__", "compare", "loop", "quickstart", "server", "workers"),
    ("cli",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS, 1) for room in rooms}
# What a lower floor would allow, and the design does not: whom a room may never import, whatever the floor.
NEVER = {
    "graphs": {"rewards", "trainers", "store"},
    "rewards": {"graphs", "trainers", "store"},
    "trainers": {"graphs", "rewards", "store"},
    "tracing": {"trainers", "store"},
    "integrations": {"trainers", "store"},
}
MOST_FLOORS, MOST_ROOMS, MOST_LOOSE = 8, 28, 4
HEAVY = ["accelerate", "datasets", "langgraph", "matplotlib", "scipy", "sqlalchemy", "torch", "transformers", "trl"]
MACHINE = re.compile(
    r"/(?:tmp|work|root|home|Users)/[A-Za-z0-9]|[A-Z]:\\\\?Users|pypi\.org|pythonhosted\.org|registry\.npmjs|download\.pytorch"
    r"|--(?:extra-)?index-url|--find[-]links|deb\.debian\.org"
)


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package by its import name; the wings are read where they lie, not through the links."""
    found: dict[str, Path] = {}
    for top in ("cm2_agent", *WINGS):
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[:2] in {("cm2_agent", wing) for wing in WINGS}:
                continue
            name = ".".join(parts if top == "cm2_agent" else ("cm2_agent", *parts))
            found[name.removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path], *, types: bool = True) -> Iterator[tuple[int, str]]:
    """The absolute names of what a file imports, wherever it does; with `types`, also what only type checkers read.

    A face says in the `.pyi` beside it what it imports when a name is first used: that counts as the face's.
    """
    texts = [path] + ([stub] if (stub := path.with_suffix(".pyi")).exists() else [])
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for text in texts:
        tree = ast.parse(text.read_text(encoding="utf-8"), str(text))
        skipped = set() if types else {id(node) for block in _type_blocks(tree) for node in ast.walk(block)}
        for node in ast.walk(tree):
            if id(node) not in skipped:
                yield from _imported(node, package, known)


def _type_blocks(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from node.body


def _imported(node: ast.AST, package: str, known: Mapping[str, Path]) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Import):
        yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:  # `from cm2_agent import store`: a module where there is one of that name
            inner = f"{base}.{alias.name}"
            yield node.lineno, inner if inner in known else base
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called, first = ast.unparse(node.func).rpartition(".")[2], node.args[0].value
        if called in {"import_module", "__import__"} and isinstance(first, str):
            yield node.lineno, first


def room_of(name: str) -> str:
    """The room of a module of ours: `cm2_agent.store.engine` → `store`; the face is `__init__`."""
    return [*name.split("."), "__init__"][1]


def broken_floors(root: Path) -> list[str]:
    known = modules(root)
    wrong = []
    for name, path in known.items():
        here, room = path.relative_to(root), room_of(name)
        if room not in FLOOR_OF:
            wrong.append(f"{here}: room {room!r} stands on no floor; say which in FLOORS of tests/test_floors.py")
            continue
        for line, target in imports(name, path, known, types=False):
            other = room_of(target)
            if target.split(".")[0] != "cm2_agent" or other == room:
                continue
            if other not in FLOOR_OF:
                wrong.append(f"{here}:{line}: imports {target}, on no floor of FLOORS in tests/test_floors.py")
            elif other in NEVER.get(room, ()):
                wrong.append(f"{here}:{line}: {room} imports {target}; {room} never imports {other}")
            elif FLOOR_OF[other] >= FLOOR_OF[room]:
                floors = f"floor {FLOOR_OF[room]} imports floor {FLOOR_OF[other]}"
                wrong.append(
                    f"{here}:{line}: {room} imports {target} ({floors}); a room imports from lower floors alone"
                )
    return list(dict.fromkeys(wrong))


def circles(root: Path) -> list[list[str]]:
    """Modules that import each other, directly or through others, lazy imports counted: each circle's names."""
    known = modules(root)
    graph = {
        name: {_module(target, known) for _, target in imports(name, path, known, types=False)} - {name, ""}
        for name, path in known.items()
        if not path.with_suffix(".pyi").exists()  # a face only hands names on
    }
    found: list[list[str]] = []
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle = sorted(set(error.args[1]))
            found.append(circle)
            graph = {name: targets - set(circle) for name, targets in graph.items() if name not in circle}
        else:
            return found


def _module(target: str, known: Mapping[str, Path]) -> str:
    """The module that an imported name is in; nothing for what is no module of ours."""
    return target if target in known else target.rpartition(".")[0] if target.rpartition(".")[0] in known else ""


def loose_files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "cm2_agent").glob("*.py"))


def bare_imports(root: Path) -> list[str]:
    """Imports of the wings by their folder's name, anywhere in the repository."""
    wrong = []
    for path in python_files(root):
        for line, target in imports("", path, {}):
            if target.split(".")[0] in WINGS:
                here = f"{path.relative_to(root)}:{line}"
                wrong.append(f"{here}: imports {target}, which may be a user's own module; write cm2_agent.{target}")
    return wrong


def python_files(root: Path) -> list[Path]:
    skipped = {".venv", "build", "dist", ".git", "node_modules"}
    links = {root / "cm2_agent" / wing for wing in WINGS}
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if not skipped.intersection(path.relative_to(root).parts) and not links.intersection(path.parents)
    ]


def long_files(root: Path) -> list[str]:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(root)}
    return [
        f"{path.relative_to(root)}: {lines} lines, over {LONGEST}; split it by noun"
        for path, lines in lengths.items()
        if lines > LONGEST
    ]


def undescribed_files(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}: does not open with a sentence that says what it holds"
        for path in modules(root).values()
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]


def wrong_links(root: Path) -> list[str]:
    """The committed links: mode 120000 and the right target, or absent."""
    wrong = []
    for wing in WINGS:
        entry = git(root, "ls-files", "-s", f"cm2_agent/{wing}")
        for line in entry.splitlines():
            mode, blob = line.split()[:2]
            target = git(root, "cat-file", "-p", blob) if mode == "120000" else ""
            if target != f"../{wing}":
                expected = f"expected 120000 '../{wing}', or nothing"
                wrong.append(f"cm2_agent/{wing}: committed with mode {mode} {target!r}; {expected}")
    return wrong


def machine_words(root: Path) -> list[str]:
    """Paths and hosts of one machine in committed text files."""
    wrong = []
    for name in git(root, "ls-files", "-z").split("\0"):
        path = root / name
        if not name or path.is_symlink() or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if found := MACHINE.search(line):
                wrong.append(f"{name}:{number}: {found.group()!r} belongs to one machine; leave it out")
    return wrong


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout


def in_git() -> bool:
    return (ROOT / ".git").exists()


def test_nobody_imports_across_a_floor() -> None:
    assert len(modules(ROOT)) > 20
    wrong = broken_floors(ROOT)
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_a_wing_by_its_folder() -> None:
    wrong = bare_imports(ROOT)
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_through_others() -> None:
    assert circles(ROOT) == []


def test_the_code_base_is_small_enough_to_see() -> None:
    rooms = {room_of(name) for name in modules(ROOT)}
    assert rooms == set(FLOOR_OF), "FLOORS of tests/test_floors.py and the folders differ"
    assert len(FLOORS) <= MOST_FLOORS
    assert len(rooms) <= MOST_ROOMS
    assert len(loose_files(ROOT)) <= MOST_LOOSE, loose_files(ROOT)


def test_a_file_is_one_noun() -> None:
    wrong = long_files(ROOT)
    assert not wrong, "\n".join(wrong)


def test_a_file_says_what_it_holds() -> None:
    wrong = undescribed_files(ROOT)
    assert not wrong, "\n".join(wrong)


@pytest.mark.skipif(not in_git(), reason="not a git checkout: what is committed cannot be seen")
def test_links_are_links() -> None:
    wrong = wrong_links(ROOT)
    assert not wrong, "\n".join(wrong)


@pytest.mark.skipif(not in_git(), reason="not a git checkout: what is committed cannot be seen")
def test_nothing_names_a_machine() -> None:
    wrong = machine_words(ROOT)
    assert not wrong, "\n".join(wrong)


def test_the_face_is_light() -> None:
    code = f"import sys, cm2_agent; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("rewards/judge.py", "from cm2_agent.store import SQLStore", "rewards never imports store"),
        ("rewards/judge.py", "from ..store import SQLStore", "rewards never imports store"),
        ("rewards/judge.py", "from cm2_agent import store", "rewards never imports store"),
        ("rewards/judge.py", "from .. import store", "rewards never imports store"),
        ("rewards/judge.py", "from cm2_agent import Checklist", "rewards imports cm2_agent (floor 4 imports floor 7)"),
        ("rewards/judge.py", "def f():\n    import cm2_agent.store.blobs", "rewards never imports store"),
        ("rewards/judge.py", "importlib.import_module('cm2_agent.runner')", "rewards imports cm2_agent.runner"),
        ("trainers/grpo.py", "from cm2_agent.tracing import Handler", "trainers imports cm2_agent.tracing"),
        ("cm2_agent/types/trace.py", "from cm2_agent.store import SQLStore", "types imports cm2_agent.store"),
        ("cm2_agent/llm/client.py", "from cm2_agent.store import SQLStore", "floor 3 imports floor 3"),
        ("cm2_agent/online/watch.py", "from cm2_agent.cli import main", "online imports cm2_agent.cli"),
        ("cm2_agent/attic/old.py", "x = 1", "room 'attic' stands on no floor; say which in FLOORS"),
        ("cm2_agent/runner/run.py", "import cm2_agent.attic", "on no floor of FLOORS"),
        ("rewards/__init__.pyi", "from ..store import SQLStore as SQLStore", "rewards never imports store"),
    ],
)
def test_a_broken_floor_is_found(tmp_path: Path, file: str, text: str, complaint: str) -> None:
    ours = ["cm2_agent/__init__.py", "cm2_agent/store/__init__.py", "cm2_agent/store/blobs.py", "rewards/__init__.py"]
    tree(tmp_path, {**dict.fromkeys(ours, ""), file: text})
    (found,) = broken_floors(tmp_path)
    assert complaint in found
    assert found.startswith(file.removesuffix("i"))


def test_what_is_allowed_is_allowed(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "cm2_agent/__init__.py": "from cm2_agent.online.watch import watch",
            "cm2_agent/store/__init__.py": "from .blobs import pack\nfrom . import blobs",
            "cm2_agent/store/blobs.py": "import json\nfrom cm2_agent.types.trace import Trace",
            "cm2_agent/online/watch.py": "from cm2_agent.store import blobs\nfrom cm2_agent.tracing import Handler",
            "cm2_agent/cli/__init__.py": "from cm2_agent import watch\nimport cm2_agent.runner",
            "cm2_agent/tracing/__init__.py": "",
            "rewards/__init__.py": "",
            "rewards/scorer.py": "from . import checks\nfrom cm2_agent.models import LocalChatModel",
            "rewards/judge.py": "if TYPE_CHECKING:\n    from cm2_agent.graphs.agent_loop import agent",
            "trainers/grpo.py": "import rewardslib\nfrom cm2_agent.types.group import Group",
        },
    )
    assert broken_floors(tmp_path) == []
    assert bare_imports(tmp_path) == []
    assert circles(tmp_path) == []


def test_circles_are_found(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "cm2_agent/types/a.py": "from cm2_agent.types.b import x",
            "cm2_agent/types/b.py": "def f():\n    from cm2_agent.types import c",
            "cm2_agent/types/c.py": "from cm2_agent.types import a",
            "cm2_agent/types/d.py": "if TYPE_CHECKING:\n    from cm2_agent.types import e",
            "cm2_agent/types/e.py": "from cm2_agent.types import d",
        },
    )
    assert circles(tmp_path) == [["cm2_agent.types.a", "cm2_agent.types.b", "cm2_agent.types.c"]]


def test_other_faults_are_found(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "cm2_agent/store/__init__.py": "x = 1\n" * (LONGEST + 1),
            "rewards/__init__.py": '"""Says what it holds."""\n' + "x = 1\n" * (LONGEST - 1),
            "tests/test_it.py": "def test_it():\n    import trainers.grpo\n",
        },
    )
    assert [found.split(":")[0] for found in long_files(tmp_path)] == ["cm2_agent/store/__init__.py"]
    assert [found.split(":")[0] for found in undescribed_files(tmp_path)] == ["cm2_agent/store/__init__.py"]
    assert [found.split(",")[0] for found in bare_imports(tmp_path)] == ["tests/test_it.py:2: imports trainers.grpo"]


def test_wrong_links_and_machine_words_are_found(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    tree(
        tmp_path,
        {
            "cm2_agent/graphs": "../graphs",  # a file that holds the text of a link
            "notes.md": "fine: /data/x and 127.0.0.1\n" + "see /" + "home/me/notes\n",
            "setup.cfg": "pip --index" + "-url x",
        },
    )
    (tmp_path / "cm2_agent" / "rewards").symlink_to("../elsewhere")
    (tmp_path / "cm2_agent" / "trainers").symlink_to("../trainers")
    git(tmp_path, "add", ".")
    assert [found.split(":")[0] for found in wrong_links(tmp_path)] == ["cm2_agent/graphs", "cm2_agent/rewards"]
    assert {found.split(": ")[0] for found in machine_words(tmp_path)} == {"notes.md:2", "setup.cfg:1"}


def tree(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
