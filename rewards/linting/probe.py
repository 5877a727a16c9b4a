"""Probes: counterfeit dialogues that a checklist should not pay for, made of the checklist and user messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cm2_agent.types.check_specs import Called, OnlyCalled, Parsed, ReplyMatches, parse_check
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.json_values import JSON
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

from .dialogue import MadeCall, MadeStep, dialogue
from .guesses import REFUSALS, STOCK, guesses

SILENCE, REFUSAL, CALLS, FAILED, TEXT, GUESS = (
    "silence",
    "refusing",
    "calling everything once",
    "calls that fail",
    "text that anyone can say",
    "a guess",
)
ABOUT = {
    SILENCE: "every turn is answered with an empty message",
    REFUSAL: "every request is refused",
    CALLS: "every tool is called once with what the checklist asks for, and nothing is told",
    FAILED: "every call fails, and the agent speaks as if none had",
    TEXT: "stock phrases and the checklist's own questions, without a call",
    GUESS: "a text that a pattern of the checklist matches, without a call",
}
OPENING = "Hello, I need help with order 4711 of 2026-05-20, for ann@example.com."
"""What a user writes where no task and no store say what users write."""
_RESULT = '{"ok": true, "id": "R-1001", "status": "confirmed"}'
_ERROR = "error: no such record"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One counterfeit dialogue: `kind` is one of ABOUT's, `task` has the user's messages."""

    kind: str
    trace: Trace
    task: Task


def probes(checklist: Checklist, openings: Sequence[Task] = (), tools: Sequence[str] = ()) -> Iterator[Probe]:
    """The counterfeits of a checklist, for each task whose user messages are known.

    Args:
        checklist: The checklist.
        openings: Tasks with scripted turns, whose user messages are taken; none: one stock message a turn.
        tools: The names of tools beyond those that the checklist names.

    >>> from cm2_agent import Checklist, Item
    >>> from cm2_agent.rewards.linting.probe import probes
    >>> made = list(probes(Checklist(Item("said", check={"replied": True}), name="talk")))
    >>> sorted({probe.kind for probe in made})
    ['refusing', 'silence', 'text that anyone can say']
    """
    parsed = parsed_checks(checklist)
    length = 1 if checklist.last_turn is None else checklist.last_turn + 1
    stock = Task(id="probe", turns=(OPENING, *["Yes, please go on."] * (length - 1)))
    for task in openings or (stock,):
        turns = tuple(task.turns)
        for kind, name, steps in _scripts(checklist, parsed, turns, tools):
            trace = dialogue(name, [(user, steps) for user in turns], system=task.system)
            yield Probe(kind=kind, trace=trace, task=task)


def parsed_checks(checklist: Checklist) -> dict[str, Parsed]:
    """The checks that are written as data, by item id."""
    return {item.id: parse_check(item.check) for item in checklist if isinstance(item.check, Mapping)}


def tools_of(parsed: Mapping[str, Parsed]) -> list[str]:
    """The tools that an item wants to be called, in the checklist's order."""
    wanted = [check.called for check in parsed.values() if isinstance(check, Called)]
    listed = [one.called for check in parsed.values() if isinstance(check, OnlyCalled) for one in check.only_called]
    return list(dict.fromkeys([*wanted, *listed]))


def _scripts(
    checklist: Checklist, parsed: Mapping[str, Parsed], turns: Sequence[str], tools: Sequence[str]
) -> Iterator[tuple[str, str, Sequence[MadeStep]]]:
    yield SILENCE, "silence", [""]
    for number, text in enumerate(REFUSALS):
        yield REFUSAL, f"refusal {number}", [text]
    texts = [*STOCK, "\n".join(STOCK), *_questions(checklist)]
    for number, text in enumerate(texts):
        yield TEXT, f"text {number}", [text]
    kinds = {item.id: item.kind for item in checklist}
    patterns = [
        check.reply_matches
        for item, check in parsed.items()
        if isinstance(check, ReplyMatches) and kinds[item] != "avoid"
    ]
    found: list[str] = list(guesses(patterns))
    every: list[str] = ["\n".join(found)] if len(found) > 1 else []
    for number, text in enumerate(found + every):
        yield GUESS, f"guess {number}", [text]
    calls = _calls(parsed, turns, tools)
    if calls:
        yield CALLS, "calls", [*([one] for one in calls), "Done."]
        failed = [MadeCall(name=one.name, arguments=one.arguments, result=_ERROR, failed=True) for one in calls]
        yield FAILED, "failed calls", [*([one] for one in failed), "\n".join([*STOCK, *found])]


def _questions(checklist: Checklist) -> list[str]:
    """What the checklist asks, said by the agent itself."""
    wanted = [item.pass_condition or item.question for item in checklist if item.kind != "avoid"]
    return ["\n".join(text for text in wanted if text)] if any(wanted) else []


def _calls(parsed: Mapping[str, Parsed], turns: Sequence[str], tools: Sequence[str]) -> list[MadeCall]:
    """One call for each that the checklist asks for, with its arguments, and one for each other tool."""
    said = "\n".join(turns)
    asked: list[tuple[str, Mapping[str, JSON]]] = []
    for check in parsed.values():
        if isinstance(check, Called):
            asked.append((check.called, check.with_))
        elif isinstance(check, OnlyCalled):
            asked += [(one.called, one.with_) for one in check.only_called]
    names = {name for name, _ in asked}
    asked += [(name, {}) for name in tools if name not in names]
    made = [
        MadeCall(name=name, arguments={key: _value(value, said) for key, value in wanted.items()}, result=_RESULT)
        for name, wanted in asked
    ]
    return [one for place, one in enumerate(made) if one not in made[:place]]


def _value(wanted: JSON, said: str) -> JSON:
    """A value that an argument may have: the one asked for, or any from where it must come."""
    source = wanted.get("from") if isinstance(wanted, Mapping) and set(wanted) == {"from"} else None
    if source == "tool":
        return "R-1001"
    if source is not None:
        words = [word.strip(".,;:!?()\"'") for word in said.split()]
        return next((word for word in words if any(char.isdigit() for char in word)), words[-1] if words else "")
    return wanted


def asks_for_action(item: Item) -> bool:
    """Whether the item is satisfied by doing something, not by leaving something undone or by saying anything at
    all."""
    return item.kind == "reach" and not (isinstance(item.check, Mapping) and "replied" in item.check)


__all__ = ["ABOUT", "Probe", "asks_for_action", "parsed_checks", "probes", "tools_of"]
