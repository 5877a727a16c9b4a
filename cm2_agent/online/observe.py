"""`observe`: a plain OpenAI client and the functions of a hand-written loop, recorded as `watch` records graphs."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, TypeVar, overload

from cm2_agent.online.live_path import LivePath, is_enabled
from cm2_agent.tracing.observed_function import Kind, observed_function
from cm2_agent.tracing.observed_spans import Source
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.protocols import Sink, Store

__all__ = ["observe"]

T = TypeVar("T")


@overload
def observe(
    target: T,
    checklist: Checklist | str | PathLike[str] | None = None,
    *,
    kind: Kind | None = None,
    name: str | None = None,
    thread: str | None = None,
    user: str | None = None,
    store: Store | str = "sqlite:///cm2.db",
    sinks: Sequence[Sink] = (),
    enabled: bool | None = None,
    **settings: Any,
) -> T: ...
@overload
def observe(
    target: None = None,
    checklist: Checklist | str | PathLike[str] | None = None,
    *,
    kind: Kind | None = None,
    name: str | None = None,
    thread: str | None = None,
    user: str | None = None,
    store: Store | str = "sqlite:///cm2.db",
    sinks: Sequence[Sink] = (),
    enabled: bool | None = None,
    **settings: Any,
) -> Callable[[T], T]: ...
def observe(
    target: Any = None,
    checklist: Checklist | str | PathLike[str] | None = None,
    *,
    kind: Kind | None = None,
    name: str | None = None,
    thread: str | None = None,
    user: str | None = None,
    store: Store | str = "sqlite:///cm2.db",
    sinks: Sequence[Sink] = (),
    enabled: bool | None = None,
    **settings: Any,
) -> Any:
    """Record a plain OpenAI client, or the functions of a hand-written agent: `observe(OpenAI())`, `@observe`, or
    `@observe(store=…)`.

    The outermost observed function is a run. Its model calls are those of an observed client within it, chat
    completions and responses, sync, async and streaming. An observed function below it is a tool where a model asked
    for one of its name, or with `kind="tool"`; an agent of its own with `kind="agent"`; else a step, of which nothing
    is kept. Client calls outside of any observed function are a run each, which goes on with the dialogue that the call
    was shown.

    Token ids and logprobs are kept where the server returns them with a chat completion (vLLM: `logprobs=True` and
    `extra_body={"return_token_ids": True}`). A response that goes on with an earlier one (`previous_response_id`,
    `conversation`) has the dialogue before it where this client saw it.

    Args:
        target: an OpenAI or AsyncOpenAI client, of which a recorded copy is returned; or a function: plain, `async` or
            a generator.
        checklist: as for `watch`.
        kind: what a function is, where it is not the outermost one.
        name: what a function is called in the store. Default: its name.
        thread: the parameter of the outermost function that holds the conversation's id.
        user: the parameter that holds the user's id.
        store: as for `watch`; it is opened with the first call. What is called within an observed function goes where
            that one's runs go.
        sinks: as for `watch`.
        enabled: False, or CM2_DISABLED=1 in the environment, returns the target as it is.
        settings: further ones of `watch`: `rewards`, `judge`, `sample`, `budget_usd`, `redact`, `sample_store`,
            `project`, `spool`, `strict`, `check_timeout`.

    Raises:
        TypeError: a target of another kind, or a setting that `watch` does not have.
        ValueError: a parameter that the function does not have; and what `watch` raises.

    >>> from cm2_agent import SQLStore, flush, observe
    >>> @observe(store="sqlite:///cm2.db", thread="chat")
    ... def answer(question: str, chat: str) -> str:
    ...     return f"You asked: {question}"
    >>> answer("Where is order 7?", chat="t1"), flush()
    ('You asked: Where is order 7?', True)
    >>> [message.text for message in SQLStore("sqlite:///cm2.db").trace("t1").messages]
    ['Where is order 7?', 'You asked: Where is order 7?']
    """
    if target is None:
        return functools.partial(
            observe,
            checklist=checklist,
            kind=kind,
            name=name,
            thread=thread,
            user=user,
            store=store,
            sinks=sinks,
            enabled=enabled,
            **settings,
        )
    path = LivePath(checklist=checklist, store=store, sinks=sinks, **settings)
    path.check()
    client = _is_client(target)
    if not client:
        _check_function(target, kind, {"thread": thread, "user": user})
    if not is_enabled(enabled):
        return target
    source = Source(lambda: _opened(path))
    if client:
        from cm2_agent.tracing.openai_client import observed_client

        return observed_client(target, source)
    return observed_function(target, source, kind, name, thread, user)


def _opened(path: LivePath) -> Any:
    on_run, incidents = path.open()
    return path.redacted(on_run), incidents


def _is_client(target: Any) -> bool:
    module: Any = sys.modules.get("openai")
    return module is not None and isinstance(target, module.OpenAI | module.AsyncOpenAI)


def _check_function(target: Any, kind: Any, named: dict[str, str | None]) -> None:
    if isinstance(target, type) or not callable(target):
        what = f"the class {target.__name__}" if isinstance(target, type) else f"a {type(target).__name__}"
        raise TypeError(
            f"observe was given {what}; expected an OpenAI or AsyncOpenAI client, or a function (a graph or an Agent is"
            " for watch)"
        )
    if kind not in (None, "agent", "tool"):
        raise ValueError(f"observe was given kind={kind!r}; expected 'agent', 'tool' or None")
    known = inspect.signature(target).parameters
    for option, parameter in named.items():
        if parameter is not None and parameter not in known:
            raise ValueError(
                f"observe was given {option}={parameter!r}; expected a parameter of the function: {', '.join(known)}"
            )
