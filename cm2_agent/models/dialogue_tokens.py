"""`DialogueTokens`: a dialogue as one sequence of token ids, by a tokenizer and its chat template, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from cm2_agent.models.chat_template import content_of, history_hash, parse_completion, template_messages
from cm2_agent.models.control_words import ControlWords, Rendered, unescaped
from cm2_agent.models.template_probe import TemplateProfile, in_blocks, probe, shared_length

__all__ = ["HISTORY", "DialogueTokens"]

HISTORY = "cm2_history"  # in additional_kwargs: what the prompt of this message was made of
PROMPT_TAIL = 64  # tokens of the prompt's end in which a tag of thinking would stand, if each were a byte
# Stands where an assistant message was, to see what a template puts after it. Plain letters: no template escapes or
# trims them.
SENTINEL = "CM2ENDOFCOMPLETION"


class DialogueTokens:
    """What a model reads and what its completions say. A completion ends at one of `stop_ids`; `template_kwargs` go to
    the chat template."""

    def __init__(self, tokenizer: Any, *, stop_ids: frozenset[int], template_kwargs: Mapping[str, Any]) -> None:
        self.tokenizer, self.stop_ids, self.template_kwargs = tokenizer, stop_ids, template_kwargs
        self._words = ControlWords(tokenizer)

    @cached_property
    def template(self) -> TemplateProfile:
        """What the chat template shows and how it writes calls: found by a probe, once."""
        return probe(self.tokenizer, self.template_kwargs)

    def prompt_ids(
        self, messages: Sequence[BaseMessage], tools: list[dict[str, Any]] | None, *, written_by: str
    ) -> list[int]:
        """The token ids that the model reads before it answers: an extension of its last call's tokens wherever the
        history allows. `written_by` is the model's name."""
        last = max((i for i, message in enumerate(messages) if isinstance(message, AIMessage)), default=None)
        if last is not None and (own := self._own_tokens(messages, last, tools, written_by)) is not None:
            after = self._text_after(messages, last, tools, own[-1])
            if after is not None:
                return own + self._words.encode(after, after=own[-1] if own[-1] in self.stop_ids else None)
        return self._words.encode(self.rendered(template_messages(messages, self.template), tools))

    def _own_tokens(
        self, messages: Sequence[BaseMessage], last: int, tools: list[dict[str, Any]] | None, written_by: str
    ) -> list[int] | None:
        """Prompt and completion of `messages[last]`, if this model wrote it and nothing up to it was edited since."""
        message = messages[last]
        meta = message.response_metadata
        if not isinstance(message, AIMessage) or meta.get("model_name") != written_by or not meta.get("completion_ids"):
            return None
        if message.additional_kwargs.get(HISTORY) != history_hash(messages[:last], tools):
            return None
        if content_of(self.parse(meta["prompt_ids"], meta["completion_ids"], (), tools=tools)) != content_of(message):
            return None
        return [*meta["prompt_ids"], *meta["completion_ids"]]

    def _text_after(
        self, messages: Sequence[BaseMessage], last: int, tools: list[dict[str, Any]] | None, drawn: int
    ) -> Rendered | None:
        """What the template writes after the assistant message `last`, whose last token is `drawn`, up to the model's
        next completion; None if that cannot be found out."""
        listed = template_messages(messages, self.template)
        calls = listed[last].get("tool_calls") if self.template.sentinel_in_call else None
        if calls:
            arguments = {"text": SENTINEL}
            written = json.dumps(arguments) if self.template.arguments_as_text else arguments
            calls = [*calls[:-1], {**calls[-1], "function": {**calls[-1]["function"], "arguments": written}}]
            listed[last] = {"role": "assistant", "content": "", "tool_calls": calls}
        else:
            listed[last] = {"role": "assistant", "content": SENTINEL}
        try:
            rendered = self.rendered(listed, tools)
            _, found, after = rendered.text.partition(SENTINEL)
            if not found or SENTINEL in after:
                return None
            if drawn not in self.stop_ids:
                return None if calls else rendered.part(after)  # the end of a call that was cut is not the template's
            # The template may write the end of the message too, which is the model's stop token already; where the
            # model stopped at another, the template's own ending follows it.
            stop = self.tokenizer.decode([drawn])
            if after.startswith(stop):
                return rendered.part(after.removeprefix(stop))
            ending = self.rendered(listed[: last + 1], tools, asks=False).text.partition(SENTINEL)[2]
            place = ending[: shared_length(ending, after)].find(stop)
        except Exception:  # a template may refuse a tool result without its call; it is then encoded afresh
            return None
        if place >= 0:
            return rendered.part(after[place + len(stop) :])
        return None if calls else rendered.part(after)

    def rendered(
        self, listed: list[dict[str, Any]], tools: list[dict[str, Any]] | None, *, asks: bool = True
    ) -> Rendered:
        """The messages as text, with `asks` up to where the model begins to write."""
        shown, offered, hidden = self._words.hide(listed, tools)
        shown = in_blocks(shown) if self.template.content_in_blocks else shown
        text = self.tokenizer.apply_chat_template(
            shown, tools=offered, tokenize=False, add_generation_prompt=asks, **self.template_kwargs
        )
        return Rendered(unescaped(str(text), hidden), hidden)

    def parse(
        self,
        prompt_ids: Sequence[int],
        ids: Sequence[int],
        stop: Sequence[str],
        salt: str = "",
        tools: list[dict[str, Any]] | None = None,
    ) -> AIMessage:
        """The message of a completion."""
        text = self.text(ids)
        for word in stop:
            text = text.partition(word)[0]
        prompt = self.text(prompt_ids[-PROMPT_TAIL:])
        return parse_completion(text, salt, prompt, self.template.calls, tools or ())

    def text(self, ids: Sequence[int]) -> str:
        """What the ids say, without the stop token."""
        written = list(ids[:-1] if ids and ids[-1] in self.stop_ids else ids)
        return str(self.tokenizer.decode(written, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def cut(self, ids: Sequence[int], stop: Sequence[str]) -> int | None:
        """How many tokens there are up to the one in which a stop string is complete; None where none is."""
        if not any(word in self.text(ids) for word in stop):
            return None
        return next(count for count in range(1, len(ids) + 1) if any(word in self.text(ids[:count]) for word in stop))
