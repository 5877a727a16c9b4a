"""What the names of the project's modules stand for, read from their source: definitions, imports, methods and classes
of annotations.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

WINGS = ("graphs", "rewards", "trainers")
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Module:
    """One file: its definitions, and what its imports bind."""

    name: str
    file: str
    tree: ast.Module
    definitions: dict[str, Function | ast.ClassDef] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        package = self.name if self.file.endswith("__init__.py") else self.name.rpartition(".")[0]
        for statement in self.tree.body:
            if isinstance(statement, Function | ast.ClassDef):
                self.definitions[statement.name] = statement
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                source = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    self.imports[alias.asname or alias.name] = (source, alias.name)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.asname:
                        self.imports[alias.asname] = (alias.name, None)


@dataclass(frozen=True)
class Found:
    """What a name stands for: a function or class of a module, or a module itself."""

    module: Module
    node: Function | ast.ClassDef | None
    owner: ast.ClassDef | None = None


class Project:
    """The modules of a tree: `cm2_agent/`, and the wings as its sub-packages."""

    def __init__(self, root: Path) -> None:
        self.modules: dict[str, Module] = {}
        for top in ("cm2_agent", *WINGS):
            for path in sorted((root / top).rglob("*.py")):
                relative = path.relative_to(root)
                if top == "cm2_agent" and relative.parts[1] in WINGS:
                    continue  # a link to the wing
                parts = [*(["cm2_agent"] if top in WINGS else []), *relative.with_suffix("").parts]
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                self.modules[name] = Module(name, str(relative), ast.parse(path.read_text(encoding="utf-8")))

    def named(self, module: Module, name: str, depth: int = 0) -> Found | None:
        """What a name of a module stands for, through the imports of other modules."""
        if name in module.definitions:
            return Found(module, module.definitions[name])
        if name not in module.imports or depth > 8:
            return None
        source, attribute = module.imports[name]
        if attribute is None:
            return Found(self.modules[source], None) if source in self.modules else None
        if f"{source}.{attribute}" in self.modules and attribute not in self._names(source):
            return Found(self.modules[f"{source}.{attribute}"], None)
        return self.named(self.modules[source], attribute, depth + 1) if source in self.modules else None

    def _names(self, source: str) -> set[str]:
        return set(self.modules[source].definitions) if source in self.modules else set()

    def method(self, owner: Found, name: str) -> Found | None:
        """A method of a class, or of one of its bases in the project."""
        if not isinstance(owner.node, ast.ClassDef):
            return None
        for node in owner.node.body:
            if isinstance(node, Function) and node.name == name:
                return Found(owner.module, node, owner.node)
        for base in owner.node.bases:
            above = self.named(owner.module, base.id) if isinstance(base, ast.Name) else None
            found = None if above is None else self.method(above, name)
            if found is not None:
                return found
        return None

    def annotated(self, module: Module, annotation: ast.expr | None) -> Found | None:
        """The project's class that an annotation names."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        if isinstance(annotation, ast.BinOp):  # X | None
            return self.annotated(module, annotation.left) or self.annotated(module, annotation.right)
        found = self.named(module, annotation.id) if isinstance(annotation, ast.Name) else None
        return found if found is not None and isinstance(found.node, ast.ClassDef) else None
