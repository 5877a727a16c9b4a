"""Corrupted references: a good dialogue with one thing made wrong, so that an item can be tried on it.

Which corruptions an item must fail is read off the item: a check as data says what it is about, a question says by
`focus_on`, and its evidence pointers say where. An item of which nothing can be made wrong (a question without
pointers, a function) gives none.

| item | corruption |
|---|---|
| `called` | the calls that satisfy it are dropped; each argument of its `with` is changed in them; with `succeeded`, they fail |
| `never_called`, `only_called` | a call that is not allowed is added |
| `at_most` | calls above the limit are added |
| `no_tool_error` | a result becomes an error |
| `replied`, `reply_matches`, `reply_states` | the replies are dropped; as `avoid`, the violation cannot be written by us: none |
| a question, reach or hold | what its evidence in its focus names is dropped (call, reply, reasoning) or swapped (a result, for another) |
| a question of level `parameter` on a call | the arguments that the snippet quotes are changed |
| a question, avoid, on the reply | its first failure example is said: an invented claim |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cm2_agent.types.check_specs import (
    AtMost,
    Called,
    NeverCalled,
    NoToolError,
    OnlyCalled,
    Parsed,
    Replied,
    ReplyMatches,
    ReplyStates,
    parse_check,
)
from cm2_agent.types.checklist_item import Item, ItemModel
from cm2_agent.types.dialogue_words import as_text, stands_in
from cm2_agent.types.json_values import JSON, same_json
from cm2_agent.types.messages import Message, Reasoning, Text, ToolCall, ToolCallResponse
from cm2_agent.types.run import Run
from cm2_agent.types.trace import Step, Trace
from cm2_agent.types.view import CallView, View, occurs

from ..judges.transcript import call_text, folded, part_texts, quoted_in

NOTHING = {"found": [], "note": "nothing was found"}
"""What a swapped result says where the dialogue has no other result to take."""


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One wrong dialogue and the words that say what is wrong with it."""

    what: str
    trace: Trace


def corruptions(item: Item, reference: Trace) -> list[Corruption]:
    """What the item must fail on, by the table above. Dialogues that come out unchanged are left out."""
    if isinstance(item.check, Mapping):
        made = _of_check(item, parse_check(item.check), reference)
    elif item.check is None:
        made = _of_question(item, reference)
    else:
        made = iter(())
    return [one for one in made if one.trace is not reference]


def edited(reference: Trace, change: Callable[[Step], Step], steps: Sequence[Step]) -> Trace:
    """The dialogue with these steps changed; their messages stay, if empty, so that turns and steps keep their numbers.
    Model calls and tool runs are left out: they would tell what really happened."""
    changed = {step.number: change(step) for step in steps}
    if all(changed[step.number] == step for step in steps):
        return reference
    number = -1

    def rewritten(dialogue: Sequence[Message]) -> tuple[Message, ...]:
        nonlocal number
        messages: list[Message] = []
        for message in dialogue:
            if message.role == "assistant":
                number += 1
                new = changed.get(number)
                messages.append(message if new is None else new.message)
                if new is not None and new.responses:
                    messages.append(Message(role="tool", parts=new.responses))
            elif message.role != "tool" or number not in changed:
                messages.append(message)
        return tuple(messages)

    runs: list[Run] = []
    for before, run in zip(reference.shown_before, reference.runs, strict=True):
        shown, own = rewritten(before), rewritten(run.messages)
        history, own = ((), (*shown, *own)) if runs else (shown, own)
        runs.append(replace(run, history=history, messages=own, calls=(), tools=()))
    return replace(reference, runs=tuple(runs))


def scope_steps(item: ItemModel, reference: Trace) -> tuple[Step, ...]:
    """The steps of the item's scope in the reference; all of them for `trace` and `each`."""
    if isinstance(item.turn, int):
        return reference.turns[item.turn].steps if 0 <= item.turn < len(reference.turns) else ()
    return reference.steps


# -- checks as data


def _of_check(item: Item, check: Parsed, reference: Trace) -> Iterator[Corruption]:
    steps = scope_steps(item, reference)
    if isinstance(check, Called) and item.kind != "avoid":
        yield from _of_called(item, check, reference, steps)
    elif isinstance(check, NeverCalled) or (isinstance(check, Called) and not check.with_ and check.before is None):
        banned = check.called if isinstance(check, Called) else check.never_called
        name = banned if isinstance(banned, str) else banned[0]
        yield _with_calls(reference, steps, name, 1)
    elif isinstance(check, OnlyCalled):
        yield _with_calls(reference, steps, check.among[0], len(check.only_called) + 1)
    elif isinstance(check, AtMost):
        name, most = (
            ("another_tool", check.at_most) if isinstance(check.at_most, int) else next(iter(check.at_most.items()))
        )
        yield _with_calls(reference, steps, name, most + 1)
    elif isinstance(check, NoToolError):
        only = None if check.no_tool_error is True else check.no_tool_error
        names = None if only is None else {only} if isinstance(only, str) else set(only)
        done = [call for call in _calls(item, reference) if names is None or call.name in names]
        yield _failing(reference, steps, done)
    elif isinstance(check, Replied | ReplyMatches | ReplyStates) and item.kind != "avoid":
        yield Corruption(what="the replies are dropped", trace=edited(reference, _silent, steps))


def _of_called(item: Item, check: Called, reference: Trace, steps: Sequence[Step]) -> Iterator[Corruption]:
    done = _calls(item, reference, check.called, check.with_)
    yield Corruption(
        what=f"the call of {check.called} is dropped", trace=edited(reference, _without(_same(done, reference)), steps)
    )
    known = _known(reference)
    for key in check.with_:
        changed = edited(reference, _changing(_same(done, reference), {key}.__contains__, known), steps)
        yield Corruption(what=f"the argument {key} of {check.called} is changed", trace=changed)
    if not check.failed:
        yield _failing(reference, steps, done)


def _failing(reference: Trace, steps: Sequence[Step], done: Sequence[CallView]) -> Corruption:
    """These calls come back as errors."""
    broken = {id(call.response) for call in done if call.response is not None}

    def change(step: Step) -> Step:
        failed = [
            replace(one, response="error: failed", error=True) if id(one) in broken else one for one in step.responses
        ]
        return replace(step, responses=tuple(failed))

    return Corruption(what="the call comes back as an error", trace=edited(reference, change, steps))


def _with_calls(reference: Trace, steps: Sequence[Step], name: str, count: int) -> Corruption:
    """So many more calls of a tool, with arguments nobody asked for, in the scope's first step."""
    extra = tuple(ToolCall(id=f"added-{n}", name=name, arguments={"added": n}) for n in range(count))
    answers = tuple(ToolCallResponse(id=call.id, response="ok") for call in extra)

    def change(step: Step) -> Step:
        message = replace(step.message, parts=(*step.message.parts, *extra))
        return replace(step, message=message, responses=(*step.responses, *answers))

    return Corruption(
        what=f"a call of {name} that was not asked for is added", trace=edited(reference, change, steps[:1])
    )


# -- questions


def _of_question(item: Item, reference: Trace) -> Iterator[Corruption]:
    steps = scope_steps(item, reference)
    if item.kind == "avoid":
        if item.focus_on == "assistant.reply" and item.failure_examples:
            claim = item.failure_examples[0]
            yield Corruption(what=f"the reply claims: {claim}", trace=_claiming(reference, steps, claim))
        return
    pointers = [pointer for pointer in item.evidence if pointer["from"] == item.focus_on]
    if not pointers or item.focus_on is None:
        return
    if item.focus_on == "assistant.tool_calls":
        named = {folded(text) for pointer in pointers for text in _named(pointer, reference)}
        calls = {id(use.call) for step in steps for use in step.tool_uses if folded(call_text(use)) in named}
        if item.level == "parameter":
            quotes = " ".join(str(pointer["snippet"]) for pointer in pointers)
            change = _changing(calls, lambda name: occurs(name, quotes), _known(reference))
            yield Corruption(
                what="the arguments that the evidence quotes are changed", trace=edited(reference, change, steps)
            )
        else:
            yield Corruption(
                what="the call that the evidence names is dropped", trace=edited(reference, _without(calls), steps)
            )
    elif item.focus_on == "tool.content":
        snippets = [str(pointer["snippet"]) for pointer in pointers]
        swapped = edited(reference, _swapped(snippets, reference), steps)
        yield Corruption(what="the result that the evidence names is swapped", trace=swapped)
    elif item.focus_on == "assistant.reply":
        yield Corruption(what="the reply is dropped", trace=edited(reference, _silent, steps))
    else:
        yield Corruption(what="the reasoning is dropped", trace=edited(reference, _thoughtless, steps))


def _named(pointer: Mapping[str, JSON], reference: Trace) -> Iterator[str]:
    """The texts of the part that a pointer points at in which its snippet stands."""
    turn = reference.turns[pointer["turn"]] if pointer["turn"] < len(reference.turns) else None
    if turn is not None and pointer["step"] < len(turn.steps):
        yield from (
            text
            for text in part_texts(turn.steps[pointer["step"]], pointer["from"])
            if quoted_in(pointer["snippet"], (text,))
        )


def _claiming(reference: Trace, steps: Sequence[Step], claim: str) -> Trace:
    replies = [step for step in steps if step.is_reply]

    def change(step: Step) -> Step:
        return replace(step, message=replace(step.message, parts=(*step.message.parts, Text(content=claim))))

    return edited(reference, change, replies[-1:] or steps[-1:])


# -- what is done to a step


def _calls(
    item: Item, reference: Trace, name: str | None = None, wanted: Mapping[str, JSON] | None = None
) -> list[CallView]:
    """The reference's calls in the item's scope."""
    if item.turn == "each":
        scopes: list[int | None] = [turn.index for turn in reference.turns]
    else:
        scopes = [item.turn if isinstance(item.turn, int) else None]
    known = [turn for turn in scopes if turn is None or turn < len(reference.turns)]
    return [call for turn in known for call in View.of(reference, turn).calls(name, wanted)]


def _same(done: Sequence[CallView], reference: Trace) -> Callable[[ToolCall], bool]:
    ran = {id(use.call): use.arguments for step in reference.steps for use in step.tool_uses}
    return lambda call: any(
        call.name == one.name and same_json(ran.get(id(call), call.arguments), one.arguments) for one in done
    )


def _without(chosen: Callable[[ToolCall], bool] | set[int]) -> Callable[[Step], Step]:
    wanted = _predicate(chosen)

    def change(step: Step) -> Step:
        dropped = [use for use in step.tool_uses if wanted(use.call)]
        answers = {id(use.response) for use in dropped}
        parts = tuple(part for part in step.message.parts if not any(part is use.call for use in dropped))
        responses = tuple(one for one in step.responses if id(one) not in answers)
        return replace(step, message=replace(step.message, parts=parts), responses=responses)

    return change


def _changing(
    chosen: Callable[[ToolCall], bool] | set[int], named: Callable[[str], bool], known: str
) -> Callable[[Step], Step]:
    wanted = _predicate(chosen)

    def change(step: Step) -> Step:
        parts = tuple(
            (
                replace(
                    part,
                    arguments={
                        key: _other(value, known) if named(key) else value for key, value in part.arguments.items()
                    },
                )
                if isinstance(part, ToolCall) and wanted(part) and isinstance(part.arguments, Mapping)
                else part
            )
            for part in step.message.parts
        )
        return replace(step, message=replace(step.message, parts=parts))

    return change


def _predicate(chosen: Callable[[ToolCall], bool] | set[int]) -> Callable[[ToolCall], bool]:
    return chosen if callable(chosen) else lambda call: id(call) in chosen


def _known(reference: Trace) -> str:
    """Everything that the user said and the tools answered."""
    results = [as_text(response.response) for step in reference.steps for response in step.responses]
    return "\n".join([message.text for message in reference.messages if message.role == "user"] + results)


def _other(value: JSON, known: str) -> JSON:
    """Another value of the same type, which nobody said."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        step = 1
        while occurs(value + step, known) or stands_in(value + step, known):
            step += 1
        return value + step
    if isinstance(value, list | tuple):
        return [*value, "changed"]
    if isinstance(value, Mapping):
        return {**value, "changed": "changed"}
    return f"{as_text(value)}x9" if value else "changed"


def _swapped(snippets: Sequence[str], reference: Trace) -> Callable[[Step], Step]:
    """Results that hold a snippet become another result of the dialogue that holds none of them."""

    def holds(response: ToolCallResponse) -> bool:
        return any(quoted_in(snippet, (as_text(response.response),)) for snippet in snippets)

    others = [one.response for step in reference.steps for one in step.responses if not holds(one) and not one.error]
    other: Any = others[0] if others else NOTHING

    def change(step: Step) -> Step:
        return replace(
            step, responses=tuple(replace(one, response=other) if holds(one) else one for one in step.responses)
        )

    return change


def _silent(step: Step) -> Step:
    return replace(
        step,
        message=replace(step.message, parts=tuple(part for part in step.message.parts if not isinstance(part, Text))),
    )


def _thoughtless(step: Step) -> Step:
    return replace(
        step,
        message=replace(
            step.message, parts=tuple(part for part in step.message.parts if not isinstance(part, Reasoning))
        ),
    )


__all__ = ["Corruption", "corruptions", "edited", "scope_steps"]
