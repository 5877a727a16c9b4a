"""A call of the Responses API, recorded: its items are a chat's messages, as they are where they are imported."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from cm2_agent.dialects import semconv
from cm2_agent.dialects.responses_items import responses_to_chat
from cm2_agent.dialects.values import parsed
from cm2_agent.errors import ModelError
from cm2_agent.langchain_messages import plain
from cm2_agent.models.endpoint_sampling import sampling_of
from cm2_agent.tracing.observed_spans import Observed, Source, current, write

__all__ = ["KnownResponses", "ResponseCall"]

_MOST = 1_000
_CALLS = ("function_call", "custom_tool_call")
_LENGTH = {"max_output_tokens": "length"}
# The text of an item that is still being written, by the kind of event that adds to it.
_TEXTS = {"output_text": "output_text", "refusal": "refusal", "reasoning_text": "reasoning_text"}
_FIELDS = {
    "response.function_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "input",
}


class KnownResponses:
    """The items up to each response, and of each conversation, that a client has seen lately: a request that goes on
    with one holds the new items alone."""

    def __init__(self) -> None:
        self._items: OrderedDict[str, Sequence[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def before(self, name: str) -> Sequence[Any] | None:
        """The items, None where they were never seen."""
        with self._lock:
            return self._items.get(name)

    def add(self, name: str, items: Sequence[Any]) -> None:
        with self._lock:
            self._items[name] = items
            self._items.move_to_end(name)
            while len(self._items) > _MOST:
                self._items.popitem(last=False)


class ResponseCall:
    """One request for a response, and what came of it."""

    def __init__(self, source: Source, request: Mapping[str, Any], known: KnownResponses) -> None:
        self.request, self.known = request, known
        self.above = current()
        model = str(request.get("model") or "")
        self.observed = Observed.begin(source, self.above, semconv.CHAT, f"chat {model}".strip(), {})
        self.items = [*self._before(), *_input(request.get("input"))]
        write(
            self.observed.span,
            **{
                semconv.INPUT_MESSAGES: self._prompt(),
                semconv.TOOL_DEFINITIONS: request.get("tools"),
                semconv.REQUEST_MODEL: request.get("model"),
            },
        )
        self.response: Mapping[str, Any] = {}
        self.output: dict[int, Any] = {}
        self.done = False

    def answered(self, response: Any) -> Any:
        """A whole response, which goes on to the caller."""
        if callable(dump := getattr(response, "model_dump", None)):  # a raw response is the caller's to read
            self.response = _said(dump(warnings=False))
        self.end()
        return response

    def chunk(self, piece: Any) -> None:
        """An event of a stream. The last one holds the response whole; what came before counts where it does not
        come."""
        kind = str(piece.type)
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            self.response = _said(piece.response.model_dump(warnings=False))
            self.end()
        elif kind in ("response.created", "response.in_progress"):
            self.response = {**_said(piece.response.model_dump(warnings=False)), "output": None}
        elif kind in ("response.output_item.added", "response.output_item.done"):
            self.output[piece.output_index] = _said(piece.item.model_dump(warnings=False))
        elif kind in _FIELDS:
            item = self.output.get(piece.output_index, {})
            item[_FIELDS[kind]] = (item.get(_FIELDS[kind]) or "") + piece.delta
        elif kind.endswith(".delta") and (text := _TEXTS.get(kind.split(".")[1])):
            item = self.output.setdefault(piece.output_index, {"type": "message", "role": "assistant"})
            blocks = [dict(block) for block in item.get("content") or [] if block.get("type") == text]
            key = "refusal" if text == "refusal" else "text"
            said = blocks[-1].get(key, "") if blocks else ""
            item["content"] = [{"type": text, key: said + piece.delta}]

    def fail(self, error: BaseException) -> None:
        if not self.done:
            self.done = True
            self.observed.end(error)

    def end(self) -> None:
        """Write what was answered, and end the span."""
        if self.done:
            return
        self.done = True
        found = self.response.get("output")
        output = found if isinstance(found, list) else [self.output[place] for place in sorted(self.output)]
        for name in (self.response.get("id"), _conversation(self.request)):
            if name:
                self.known.add(str(name), [*self.items, *output])
        asked = [_asked(item) for item in output if item.get("type") in _CALLS]
        usage: Mapping[str, Any] = self.response.get("usage") or {}
        sampling = sampling_of({**self.request, "max_tokens": self.request.get("max_output_tokens")}, "")
        del sampling["logprobs"]
        *earlier, answer = responses_to_chat(output) or [None]
        if answer is not None and answer["role"] == "tool":  # of the provider's own tool, and no word behind it
            earlier, answer = [*earlier, answer], {"role": "assistant", "content": ""}
        write(
            self.observed.span,
            **{
                # What the provider's own tools did within the answer was said before the last message of it.
                semconv.INPUT_MESSAGES: [*self._prompt(), *earlier] if earlier else None,
                semconv.OUTPUT_MESSAGES: None if answer is None else [answer],
                semconv.RESPONSE_MODEL: self.response.get("model"),
                semconv.FINISH_REASONS: self._finish(bool(asked)),
                semconv.INPUT_TOKENS: usage.get("input_tokens"),
                semconv.OUTPUT_TOKENS: usage.get("output_tokens"),
                semconv.SAMPLING: sampling,
            },
        )
        if self.above is not None:
            self.above.asked.extend(asked)
        failed = self.response.get("error") if self.response.get("status") == "failed" else None
        self.observed.end(ModelError(f"{failed.get('code')}: {failed.get('message')}") if failed else None)

    def _before(self) -> Sequence[Any]:
        named = self.request.get("previous_response_id") or _conversation(self.request)
        found = self.known.before(str(named)) if named else ()
        if found is None and self.request.get("previous_response_id") and self.observed.source.incidents is not None:
            self.observed.source.incidents.add(
                "a response goes on with one that this client has not seen: its trace begins with the new items"
            )
        return found or ()

    def _prompt(self) -> list[Any]:
        instructions = self.request.get("instructions")
        system = [{"role": "system", "content": instructions}] if instructions else []
        return [*system, *responses_to_chat(self.items)]

    def _finish(self, calls: bool) -> list[str] | None:
        if self.response.get("status") == "incomplete":
            reason = (self.response.get("incomplete_details") or {}).get("reason")
            return [_LENGTH.get(str(reason), str(reason))]
        return ["tool_calls" if calls else "stop"] if self.response.get("status") == "completed" else None


def _input(given: Any) -> list[Any]:
    """The items of a request: a text is a message of the user."""
    items: Any = [given] if isinstance(given, str) else _said(plain(given))
    found = [{"role": "user", "content": item} if isinstance(item, str) else item for item in items or ()]
    return [item for item in found if isinstance(item, dict)]


def _said(value: Any) -> Any:
    """A value without what is null: an item is the same as the server's, and as it is sent again, as an object of the
    client or as a dict of every field."""
    if isinstance(value, dict):
        return {key: _said(one) for key, one in value.items() if one is not None}
    return [_said(one) for one in value] if isinstance(value, list) else value


def _conversation(request: Mapping[str, Any]) -> str | None:
    given: Any = plain(request.get("conversation"))
    return given.get("id") if isinstance(given, dict) else given


def _asked(item: Mapping[str, Any]) -> tuple[str | None, str, Any]:
    return item.get("call_id"), str(item.get("name")), parsed(item.get("arguments", item.get("input")))
