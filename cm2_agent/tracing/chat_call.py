"""A call of the chat completions, recorded: its messages, and the token ids where the server gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cm2_agent.dialects import semconv
from cm2_agent.dialects.reported_tokens import tokens_reported
from cm2_agent.dialects.token_text import encode_ids, encode_logprobs
from cm2_agent.dialects.values import parsed
from cm2_agent.models.endpoint_sampling import not_plain, sampling_of
from cm2_agent.models.endpoint_tokens import ReportedTokens
from cm2_agent.tracing.observed_spans import Observed, Source, current, write

__all__ = ["ChatCall"]

_ATTRIBUTES = {
    "messages": semconv.INPUT_MESSAGES,
    "tools": semconv.TOOL_DEFINITIONS,
    "model": semconv.REQUEST_MODEL,
}


class ChatCall:
    """One request for a chat completion, and what came of it."""

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
