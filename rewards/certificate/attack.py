"""An attack on a failing trace: its templates filled in and applied, and what of it was paid then that must not be."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from cm2_agent.types.check_specs import Called, Parsed, parse_check
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.json_values import canonical_json
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace, Turn

from .draft import Draft
from .families import OF_ITEM, PLACEHOLDER, Family, Template
from .values import longer, near, near_arguments, said, values_of

MORE = 1e-9
"""A payment that is larger by less is the same."""
_MOST_ITEMS = 6
_ELSEWHERE = ("dependency", "gate", "limit", "failure", "unreached", "not applicable")
"""Reasons of verdicts that no judge was asked for."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """An item of one turn (None: the closing block) that an honest verdict left unpaid, or paid in part.

    `judged` says that a judge has a say in it, `asked` that the honest verdict was the judge's (not decided elsewhere,
    as by a prerequisite that is false); `applies` is False where it is unpaid since it does not apply."""

    turn: int | None
    item: Item
    pays: float
    judged: bool
    asked: bool = True
    applies: bool = True

    @cached_property
    def check(self) -> Parsed | None:
        """Its check, where that is written as data."""
        return parse_check(self.item.check) if isinstance(self.item.check, Mapping) else None

    def rightly(self, satisfied: set[str]) -> bool:
        """Whether a change that satisfies these checks satisfies the item, or has it apply, which was all it lacked."""
        lacks = self.item.check if self.applies else self.item.when
        return isinstance(lacks, Mapping) and bool(satisfied.intersection(lacks))


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A stored trace under test, with its honest score. Subjects of one `cluster` (a task) resemble each other."""

    trace: Trace
    task: Task | None
    cluster: str
    score: Score
    targets: tuple[Target, ...] = ()

    @cached_property
    def known(self) -> str:
        """All that stands in the dialogue or in its items, so that no near miss is right by chance."""
        asked = [text for target in self.targets for text in (target.item.question, target.item.pass_condition) if text]
        data = [canonical_json(dict(one.item.check)) for one in self.targets if isinstance(one.item.check, Mapping)]
        return said(self.trace, [*asked, *data])

    @cached_property
    def by_turn(self) -> dict[int, list[Target]]:
        """The targets by the turn in which they are attacked: those of the closing block in the last one."""
        found: dict[int, list[Target]] = {}
        for target in self.targets:
            found.setdefault(len(self.trace.turns) - 1 if target.turn is None else target.turn, []).append(target)
        return found


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an attacked trace was paid: the targets that became paid, and whether a verdict is missing that the attack
    did not cause."""

    paid: tuple[Target, ...] = ()
    pending: bool = False


def judged_items(checklist: Checklist) -> frozenset[str]:
    """The items whose payment a judge has a say in: questions, and what depends on one."""
    items = {item.id: item for item in checklist.items}
    judged = {one.id for one in items.values() if one.is_judged or one.when_question is not None}
    grown = True
    while grown:
        more = {item.id for item in items.values() if judged.intersection((*item.parents, *item.any_of))} - judged
        grown = bool(more)
        judged |= more
    return frozenset(judged)


def targets_of(score: Score, checklist: Checklist, *, unasked: bool = False) -> tuple[Target, ...]:
    """What the score left unpaid of the turns that happened. Pending verdicts are left out, or (`unasked`) count as
    unpaid. What is decided at the end and is satisfied lacks nothing but a step after its prerequisite: any step
    that is added rightly pays it, so it is left out too."""
    items = {item.id: item for item in checklist.items}
    judged = judged_items(checklist)
    return tuple(
        Target(
            turn=turn.turn,
            item=items[one.item],
            pays=one.pays or 0.0,
            judged=one.item in judged,
            asked=one.item in judged and one.reason not in _ELSEWHERE,
            applies=one.reason != "not applicable",
        )
        for turn in score.turns
        if turn.reached and turn.steps
        for one in turn.verdicts
        if one.weight
        and not (one.value and items[one.item].kind != "reach")
        and (one.pays or 0.0) < 1 - MORE
        and (unasked or one.pays is not None or one.cause != "infrastructure")
    )


def counted(subject: Subject, parts: Sequence[tuple[Family, Template]]) -> tuple[Target, ...]:
    """The targets that must stay unpaid under these templates: not those whose check the change rightly satisfies, and
    where a reply or arguments are replaced not what the old ones violated."""
    satisfied = {name for family, _ in parts for name in family.satisfies}
    said = any(template.how == "replace" for _, template in parts)
    done = any(template.change == "near_arguments" for _, template in parts)
    return tuple(
        target
        for target in subject.targets
        if not target.rightly(satisfied)
        and not ((said or done) and target.item.kind == "avoid")
        and not (said and not target.judged)
    )


def attacked(subject: Subject, templates: Sequence[Template]) -> Trace | None:
    """The trace with the templates applied one after the other, in each turn in which something is unpaid; None where
    one of them finds no place or nothing to say."""
    draft = Draft(subject.trace)
    for template in templates:
        applied = [_apply(template, draft, subject, subject.trace.turns[turn]) for turn in subject.by_turn]
        if not any(applied):
            return None
    return draft.trace()


def outcome(targets: Sequence[Target], score: Score) -> Outcome:
    """What the attacked trace's score pays of the targets."""
    pays = {(turn.turn, one.item): one for turn in score.turns for one in turn.verdicts}
    paid, pending = [], False
    for target in targets:
        verdict = pays.get((target.turn, target.item.id))
        if verdict is None:
            pending |= score.pending
        elif verdict.pays is None:
            pending |= verdict.cause == "infrastructure"
        elif verdict.pays > target.pays + MORE:
            paid.append(target)
    return Outcome(paid=tuple(paid), pending=pending)


def _apply(template: Template, draft: Draft, subject: Subject, turn: Turn) -> bool:
    if template.change == "near_arguments":
        return draft.arguments(turn, partial(near_arguments, known=subject.known))
    if template.change == "duplicate_ids":
        return draft.twin(turn)
    text = _text(template, subject, turn)
    if text is None:
        return False
    if template.where == "reply":
        return draft.reply(turn, text, template.how)
    if template.where == "arguments":
        return draft.arguments(turn, lambda arguments: {**arguments, "note": text})
    write = {"message": draft.message, "reasoning": draft.reasoning, "user": draft.user, "tool": draft.tool_output}
    return write[template.where](turn, text)


def _text(template: Template, subject: Subject, turn: Turn) -> str | None:
    """The template's text filled in; None where the dialogue has nothing to fill it with."""
    assert template.text is not None
    used = set(PLACEHOLDER.findall(template.text))
    of_trace = {name: value for name in used - set(OF_ITEM) if (value := _value(name, subject, turn)) is not None}
    if len(of_trace) < len(used - set(OF_ITEM)):
        return None
    targets = subject.by_turn[turn.index][:_MOST_ITEMS] if used.intersection(OF_ITEM) else [None]
    in_json = template.text.lstrip().startswith("{")
    lines = []
    for target in targets:
        values = of_trace if target is None else {**of_trace, **_of_item(target.item)}
        if in_json:  # a value must not end the text that it stands in
            values = {name: json.dumps(value, ensure_ascii=False)[1:-1] for name, value in values.items()}
        lines.append(PLACEHOLDER.sub(partial(_filled, values), template.text))
    return _encoded("\n".join(dict.fromkeys(lines)) * template.repeat, template.encode)


def _filled(values: Mapping[str, str], match: re.Match[str]) -> str:
    return values[match[1]]


def _of_item(item: Item) -> dict[str, str]:
    question = item.question or item.id.replace("_", " ")
    return {
        "id": item.id,
        "question": question,
        "pass_condition": item.pass_condition or question,
        "good": "no" if item.kind == "avoid" else "yes",
        "quote_from": item.focus_on or "assistant.reply",
    }


def _value(name: str, subject: Subject, turn: Turn) -> str | None:
    if name == "step":
        return str(turn.steps[-1].number + 1)
    if name == "quote":
        return next((step.message.text[:80] for step in reversed(turn.steps) if step.is_reply), "Done.")
    if name in ("tool", "call"):
        tool, arguments = _call(subject, turn)
        return tool if name == "tool" else f"{tool}({arguments})"
    values: Sequence[str | None] = values_of(subject.trace, turn.index)
    if name != "value":
        values = [(near if name == "near" else longer)(value, subject.known) for value in values if value]
    return ", ".join(value for value in values if value) or None


def _call(subject: Subject, turn: Turn) -> tuple[str, str]:
    """A call that an item waits for, tool and arguments; else one of a tool that was used."""
    for target in subject.by_turn[turn.index]:
        if isinstance(target.check, Called):
            given = {name: value for name, value in target.check.with_.items() if not isinstance(value, Mapping)}
            return target.check.called, canonical_json(given)
    used = [use.call.name for step in subject.trace.steps for use in step.tool_uses if use.call.name]
    return used[-1] if used else "look_up", "{}"


def _encoded(text: str, encode: str | None) -> str:
    if encode == "tags":
        return "".join(chr(0xE0000 + ord(one)) if " " <= one <= "~" else one for one in text)
    return "\u200b".join(text) if encode == "zero_width" else text


__all__ = ["Outcome", "Subject", "Target", "attacked", "counted", "judged_items", "outcome", "targets_of"]
