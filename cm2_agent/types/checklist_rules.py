"""The rules that a checklist's items must obey together: unique ids, scopes, dependencies that can pay, weights.

**Dependencies that can never pay.** Eq. 2 pays an item only where its prerequisites were satisfied in an *earlier*
step. Refused is what follows from the two items alone, whatever the agent does; nothing is guessed:

- the same check twice: both turn true in the same step;
- two calls of the same tool of which one's `with` contains the other's: the call that satisfies the narrower one
  satisfies both. (A call with other arguments could come first, but an agent that calls the tool rightly at once would
  never be paid.) Calls with different arguments are two calls and may depend on each other;
- "calls X", then "X returned Y": a call and its result are one step. A question speaks of X where X is the only tool it
  names;
- "called X before Y" that depends on Y having been called;
- within a turn, anything after the reply: the reply ends the turn. In the closing block the dialogue goes on.

An item with `any_of` can wait, or be waited for, where one of its items can. A soft dependency is held to the same: one
that can never be met would never pay more than its share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import TYPE_CHECKING

from cm2_agent.errors import ChecklistError
from cm2_agent.types.check_specs import Called, Parsed, Replied, ReplyMatches, ReplyStates, parse_check
from cm2_agent.types.json_values import canonical_json, same_json

if TYPE_CHECKING:
    from cm2_agent.types.checklist_item import Item


MAX_TURNS = 10_000
MAX_WEIGHT = 1e12


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One broken rule: the position of the item it was found on (None: the checklist as a whole), the item's field, and
    the sentence."""

    at: int | None
    field: str | None
    message: str


def problems(items: Sequence[Item]) -> list[Problem]:
    """Every broken rule, in the order of the items; empty for items that make a sound checklist."""
    if not items:
        return [Problem(at=None, field=None, message="it has no items and so scores nothing; give at least one item")]
    found = list(_ids(items))
    if found:
        return found  # with ids in doubt every later sentence would be about the wrong item
    by_id = {item.id: item for item in items}
    parsed, broken = _checks(items)
    found = [
        *broken,
        *_turns(items),
        *_any_of(items, by_id),
        *_dependencies(items, by_id, parsed),
        *_circles(items, by_id),
        *_parents(items, by_id),
        *_weights(items),
    ]
    return sorted(found, key=lambda problem: -1 if problem.at is None else problem.at)


def _ids(items: Sequence[Item]) -> Iterator[Problem]:
    seen: set[str] = set()
    for at, item in enumerate(items):
        if item.id in seen:
            yield Problem(
                at=at, field="id", message=f"item {item.id!r} is there twice; ids must be unique: rename or remove one"
            )
        seen.add(item.id)
    for at, item in enumerate(items):
        if item.when_question is not None and when_id(item) in seen:
            message = (
                f"the judge is asked under the id {when_id(item)!r} whether item {item.id!r} applies, and an item has"
                " that id; rename it"
            )
            yield Problem(at=at, field="when", message=message)


def when_id(item: Item) -> str:
    """The id under which a judge is asked whether the item applies."""
    return f"{item.id}:when"


def _checks(items: Sequence[Item]) -> tuple[dict[str, Parsed], list[Problem]]:
    """The items' checks that are data, by item id, and what is wrong with these and with their `when`."""
    parsed: dict[str, Parsed] = {}
    broken: list[Problem] = []
    for at, item in enumerate(items):
        for key, check in (("check", item.check), ("when", item.when)):
            if not isinstance(check, Mapping):
                continue
            try:
                canonical_json(dict(check))
                found = parse_check(check)
                if key == "check":
                    parsed[item.id] = found
            except ChecklistError as error:
                where = "" if key == "check" else f"{key}: "
                broken.append(Problem(at=at, field=key, message=f"item {item.id!r}: {where}{error}"))
            except (TypeError, ValueError) as error:
                message = (
                    f"item {item.id!r}: the {key} is not JSON: {error}; expected text, finite numbers, lists and"
                    " mappings"
                )
                broken.append(Problem(at=at, field=key, message=message))
    return parsed, broken


def _turns(items: Sequence[Item]) -> Iterator[Problem]:
    for at, item in enumerate(items):
        if isinstance(item.turn, int) and item.turn >= MAX_TURNS:
            message = (
                f"item {item.id!r}: turn is {item.turn}; expected a 0-based turn below {MAX_TURNS}, each, or trace"
            )
            yield Problem(at=at, field="turn", message=message)
        if item.turn == "trace" and item.required_for_next_turn:
            message = (
                f"item {item.id!r} is required_for_next_turn and of turn trace; no turn follows the closing block: drop"
                " the key"
            )
            yield Problem(at=at, field="required_for_next_turn", message=message)


def _any_of(items: Sequence[Item], by_id: Mapping[str, Item]) -> Iterator[Problem]:
    for at, item in enumerate(items):
        for name in item.any_of:
            one = by_id.get(name)
            message = ""
            if one is None:
                message = (
                    f"item {item.id!r} is any_of {name!r}, which does not exist; expected some of"
                    f" {', '.join(sorted(by_id))}"
                )
            elif not _within_scope(item, one):
                message = (
                    f"item {item.id!r} (turn {item.turn}) is any_of {name!r} (turn {one.turn}); its items are of the"
                    " same scope: give both the same turn"
                )
            if message:
                yield Problem(at=at, field="any_of", message=message)


def _within_scope(item: Item, other: Item) -> bool:
    """Whether the other item is there wherever the item is."""
    return item.turn == other.turn or (other.turn == "each" and item.turn != "trace")


def _dependencies(items: Sequence[Item], by_id: Mapping[str, Item], parsed: Mapping[str, Parsed]) -> Iterator[Problem]:
    tools = {check.called for check in parsed.values() if isinstance(check, Called)}
    for at, item in enumerate(items):
        if len(item.depends_on) > len(item.parents) and item.softness:
            message = (
                f"item {item.id!r} depends on an item twice, and softly once ({', '.join(item.softness)}); name it once"
            )
            yield Problem(at=at, field="depends_on", message=message)
        for name in item.parents:
            parent = by_id.get(name)
            if parent is None:
                message = (
                    f"item {item.id!r} depends on {name!r}, which does not exist; expected one of"
                    f" {', '.join(sorted(by_id))}"
                )
            else:
                message = _edge(item, parent, by_id, parsed, tools)
            if message:
                yield Problem(at=at, field="depends_on", message=message)


def _circles(items: Sequence[Item], by_id: Mapping[str, Item]) -> Iterator[Problem]:
    edges = {
        item.id: [name for name in (*item.parents, *item.any_of) if name in by_id]
        for item in items
        if item.parents or item.any_of
    }
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        cycle = list(reversed(error.args[1]))
        first = by_id[cycle[0]]
        through = "depends_on" if len(cycle) > 1 and cycle[1] in first.parents else "any_of"
        by_any_of = any(other in by_id[one].any_of for one, other in pairwise(cycle))
        message = (
            f"items depend on each other in a circle{', through any_of' if by_any_of else ''}: {' → '.join(cycle)};"
            " remove one of these dependencies"
        )
        yield Problem(at=[item.id for item in items].index(first.id), field=through, message=message)


def _edge(item: Item, parent: Item, by_id: Mapping[str, Item], parsed: Mapping[str, Parsed], tools: set[str]) -> str:
    if item.id == parent.id:
        return ""  # a circle of one, which the sorter reports
    if not _within_scope(item, parent):
        where = f"item {item.id!r} (turn {item.turn}) depends on {parent.id!r} (turn {parent.turn})"
        if "trace" in (item.turn, parent.turn):
            return (
                f"{where}; dependencies stay inside a turn or the closing block: give both the same turn, or drop the"
                " dependency"
            )
        hint = (
            "an item of every turn cannot wait for an item of one"
            if item.turn == "each"
            else "an item can wait for its own turn's or for each items"
        )
        return f"{where}; {hint}: give both the same turn, or drop the dependency"
    own, others = _looked_at(item, by_id), _looked_at(parent, by_id)
    if any(one.id == parent.id for one in own) or any(one in item.any_of for one in (parent.id, *parent.any_of)):
        return (
            f"item {item.id!r} is any_of {parent.id!r} and depends on it; it would turn true in the same step: drop one"
            " of the two"
        )
    early = [one for one in others if one.kind == "reach"]
    if others and not early:
        kinds = ", ".join(sorted({one.kind for one in others}))
        return (
            f"item {item.id!r} depends on {parent.id!r}, which is decided at the end of its scope (kind {kinds});"
            " only reach items can be depended on: drop the dependency, or make it a reach item"
        )
    reasons = [unpayable(one, other, parsed, tools) for one in own for other in early]
    if not reasons or None in reasons:
        return ""
    in_full = " in full" if parent.id in item.softness else ""
    return f"item {item.id!r} can never be paid{in_full} after {parent.id!r}: {reasons[0]}"


def _looked_at(item: Item, by_id: Mapping[str, Item]) -> list[Item]:
    """The item, or in place of one with any_of the items that it rests on; those that do not exist are left out."""
    found: dict[str, Item] = {}
    waiting = [item]
    while waiting:
        one = waiting.pop()
        if one.id not in found:
            found[one.id] = one
            waiting.extend(by_id[name] for name in reversed(one.any_of) if name in by_id)
    return [one for one in found.values() if not one.any_of]


def unpayable(item: Item, parent: Item, parsed: Mapping[str, Parsed], tools: set[str]) -> str | None:
    """Why an item that waits for `parent` can never pay, with what to do; None where it can (see the top of this file).

    `parsed` are the checks given as data, by item id; `tools` the tools that any check of the checklist names.
    """
    if item.agent != parent.agent:
        return None  # steps of different agents, or of any agent and of one
    own, other = parsed.get(item.id), parsed.get(parent.id)
    same_function = own is None and item.check is not None and item.check == parent.check
    if same_function or (own is not None and own == other):
        return "both have the same check and turn true in the same step; drop one of the items"
    if parent.turn != "trace" and (
        isinstance(other, Replied | ReplyMatches | ReplyStates)
        or (other is None and parent.focus_on == "assistant.reply")
    ):
        return "it waits for the reply, and the reply ends the turn; turn the dependency round, or drop it"
    if isinstance(own, Called) and isinstance(other, Called):
        if own.before == other.called:
            return (
                f"it asks for {own.called} before {other.called}, and waits for {other.called} to be called; turn"
                " the dependency round"
            )
        if own.called == other.called and (_within(own.with_, other.with_) or _within(other.with_, own.with_)):
            return (
                f"one call of {own.called} satisfies both in the same step; drop the dependency, or give the two"
                " calls different arguments (`with`)"
            )
        return None
    if isinstance(own, Called):
        if parent.focus_on == "tool.content" and not own.with_ and _sole_tool(parent, tools) == own.called:
            return f"{own.called} must be called before it can answer; turn the dependency round, or drop it"
        return None
    if own is None and item.check is None and item.focus_on == "tool.content":
        tool = other.called if isinstance(other, Called) else None
        if other is None and parent.check is None and parent.focus_on == "assistant.tool_calls":
            tool = _sole_tool(parent, tools)
        if tool is not None and _sole_tool(item, tools | {tool}) == tool:
            return (
                f"a call of {tool} and its result are one step; drop the dependency, or let it depend on an earlier"
                " step's result"
            )
    return None


def _within(smaller: Mapping[str, object], larger: Mapping[str, object]) -> bool:
    return all(key in larger and same_json(larger[key], value) for key, value in smaller.items())


def _sole_tool(item: Item, tools: set[str]) -> str | None:
    """The one tool a question speaks of: a name that a check uses, or a word written like code. None where there are
    none or several."""
    text = f"{item.question or ''}\n{item.pass_condition or ''}"
    words = set(re.findall(r"[A-Za-z0-9_]+", text))
    names = {word for word in words if word in tools or ("_" in word.strip("_"))} | set(
        re.findall(r"`([A-Za-z][A-Za-z0-9_.\-]*)`", text)
    )
    return next(iter(names)) if len(names) == 1 else None


def _parents(items: Sequence[Item], by_id: Mapping[str, Item]) -> Iterator[Problem]:
    for at, item in enumerate(items):
        if item.part_of is not None and item.part_of not in by_id:
            message = (
                f"item {item.id!r} is part_of {item.part_of!r}, which does not exist; expected one of"
                f" {', '.join(sorted(by_id))}"
            )
            yield Problem(at=at, field="part_of", message=message)
            continue
        seen: set[str] = set()
        whole = item.part_of
        while whole is not None and whole in by_id and whole not in seen and whole != item.id:
            seen.add(whole)
            whole = by_id[whole].part_of
        if whole == item.id:
            message = f"item {item.id!r} is part of itself through part_of; a part names its whole: remove one of these"
            yield Problem(at=at, field="part_of", message=message)


def _weights(items: Sequence[Item]) -> Iterator[Problem]:
    scopes: dict[str, list[int]] = {"trace": [], "each": []}
    for at, item in enumerate(items):
        scopes.setdefault(str(item.turn), []).append(at)
        if not 0 <= item.weight <= MAX_WEIGHT:  # false for NaN, too
            message = (
                f"item {item.id!r}: weight is {item.weight}; expected a number from 0 to {MAX_WEIGHT:g}: weights are"
                " relative"
            )
            yield Problem(at=at, field="weight", message=message)
    names = {"trace": "the closing block (the items of turn trace)", "each": "a turn that holds the each items alone"}
    for scope, positions in scopes.items():
        # a turn that no item names holds the each items alone, so these must weigh something by themselves
        members = positions if scope in names else [*positions, *scopes["each"]]
        if members and not any(items[at].weight > 0 for at in members):
            ids = ", ".join(items[at].id for at in members)
            where = names.get(scope, f"turn {scope}")
            message = (
                f"{where} has only items of weight 0 ({ids}) and would pay nothing; give one of them a weight above 0"
            )
            yield Problem(at=members[0], field="weight", message=message)
