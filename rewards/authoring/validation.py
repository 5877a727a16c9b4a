"""Whether a written checklist is sound: rules (`lint`), and trials on good and corrupted references (`run_trials`)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rapidfuzz import fuzz

from cm2_agent.errors import ChecklistError
from cm2_agent.types.check_specs import (
    AtMost,
    Called,
    NeverCalled,
    NoToolError,
    OnlyCalled,
    Parsed,
    ReplyStates,
    parse_check,
)
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.checklist_rules import problems
from cm2_agent.types.json_values import content_hash, same_json
from cm2_agent.types.protocols import Judge
from cm2_agent.types.score import Verdict
from cm2_agent.types.trace import Trace

from ..judges.transcript import folded, part_texts, quoted_in, user_text
from ..scoring.scorer import ChecklistScorer
from .perturbation import Corruption, corruptions, scope_steps
from .prompt import LabelItem

NEAR = 90.0
"""Two questions at least this alike (rapidfuzz's token_sort_ratio, 0…100) ask the same, if they also name the same
things."""

Faults = dict[str, list[str]]
"""What is wrong with the items, by id."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of trying items: `faults` failed, `unchecked` could not be tried (and why), `passed` every trial. An
    item that waits for a failed one is in none of them: it is tried again when that one is better or gone."""

    faults: Faults = field(default_factory=dict)
    passed: frozenset[str] = frozenset()
    unchecked: Mapping[str, str] = field(default_factory=dict)
    corrupted: int = 0
    """How many corrupted references were scored."""


def lint(items: Sequence[LabelItem], reference: Trace, tools: Collection[str], *, block: bool = False) -> Faults:
    """Every broken rule by item: places and snippets that are not in the reference, items that no part of a step could
    show, tools that do not exist, near-duplicates, and the rules of every checklist (checklist_rules). `tools` are the
    names known, empty for unknown."""
    faults: defaultdict[str, list[str]] = defaultdict(list)
    sound: list[Item] = []
    for item in items:
        faults[item.id] += _placed(item, reference, block)
        try:
            made = Item.from_model(item)
            parsed = None if item.check is None else parse_check(item.check)
        except ChecklistError as error:
            faults[item.id].append(str(error))
            continue
        faults[item.id] += _observable(item, parsed, reference, tools)
        sound.append(made)
    for first, second in _near(items):
        faults[second].append(f"asks the same as item {first!r}; ask something else or leave it out")
    whole = {item.id for item in sound}
    unread = {item.id for item in items} - whole  # not yet an item, so that waiting for it is no fault
    listed = [
        Item.from_model(_without(item, {*item.depends_on, item.part_of or ""} - unread))
        for item in items
        if item.id in whole
    ]
    for problem in problems(listed) if listed else []:
        faults[listed[problem.at or 0].id].append(problem.message)
    return {name: list(dict.fromkeys(reasons)) for name, reasons in faults.items() if reasons}


def select(items: Sequence[LabelItem], dropped: Collection[str]) -> tuple[list[LabelItem], int]:
    """The items that are not dropped, without their dependencies on those that are, and how many links went."""
    names = {item.id for item in items} - set(dropped)
    left = [_without(item, names) for item in items if item.id in names]
    before = sum(len(item.depends_on) + (item.part_of is not None) for item in items if item.id in names)
    return left, before - sum(len(item.depends_on) + (item.part_of is not None) for item in left)


async def run_trials(
    items: Sequence[LabelItem], reference: Trace, judge: Judge | None, only: Collection[str] | None = None
) -> Trial:
    """The items on the reference, which must satisfy and pay each, and on corrupted references, on each of which the
    item that names the part must fail. Programmatic items are run; questions are asked where there is a judge, else
    they are unchecked. `only`: the items to corrupt the reference for. The items must be free of lint."""
    faults: Faults = {}
    unchecked: dict[str, str] = {item.id: "no judge" for item in items if item.check is None and judge is None}
    checkable, _ = select(items, unchecked)
    if not checkable:
        return Trial(unchecked=unchecked)
    verdicts = await _verdicts([item.model_copy(update={"weight": 1.0}) for item in checkable], reference, judge)
    standing = []
    for item in checkable:
        verdict = verdicts.get(item.id)
        if verdict is not None and verdict.value is None:
            unchecked[item.id] = f"no verdict on the reference: {verdict.explanation or verdict.reason}"
        elif (problem := _unmet(verdict)) is not None:
            faults[item.id] = [problem]
        elif verdict is not None and verdict.value:
            standing.append(item)
    groups: dict[str, tuple[Corruption, list[LabelItem]]] = {}
    for item in standing:
        if only is not None and item.id not in only:
            continue
        found = corruptions(Item.from_model(item), reference)
        if not found:
            unchecked[item.id] = "nothing that it rests on could be made wrong"
        for one in found:
            groups.setdefault(_key(one.trace), (one, []))[1].append(item)
    for one, tested in groups.values():
        verdicts = await _verdicts([_bare(item) for item in tested], one.trace, judge)
        for item in tested:
            verdict = verdicts.get(item.id)
            if verdict is None or verdict.value is None:
                unchecked.setdefault(item.id, f"no verdict where {one.what}")
            elif verdict.value:
                faults.setdefault(item.id, []).append(
                    f"the reference was corrupted ({one.what}), and the item is still satisfied"
                )
    left = {name: why for name, why in unchecked.items() if name not in faults}
    passed = frozenset(item.id for item in standing if item.id not in faults and item.id not in left)
    return Trial(faults=faults, passed=passed, unchecked=left, corrupted=len(groups))


# -- lint


def _placed(item: LabelItem, reference: Trace, block: bool) -> Iterator[str]:
    if block and item.turn != "trace":
        yield f"turn is {item.turn}; expected trace: the user is simulated, so that turns have no fixed number"
    if isinstance(item.turn, int) and not 0 <= item.turn < len(reference.turns):
        yield f"turn is {item.turn}; the reference has the turns 0 to {len(reference.turns) - 1}"
    for pointer in item.evidence:
        where = f"evidence at turn {pointer.turn}, step {pointer.step}, {pointer.source}"
        turn = reference.turns[pointer.turn] if pointer.turn < len(reference.turns) else None
        if turn is None or (pointer.source != "user" and pointer.step >= len(turn.steps)):
            yield f"{where}: there is no such step in the reference"
            continue
        texts = (user_text(turn),) if pointer.source == "user" else part_texts(turn.steps[pointer.step], pointer.source)
        if not quoted_in(pointer.snippet, texts):
            yield f"{where}: the snippet {pointer.snippet[:80]!r} does not stand there"


def _observable(item: LabelItem, check: Parsed | None, reference: Trace, tools: Collection[str]) -> Iterator[str]:
    unknown = sorted(set(_tools(check)) - set(tools)) if tools else []
    if unknown:
        yield f"the check names tools that do not exist: {', '.join(unknown)}; there are {', '.join(sorted(tools))}"
    if check is not None:
        return
    if item.focus_on is None:
        yield "a question needs focus_on: the part of a step that shows the answer"
        return
    if not any(part_texts(step, item.focus_on) for step in scope_steps(item, reference)):
        yield f"it cannot be observed: no step of its turn has {item.focus_on}"
    elif item.kind != "avoid" and all(pointer.source != item.focus_on for pointer in item.evidence):
        yield f"no evidence pointer is from {item.focus_on}, which it focuses on"


def _tools(check: Parsed | None) -> Iterator[str]:
    if isinstance(check, Called):
        yield check.called
        if check.before not in (None, "reply"):
            yield str(check.before)
    elif isinstance(check, NeverCalled):
        yield from [check.never_called] if isinstance(check.never_called, str) else check.never_called
    elif isinstance(check, ReplyStates):
        yield check.reply_states.from_.tool
    elif isinstance(check, OnlyCalled):
        yield from (*check.among, *(one.called for one in check.only_called))
    elif isinstance(check, AtMost) and not isinstance(check.at_most, int):
        yield from check.at_most
    elif isinstance(check, NoToolError) and check.no_tool_error is not True:
        yield from [check.no_tool_error] if isinstance(check.no_tool_error, str) else check.no_tool_error


def _near(items: Sequence[LabelItem]) -> Iterator[tuple[str, str]]:
    """Pairs of items of one turn that ask the same: the same check, or questions that are nearly the same and name the
    same ids, numbers and tools. Different checks are different items, whatever their questions say."""
    for place, second in enumerate(items):
        for first in items[:place]:
            if first.turn != second.turn or (first.kind or "reach") != (second.kind or "reach"):
                continue
            if first.check is not None and second.check is not None:
                same = same_json(first.check, second.check)
            else:
                one, other = folded(first.question), folded(second.question)
                same = _names(one) == _names(other) and fuzz.token_sort_ratio(one, other) >= NEAR
            if same:
                yield first.id, second.id
                break


def _names(text: str) -> set[str]:
    return {
        word.strip(".")
        for word in re.findall(r"[\w.\-#:/]+", text)
        if any(char.isdigit() or char == "_" for char in word)
    }


def _without(item: LabelItem, names: Collection[str]) -> LabelItem:
    depends_on = tuple(name for name in item.depends_on if name in names)
    return item.model_copy(
        update={"depends_on": depends_on, "part_of": item.part_of if item.part_of in names else None}
    )


# -- trials


async def _verdicts(items: Sequence[LabelItem], trace: Trace, judge: Judge | None) -> dict[str, Verdict]:
    scorer = ChecklistScorer(Checklist(*map(Item.from_model, items), name="trial"), judge=judge)
    score = await scorer(trace)
    return {verdict.item: verdict for verdict in score.verdicts}


def _unmet(verdict: Verdict | None) -> str | None:
    """What is wrong with an item's verdict on the reference; None where it is satisfied and paid, or waits for one that
    is not."""
    if verdict is None:
        return "its turn does not count in the reference, whose task has fewer turns"
    if verdict.value is False and verdict.reason != "dependency":
        return f"the reference does not satisfy it{': ' + verdict.explanation if verdict.explanation else ''}"
    if verdict.paid is False:
        return (
            "the reference satisfies it in the same step as an item that it depends on, or earlier, so that it would"
            " never be paid"
        )
    return None


def _bare(item: LabelItem) -> LabelItem:
    """The item by itself, so that it fails for its own reasons only; the reference's quotes would help a judge to fail
    it."""
    alone = {"depends_on": (), "part_of": None, "weight": 1.0, "required_for_next_turn": False, "evidence": ()}
    return item.model_copy(update=alone)


def _key(trace: Trace) -> str:
    return content_hash([replace(message, extra={}).to_json() for message in trace.messages])


__all__ = ["NEAR", "Faults", "Trial", "lint", "run_trials", "select"]
