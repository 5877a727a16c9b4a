"""One binary criterion of a checklist, as Python makes it and as YAML and JSON write it (docs/method.md, "Items")."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from cm2_agent.errors import ChecklistError
from cm2_agent.types.json_values import JSON
from cm2_agent.types.not_applicable import NotApplicable
from cm2_agent.types.view import View

CheckFunction: TypeAlias = Callable[[View], bool | NotApplicable]
Check: TypeAlias = str | Mapping[str, JSON] | CheckFunction
"""A function of a view, a function's name, or data such as `{"called": "get_order"}`."""
Otherwise: TypeAlias = Literal["unpaid", "paid"]
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


class SoftDependency(BaseModel):
    """A dependency that pays a part where the prerequisite was not paid before (docs/method.md, "Soft dependencies").

    >>> from cm2_agent import Item, SoftDependency
    >>> Item("tells_date", "Is the date told?", depends_on=[SoftDependency(item="looks_up", soft=0.6)]).softness
    {'looks_up': 0.6}
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    item: str = Field(min_length=1, description="The id of the prerequisite.")
    soft: float = Field(gt=0, lt=1, description="The share of the weight that is paid without it, between 0 and 1.")


HARD, SOFT = "id of an item", "soft dependency"


def _kind_of(entry: object) -> str:
    return HARD if isinstance(entry, str) else SOFT


Dependency: TypeAlias = Annotated[
    Annotated[str, Tag(HARD)] | Annotated[SoftDependency, Tag(SOFT)], Discriminator(_kind_of)
]
"""What an entry of `depends_on` is: an id, or an id with its λ."""


class ItemModel(BaseModel, extra="forbid", frozen=True, arbitrary_types_allowed=True):
    """One item as YAML and JSON write it: every key there is; unknown keys are refused."""

    id: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_.:\-]+$", description="Unique within the checklist.")
    question: str | None = Field(default=None, description="A yes/no question to a judge.")
    check: str | dict[str, Any] | None = Field(
        default=None, description="A named function, or a check as data: {called: get_order}."
    )
    any_of: tuple[str, ...] = Field(
        default=(),
        exclude_if=lambda items: not items,  # a task is written as it was before the key existed
        description="Ids of items of the same scope, in place of a question or check: one of them must be paid.",
    )
    when: str | dict[str, Any] | None = Field(
        default=None,
        exclude_if=lambda when: when is None,
        description="Whether the item applies: a check as data, a function's name, or a question to the judge.",
    )
    otherwise: Otherwise | None = Field(
        default=None,
        exclude_if=lambda otherwise: otherwise is None,
        description="Where it does not apply: unpaid (default) or paid.",
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
    depends_on: tuple[Dependency, ...] = Field(
        default=(),
        description="Items of the same scope that must be satisfied before this one can pay: ids, or {item: ID, soft:"
        " SHARE} where the share of the weight is paid without it.",
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
        any_of: Ids of items of the same scope, in place of a question or a check: the item is satisfied by the earliest
            of them that is paid, and pays as the best paid of them.
        when: Whether the item applies: a check as data, a function or its name (an identifier), or a question as text.
        otherwise: What an item is worth that does not apply: `unpaid` (default) or `paid`.
        pass_condition: What a yes requires, for the judge.
        failure_examples: What would be a no, for the judge.
        focus_on: Where the judge's evidence must stand.
        evidence: Where in a reference dialogue the item was read: mappings with `turn`, `step`, `from` and `snippet`.
        required_for_next_turn: Strict: unsatisfied when its turn ends, it ends the rollout.
        depends_on: Ids of `reach` items of the same scope that must be satisfied *before* this one can pay; `{"item":
            ID, "soft": λ}` pays the share λ, between 0 and 1, where it was not.
        weight: Relative, ≥ 0; normalised within a turn.
        facet: What it is about; for reports.
        level: How fine it is; for reports.
        part_of: Id of the coarser item that it is a part of; for reports.

    Raises:
        ChecklistError: A wrong type or value, neither a question nor a check nor any_of, a kind for a check that has
            one, `otherwise` for an item that nothing can find not to apply.

    >>> from cm2_agent import Item
    >>> Item("cancelled", check={"called": "cancel_order"}, turn=1).kind
    'reach'
    """

    check: Check | None = None  # type: ignore[assignment]  # wider than as written: a function too
    when: Check | None = None  # type: ignore[assignment]  # a function too
    otherwise: Otherwise = "unpaid"
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
        depends_on: Sequence[str | SoftDependency | Mapping[str, JSON]] = (),
        weight: float = 1.0,
        facet: Facet | None = None,
        level: Level | None = None,
        part_of: str | None = None,
        agent: str | None = None,
        any_of: Sequence[str] = (),
        when: Check | None = None,
        otherwise: Otherwise | None = None,
    ) -> None:
        written = {name: value for name, value in locals().items() if name in ItemModel.model_fields}
        written |= {name: tuple(written[name]) for name in ("failure_examples", "evidence", "depends_on", "any_of")}
        functions = {name: written[name] for name in ("check", "when") if callable(written[name])}
        written |= {name: _name_of(function, name, id) for name, function in functions.items()}
        try:
            model = ItemModel.model_validate(written)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            place = ".".join(map(str, detail["loc"]))
            raise ChecklistError(f"item {id!r}: {place}: {detail['msg']} (given {detail['input']!r})") from error
        self._fill(model, functions)

    @classmethod
    def from_model(cls, model: ItemModel) -> Item:
        """The item as written, checked. Raises ChecklistError."""
        item = cls.__new__(cls)
        item._fill(model, {})
        return item

    @classmethod
    def from_function(cls, function: CheckFunction) -> Item:
        """An item of a bare function: its id is the function's name, its question its docstring's first line."""
        doc = inspect.getdoc(function)
        return cls(function.__name__, doc.split("\n")[0] if doc else None, check=function)

    def _fill(self, model: ItemModel, functions: Mapping[str, CheckFunction]) -> None:
        if isinstance(model.turn, int) and model.turn < 0:
            raise ChecklistError(f"item {model.id!r}: turn is {model.turn}; expected 0 or more, each, or trace")
        if model.check is None and not model.question and not model.any_of:
            raise ChecklistError(
                f"item {model.id!r} has neither a question nor a check; give one, or any_of (a question needs a judge)"
            )
        _check_any_of(model)
        ends_decided = _decided_at_the_end(model.check)
        if ends_decided and model.kind is not None:
            raise ChecklistError(
                f"item {model.id!r}: kind {model.kind} with the check {model.check}; {', '.join(ENDS_DECIDED)} are"
                " decided at the end by themselves; leave the kind out"
            )
        if isinstance(model.when, str) and not model.when.strip():
            raise ChecklistError(
                f"item {model.id!r}: when is empty; expected a check, a function's name or a question, or no such key"
            )
        if model.otherwise is not None and model.when is None and not isinstance(model.check, str):
            raise ChecklistError(
                f"item {model.id!r}: otherwise is {model.otherwise} and nothing can find that the item does not apply;"
                " give it `when`, or a check function that returns NOT_APPLICABLE, or drop the key"
            )
        values = dict(model)
        values["kind"] = model.kind or ("hold" if ends_decided else "reach")
        values["otherwise"] = model.otherwise or "unpaid"
        values |= {name: functions.get(name, values[name]) for name in ("check", "when")}
        values["evidence"] = tuple(pointer.model_dump(mode="json", by_alias=True) for pointer in model.evidence)
        super().__init__(**values)

    @property
    def parents(self) -> tuple[str, ...]:
        """The ids of the items that it depends on, hard or soft, each once."""
        return tuple(dict.fromkeys(_id_of(entry) for entry in self.depends_on))

    @property
    def softness(self) -> dict[str, float]:
        """The λ of each soft dependency, by the prerequisite's id."""
        return {entry.item: entry.soft for entry in self.depends_on if isinstance(entry, SoftDependency)}

    @property
    def when_question(self) -> str | None:
        """The question to the judge that `when` is, None where it is a check or not there."""
        return self.when if isinstance(self.when, str) and not self.when.isidentifier() else None

    @property
    def is_judged(self) -> bool:
        """Whether the item itself is a question to a judge."""
        return self.check is None and not self.any_of

    @property
    def named_functions(self) -> dict[str, str]:
        """The names of the functions that the item still needs, by the key that names them."""
        named = {"check": self.check, "when": self.when if self.when_question is None else None}
        return {key: name for key, name in named.items() if isinstance(name, str)}

    def bound(self, functions: Mapping[str, CheckFunction]) -> Item:
        """The item with the names of functions replaced by those that are given."""
        found = {key: functions[name] for key, name in self.named_functions.items() if name in functions}
        return self.model_copy(update=found) if found else self

    def to_json(self) -> dict[str, JSON]:
        """The item as YAML writes it, without keys at their default; a function is written by its name."""
        out: dict[str, JSON] = {"id": self.id}
        for name, spec in ItemModel.model_fields.items():
            value = getattr(self, name)
            if name == "kind" and _decided_at_the_end(self.check):
                continue
            if name == "id" or value == spec.default or value == _IMPLIED.get(name):
                continue
            out[name] = value.__name__ if callable(value) else _as_json(value)
        return out

    @property
    def source(self) -> str | None:
        """The source of the check's function, for the hash; None for an item without one."""
        return function_source(self.check) if callable(self.check) else None

    @property
    def when_source(self) -> str | None:
        """The source of the function that is its `when`."""
        return function_source(self.when) if callable(self.when) else None


_IMPLIED = {"kind": "reach", "otherwise": "unpaid"}
"""What an item holds where it was written without the key."""


def _name_of(function: CheckFunction, key: str, item: str) -> str:
    """The name that stands for a function where the item is written. Raises ChecklistError: it has none, or for `when`
    one that would be read as a question."""
    name = getattr(function, "__name__", None)
    if not isinstance(name, str) or (key == "when" and not name.isidentifier()):
        raise ChecklistError(
            f"item {item!r}: {key} is {function!r}, which has no name to be written under; define it with def"
        )
    return name


def _decided_at_the_end(check: object) -> bool:
    return isinstance(check, Mapping) and any(name in check for name in ENDS_DECIDED)


def _check_any_of(model: ItemModel) -> None:
    """Raises ChecklistError where any_of comes with a key that its items have themselves."""
    if not model.any_of:
        return
    given = [name for name in ("check", "kind", "agent", "focus_on") if getattr(model, name) is not None]
    if given:
        raise ChecklistError(
            f"item {model.id!r} has any_of and {', '.join(given)}; its items say what is looked at: drop"
            f" {', '.join(given)}, or any_of"
        )
    if len(set(model.any_of)) < len(model.any_of):
        raise ChecklistError(f"item {model.id!r}: any_of names an item twice ({', '.join(model.any_of)}); name it once")


def _id_of(entry: str | SoftDependency) -> str:
    return entry if isinstance(entry, str) else entry.item


def _as_json(value: Any) -> JSON:
    """A value of an item as JSON writes it."""
    if isinstance(value, tuple):
        return [entry.model_dump() if isinstance(entry, BaseModel) else entry for entry in value]
    return value


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
