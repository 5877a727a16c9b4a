"""`cm2 doctor`: what the store can be used for, and what went wrong where nobody was told; of an agent's tools, which
the switch sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.cli.common import STORE, JsonOption, StoreOption, answer, open_store, plain

if TYPE_CHECKING:
    from cm2_agent.graphs.interception.discovery import Sight

TEXT_ONLY = "no token ids"
TRAINABLE = "trainable"
FAILED = "failed call"


def register(app: typer.Typer) -> None:
    help = "Check the store: trainable calls, failed writes, dropped scores, schema, NULLs; exits 1 on a problem."
    app.command("doctor", help=help)(doctor)


def doctor(
    context: typer.Context,
    agent: Annotated[
        str | None,
        typer.Option(
            "--agent", metavar="MODULE:GRAPH", help="Say which tools of this graph the switch sees; calls nothing."
        ),
    ] = None,
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    sight = None if agent is None else _look_over(agent)
    named = getattr(context.get_parameter_source("store"), "name", "") != "DEFAULT"
    result: dict[str, Any] = {"ok": True, "problems": []}
    if sight is not None:
        result["problems"] += unseen_of(sight)
        result["switch"] = {
            "seen": sorted(sight.tools),
            "unseen": dict(sight.unseen),
            "switchable": list(sight.switchable),
        }
    if sight is None or named or Path(STORE.removeprefix("sqlite:///")).exists():
        told = _of_store(store, sight)
        result = {**result, **told, "problems": [*result["problems"], *told["problems"]]}
    result["ok"] = not result["problems"]
    answer(result, as_json=as_json, lines=_lines(result))
    if result["problems"]:
        raise typer.Exit(1)


def _look_over(agent: str) -> Sight:
    from cm2_agent.cli.run import load_graph
    from cm2_agent.graphs.interception.discovery import look_over

    return look_over(load_graph(agent))


def _of_store(store: str, sight: Sight | None) -> dict[str, Any]:
    """What the store holds; with an agent, also how often each tool was asked for and how often it left a span."""
    from cm2_agent.store import HEAD, schema_revision

    found = schema_revision(store)
    if found != HEAD:
        what = f"schema {found} is not this version's {HEAD}; back the store up, then type: cm2 db upgrade"
        return {"problems": [what], "schema": {"revision": found, "head": HEAD}}
    with open_store(store) as opened:
        health = opened.health()
        tools = None if sight is None else opened.count_tools()
    told: dict[str, Any] = {"problems": problems_of(health), "calls": calls_of(health["model_calls"]), **health}
    if sight is not None and tools is not None:
        told["problems"] += untraced_of(tools, sight)
        told["tools"] = tools
    return told


def unseen_of(sight: Sight) -> list[str]:
    """The tools that a run with this agent would refuse, in a sentence."""
    if not sight.unseen:
        return []
    named = ", ".join(f"{name} (node {node})" for name, node in sight.unseen.items())
    what = (
        "put each into a ToolNode, or decorate it with cm2_agent.graphs.switchable, or name it to `cm2 run"
        " --allow-real`"
    )
    return [plain(f"the switch cannot see the tools that plain function nodes call: {named}; {what}")]


def untraced_of(tools: Mapping[str, Any], sight: Sight) -> list[str]:
    """Tools that messages ask for and that never left a span, where no tool node has them."""
    elsewhere = {name for name in tools if name not in sight.tools or name in sight.switchable}
    return [
        plain(
            f"{name} was asked for {tools[name]['asked']} times and left no span: if it ran, nothing traced it (a plain"
            " function)"
        )
        for name in sorted(elsewhere)
        if tools[name]["asked"] and not tools[name]["ran"]
    ]


def calls_of(counts: Mapping[str, int]) -> dict[str, Any]:
    """Model calls by what GRPO can do with them: `trainable`, `text_only`, `failed`, and `other` by reason."""
    known = {TRAINABLE, TEXT_ONLY, FAILED}
    return {
        "trainable": counts.get(TRAINABLE, 0),
        "text_only": counts.get(TEXT_ONLY, 0),
        "failed": counts.get(FAILED, 0),
        "other": {reason: count for reason, count in counts.items() if reason not in known},
    }


def problems_of(health: Mapping[str, Any]) -> list[str]:
    """What somebody has to look at, in sentences. Text-only calls, tool errors that the agent saw and low rewards are
    no problems."""
    found = []
    if not health["traces"]:
        found.append("the store holds no traces: nothing was captured or imported into it")
    for kind, incident in health["incidents"].items():
        found.append(
            f"{incident['count']} × {kind}: {incident['detail']}"
            if incident["detail"]
            else f"{incident['count']} × {kind}"
        )
    if health["failed_calls"]:
        found.append(f"{health['failed_calls']} model calls failed; cm2 show TRACE names the error")
    for kind, count in health["failed_runs"].items():
        found.append(f"{count} runs died of {kind}: they are stored, and have no reward")
    infrastructure = health["null_verdicts"].get("infrastructure", 0)
    if infrastructure:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in health["null_verdict_reasons"].items())
        why = f"a check or the judge failed, or there was no judge ({reasons})"
        found.append(f"{infrastructure} verdicts are NULL: {why}; cm2 show TRACE says why")
    return [plain(one) for one in found]


def _lines(result: Mapping[str, Any]) -> list[str]:
    shown = {
        name: value for name, value in result.items() if name not in {"ok", "problems", "incidents", "switch", "tools"}
    }
    lines = [f"{name.replace('_', ' '):<18} {_told(value)}" for name, value in shown.items()]
    lines += [
        f"{'switch: ' + name:<18} {plain(', '.join(tools) or 'none')}"
        for name, tools in result.get("switch", {}).items()
    ]
    counts = result.get("tools", {})
    lines += [
        f"{'tool: ' + plain(name):<18} asked for {count['asked']} times, left {count['ran']} spans"
        for name, count in counts.items()
    ]
    return [*lines, *(f"PROBLEM: {one}" for one in result["problems"]), "" if result["problems"] else "no problems"]


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return (
            ", ".join(
                f"{plain(str(name)).replace('_', ' ')} {_told(item)}" for name, item in value.items() if item != {}
            )
            or "none"
        )
    return plain(str(value))
