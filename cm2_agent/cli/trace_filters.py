"""The options that choose traces, declared once for every command that reads them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from cm2_agent.cli.times import moment
from cm2_agent.errors import StoreError

if TYPE_CHECKING:
    from cm2_agent.store import TraceFilter

WHERE = "where"
"""The parameter of a command that takes what the options say."""


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """What a command was given of the options; a trace has to meet all of them."""

    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Only traces that began then or later: 2026-05-20T12:00, or 7d."),
    ] = None
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Only traces that began before then.")
    ] = None
    user: Annotated[str | None, typer.Option("--user", metavar="ID", help="Only traces of this user.")] = None
    session: Annotated[str | None, typer.Option("--session", metavar="ID", help="Only traces of this session.")] = None
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="TAG", help="Only traces with this tag; repeatable: with all of them."),
    ] = None
    agent: Annotated[
        str | None, typer.Option("--agent", metavar="NAME", help="Only traces of this graph, or with its steps.")
    ] = None
    task: Annotated[str | None, typer.Option("--task", metavar="ID", help="Only traces of this task.")] = None
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", metavar="KEY=VALUE", help="Only traces with this metadata; repeatable: all of it."),
    ] = None
    reward_below: Annotated[
        float | None,
        typer.Option("--reward-below", metavar="N", help="Only traces whose reward is below N; NULL is below nothing."),
    ] = None
    failed: Annotated[
        list[str] | None,
        typer.Option("--failed", metavar="ITEM", help="Only traces that failed this item; repeatable: all of them."),
    ] = None

    @property
    def given(self) -> bool:
        """Whether any of them was."""
        return any(getattr(self, one.name) not in (None, []) for one in fields(self))

    def trace_filter(self, reward: str | None = None) -> TraceFilter:
        """The filter for the store; `reward` is the version that `--reward-below` and `--failed` read. Raises
        StoreError on what cannot be meant."""
        from cm2_agent.store import TraceFilter

        since = None if self.since is None else moment(self.since, "--since")
        until = None if self.until is None else moment(self.until, "--until")
        if since is not None and until is not None and since >= until:
            raise StoreError(f"--since {self.since} is not before --until {self.until}: no trace is in between")
        return TraceFilter(
            since=since,
            until=until,
            user=self.user,
            session=self.session,
            tags=self.tag or (),
            agent=self.agent,
            task=self.task,
            metadata=_metadata(self.metadata or ()),
            reward=reward,
            reward_below=self.reward_below,
            failed=self.failed or (),
        )


def with_filters(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of `FilterOptions` in place of its parameter `where`."""
    hints = get_type_hints(FilterOptions, include_extras=True)
    shared = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[one.name])
        for one in fields(FilterOptions)
    ]
    names = [one.name for one in shared]

    @wraps(command)
    def run(**given: Any) -> None:
        command(**{WHERE: FilterOptions(**{name: given.pop(name) for name in names})}, **given)

    own = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in own.parameters.values():
        named = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        parameters += shared if parameter.name == WHERE else [named]
    vars(run)["__signature__"] = own.replace(parameters=parameters)  # what Typer reads
    return run


def _metadata(given: list[str] | tuple[()]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise StoreError(f"--metadata is {text!r}; expected KEY=VALUE, such as plan=gold")
        if found.setdefault(key, value) != value:
            raise StoreError(f"--metadata {key} is given as {found[key]!r} and {value!r}; a trace has one of them")
    return found


__all__ = ["FilterOptions", "with_filters"]
