"""`cm2 policy list`, `show`, `promote` and `rollback`: the policies that a store knows, and which one is promoted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm2_agent.cli.common import (
    PROJECT,
    STORE,
    JsonOption,
    ProjectOption,
    StoreOption,
    echo_err,
    open_store,
    print_result,
    printable,
)
from cm2_agent.errors import StoreError

if TYPE_CHECKING:
    from cm2_agent.store import SQLStore
    from cm2_agent.types.policy import Policy, Promotion

AgentOption = Annotated[
    str | None, typer.Option("--name", help="The agent's name (default: the only one that has policies).")
]
VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="The policy's version, or how it begins.")]


def register(group: typer.Typer) -> None:
    """Add the commands to the group `cm2 policy`."""
    short = "List the policies of a store, oldest first."
    help = "List the policies of a store, oldest first: state, version, parent, and the gain that was measured."
    group.command("list", help=help, short_help=short)(list_policies)
    short = "Show a policy: lineage, data, settings, metrics, promotions."
    group.command("show", help=short, short_help=short)(show)
    short = "Promote a registered policy by hand."
    help = (
        "Make a registered policy the agent's promoted one, in one transaction, whatever was measured. cm2 loop"
        " promotes by itself what is better."
    )
    group.command("promote", help=help, short_help=short)(promote)
    short = "Take the last promotion back."
    help = "Take the last promotion of an agent back: the policy that was promoted before is so again."
    group.command("rollback", help=help, short_help=short)(rollback)


def list_policies(
    name: Annotated[str | None, typer.Option("--name", help="Only those of this agent.")] = None,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    with open_store(store, project=project) as opened:
        found = opened.policies(name)
    lines = list(_rows(found)) or ["no policies; cm2 loop registers them"]
    print_result({"policies": [one.to_json() for one in found]}, as_json=as_json, lines=lines)


def show(
    version: VersionArgument,
    name: AgentOption = None,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    with open_store(store, project=project) as opened:
        policy = find(opened, version, name)
        history = [one for one in opened.promotions(policy.name) if one.version == policy.version]
    result = {**policy.to_json(), "promotions": [one.to_json() for one in history]}
    print_result(result, as_json=as_json, lines=_lines(policy, history))


def promote(
    version: VersionArgument,
    name: AgentOption = None,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    with open_store(store, project=project) as opened:
        policy = find(opened, version, name)
        before = opened.promoted(policy.name)
        opened.promote(policy.name, policy.version, reason={"why": "by hand"})
    instead = None if before is None or before.version == policy.version else before.version
    _warn_if_gone(policy)
    words = "" if instead is None else f" in place of {instead}"
    result = {"name": policy.name, "promoted": policy.version, "before": instead, "folder": policy.folder}
    print_result(result, as_json=as_json, lines=[printable(f"promoted {policy.version} of {policy.name}{words}")])


def rollback(
    name: AgentOption = None,
    store: StoreOption = STORE,
    project: ProjectOption = PROJECT,
    as_json: JsonOption = False,
) -> None:
    with open_store(store, project=project) as opened:
        agent = name or _only_name(opened)
        gone, back = opened.rollback(agent)
    _warn_if_gone(back)
    result = {"name": agent, "rolled_back": gone.version, "promoted": back.version, "folder": back.folder}
    lines = [
        printable(f"rolled back {gone.version} of {agent}"),
        printable(f"promoted {back.version} in {back.folder or 'an unknown folder'}; deploy it, or load it from there"),
    ]
    print_result(result, as_json=as_json, lines=lines)


def find(store: SQLStore, version: str, name: str | None) -> Policy:
    """The policy whose version is, or begins with, what was typed. Raises StoreError unless there is just one."""
    there = store.policies(name)
    exact = [one for one in there if one.version == version]
    found = exact or [one for one in there if version and one.version.startswith(version)]
    if len(found) == 1:
        return found[0]
    of = "" if name is None else f" of {name!r}"
    if not found:
        raise StoreError(
            f"{store.url} holds no policy{of} whose version begins with {version!r}; see those that it holds:"
            f" cm2 policy list --store {store.url}"
        )
    several = ", ".join(f"{one.version} of {one.name}" for one in found[:4])
    raise StoreError(
        f"{version!r} begins the versions of {len(found)} policies: {several}; type more of it, or name the agent with"
        " --name"
    )


def is_gone(folder: str | None) -> bool:
    """Whether weights were in a folder that is not there (any more), or not on this machine. Of a hub name nobody knows
    without asking."""
    return folder is not None and Path(folder).is_absolute() and not Path(folder).is_dir()


def _warn_if_gone(policy: Policy) -> None:
    if is_gone(policy.folder):
        echo_err(printable(f"warning: {policy.folder} is not there; bring its weights back before anybody loads them"))


def _only_name(store: SQLStore) -> str:
    names = sorted({one.name for one in store.policies()})
    if len(names) == 1:
        return names[0]
    raise StoreError(
        f"{store.url} holds policies of {len(names)} agents ({', '.join(names[:4]) or 'none'}); name one with --name"
    )


def _rows(found: Sequence[Policy]) -> Iterator[str]:
    if not found:
        return
    cells = [["agent", "version", "state", "parent", "gain"]]
    for one in found:
        evaluation = one.metrics.get("evaluation")
        gain = evaluation.get("gain") if isinstance(evaluation, dict) else None
        gain_text = f"{gain:+.3f}" if isinstance(gain, int | float) else ""
        cells.append([" ".join(one.name.split()), one.version, one.state, one.parent or "", gain_text])
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    for row in cells:
        yield printable("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _lines(policy: Policy, history: Sequence[Promotion]) -> Iterator[str]:
    yield printable(f"policy {policy.version} of {policy.name}: {policy.state}")
    for what in ("folder", "parent", "reward", "certificate"):
        yield printable(f"{what}: {getattr(policy, what) or 'none'}")
    for what in ("data", "settings"):
        for key, value in getattr(policy, what).items():
            yield printable(f"{what}: {key} {value}")
    for what, values in policy.metrics.items():
        for key, value in values.items() if isinstance(values, dict) else [("", values)]:
            if isinstance(value, str | int | float | bool):
                yield printable(f"{what}: {key} {value:.4g}" if isinstance(value, float) else f"{what}: {key} {value}")
    for one in history:
        when = datetime.fromtimestamp(one.promoted / 1e9, UTC).isoformat(timespec="seconds")
        undone = "" if one.undone is None else ", rolled back"
        yield printable(f"promoted {when}{undone}: {one.reason.get('why', 'no reason given')}")


__all__ = ["find", "is_gone", "register"]
