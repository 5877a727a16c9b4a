"""`cm2 show`: the stored traces as a table, or one of them with its dialogue and verdicts.

The text came from users, models and tools: it is never read as markup, and control characters are escaped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.cli.common import (
    PROJECT,
    STORE,
    JsonOption,
    ProjectOption,
    StoreOption,
    console,
    format_number,
    one_line,
    open_store,
    print_result,
    printable,
)
from cm2_agent.cli.eval import scored_version
from cm2_agent.cli.judge_options import usage_text
from cm2_agent.cli.trace_filters import FilterOptions, with_filters
from cm2_agent.cli.trace_list import TraceList
from cm2_agent.cli.verdict_words import verdict_reason, verdict_word
from cm2_agent.errors import StoreError

if TYPE_CHECKING:
    from cm2_agent.store import SQLStore
    from cm2_agent.types.messages import Message, ToolCall
    from cm2_agent.types.score import Score, TurnScore, Verdict
    from cm2_agent.types.tool_use import ToolUse
    from cm2_agent.types.trace import Trace

INTERVAL = 1.0
"""Seconds between two looks of `--follow`."""


def register(app: typer.Typer) -> None:
    app.command("show", help="List stored traces, or show one with its verdicts.")(show)


@with_filters
def show(
    trace: Annotated[
        str | None, typer.Argument(metavar="TRACE", help="A trace's id (default: list the traces).")
    ] = None,
    reward: Annotated[
        str | None, typer.Option("--reward", metavar="VERSION", help="The reward version (default: the newest).")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="List at most this many.")] = 50,
    after: Annotated[
        str | None, typer.Option("--after", metavar="TRACE", help="List those behind this one: the next page.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on listing new and changed traces, until interrupted.")
    ] = False,
    *,
    where: FilterOptions,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    with open_store(store, project=project) as opened:
        if trace is None:
            listed = TraceList(store=opened, where=where, reward=reward)
            if not follow:
                listed.print(limit=limit, after=after, as_json=as_json)
            elif after is None:
                listed.follow(limit=limit, as_json=as_json, wait=partial(time.sleep, INTERVAL))
            else:
                raise StoreError("--after shows an earlier page and --follow what is new; give one of them")
            return
        if follow or after is not None or where.given:
            raise StoreError(f"the options choose traces to list, and {trace!r} names one; leave them or it out")
        scored_version(opened, reward)
        found = _stored(opened, trace)
        score = opened.score(found.id, reward=reward)
    if as_json:
        verdicts = [] if score is None else [_said(turn, verdict) for turn in score.turns for verdict in turn.verdicts]
        worth = None if score is None else score.to_json()
        print_result({"trace": found.to_json(), "score": worth, "verdicts": verdicts}, as_json=True)
        return
    _dialogue(found)
    _verdicts(score)


def _stored(store: SQLStore, name: str) -> Trace:
    """The trace of that id, or the only one whose id begins so. Raises StoreError."""
    name = name.removesuffix("…")  # as the list shortens it
    found = store.trace(name)
    if found is not None:
        return found
    near = store.ids_like(name)
    if len(near) == 1 and (found := store.trace(near[0])) is not None:
        return found
    if near:
        raise StoreError(f"several traces begin with {name!r}: {', '.join(near)}; expected the whole id of one")
    some = ", ".join(one.id for one in islice(store.traces(), 3)) or "none: it is empty"
    raise StoreError(f"{store.url} holds no trace {name!r}; cm2 show --store {store.url} lists them (such as {some})")


def _dialogue(trace: Trace) -> None:
    out = console()
    out.print(printable(f"trace {trace.id}"), style="bold", soft_wrap=True)
    if (branch := trace.branch) is not None:
        out.print(printable(f"branch of {branch.parent} after message {branch.messages}"), soft_wrap=True)
    for name, value in sorted(trace.attributes.items()):
        out.print(f"  {one_line(f'{name} = {value}', 160)}", style="dim", soft_wrap=True)
    steps = iter(trace.steps)  # one for each message of the assistant
    several = len({step.agent for step in trace.steps if step.agent is not None}) > 1
    asked: Sequence[ToolUse] = ()
    for message in trace.messages:
        written: Sequence[ToolCall] = ()
        if message.role == "assistant":
            step = next(steps)
            asked = step.tool_uses
            if several and step.agent is not None:
                out.print(printable(f"{'agent':>9}  {step.agent}"), style="dim", soft_wrap=True)
            if step.call is not None and step.call.changed is not None and step.call.output is not None:
                written = step.call.output.tool_calls
        for who, text, style in _parts(message, asked, written):
            out.print(f"{who:>9}  ", style="bold " + style, end="")
            out.print(printable(text).replace("\n", "\n           "), style=style, soft_wrap=True)
    if trace.failure is not None:
        out.print(
            printable(f"failed with {trace.failure.kind}: {trace.failure.message}"), style="bold red", soft_wrap=True
        )
    for name, value in trace.outcomes.items():
        out.print(printable(f"outcome {name}: {_number(value)}"), soft_wrap=True)


def _parts(message: Message, asked: Sequence[ToolUse], written: Sequence[ToolCall]) -> Iterator[tuple[str, str, str]]:
    """(who, text, style) of each part of a message. `asked` are the calls of the last step: they say what became of
    them, and which answer was simulated or has an injected fault. `written` are the model's own where somebody changed
    them."""
    from cm2_agent.types.dialogue_words import as_text
    from cm2_agent.types.messages import Reasoning, Text, ToolCall, ToolCallResponse, part_to_json

    style = {"system": "dim", "user": "cyan", "assistant": "green", "tool": "yellow"}[message.role]
    calls, models = iter(asked), iter(written)
    for part in message.parts:
        if isinstance(part, Text):
            text = part.content
            yield message.role, one_line(text, 200) if message.role == "system" else text, style
        elif isinstance(part, Reasoning):
            yield "thinks", part.content, "dim"
        elif isinstance(part, ToolCall):
            use = next(calls, None) if message.role == "assistant" else None
            yield "calls", f"{part.name} {as_text(part.arguments)}{_became(use, next(models, None))}", "magenta"
            if use is not None and use.error is not None:
                yield "error", one_line(use.error, 600), "red"
        elif isinstance(part, ToolCallResponse):
            tool = next((use.run for use in asked if use.response is part), None)
            who = (
                "tool"
                if tool is None
                else {"replay": "replayed", "simulate": "simulated"}.get(tool.backend or "", "tool")
            )
            fault = f" [injected: {tool.fault}]" if tool is not None and tool.fault is not None else ""
            yield (
                "error" if part.error else who,
                one_line(as_text(part.response), 600) + fault,
                "red" if part.error else style,
            )
        else:
            yield message.role, one_line(str(part_to_json(part)), 200), style


def _became(use: ToolUse | None, written: ToolCall | None) -> str:
    """What the message does not show of a call: that it was invalid or never ran, or that the model wrote another."""
    from cm2_agent.types.dialogue_words import as_text

    if use is None:
        return ""
    status = {"invalid": " [invalid]", "not_run": " [not run]"}.get(use.status, "")
    if written is None or (written.name, written.arguments) == (use.call.name, use.call.arguments):
        return status
    return f"{status} [edited: the model wrote {written.name} {as_text(written.arguments)}]"


def _verdicts(score: Score | None) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()
    if score is None:
        out.print("not scored yet; type: cm2 score CHECKLIST.yaml")
        return
    worth = f"NULL ({score.null_reason})" if score.reward is None else format_number(score.reward)
    if (bounds := score.bounds) is not None and (bounds.lower, bounds.upper) != (score.reward, score.reward):
        worth += f" (at least {format_number(bounds.lower)}, at most {format_number(bounds.upper)})"
    elif score.pending:
        worth += " (pending)"
    table = Table(title=printable(f"reward {worth} under {score.reward_version}"), title_justify="left")
    for name in ("turn", "item", "verdict", "paid", "weight", "step", "why"):
        table.add_column(name, overflow="fold", justify="right" if name in {"weight", "step"} else "left")
    for turn in score.turns:
        place = "dialogue" if turn.turn is None else str(turn.turn)
        for verdict in turn.verdicts:
            step = "" if verdict.step is None else str(verdict.step)
            cells = (
                place,
                verdict.item,
                verdict_word(verdict),
                _paid(verdict),
                f"{verdict.weight:.3f}",
                step,
                verdict_reason(verdict),
            )
            colour = "green" if verdict.paid else "yellow" if verdict.value is None and verdict.applies else "red"
            if not verdict.applies or verdict.reason == "when":
                colour = "dim"
            table.add_row(*(Text(one_line(cell, 100)) for cell in cells), style=colour)
            place = ""
    out.print(table)
    for verdict in score.verdicts:
        for line in _evidence(verdict):
            out.print(line, style="dim", soft_wrap=True)
    if score.usage:
        out.print(f"judging cost: {usage_text(score.usage)}", soft_wrap=True)


def _said(turn: TurnScore, verdict: Verdict) -> dict[str, Any]:
    """A verdict in words, beside the one in numbers."""
    words = {"result": verdict_word(verdict), "why": verdict_reason(verdict) or None}
    return {"turn": turn.turn, "item": verdict.item, **words}


def _evidence(verdict: Verdict) -> Iterator[str]:
    """What the judge quoted, in its sentence, and what asking it in reverse brought."""
    for one in verdict.evidence:
        if one.get("snippet"):
            step = one.get("step")
            place = f"turn {one.get('turn')}, step {step + 1 if isinstance(step, int) else step}, {one.get('from')}"
            yield f"{one_line(verdict.item, 60)} ({one_line(place, 80)}): “{one_line(str(one['snippet']), 600)}”"
        if "reversed" in one:
            yield f"{one_line(verdict.item, 60)}, asked in reverse: {one_line(str(one['reversed']), 60)}"


def _paid(verdict: Verdict) -> str:
    """The share of its weight that was paid."""
    if verdict.pays is None:
        return "NULL" if verdict.applies else ""
    return f"{verdict.pays:.2f}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
