"""A plain OpenAI client whose chat completions are recorded: the methods of one client are wrapped, no class is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from cm2_agent.dialects import semconv
from cm2_agent.dialects.reported_tokens import tokens_reported
from cm2_agent.dialects.token_text import encode_ids, encode_logprobs
from cm2_agent.dialects.values import parsed
from cm2_agent.models.endpoint_sampling import not_plain, sampling_of
from cm2_agent.models.endpoint_tokens import ReportedTokens
from cm2_agent.tracing.observed_spans import Observed, Source, current, write

__all__ = ["observed_client"]

_ATTRIBUTES = {
    "messages": semconv.INPUT_MESSAGES,
    "tools": semconv.TOOL_DEFINITIONS,
    "model": semconv.REQUEST_MODEL,
}


def observed_client(client: Any, source: Source) -> Any:
    """A copy of the client, of the same class and on the same connections, whose chat completions are recorded. A call
    within an observed function is part of its run; others go to `source`."""
    copied = client.copy()
    completions = copied.chat.completions
    for name in ("create", "parse"):
        setattr(completions, name, _recorded(getattr(completions, name), source))
    return copied


def _recorded(method: Any, source: Source) -> Any:
    if inspect.iscoroutinefunction(inspect.unwrap(method)):

        @functools.wraps(method)
        async def acreate(*args: Any, **request: Any) -> Any:
            call = _Call(source, request)
            try:
                found = await method(*args, **request)
            except BaseException as error:
                call.fail(error)
                raise
            return _AsyncStream(found, call) if hasattr(found, "__aiter__") else call.answered(found)

        return acreate

    @functools.wraps(method)
    def create(*args: Any, **request: Any) -> Any:
        call = _Call(source, request)
        try:
            found = method(*args, **request)
        except BaseException as error:
            call.fail(error)
            raise
        return _Stream(found, call) if hasattr(found, "__next__") else call.answered(found)

    return create


class _Call:
    """One request and what came of it."""

    def __init__(self, source: Source, request: Mapping[str, Any]) -> None:
        self.request = request
        self.streamed = bool(request.get("stream"))
        self.above = current()
        model = str(request.get("model") or "")
        self.observed = Observed.begin(source, self.above, semconv.CHAT, f"chat {model}".strip(), {})
        write(self.observed.span, **{name: request.get(key) for key, name in _ATTRIBUTES.items()})
        self.reported = ReportedTokens(streamed=self.streamed, choices=int(request.get("n") or 1))
        self.message: dict[str, Any] = {"role": "assistant"}
        self.calls: dict[int, dict[str, Any]] = {}
        self.finish: str | None = None
        self.usage: Mapping[str, Any] = {}
        self.model: str | None = None
        self.done = False

    def answered(self, response: Any) -> Any:
        """A whole response, which goes on to the caller."""
        if callable(dump := getattr(response, "model_dump", None)):  # a raw response is the caller's to read
            body: Any = dump()
            self._take(body)
            choices = body.get("choices") or [{}]
            self.message = dict(choices[0].get("message") or {})
            self.message.pop("parsed", None)
            self.calls = dict(enumerate(self.message.get("tool_calls") or ()))
        self.end()
        return response

    def chunk(self, piece: Any) -> None:
        body = piece.model_dump()
        self._take(body)
        delta = ((body.get("choices") or [{}])[0]).get("delta") or {}
        for key in ("content", "reasoning_content", "reasoning", "refusal"):
            if isinstance(delta.get(key), str):
                self.message[key] = (self.message.get(key) or "") + delta[key]
        for one in delta.get("tool_calls") or ():
            call = self.calls.setdefault(one.get("index") or 0, {"function": {"name": "", "arguments": ""}})
            call["id"] = one.get("id") or call.get("id")
            for key in ("name", "arguments"):
                call["function"][key] += (one.get("function") or {}).get(key) or ""

    def _take(self, body: Mapping[str, Any]) -> None:
        self.reported.add(body)
        self.usage = body.get("usage") or self.usage
        self.model = body.get("model") or self.model
        choice = (body.get("choices") or [{}])[0]
        self.finish = choice.get("finish_reason") or self.finish

    def fail(self, error: BaseException) -> None:
        if not self.done:
            self.done = True
            self.observed.end(error)

    def end(self) -> None:
        """Write what was answered, and end the span."""
        if self.done:
            return
        self.done = True
        span = self.observed.span
        tokens = tokens_reported(self.reported)
        kind = "unknown" if tokens.logprobs is not None else ""
        sampling = sampling_of(self.request, kind)
        if not kind:
            sampling.pop("logprobs", None)
        if problem := tokens.problem or not_plain(self.request):
            sampling["untrainable"] = problem
        answer = {**self.message, "tool_calls": [self.calls[place] for place in sorted(self.calls)]}
        write(
            span,
            **{
                semconv.OUTPUT_MESSAGES: [answer],
                semconv.RESPONSE_MODEL: self.model,
                semconv.MODEL_VERSION: None if tokens.completion_ids is None else self.model,
                semconv.FINISH_REASONS: [self.finish] if self.finish else None,
                semconv.INPUT_TOKENS: self.usage.get("prompt_tokens"),
                semconv.OUTPUT_TOKENS: self.usage.get("completion_tokens"),
                semconv.SAMPLING: sampling,
                semconv.PROMPT_IDS: None if tokens.prompt_ids is None else encode_ids(tokens.prompt_ids),
                semconv.COMPLETION_IDS: None if tokens.completion_ids is None else encode_ids(tokens.completion_ids),
                semconv.LOGPROBS: None if tokens.logprobs is None else encode_logprobs(tokens.logprobs),
            },
        )
        if self.above is not None:
            self.above.asked.extend(_asked(call) for call in answer["tool_calls"])
        self.observed.end()


def _asked(call: Mapping[str, Any]) -> tuple[str | None, str, Any]:
    function = call.get("function") or call.get("custom") or {}
    return call.get("id"), str(function.get("name")), parsed(function.get("arguments"))


class _Stream:
    """A stream of the client's, whose chunks are gathered on their way; everything else is the stream's own."""

    def __init__(self, stream: Any, call: _Call) -> None:
        self._stream, self._call = stream, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            piece = next(self._stream)
        except StopIteration:
            self._call.end()
            raise
        except BaseException as error:
            self._call.fail(error)
            raise
        self._call.chunk(piece)
        return piece

    def __enter__(self) -> _Stream:
        self._stream.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._call.end()
        self._stream.__exit__(*exception)

    def close(self) -> None:
        self._call.end()
        self._stream.close()

    def __del__(self) -> None:
        self._call.end()


class _AsyncStream:
    """As `_Stream`, of an asynchronous client."""

    def __init__(self, stream: Any, call: _Call) -> None:
        self._stream, self._call = stream, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            piece = await self._stream.__anext__()
        except StopAsyncIteration:
            self._call.end()
            raise
        except BaseException as error:
            self._call.fail(error)
            raise
        self._call.chunk(piece)
        return piece

    async def __aenter__(self) -> _AsyncStream:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exception: Any) -> None:
        self._call.end()
        await self._stream.__aexit__(*exception)

    async def close(self) -> None:
        self._call.end()
        await self._stream.close()

    def __del__(self) -> None:
        self._call.end()
