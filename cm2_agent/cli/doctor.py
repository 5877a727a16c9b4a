"""`cm2 doctor`: what the store can be used for, what failed silently, and which tools of an agent can be replaced."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm2_agent.cli.common import STORE, JsonOption, StoreOption, open_store, print_result, printable

if TYPE_CHECKING:
    from cm2_agent.graphs.interception.discovery import ToolInventory

TEXT_ONLY = "no token ids"
TRAINABLE = "trainable"
FAILED = "failed call"


def register(app: typer.Typer) -> None:
    short = "Check the store and an agent's tools; exit 1 on a problem."
    help = (
        "Check the store: how many model calls can be trained on, failed writes, dropped scores, failed runs, NULL"
        " verdicts and the schema. With --agent, check which of its tools a run can replace. Exits 1 on a problem."
    )
    app.command("doctor", help=help, short_help=short)(doctor)


def doctor(
    context: typer.Context,
    agent: Annotated[
        str | None,
        typer.Option(
            "--agent",
            metavar="MODULE:GRAPH",
            help="List the tools of this graph that a run can replace; calls nothing.",
        ),
    ] = None,
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    inventory = None if agent is None else _inventory(agent)
    store_given = getattr(context.get_parameter_source("store"), "name", "") != "DEFAULT"
    result: dict[str, Any] = {"ok": True, "problems": []}
    if inventory is not None:
        result["problems"] += undiscovered_tools(inventory)
        result["switch"] = {
            "seen": sorted(inventory.tools),
            "unseen": dict(inventory.unseen),
            "switchable": list(inventory.switchable),
        }
    if inventory is None or store_given or Path(STORE.removeprefix("sqlite:///")).exists():
        of_store = _check_store(store, inventory)
        result = {**result, **of_store, "problems": [*result["problems"], *of_store["problems"]]}
    result["ok"] = not result["problems"]
    print_result(result, as_json=as_json, lines=_lines(result))
    if result["problems"]:
        raise typer.Exit(1)


def _inventory(agent: str) -> ToolInventory:
    from cm2_agent.cli.run import load_graph
    from cm2_agent.graphs.interception.discovery import discover_tools

    return discover_tools(load_graph(agent))


def _check_store(store: str, inventory: ToolInventory | None) -> dict[str, Any]:
    """What the store holds, and with an agent how often each tool was called and how often a span shows it."""
    from cm2_agent.store import HEAD, schema_revision

    found = schema_revision(store)
    if found != HEAD:
        what = f"schema {found} is not this version's {HEAD}; back the store up, then type: cm2 db upgrade"
        return {"problems": [what], "schema": {"revision": found, "head": HEAD}}
    with open_store(store) as opened:
        health = opened.health()
        tools = None if inventory is None else opened.count_tools()
    result: dict[str, Any] = {
        "problems": store_problems(health),
        "calls": calls_by_use(health["model_calls"]),
        **health,
    }
    spool = _check_spool(store)
    result["problems"] += spool.pop("problems")
    result["spool"] = spool
    if inventory is not None and tools is not None:
        result["problems"] += untraced_tools(tools, inventory)
        result["tools"] = tools
    return result


def _check_spool(store: str) -> dict[str, Any]:
    """The runs that processes have answered and not stored."""
    from cm2_agent.spool.status import read_status

    status = read_status(store)
    waiting = sum(status.runs.values())
    found = []
    if waiting:
        found.append(
            f"{waiting} runs of ended processes wait in {status.folder}: the application's next start saves them, or"
            " type: cm2 spool replay"
        )
    if status.refused or status.unreadable:
        found.append(
            f"{status.refused} refused runs (refused.jsonl, with their reasons) and {status.unreadable} files that"
            f" could not be read whole lie in {status.folder}"
        )
    return {
        "problems": [printable(one) for one in found],
        "waiting": waiting,
        "refused": status.refused,
        "unreadable": status.unreadable,
    }


def undiscovered_tools(inventory: ToolInventory) -> list[str]:
    """A sentence on the tools that a run with this agent would refuse."""
    if not inventory.unseen:
        return []
    named = ", ".join(f"{name} (node {node})" for name, node in inventory.unseen.items())
    what = (
        "put each into a ToolNode, or decorate it with cm2_agent.graphs.switchable, or name it to `cm2 run"
        " --allow-real`"
    )
    return [printable(f"the switch cannot see the tools that plain function nodes call: {named}; {what}")]


def untraced_tools(tools: Mapping[str, Any], inventory: ToolInventory) -> list[str]:
    """Sentences on tools outside any tool node that messages call and no span shows."""
    elsewhere = {name for name in tools if name not in inventory.tools or name in inventory.switchable}
    return [
        printable(
            f"{name} was asked for {tools[name]['asked']} times and left no span: if it ran, nothing traced it (a plain"
            " function)"
        )
        for name in sorted(elsewhere)
        if tools[name]["asked"] and not tools[name]["ran"]
    ]


def calls_by_use(counts: Mapping[str, int]) -> dict[str, Any]:
    """Counts of model calls: `trainable` by GRPO, `text_only`, `failed`, and `other` by reason."""
    known = {TRAINABLE, TEXT_ONLY, FAILED}
    return {
        "trainable": counts.get(TRAINABLE, 0),
        "text_only": counts.get(TEXT_ONLY, 0),
        "failed": counts.get(FAILED, 0),
        "other": {reason: count for reason, count in counts.items() if reason not in known},
    }


def store_problems(health: Mapping[str, Any]) -> list[str]:
    """Sentences on what needs attention. Text-only calls, tool errors the agent saw and low rewards are no
    problems."""
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
        found.append(f"{count} runs failed with {kind}: they are stored without a reward")
    infrastructure = health["null_verdicts"].get("infrastructure", 0)
    if infrastructure:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in health["null_verdict_reasons"].items())
        why = f"a check or the judge failed, or there was no judge ({reasons})"
        found.append(f"{infrastructure} verdicts are NULL: {why}; cm2 show TRACE says why")
    return [printable(one) for one in found]


def _lines(result: Mapping[str, Any]) -> list[str]:
    shown = {
        name: value for name, value in result.items() if name not in {"ok", "problems", "incidents", "switch", "tools"}
    }
    lines = [f"{name.replace('_', ' '):<18} {_text(value)}" for name, value in shown.items()]
    lines += [
        f"{'switch: ' + name:<18} {printable(', '.join(tools) or 'none')}"
        for name, tools in result.get("switch", {}).items()
    ]
    counts = result.get("tools", {})
    lines += [
        f"{'tool: ' + printable(name):<18} asked for {count['asked']} times, left {count['ran']} spans"
        for name, count in counts.items()
    ]
    return [*lines, *(f"PROBLEM: {one}" for one in result["problems"]), "" if result["problems"] else "no problems"]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return (
            ", ".join(
                f"{printable(str(name)).replace('_', ' ')} {_text(item)}" for name, item in value.items() if item != {}
            )
            or "none"
        )
    return printable(str(value))
