"""The house stands: who may import what, how long a file may be, and what no committed file may hold.

The checks read a tree of files and return what is wrong with it, so that each is tried on small bad trees as well as
on ours.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WINGS = ("graphs", "rewards", "trainers")
LONGEST = 400

# Where each module stands, by its name or that of its package; the longest that fits counts. A new module of cm2_agent/
# is added here.
FLOOR_OF = {
    "cm2_agent.adapters": "introducers",
    "cm2_agent.answers": "tracing",
    "cm2_agent.assemble": "tracing",
    "cm2_agent.attributes": "tracing",
    "cm2_agent.batching": "models",
    "cm2_agent.chat": "models",
    "cm2_agent.check_data": "words",
    "cm2_agent.checklist": "words",
    "cm2_agent.checklist_file": "words",
    "cm2_agent.checklist_rules": "words",
    "cm2_agent.cli": "roof",
    "cm2_agent.desks": "introducers",
    "cm2_agent.embed": "introducers",
    "cm2_agent.endpoints": "models",
    "cm2_agent.environments": "environments",
    "cm2_agent.errors": "words",
    "cm2_agent.evaluation_events": "tracing",
    "cm2_agent.generation": "models",
    "cm2_agent.graphs": "graphs",
    "cm2_agent.group": "words",
    "cm2_agent.guarding": "introducers",
    "cm2_agent.incidents": "words",
    "cm2_agent.kept": "introducers",
    "cm2_agent.labels": "words",
    "cm2_agent.langchain_messages": "models",
    "cm2_agent.llm": "models",
    "cm2_agent.messages": "words",
    "cm2_agent.middleware": "middleware",
    "cm2_agent.models": "models",
    "cm2_agent.protocols": "plugs",
    "cm2_agent.quickstart": "roof",
    "cm2_agent.readers": "readers",
    "cm2_agent.recorder": "tracing",
    "cm2_agent.records": "tracing",
    "cm2_agent.report": "words",
    "cm2_agent.report_page": "roof",
    "cm2_agent.resampling": "words",
    "cm2_agent.rewards": "rewards",
    "cm2_agent.rollouts": "introducers",
    "cm2_agent.runner": "introducers",
    "cm2_agent.sayings": "tracing",
    "cm2_agent.score": "words",
    "cm2_agent.scoring": "introducers",
    "cm2_agent.semconv": "tracing",
    "cm2_agent.sinks": "middleware",
    "cm2_agent.store": "store",
    "cm2_agent.task": "words",
    "cm2_agent.tokenizer": "models",
    "cm2_agent.tooling": "introducers",
    "cm2_agent.trace": "words",
    "cm2_agent.tracing": "tracing",
    "cm2_agent.trainers": "trainers",
    "cm2_agent.view": "words",
    "cm2_agent.worker": "middleware",
    "cm2_agent.yaml_lines": "words",
}
# What a floor may import besides itself. The face (`import cm2_agent`) belongs to the roof.
GROUND = {"words", "plugs", "models"}
ROOMS = {"environments", "graphs", "middleware", "readers", "rewards", "store", "trainers"}
MAY_IMPORT: dict[str, set[str]] = {
    "words": set(),
    "plugs": {"words"},
    "models": {"words", "plugs"},
    "tracing": GROUND,
    **dict.fromkeys(ROOMS, GROUND),
    "middleware": GROUND | {"tracing"},
    "introducers": GROUND | ROOMS | {"tracing"},
    "roof": GROUND | ROOMS | {"tracing", "introducers"},
}
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


def imports(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[tuple[int, str]]:
    """The absolute names of what a file imports, wherever it does: in a function and under TYPE_CHECKING too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
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


def floor_of(name: str) -> str | None:
    """The floor of a module of ours; None where the table does not say."""
    if name == "cm2_agent":
        return "roof"
    while name != "cm2_agent" and name not in FLOOR_OF:
        name = name.rpartition(".")[0]
    return FLOOR_OF.get(name)


def broken_floors(root: Path) -> list[str]:
    known = modules(root)
    wrong = []
    for name, path in known.items():
        here, floor = path.relative_to(root), floor_of(name)
        if floor is None:
            wrong.append(f"{here}: stands on no floor; say which in FLOOR_OF of tests/test_floors.py")
            continue
        for line, target in imports(name, path, known):
            if target.split(".")[0] != "cm2_agent":
                continue
            other = floor_of(target)
            if other is None:
                wrong.append(f"{here}:{line}: imports {target}, on no floor of FLOOR_OF in tests/test_floors.py")
            elif other != floor and other not in MAY_IMPORT[floor]:
                allowed = ", ".join(sorted(MAY_IMPORT[floor])) or "nothing"
                wrong.append(f"{here}:{line}: {floor} imports {target} ({other}); it may import {allowed}")
    return list(dict.fromkeys(wrong))


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
        f"{path.relative_to(root)}: does not open with a sentence that says what it holds and why it is apart"
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


def test_the_table_has_no_floor_for_what_is_gone() -> None:
    known = modules(ROOT)
    assert [name for name in FLOOR_OF if name not in known] == []


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
        ("rewards/judge.py", "from cm2_agent.store import SQLStore", "rewards imports cm2_agent.store"),
        ("rewards/judge.py", "from ..store import SQLStore", "rewards imports cm2_agent.store"),
        ("rewards/judge.py", "from cm2_agent import store", "rewards imports cm2_agent.store"),
        ("rewards/judge.py", "from .. import store", "rewards imports cm2_agent.store"),
        ("rewards/judge.py", "from cm2_agent import Checklist", "rewards imports cm2_agent (roof)"),
        ("rewards/judge.py", "def f():\n    import cm2_agent.store.blobs", "rewards imports cm2_agent.store"),
        ("rewards/judge.py", "if TYPE_CHECKING:\n    from ..graphs.agent import loop", "rewards imports cm2_agent.graphs"),
        ("rewards/judge.py", "importlib.import_module('cm2_agent.runner')", "rewards imports cm2_agent.runner"),
        ("trainers/grpo.py", "from cm2_agent.recorder import Recorder", "trainers imports cm2_agent.recorder"),
        ("cm2_agent/trace.py", "from cm2_agent.protocols import Store", "words imports cm2_agent.protocols"),
        ("cm2_agent/models.py", "from .middleware import Middleware", "models imports cm2_agent.middleware"),
        ("cm2_agent/embed.py", "from cm2_agent.cli import main", "introducers imports cm2_agent.cli"),
        ("cm2_agent/attic.py", "x = 1", "stands on no floor; say which in FLOOR_OF"),
        ("cm2_agent/runner.py", "import cm2_agent.attic", "on no floor of FLOOR_OF"),
    ],
)
def test_a_broken_floor_is_found(tmp_path: Path, file: str, text: str, complaint: str) -> None:
    ours = ["cm2_agent/__init__.py", "cm2_agent/store/__init__.py", "cm2_agent/store/blobs.py"]
    tree(tmp_path, {**dict.fromkeys(ours, ""), file: text})
    (found,) = broken_floors(tmp_path)
    assert complaint in found
    assert found.startswith(file)


def test_what_is_allowed_is_allowed(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "cm2_agent/__init__.py": "from cm2_agent.embed import watch",
            "cm2_agent/store/__init__.py": "from .blobs import pack\nfrom . import blobs",
            "cm2_agent/store/blobs.py": "import json\nfrom cm2_agent.trace import Trace\nfrom ..protocols import Store",
            "cm2_agent/embed.py": "from cm2_agent import store, rewards\nfrom cm2_agent.recorder import Recorder",
            "cm2_agent/cli/__init__.py": "from cm2_agent import watch\nimport cm2_agent.runner",
            "rewards/__init__.py": "",
            "rewards/scorer.py": "from cm2_agent.rewards import checks\nfrom cm2_agent.models import LocalChatModel",
            "trainers/grpo.py": "import rewardslib\nfrom cm2_agent.group import Group",
        },
    )
    assert broken_floors(tmp_path) == []
    assert bare_imports(tmp_path) == []


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
