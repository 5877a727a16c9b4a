"""`cm2 rows explain`: a trace as a trainer sees it, token by token.

The text came from users, models and tools: it is never read as markup, and control characters are escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm2_agent.cli.common import (
    PROJECT,
    STORE,
    JsonOption,
    ProjectOption,
    StoreOption,
    command_group,
    console,
    format_number,
    one_line,
    open_store,
    print_result,
    printable,
)
from cm2_agent.cli.html_page import check_page, write_page
from cm2_agent.cli.tokenizer import tokenizer_of
from cm2_agent.errors import StoreError

if TYPE_CHECKING:
    from rich.text import Text

    from cm2_agent.trainers.explain import ExplainedCall, Explanation, Part
    from cm2_agent.trainers.item_shares import ItemShare
    from cm2_agent.types.json_values import JSON

FATES = {"trained": "green", "masked": "dim", "lost": "bold red"}
BOUNDARIES = {
    "CLEAN": "cyan",
    "REALIGNED": "cyan",
    "FORK": "bold yellow",
    "PARALLEL": "bold magenta",
    "TRUNCATED": "bold red",
    "RETOKENISED": "bold yellow",
}


def register(app: typer.Typer) -> None:
    group = command_group("Show what becomes of stored traces in training.")
    short = "Show a trace as a trainer sees it, token by token."
    help = (
        "Show a trace as a trainer sees it: which tokens are trained, masked or lost and why; how each model call goes"
        " on from the ones before it (CLEAN, REALIGNED, FORK, PARALLEL, TRUNCATED or RETOKENISED); and each step's"
        " advantage beside the checklist items that earned it."
    )
    group.command("explain", help=help, short_help=short)(explain)
    app.add_typer(group, name="rows")


def explain(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="A trace's id.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="A folder or hub name whose tokenizer says what tokens read as (default: ids)."),
    ] = None,
    imitation: Annotated[bool, typer.Option("--imitation", help="As SFT reads it: no group, no logprobs.")] = False,
    level: Annotated[
        str, typer.Option("--level", help="trajectory, turn, step, return_to_go, evidence, lambda or auto.")
    ] = "trajectory",
    lam: Annotated[
        float | None,
        typer.Option(
            "--lambda", min=0, max=1, help="λ of level lambda (default: that of the round before in --model, else 1)."
        ),
    ] = None,
    norm: Annotated[
        str,
        typer.Option(
            "--norm", help="none, or std: over the group's deviation; at lambda and auto others: the others'."
        ),
    ] = "none",
    reward: Annotated[
        str | None, typer.Option("--reward", metavar="VERSION", help="The reward version (default: the newest).")
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option("--agent-name", metavar="NAME", help="Only the steps of this agent, in a graph of several."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=1, help="Rollouts with a longer row are left out.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write it as a page, too.")] = None,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    from cm2_agent.trainers.dataset import WHOLE_ROUND
    from cm2_agent.trainers.explain import explain as explained
    from cm2_agent.trainers.previous_round import round_before

    check_page(html)
    with open_store(store, project=project) as opened:
        found = opened.trace(trace)
        if found is None:
            some = ", ".join(one.id for one in islice(opened.traces(), 3)) or "none: it is empty"
            raise StoreError(
                f"{opened.url} holds no trace {trace!r}; cm2 show --store {opened.url} lists them (such as {some})"
            )
        scored = not imitation and (reward is not None or bool(opened.reward_versions()))
        group = opened.group_of(trace, reward=reward) if scored else None
        whole = group is not None and level in WHOLE_ROUND
        result = explained(
            found,
            group,
            level=level,
            norm=norm,
            lam=lam,
            whole_round=opened.stream_groups(reward=str(group.key["reward"])) if group is not None and whole else (),
            before=round_before(None, model) if whole else None,
            imitation=imitation,
            agent=agent,
            tokenizer=None if model is None else tokenizer_of(model),
            max_length=max_length,
        )
    if html is not None:
        from cm2_agent.trainers.explain_page import page

        write_page(html, page(result))
    if as_json:
        print_result(result.to_json(), as_json=True)
        return
    out = console()
    for line in _lines(result, imitation=imitation):
        out.print(line, soft_wrap=True)


def _lines(found: Explanation, *, imitation: bool) -> Iterator[Text]:
    from rich.text import Text

    yield Text(printable(f"trace {found.trace_id}"), style="bold")
    if imitation:
        yield Text("as SFT reads it")
    elif found.reward is not None:
        worth = f"reward {format_number(found.reward)}, group of {found.size} mean {format_number(found.mean)}"
        yield Text(f"as GRPO reads it at level {found.level}: {worth}")
    if found.credit:
        yield Text(printable(_of_round(found.credit)))
    if found.left_out is not None:
        yield Text(printable(f"left out: {found.left_out}"), style="bold red")
    fates = ", ".join(f"{found.count(fate)} {fate}" for fate in ("trained", "masked", "lost"))
    kinds = ", ".join(f"{number} {kind}" for kind, number in found.boundaries.items())
    yield Text(f"{len(found.rows)} {'row' if len(found.rows) == 1 else 'rows'}; tokens: {fates}")
    yield Text(f"boundaries: {kinds or 'none'}")
    for call in found.calls:
        yield Text()
        yield from _call(call)
    if not found.calls:
        yield Text("no call has token ids; --imitation --model FOLDER shows the rows of its words")
    if any(step.items or step.advantage is not None for step in found.steps):
        yield Text()
        yield Text("advantages, and what earned them (share of the reward against the group's mean)", style="bold")
    for step in found.steps:
        place = "closing block" if step.turn is None else f"turn {step.turn}"
        place += "" if step.step is None else f" step {step.step}"
        place += " (not reached)" if step.turn is not None and step.step is None else ""
        advantage = "" if step.advantage is None else f"  {step.advantage:+.3f}"
        if step.items or step.advantage is not None:
            yield Text(f"{place}{advantage}")
        yield from map(_item, step.items)


def _of_round(credit: Mapping[str, JSON]) -> str:
    """Which level and λ a round was given, and why."""
    taken = str(credit["level"]) + (f" at λ = {credit['lambda']:g}" if "lambda" in credit else "")
    why = credit.get("why") or {"given": "as given", "the round before": "λ̂ of the round before"}.get(
        str(credit["lambda_from"]), "no round before tells λ̂"
    )
    return f"the round has level {taken}: {why}"


def _call(call: ExplainedCall) -> Iterator[Text]:
    from rich.text import Text

    if call.boundary is not None:
        kind = call.boundary.kind
        yield Text.assemble((kind, BOUNDARIES[kind]), printable(f"  {call.boundary.why}"))
    place = [f"call {call.number}"]
    place += [] if call.agent is None else [f"agent {one_line(call.agent, 40)}"]
    place += [] if call.step is None else [f"turn {call.turn} step {call.step}"]
    place += [] if call.row is None else [f"row {call.row}"]
    place += [] if call.advantage is None else [f"advantage {call.advantage:+.3f}"]
    yield Text(printable(", ".join(place)), style="bold")
    for part in call.parts:
        number = f"{len(part.ids)} {'token' if len(part.ids) == 1 else 'tokens'}"
        yield Text(printable(f"  {part.fate}, {number}: {part.why}"), style=FATES[part.fate])
        if not part.again:
            yield _tokens(part)


def _tokens(part: Part) -> Text:
    """The tokens of a part, a dot between two of them."""
    from rich.text import Text

    line = Text("    ")
    for place, id in enumerate(part.ids):
        text = "" if part.texts is None else printable(part.texts[place]).replace("\n", "⏎").replace("\t", "⇥")
        line.append("·" if place else "", style="dim")
        line.append(text or str(id), style=FATES[part.fate])
    return line


def _item(item: ItemShare) -> Text:
    from rich.text import Text

    word = "NULL" if item.satisfied is None else "earned" if item.satisfied else "not earned"
    worth = f"{item.share:+.3f}  {printable(item.item)}: {word}, paid {item.pays:.2f} of weight {item.weight:.3f}"
    worth += f", the group {item.mean:.2f}" + ("" if item.reason is None else f" ({printable(item.reason)})")
    return Text(f"  {worth}", style="green" if item.share > 0 else "red" if item.share < 0 else "dim")
