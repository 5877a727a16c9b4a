"""Functions that are recorded: the outermost call is a run, those below are its tools, agents and steps."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

from cm2_agent.dialects import semconv
from cm2_agent.langchain_messages import plain
from cm2_agent.tracing.observed_spans import Observed, Source, current, entered, write

__all__ = ["Kind", "observed_function"]

Kind: TypeAlias = Literal["agent", "tool"]


def observed_function(
    function: Callable[..., Any],
    source: Source,
    kind: Kind | None,
    name: str | None,
    thread: str | None,
    user: str | None,
) -> Callable[..., Any]:
    """The function, recorded: plain, `async`, or a generator of either kind, which runs as long as it is drawn from."""
    named = name or str(getattr(function, "__name__", type(function).__name__))
    signature = inspect.signature(function)

    def begin(args: Any, kwargs: Any) -> Observed | None:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return None  # the call itself says what is wrong
        bound.apply_defaults()
        return _begin(source, kind, named, dict(bound.arguments), thread, user)

    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def agenerate(*args: Any, **kwargs: Any) -> Any:
            observed = begin(args, kwargs)
            generator = function(*args, **kwargs)
            if observed is None:
                async for item in generator:
                    yield item
                return
            try:
                while True:
                    with entered(observed):
                        item = await generator.__anext__()
                    yield item
            except StopAsyncIteration:
                observed.end()
            except BaseException as error:
                await generator.aclose()
                observed.end(error)
                raise

        return agenerate

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generate(*args: Any, **kwargs: Any) -> Any:
            observed = begin(args, kwargs)
            generator = function(*args, **kwargs)
            if observed is None:
                return (yield from generator)
            sent: Any = None
            try:
                while True:
                    with entered(observed):
                        item = generator.send(sent)
                    sent = yield item
            except StopIteration as stop:
                _answer(observed, stop.value)
                return stop.value
            except BaseException as error:
                generator.close()
                observed.end(error)
                raise

        return generate

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def acall(*args: Any, **kwargs: Any) -> Any:
            observed = begin(args, kwargs)
            if observed is None:
                return await function(*args, **kwargs)
            try:
                with entered(observed):
                    answer = await function(*args, **kwargs)
            except BaseException as error:
                observed.end(error)
                raise
            _answer(observed, answer)
            return answer

        return acall

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        observed = begin(args, kwargs)
        if observed is None:
            return function(*args, **kwargs)
        try:
            with entered(observed):
                answer = function(*args, **kwargs)
        except BaseException as error:
            observed.end(error)
            raise
        _answer(observed, answer)
        return answer

    return call


def _begin(
    source: Source, kind: Kind | None, name: str, arguments: dict[str, Any], thread: str | None, user: str | None
) -> Observed:
    above = current()
    given = {key: value for key, value in arguments.items() if key not in ("self", "cls")}
    shown: Any = plain(given)
    call_id = None
    if above is not None and kind != "agent":
        asked = {asked[1] for asked in above.asked}
        if name in asked:
            kind, call_id = "tool", above.answering(name, shown)
    if kind == "tool":
        observed = Observed.begin(source, above, semconv.EXECUTE_TOOL, name, {semconv.TOOL_NAME: name})
        write(observed.span, **{semconv.TOOL_CALL_ID: call_id, semconv.TOOL_ARGUMENTS: json.dumps(shown)})
        return observed
    if above is not None and kind is None:
        return Observed.begin(source, above, semconv.STEP, name, {})
    observed = Observed.begin(source, above, semconv.INVOKE_AGENT, f"invoke_agent {name}", {semconv.AGENT_NAME: name})
    observed.asked = []  # an agent's calls are its own
    facts = {semconv.CONVERSATION: arguments.get(thread or ""), "user.id": arguments.get(user or "")}
    write(observed.span, **{name: str(value) for name, value in facts.items() if value is not None})
    said = next((value for key, value in given.items() if isinstance(value, str) and key not in (thread, user)), None)
    listed = next((value for value in given.values() if _are_messages(value)), None)
    prompt = plain(listed) if listed is not None else [{"role": "user", "content": said}] if said else None
    write(observed.span, **{semconv.INPUT_MESSAGES: prompt})
    return observed


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(one, Mapping) and "role" in one and ("content" in one or "tool_calls" in one) for one in value
        )
    )


def _answer(observed: Observed, answer: Any) -> None:
    if observed.kind == semconv.EXECUTE_TOOL:
        text = answer if isinstance(answer, str) else json.dumps(plain(answer), ensure_ascii=False)
        write(observed.span, **{semconv.TOOL_RESULT: text})
    elif observed.kind == semconv.INVOKE_AGENT and isinstance(answer, str) and answer:
        write(observed.span, **{semconv.OUTPUT_MESSAGES: [{"role": "assistant", "content": answer}]})
    observed.end()
