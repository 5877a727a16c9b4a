"""A plain OpenAI client whose calls are recorded: the methods of one client are wrapped, no class is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from cm2_agent.tracing.chat_call import ChatCall
from cm2_agent.tracing.observed_spans import Source
from cm2_agent.tracing.recorded_stream import AsyncRecordedStream, RecordedCall, RecordedStream
from cm2_agent.tracing.response_call import KnownResponses, ResponseCall

__all__ = ["observed_client"]

_Begin: TypeAlias = Callable[[Mapping[str, Any]], RecordedCall]


def observed_client(client: Any, source: Source) -> Any:
    """A copy of the client, of the same class and on the same connections, whose chat completions and responses are
    recorded. A call within an observed function is part of its run; others go to `source`."""
    copied = client.copy()
    known = KnownResponses()
    apis: list[tuple[Any, _Begin]] = [
        (copied.chat.completions, lambda request: ChatCall(source, request)),
        (copied.responses, lambda request: ResponseCall(source, request, known)),
    ]
    for api, begin in apis:
        for name in ("create", "parse"):
            setattr(api, name, _recorded(getattr(api, name), begin))
    return copied


def _recorded(method: Any, begin: _Begin) -> Any:
    if inspect.iscoroutinefunction(inspect.unwrap(method)):

        @functools.wraps(method)
        async def acreate(*args: Any, **request: Any) -> Any:
            call = begin(_given(request))
            try:
                found = await method(*args, **request)
            except BaseException as error:
                call.fail(error)
                raise
            return AsyncRecordedStream(found, call) if hasattr(found, "__aiter__") else call.answered(found)

        return acreate

    @functools.wraps(method)
    def create(*args: Any, **request: Any) -> Any:
        call = begin(_given(request))
        try:
            found = method(*args, **request)
        except BaseException as error:
            call.fail(error)
            raise
        return RecordedStream(found, call) if hasattr(found, "__next__") else call.answered(found)

    return create


def _given(request: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given: the client's helpers pass placeholders for the others."""
    return {name: value for name, value in request.items() if type(value).__name__ not in ("NotGiven", "Omit")}
