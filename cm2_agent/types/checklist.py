"""Checklist: items under a name and a version, validated when they are put together (docs/method.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from pydantic import ValidationError

from cm2_agent.errors import ChecklistError
from cm2_agent.types.checklist_item import CheckFunction, ChecklistModel, Item
from cm2_agent.types.checklist_rules import problems
from cm2_agent.types.json_values import JSON, content_hash
from cm2_agent.types.text import first_problem


@dataclass(frozen=True, init=False)
class Checklist:
    """Items under a name and a version. Immutable: other content needs another version.

    An item is an Item, or a function of a View: its name is the id, its docstring's first line the question.

    >>> from cm2_agent import Checklist, Item
    >>> def looks_up_first(view):
    ...     "The order is looked up before the first reply."
    ...     return view.called("get_order", before="reply")
    >>> polite = Item("polite", "Is every reply polite?", kind="hold")
    >>> [item.id for item in Checklist(looks_up_first, polite, name="support", version=2)]
    ['looks_up_first', 'polite']
    """

    items: tuple[Item, ...]
    name: str
    version: int
    by_id: Mapping[str, Item] = field(repr=False, compare=False)

    def __init__(self, *items: Item | CheckFunction, name: str = "checklist", version: int = 1) -> None:
        """Raises ChecklistError: duplicate ids, missing or cyclic dependencies, dependencies out of scope or that can
        never pay, weights of a turn that are all 0, a strict item in the closing block."""
        made = tuple(item if isinstance(item, Item) else Item.from_function(item) for item in items)
        object.__setattr__(self, "items", made)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "version", version)
        object.__setattr__(self, "by_id", {item.id: item for item in made})
        found = problems(made)
        if found:
            raise ChecklistError(f"checklist {name!r}: " + "\n".join(problem.message for problem in found))

    @classmethod
    def from_model(cls, model: ChecklistModel) -> Checklist:
        """Shipped libraries (`include: [cm2:…]`) are put before the items; local ones need a file to be relative to:
        `load_checklist`."""
        if model.include:
            from cm2_agent.types.checklist_library import included

            return cls(*included(model), *map(Item.from_model, model.items), name=model.name, version=model.version)
        return cls(*map(Item.from_model, model.items), name=model.name, version=model.version)

    @classmethod
    def from_json(cls, data: JSON) -> Checklist:
        """Raises ChecklistError."""
        try:
            return cls.from_model(ChecklistModel.model_validate(data))
        except ValidationError as error:
            raise ChecklistError(f"checklist: {first_problem(error)}") from error

    def bound(self, functions: Mapping[str, CheckFunction]) -> Checklist:
        """The checklist with check names replaced by the given functions."""
        return Checklist(*(item.bound(functions) for item in self.items), name=self.name, version=self.version)

    def to_json(self) -> dict[str, JSON]:
        return {"name": self.name, "version": self.version, "items": [item.to_json() for item in self.items]}

    @cached_property
    def hash(self) -> str:
        """SHA-256 over everything, the functions' sources too."""
        sources = {item.id: item.source for item in self.items if item.source is not None}
        whens = {item.id: item.when_source for item in self.items if item.when_source is not None}
        return content_hash({**self.to_json(), "sources": sources, **({"when_sources": whens} if whens else {})})

    def of_turn(self, turn: int) -> tuple[Item, ...]:
        """The items of a turn: its own and those of `each`, in the checklist's order."""
        return tuple(item for item in self.items if item.turn == "each" or item.turn == turn)

    @property
    def block(self) -> tuple[Item, ...]:
        """The `trace` items: the closing block, which counts as one more turn (docs/method.md, "Scope and L")."""
        return tuple(item for item in self.items if item.turn == "trace")

    @property
    def last_turn(self) -> int | None:
        """The largest turn that an item names, None where none does."""
        return max((item.turn for item in self.items if isinstance(item.turn, int)), default=None)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)


__all__ = ["Checklist"]
