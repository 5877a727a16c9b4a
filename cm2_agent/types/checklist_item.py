"""One binary criterion of a checklist, as Python makes it and as YAML and JSON write it (docs/method.md, "Items")."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cm2_agent.errors import ChecklistError
from cm2_agent.types.json_values import JSON
from cm2_agent.types.view import View

CheckFunction: TypeAlias = Callable[[View], bool]
Check: TypeAlias = str | Mapping[str, JSON] | CheckFunction
"""A function of a view, a function's name, or data such as `{"called": "get_order"}`."""
ItemTurn: TypeAlias = int | Literal["each", "trace"]
Kind: TypeAlias = Literal["reach", "hold", "avoid"]
FocusOn: TypeAlias = Literal["assistant.tool_calls", "assistant.reasoning", "assistant.reply", "tool.content"]
Facet: TypeAlias = Literal["behavioral_intent", "tool_usage", "reasoning", "context", "error_recovery"]
Level: TypeAlias = Literal["task", "action", "parameter"]
ENDS_DECIDED = ("never_called", "only_called", "at_most", "no_tool_error")
"""Checks that are decided at the end of their scope by themselves; giving them a kind is an error."""


class EvidenceModel(BaseModel):
    """A pointer into the reference that an item was written from."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    turn: int = Field(ge=0, description="0-based.")
    step: int = Field(ge=0, description="0-based, within the turn.")
    source: FocusOn | Literal["user"] = Field(
        alias="from", description="Which part of the step, or the user's message."
    )
    snippet: str = Field(description="The words themselves.")


class ItemModel(BaseModel, extra="forbid", frozen=True, arbitrary_types_allowed=True):
    """One item as YAML and JSON write it: every key there is; unknown keys are refused."""

    id: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_.:\-]+$", description="Unique within the checklist.")
    question: str | None = Field(default=None, description="A yes/no question to a judge.")
    check: str | dict[str, Any] | None = Field(
        default=None, description="A named function, or a check as data: {called: get_order}."
    )
    turn: Annotated[int, Field(strict=True)] | Literal["each", "trace"] = Field(
        default="each", description="0-based turn, each (default), or trace."
    )
    kind: Kind | None = Field(default=None, description="reach (default), hold or avoid.")
    agent: str | None = Field(
        default=None,
        min_length=1,
        exclude_if=lambda agent: agent is None,  # a task is written as it was before the key existed
        description="Only the steps of the agent of this name, in a graph of several.",
    )
    pass_condition: str | None = Field(default=None, description="What a yes requires, for the judge.")
    failure_examples: tuple[str, ...] = Field(default=(), description="What would be a no, for the judge.")
    focus_on: FocusOn | None = Field(default=None, description="Where the judge's evidence must stand.")
    evidence: tuple[EvidenceModel, ...] = Field(
        default=(), description="Where in a reference dialogue the item was read."
    )
    required_for_next_turn: bool = Field(
        default=False, description="Strict: unsatisfied when its turn ends, it ends the rollout."
    )
    depends_on: tuple[str, ...] = Field(
        default=(), description="Ids of items of the same scope that must be satisfied before this one can pay."
    )
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="Relative; normalised within a turn.")
    facet: Facet | None = Field(default=None, description="What it is about; for reports.")
    level: Level | None = Field(default=None, description="How fine it is; for reports.")
    part_of: str | None = Field(default=None, description="Id of the coarser item that it is a part of; for reports.")


class ChecklistModel(BaseModel):
    """A checklist as YAML and JSON write it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="Name and version stand for one content in a store.")
    version: int = Field(default=1, ge=1, description="Other content needs another version.")
    include: tuple[str | dict[str, dict[str, Any]], ...] = Field(
        default=(), description="Libraries whose items come first: cm2:NAME, or a path relative to this file."
    )
    items: tuple[ItemModel, ...] = Field(default=(), description="The checklist's own items, in order.")


class Item(ItemModel, frozen=True):
    """One binary criterion: a yes/no `question` for a judge, or a programmatic `check`. Immutable.

    Args:
        id: Unique within the checklist; letters, digits, `_`, `.`, `:` and `-`.
        question: A yes/no question to a judge.
        check: A function of a View, the name of one, or data such as `{"called": "get_order"}`.
        turn: A 0-based turn, `"each"` (every turn) or `"trace"` (the closing block).
        kind: `reach` is true from the first step at which it holds; `hold` must be true when its scope ends; `avoid`
            must never be violated (its question's *yes* is the violation). None: `hold` for a check that is decided at
            the end of its scope (`never_called`, `only_called`, `at_most`, `no_tool_error`), `reach` for all else.
        agent: Only the steps of the agent of this name count, in a graph of several: its calls, its replies.
        pass_condition: What a yes requires, for the judge.
        failure_examples: What would be a no, for the judge.
        focus_on: Where the judge's evidence must stand.
        evidence: Where in a reference dialogue the item was read: mappings with `turn`, `step`, `from` and `snippet`.
        required_for_next_turn: Strict: unsatisfied when its turn ends, it ends the rollout.
        depends_on: Ids of `reach` items of the same scope that must be satisfied *before* this one can pay.
        weight: Relative, ≥ 0; normalised within a turn.
        facet: What it is about; for reports.
        level: How fine it is; for reports.
        part_of: Id of the coarser item that it is a part of; for reports.

    Raises:
        ChecklistError: A wrong type or value, neither a question nor a check, a kind for a check that has one.

    >>> from cm2_agent import Item
    >>> Item("cancelled", check={"called": "cancel_order"}, turn=1).kind
    'reach'
    """

    check: Check | None = None  # type: ignore[assignment]  # wider than as written: a function too
    kind: Kind = "reach"
    evidence: tuple[Mapping[str, JSON], ...] = ()  # type: ignore[assignment]  # as JSON writes it

    def __init__(
        self,
        id: str,
        question: str | None = None,
        *,
        check: Check | None = None,
        turn: ItemTurn = "each",
        kind: Kind | None = None,
        pass_condition: str | None = None,
        failure_examples: Sequence[str] = (),
        focus_on: FocusOn | None = None,
        evidence: Sequence[Mapping[str, JSON]] = (),
        required_for_next_turn: bool = False,
        depends_on: Sequence[str] = (),
        weight: float = 1.0,
        facet: Facet | None = None,
        level: Level | None = None,
        part_of: str | None = None,
        agent: str | None = None,
    ) -> None:
        written = {name: value for name, value in locals().items() if name in ItemModel.model_fields}
        written |= {name: tuple(written[name]) for name in ("failure_examples", "evidence", "depends_on")}
        function = check if callable(check) else None
        if function is not None:
            written["check"] = function.__name__
        try:
            model = ItemModel.model_validate(written)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            place = ".".join(map(str, detail["loc"]))
            raise ChecklistError(f"item {id!r}: {place}: {detail['msg']} (given {detail['input']!r})") from error
        self._fill(model, function)

    @classmethod
    def from_model(cls, model: ItemModel) -> Item:
        """The item as written, checked. Raises ChecklistError."""
        item = cls.__new__(cls)
        item._fill(model, None)
        return item

    @classmethod
    def from_function(cls, function: CheckFunction) -> Item:
        """An item of a bare function: its id is the function's name, its question its docstring's first line."""
        doc = inspect.getdoc(function)
        return cls(function.__name__, doc.split("\n")[0] if doc else None, check=function)

    def _fill(self, model: ItemModel, function: CheckFunction | None) -> None:
        if isinstance(model.turn, int) and model.turn < 0:
            raise ChecklistError(f"item {model.id!r}: turn is {model.turn}; expected 0 or more, each, or trace")
        if model.check is None and not model.question:
            raise ChecklistError(
                f"item {model.id!r} has neither a question nor a check; give one (a question needs a judge)"
            )
        ends_decided = isinstance(model.check, dict) and any(name in model.check for name in ENDS_DECIDED)
        if ends_decided and model.kind is not None:
            raise ChecklistError(
                f"item {model.id!r}: kind {model.kind} with the check {model.check}; {', '.join(ENDS_DECIDED)} are"
                " decided at the end by themselves; leave the kind out"
            )
        values = dict(model)
        values["kind"] = model.kind or ("hold" if ends_decided else "reach")
        values["check"] = model.check if function is None else function
        values["evidence"] = tuple(pointer.model_dump(mode="json", by_alias=True) for pointer in model.evidence)
        super().__init__(**values)

    def bound(self, functions: Mapping[str, CheckFunction]) -> Item:
        """The item with its check's name replaced by the function of that name, where it has one."""
        if isinstance(self.check, str) and self.check in functions:
            return self.model_copy(update={"check": functions[self.check]})
        return self

    def to_json(self) -> dict[str, JSON]:
        """The item as YAML writes it, without keys at their default; a function is written by its name."""
        out: dict[str, JSON] = {"id": self.id}
        for name, spec in ItemModel.model_fields.items():
            value = getattr(self, name)
            if name == "kind" and isinstance(self.check, Mapping) and any(key in self.check for key in ENDS_DECIDED):
                continue
            if name in {"id"} or value == spec.default or (name == "kind" and value == "reach"):
                continue
            out[name] = value.__name__ if callable(value) else list(value) if isinstance(value, tuple) else value
        return out

    @property
    def source(self) -> str | None:
        """The source of the item's function, for the hash; None for an item without one."""
        return function_source(self.check) if callable(self.check) else None


def function_source(function: Callable[..., Any]) -> str:
    """The function's source text; its compiled code and constants where no source is to be had (an interactive
    session)."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        if code is None:
            raise ChecklistError(
                f"check {function!r} has neither source nor code to hash; give a plain Python function"
            ) from None
        return f"{code.co_code.hex()} {code.co_consts!r} {code.co_names!r}"
