"""What a server reports of tokens, gathered over a response or a stream, and whether it is the text's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ReportedTokens"]

_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_REASONING = ("reasoning_content", "reasoning")
_ENDS = ("stop", "length", "tool_calls", "function_call")  # of the model's own; not abort, error, content_filter
_NONE = -9999.0  # what vLLM has for a logprob that it does not know, and for minus infinity
_LEAST = -9998.0


@dataclass(kw_only=True)
class ReportedTokens:
    """Ids and logprobs of one completion, with the text and the usage that they have to agree with.

    `add` takes a response, or each chunk of a stream in order; `problem` says at the end why the ids cannot be trained
    on. `choices` is how many completions the usage counts. vLLM gives the ids with their text; SGLang all at once, in
    `sglext`, at the end of a stream (`ids_at_end`)."""

    streamed: bool = False
    ids_at_end: bool = False
    prompt_ids: list[int] | None = None
    completion_ids: list[int] | None = None
    logprobs: list[float] = field(default_factory=list)
    choices: int = 1
    model: str | None = None
    _tokens: list[Mapping[str, Any]] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)
    _reasoning: list[str] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)
    _usage: Mapping[str, Any] = field(default_factory=dict)
    _ended: str | None = None
    _cut: int | str | None = None
    _unknown: int = 0
    _broken: str | None = None

    def add(self, data: Mapping[str, Any]) -> None:
        """One response, or one chunk of a stream: the body as the server sent it."""
        self.model = data.get("model") or self.model
        self._usage = data.get("usage") or self._usage
        choices = data.get("choices") or []
        choice: Mapping[str, Any] = choices[0] if choices else {}
        extension: Mapping[str, Any] = data.get("sglext") or {}
        prompt = data.get("prompt_token_ids") or choice.get("prompt_token_ids") or extension.get("input_ids")
        if prompt:
            if self.prompt_ids is None:
                self.prompt_ids = list(prompt)
            elif list(prompt) != self.prompt_ids:
                self._broken = "the server reported two prompts"
        message: Mapping[str, Any] = choice.get("delta" if self.streamed else "message") or {}
        said = self._read(message)
        self._ended = choice.get("finish_reason") or self._ended
        self._cut = choice.get("stop_reason") or choice.get("matched_stop") or self._cut
        if len(choice.get("weight_versions") or ()) > 1:  # a span of tokens each
            self._broken = "the server's weights changed while it was sampled"
        if self.streamed and choice.get("index"):
            self._broken = "several completions came in one stream"
        ids = choice.get("token_ids")
        if self.ids_at_end:
            completions = extension.get("output_ids") or []
            number = choice.get("index") or 0
            ids = completions[number] if number < len(completions) else None
        elif ids is None:
            if said:
                self._broken = self._broken or "a part of the completion came without token ids"
            return
        if ids is not None:
            if self.completion_ids is None:
                self.completion_ids = []
            self.completion_ids += ids
        entries = (choice.get("logprobs") or {}).get("content") or []
        self._tokens += entries
        for entry in entries:
            value = entry.get("logprob")
            known = isinstance(value, int | float) and value > _LEAST  # JSON has null for what is no number
            self._unknown += not known
            self.logprobs.append(float(value) if known else _NONE)

    def metadata(self) -> dict[str, Any]:
        """The ids and logprobs, under a local model's names; nothing where the server reported none."""
        found: dict[str, Any] = {}
        if self.prompt_ids is not None:
            found["prompt_ids"] = self.prompt_ids
        if self.completion_ids is not None:
            found |= {"completion_ids": self.completion_ids, "logprobs": self.logprobs}
            problem = self.problem()
            found |= {} if problem is None else {"untrainable": problem}
        return found

    def problem(self) -> str | None:
        """Why these ids are not those of the text, None where they are."""
        ids = self.completion_ids or []
        if self._broken is not None:
            return self._broken
        if self.streamed and self._ended is None:
            return "the stream ended before the completion did"
        if self._ended is not None and self._ended not in _ENDS:
            return f"the server ended the completion with {self._ended!r}, not the model"
        if self._unknown:
            return f"{self._unknown} of {len(self.logprobs)} tokens without a logprob"
        if len(self.logprobs) != len(ids):
            return f"{len(ids)} token ids and {len(self.logprobs)} logprobs"
        counts = [self._usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        if counts[1] is None:
            return "no usage to count the token ids by"
        if self.choices > 1:  # the usage counts the tokens of all
            counts[1] = None
        for what, count, found in (("prompt", counts[0], self.prompt_ids or []), ("completion", counts[1], ids)):
            if count is not None and count != len(found):
                return f"{len(found)} token ids of the {what}, and a usage of {count}"
        if self._decodes():
            return None
        if isinstance(self._cut, str):
            return "a stop string cut the text: the token ids hold more of it"
        return "the token ids do not decode to the text"

    def _read(self, message: Mapping[str, Any]) -> bool:
        """Take the text of a message or a delta; whether there was any."""
        text = message.get("content")
        reasoning = next((found for name in _REASONING if isinstance(found := message.get(name), str)), "")
        calls = message.get("tool_calls")
        if isinstance(text, str):
            self._text.append(text)
        if reasoning:
            self._reasoning.append(reasoning)
        for call in calls or ():
            name = (call.get("function") or {}).get("name")
            if isinstance(name, str) and name:
                self._names.append(name)
        return bool(text or reasoning or calls)

    def _decodes(self) -> bool:
        pieces = self._pieces()
        if pieces is None:
            return True
        whole, text, reasoning = "".join(pieces), "".join(self._text), "".join(self._reasoning)
        if reasoning or self._names:  # the server took its markup out of the text
            named = all(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", whole) for name in self._names)
            return named and _stands_in(reasoning, whole) and _stands_in(text, whole)
        # the stop token is an id, and no text
        return any(_same(decoded, text) for decoded in (whole, "".join(pieces[:-1])))

    def _pieces(self) -> list[str] | None:
        """The text of each token; None where the server gives placeholders for it."""
        if all(isinstance(token.get("bytes"), list) for token in self._tokens):
            joined = [bytes(token["bytes"]) for token in self._tokens]
            last = joined[-1] if joined else b""
            rest = b"".join(joined[:-1])
            return [rest.decode("utf-8", "replace"), last.decode("utf-8", "replace")]
        words = [str(token.get("token") or "") for token in self._tokens]
        numbered = zip(words, self.completion_ids or [], strict=False)
        if len(set(words)) == 1 or all(word in (str(number), f"token_id:{number}") for word, number in numbered):
            return None
        return words


def _same(decoded: str, text: str) -> bool:
    """Whether the tokens' text is the text, but for white space at its ends, which servers strip."""
    decoded, text = _comparable(decoded, text)
    return decoded.strip() == text.strip()


def _stands_in(part: str, decoded: str) -> bool:
    decoded, part = _comparable(decoded, part)
    return part.strip() in decoded


def _comparable(decoded: str, text: str) -> tuple[str, str]:
    """Both texts; their ASCII alone where a token was half a character, which decodes to U+FFFD."""
    if "\ufffd" not in decoded:
        return decoded, text
    return _NOT_ASCII.sub("", decoded), _NOT_ASCII.sub("", text)
