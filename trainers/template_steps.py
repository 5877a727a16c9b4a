"""Steps by words: what a chat template writes for one message of the assistant, as token ids, and what stands before.

The dialogue is rendered once a step, the way a model would be asked, and what the template adds for the assistant's
message is the completion; templates need no generation marks for that. The ids are those of the whole text: at the
seams between prompt and completion no token is added that the whole text does not have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cm2_agent.errors import TrainError
from cm2_agent.models.chat_template import short_id
from cm2_agent.models.control_words import ControlWords, Rendered
from cm2_agent.models.reasoning_text import opening_tag, split_reasoning
from cm2_agent.models.stop_tokens import eos_ids
from cm2_agent.models.template_probe import TemplateProfile, probe
from cm2_agent.types.messages import Blob, Message, ToolCall, ToolSpec, Uri
from cm2_agent.types.view import as_text

from .prompt_text import missing_text
from .shown_words import texts_of

REFUSED = "the chat template refused the dialogue"
LOST = "the chat template does not show a whole message"
FILES = "images or files, which words do not show"
CUT = frozenset(
    {"length", "max_tokens", "max_output_tokens", "max_length", "model_length", "model_context_window_exceeded"}
    | {
        "content_filter",
        "safety",
        "recitation",
        "incomplete",
        "error",
        "error_limit",
        "pause_turn",
        "abort",
        "cancelled",
    }
)
"""Finish reasons, in lower case, of answers that the model did not end itself, as providers spell them."""
REASONING = "reasoning_content"
SENTINEL = "CM2ENDOFCOMPLETION"


class TemplateRefused(TrainError):
    """The template cannot render this dialogue; others it may."""

    def __init__(self, reason: str, trace_id: str, detail: str) -> None:
        super().__init__(f"trace {trace_id!r}: {reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class StepText:
    """One step: `prompt` and `completion` are token ids, `text` what both say. `ended`: the model's own stop token is
    the completion's last."""

    prompt: list[int]
    completion: list[int]
    text: Rendered
    ended: bool


def is_cut(finish_reason: str | None) -> bool:
    """Whether an answer was cut off, by why its model stopped.

    >>> is_cut("MAX_TOKENS"), is_cut("stop"), is_cut(None)
    (True, False, False)
    """
    return finish_reason is not None and finish_reason.lower().rpartition(".")[2] in CUT


class TemplateSteps:
    """Writes steps with one tokenizer's chat template; `stops` are the model's stop tokens besides the tokenizer's.

    `used` holds the ids of the stop tokens that ended a step so far. Raises TrainError where there is no template, or
    it ends the assistant's messages with no token of the tokenizer: a policy would never learn to stop.
    """

    def __init__(self, tokenizer: Any, stops: Collection[int] = ()) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise TrainError(
                "the tokenizer has no chat template; set tokenizer.chat_template, or take an instruction-tuned model's"
            )
        self.words = ControlWords(tokenizer)
        self.tokenizer = tokenizer
        known = [*stops, *eos_ids(tokenizer.eos_token_id)]
        self._stops = {str(tokenizer.convert_ids_to_tokens(one)) for one in known}
        self._special = _any_of(self.words.special)
        self._longest = sorted(self.words.special, key=lambda word: (-len(word), word))
        self.used: set[int] = set()
        self._require_ending()

    @cached_property
    def profile(self) -> TemplateProfile:
        """What the template shows and how it writes calls."""
        return probe(self.tokenizer)

    def step(
        self,
        before: Sequence[Message],
        message: Message,
        tools: Sequence[ToolSpec] = (),
        *,
        cut: bool = False,
        last: StepText | None = None,
        trace_id: str = "",
    ) -> StepText | None:
        """The assistant's `message` after the messages `before`; None where it holds nothing to imitate: no words, or
        a tool call that is no JSON.

        Args:
            before: what the model is shown, in order.
            message: what it answers.
            tools: the tools that it is offered.
            cut: the answer was cut off, so that nothing ends it.
            last: the step before; the ids of what both begin with stay.
            trace_id: names the dialogue in errors.

        Raises:
            TemplateRefused: the template raises, or what it writes does not hold the message.
        """
        shown = dialogue_entries(before, self.profile)
        offered = template_tools(tools) or None
        prompt = self._render(shown, offered, asks=True, trace_id=trace_id)
        self._require_shown(before, prompt, trace_id, all_of_it=last is None)
        broken = any(_broken(call) for call in message.tool_calls)
        if broken or not (message.text or message.tool_calls) or (cut and (message.tool_calls or not message.text)):
            return None
        answer = dialogue_entries([*before, message], self.profile)
        whole = self._render(answer, offered, asks=False, trace_id=trace_id)
        written = self._written(prompt.text, whole.text, message, trace_id)
        if cut:
            written, ended = self._cut(whole.part(written), message), False
        else:
            written, ended = self._up_to_stop(written)
        if last is not None and prompt.text.startswith(last.text.text):
            ids = [*last.prompt, *last.completion]
            new = prompt.part(prompt.text[len(last.text.text) :])
            prompt_ids = [*ids, *self._continued(last.text, new, ids[-1])]
        else:
            prompt_ids = self.words.encode(prompt)
        completion = self._continued(prompt, whole.part(written), prompt_ids[-1] if prompt_ids else None)
        if not completion or not prompt_ids:
            return None
        if ended:
            self.used.add(completion[-1])
        return StepText(
            prompt=prompt_ids, completion=completion, text=Rendered(prompt.text + written, whole.hidden), ended=ended
        )

    def _render(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None, *, asks: bool, trace_id: str
    ) -> Rendered:
        shown, offered, hidden = self.words.hide(messages, tools)
        try:
            text = self.tokenizer.apply_chat_template(shown, tools=offered, tokenize=False, add_generation_prompt=asks)
        except Exception as error:  # jinja's own errors and the template's raise_exception share no base
            raise TemplateRefused(REFUSED, trace_id, str(error)) from error
        return Rendered(str(text), hidden)

    def _written(self, prompt: str, whole: str, message: Message, trace_id: str) -> str:
        """What the template writes for the message; the prompt may have begun the model's thinking, or have been
        written otherwise before the message was there."""
        if whole.startswith(prompt):
            written = whole[len(prompt) :]
        else:
            opened = opening_tag(prompt[-64:])
            head = prompt[: prompt.rindex(opened)] if opened else prompt
            asked = head[head.rfind(_last(self._special, head) or "\n") :]  # what asks for the answer
            found = whole.rpartition(asked) if head and asked else ("", "", "")
            if not found[1]:
                raise TemplateRefused(
                    REFUSED,
                    trace_id,
                    "its generation prompt is no beginning of the finished message. Expected a template that only"
                    " adds; set another tokenizer.chat_template",
                )
            written = found[2]
            if opened and opened.replace("<", "</", 1).replace("[", "[/", 1) not in written:
                closing = opened.replace("<", "</", 1).replace("[", "[/", 1)
                thought = f"{message.reasoning}\n" if message.reasoning else ""
                written = f"{thought}{closing}\n\n{written.lstrip()}"
        self._require_whole(written, message, trace_id)
        return written

    def _require_shown(self, before: Sequence[Message], prompt: Rendered, trace_id: str, *, all_of_it: bool) -> None:
        """Raises TemplateRefused where the prompt does not hold what users and tools said (since the last answer, or
        all of it), and for what no words show."""
        if any(isinstance(part, Uri | Blob) for message in before for part in message.parts):
            raise TemplateRefused(FILES, trace_id, "it was written about them")
        answers = [place for place, message in enumerate(before) if message.role == "assistant"]
        new = before if all_of_it or not answers else before[answers[-1] :]
        said = [text for message in new if message.role in ("user", "tool") for text in texts_of(message)]
        missing = missing_text(said, str(prompt), self.tokenizer)
        if missing is not None:
            raise TemplateRefused(LOST, trace_id, f"the {missing[0]}'s {missing[1][:60]!r}")

    def _require_whole(self, written: str, message: Message, trace_id: str) -> None:
        """Raises TemplateRefused where the words or a call of the message are not in what the template wrote."""
        said, words = "".join(written.split()), "".join(split_reasoning(message.text)[1].split())
        visible = self._special is None or self._special.search(words) is None  # else they are hidden in `written`
        if visible and words not in said:
            raise TemplateRefused(LOST, trace_id, f"the words {message.text[:60]!r}")
        for name in {call.name for call in message.tool_calls}:
            called = sum(call.name == name for call in message.tool_calls)
            if written.count(name) < called:
                raise TemplateRefused(LOST, trace_id, f"{written.count(name)} of {called} calls of {name}")

    def _up_to_stop(self, text: str) -> tuple[str, bool]:
        """The message up to and with its stop token, and whether one is there: what a template writes after it (a line
        break, the end of the text) no model would say."""
        place = len(text)  # goes back over the special tokens and spaces at the end
        ends: list[int] = []
        while True:
            place = len(text[:place].rstrip())
            word = next((one for one in self._longest if text.endswith(one, 0, place)), None)
            if word is None:
                break
            if text[place : place + 1].isspace():  # the earlier of two tokens with a space between ends the message
                ends = []
            ends.insert(0, place)
            place -= len(word)
        if not ends:
            return text, False
        stops = [end for end in ends if any(text.endswith(stop, 0, end) for stop in self._stops)]
        return text[: stops[0] if stops else ends[-1]], True

    def _cut(self, written: Rendered, message: Message) -> str:
        """What stands in `written` up to the end of the message's words."""
        words = str(self.words.hide([{"role": "assistant", "content": message.text}], None)[0][0]["content"])
        for one in (words, words.strip()):
            place = written.text.rfind(one)
            if place >= 0:
                return written.text[: place + len(one)]
        return self._up_to_stop(written.text)[0]

    def _continued(self, before: Rendered, new: Rendered, after: int | None) -> list[int]:
        """The ids of `new` as they follow `before`, whose last is `after`: those of the whole text where its tokens
        part at the seam."""
        if not new.text:
            return []
        start = before.text.rfind(_last(self._special, before.text) or "\x00")
        tail = before.text[max(start, 0) :]
        hidden = {**before.hidden, **new.hidden}
        own = self.words.encode(Rendered(tail, hidden))
        both = self.words.encode(Rendered(tail + new.text, hidden))
        if both[: len(own)] == own:
            return both[len(own) :]
        # A token spans the seam: the model wrote on from the prompt's ids, so that the new text has its own.
        alone = self.words.encode(new, after=after)
        anchor = self.tokenizer.eos_token_id
        wanted = self.tokenizer.decode(both)
        for ids in (alone, [] if anchor is None else self.words.encode(new, after=anchor)):
            if ids and self.tokenizer.decode([*own, *ids]) == wanted:
                return ids
        return alone

    def _require_ending(self) -> None:
        asked = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": SENTINEL}]
        try:
            text = str(self.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=False))
        except Exception:  # it may refuse this dialogue and no other: each is tried anyway
            return
        ending = text.rpartition(SENTINEL)[2]
        if SENTINEL in text and not self._up_to_stop(ending)[1]:
            raise TrainError(
                f"the chat template writes {ending[:40]!r} after an assistant's message, which ends with no special"
                " token of the tokenizer: a policy that learns from words would never stop. Expected a template"
                f" that ends it, say with {self.tokenizer.eos_token or 'an end-of-turn token'!r};"
                " set tokenizer.chat_template"
            )


def dialogue_entries(messages: Sequence[Message], profile: TemplateProfile) -> list[dict[str, Any]]:
    """A dialogue as a chat template wants it: each tool's answer with the name and the id of the call that it answers,
    by the call's id or, where there is none, by its place."""
    entries: list[dict[str, Any]] = []
    open_calls: list[dict[str, Any]] = []
    for message in messages:
        made = template_messages(message, profile)
        for entry in made:
            if entry["role"] == "assistant":
                open_calls = list(entry.get("tool_calls", ()))
            elif entry["role"] == "tool" and open_calls:
                wanted = entry.get("tool_call_id")
                place = next((i for i, call in enumerate(open_calls) if wanted and call["id"] == wanted), 0)
                call = open_calls.pop(place)
                entry.setdefault("name", call["function"]["name"])
                entry.setdefault("tool_call_id", call["id"])
        entries.extend(made)
    return entries


def template_messages(message: Message, profile: TemplateProfile | None = None) -> list[dict[str, Any]]:
    """One GenAI message as chat templates want it; a tool message becomes one entry a response. With a template's
    profile: ids, arguments and thinking in the form that this template takes, and a call that is no JSON as the text
    that it was."""
    if message.role == "tool":
        return [
            {
                "role": "tool",
                "content": as_text(response.response),
                **({"tool_call_id": _id(response.id, profile)} if response.id else {}),
            }
            for response in message.responses
        ]
    entry: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.role == "assistant":
        if message.reasoning:
            key = REASONING if profile is None else profile.reasoning_key or REASONING
            entry[key] = message.reasoning
        calls = message.tool_calls
        if profile is not None:
            entry["content"] += "".join(as_text(call.arguments) for call in calls if _broken(call))
            calls = tuple(call for call in calls if not _broken(call))
        if calls:
            entry["tool_calls"] = [_call(call, profile) for call in calls]
    return [entry]


def _broken(call: ToolCall) -> bool:
    return bool(call.arguments) and not isinstance(call.arguments, dict)


def _call(call: ToolCall, profile: TemplateProfile | None) -> dict[str, Any]:
    arguments: Any = call.arguments if profile is None else call.arguments or {}
    if profile is not None and profile.arguments_as_text:
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {
        "type": "function",
        "id": _id(call.id, profile),
        "function": {"name": call.name, "arguments": arguments},
    }


def _id(call_id: str | None, profile: TemplateProfile | None) -> str | None:
    if profile is None:
        return call_id
    return short_id(call_id or "") if profile.short_ids else call_id or "call"


def template_tools(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """Tools as chat templates want them."""
    return [
        {
            "type": "function",
            "function": {"name": spec.name, "description": spec.description, "parameters": dict(spec.parameters)},
        }
        for spec in tools
    ]


def _any_of(words: Collection[str]) -> re.Pattern[str] | None:
    listed = sorted(words, key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, listed))) if listed else None


def _last(pattern: re.Pattern[str] | None, text: str) -> str | None:
    """The last of the pattern's words that the text holds."""
    found = None if pattern is None else [*pattern.finditer(text)]
    return found[-1][0] if found else None
