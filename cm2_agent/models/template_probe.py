"""What a chat template can show and which format its tool calls have: found by rendering a probe, never by its name.

A template writes calls that a reader parses back to the same calls, or the tools of an agent are refused with the
list of what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cm2_agent.errors import ModelError
from cm2_agent.models.call_formats import FORMATS, HERMES, CallFormat
from cm2_agent.models.control_words import control_words_of
from cm2_agent.models.reasoning_text import opening_tag, split_reasoning
from cm2_agent.models.response_template import TemplateFormat, known_templates
from cm2_agent.models.tool_call_text import CallText

__all__ = ["TOOL", "TemplateProfile", "after_a_call", "completion_of", "in_blocks", "probe", "shared_length"]

_NAME, _RESULT, _ASKED = "probe_order", "CM2RESULT", "CM2ASKED"
_LONG_ID, _SHORT_ID = "call_0123456789abcdef", "a1B2c3D4e"
_END = "CM2ENDOFCOMPLETION"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Looks up a probe.",
        "parameters": {
            "type": "object",
            "properties": {
                "text": {"type": "string", "description": "Some words."},
                "count": {"type": "integer", "description": "A number."},
                "ratio": {"type": "number", "description": "A share."},
                "flag": {"type": "boolean", "description": "A switch."},
                "items": {"type": "array", "items": {"type": "integer"}, "description": "Numbers."},
                "place": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}},
                    "description": "A place.",
                },
            },
            "required": ["text"],
        },
    },
}
"""The tool with which a template is tried."""
_PLAIN: dict[str, Any] = {"text": "Ada Lovelace", "count": 7, "ratio": 0.5, "items": [1, 2]}
# What a format must not lose, each said in words where it does.
_HARDER: tuple[tuple[str, dict[str, Any]], ...] = (
    ("true and false", {"text": "a", "flag": False}),
    ("objects", {"text": "a", "place": {"city": "Rome"}}),
    ("no optional argument", {"text": "a"}),
    ("a double quote", {"text": 'a "b" c'}),
    ("an apostrophe", {"text": "it's"}),
    ("a line break", {"text": "a\nb"}),
    ("a backslash", {"text": "a\\nb"}),
    ("brackets and commas", {"text": "a) b], c=(d, {e}"}),
    ("angle brackets", {"text": "1 < 2 > 0 & 3"}),
    ("digits in a string", {"text": "007"}),
    ("the word true in a string", {"text": "true"}),
    ("other scripts", {"text": "Zürich 北京"}),
)
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, kw_only=True)
class TemplateProfile:
    """What a chat template can do. `problems` are the reasons why tools cannot be used with it, empty where they can;
    `losses` are values that its calls cannot carry there and back."""

    calls: CallFormat | TemplateFormat = HERMES
    problems: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    words_shown: bool = True
    content_in_blocks: bool = False
    """The template wants the text of a message as a list of blocks."""
    tools_shown: bool = False
    results_shown: bool = False
    calls_shown: bool = False
    system_shown: bool = True
    several_calls: bool = True
    short_ids: bool = False
    """The template wants ids of nine letters and digits."""
    arguments_as_text: bool = False
    """The template wants the arguments of a call as a string of JSON."""
    reasoning_key: str | None = None
    """Where a message's thinking must stand for the template to show it; None where it shows none."""
    sentinel_in_call: bool = False
    """What follows a message with calls differs from what follows words."""
    written: str = field(default="", repr=False)
    """A call as the template writes it."""

    def require_words(self, name: str) -> None:
        """Raise ModelError where the model would never be shown what a user says."""
        if not self.words_shown:
            raise ModelError(
                f"the chat template of {name} does not show what a user says, as text or as a block of text; expected"
                " one that does: set tokenizer.chat_template"
            )

    def require_tools(self, name: str) -> None:
        """Raise ModelError with the list of problems, where there are any."""
        if self.problems:
            listed = "".join(f"\n- {problem}" for problem in self.problems)
            raise ModelError(
                f"tools cannot be used with the chat template of {name}:{listed}\nExpected a template that shows tools,"
                " calls and results, in a format that can be read back. Set tokenizer.chat_template, or take an"
                " instruction-tuned model for tools; `cm2 model check FOLDER` shows what a template does."
            )


class _Renderer:
    """Renders probes; what a template raises is a result too."""

    def __init__(self, tokenizer: Any, kwargs: Mapping[str, Any]) -> None:
        self.tokenizer, self.kwargs, self.blocks = tokenizer, kwargs, False

    def __call__(self, messages: Sequence[Mapping[str, Any]], *, tools: bool = True, asks: bool = True) -> str | None:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    in_blocks(messages) if self.blocks else [dict(message) for message in messages],
                    tools=[TOOL] if tools else None,
                    tokenize=False,
                    add_generation_prompt=asks,
                    **self.kwargs,
                )
            )
        except Exception:  # jinja's own errors and what a template raises share no base
            return None


def in_blocks(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with their text as a list of one block, as templates of models that see images want it."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else dict(message)
        for message in messages
    ]


def _call(arguments: Mapping[str, Any], call_id: str, *, as_text: bool) -> dict[str, Any]:
    written = json.dumps(arguments, ensure_ascii=False) if as_text else dict(arguments)
    return {"id": call_id, "type": "function", "function": {"name": _NAME, "arguments": written}}


_USER = {"role": "user", "content": _ASKED}


def _answer(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "name": _NAME, "tool_call_id": call_id, "content": _RESULT}


def probe(tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None) -> TemplateProfile:
    """What the tokenizer's chat template shows, and the format of its calls. Nothing is raised, and no code of the
    model runs but the template, in transformers' sandbox."""
    render = _Renderer(tokenizer, template_kwargs or {})
    bare = render([_USER], tools=False)
    if _ASKED not in (bare or ""):
        render.blocks = True
        bare = render([_USER], tools=False)
    words_shown = _ASKED in (bare or "")
    asked = render([_USER])
    tools_shown = asked is not None and all(word in asked for word in (_NAME, "Looks up a probe.", "count"))
    system = render([{"role": "system", "content": "CM2SYSTEM"}, _USER], tools=False)
    system_shown = system is not None and "CM2SYSTEM" in system
    short_ids, as_text, whole = _shape(render)
    call_id = _SHORT_ID if short_ids else _LONG_ID
    calls_shown = whole is not None and _NAME in whole.partition(_ASKED)[2] and "Lovelace" in whole
    turn = {"role": "assistant", "content": "", "tool_calls": [_call(_PLAIN, call_id, as_text=as_text)]}
    answered = render([_USER, turn, _answer(call_id)])
    results_shown = answered is not None and _RESULT in answered
    problems: list[str] = []
    if not words_shown:
        problems.append("it does not show what a user says")
    elif not tools_shown:
        problems.append("it ignores `tools`: the model would never see one")
    if not calls_shown:
        problems.append(
            "it refuses a call of a tool" if whole is None else "it drops the calls of an assistant's message"
        )
    if not results_shown:
        problems.append("it refuses a tool's result" if answered is None else "it drops a tool's result")
    read = _Reading(render, call_id, as_text)
    best: CallFormat | TemplateFormat = HERMES
    losses: tuple[str, ...] = ()
    several = True
    if calls_shown:
        found = read.best(tokenizer)
        if found is None:
            problems.append(f"no known format reads its calls, which it writes as {read.written()[:200]!r}")
        else:
            best, losses = found
            several = read.reads([_PLAIN, {"text": "b"}], best)
    return TemplateProfile(
        calls=best,
        problems=tuple(problems),
        losses=losses,
        words_shown=words_shown,
        content_in_blocks=render.blocks and words_shown,
        tools_shown=tools_shown,
        results_shown=results_shown,
        calls_shown=calls_shown,
        system_shown=system_shown,
        several_calls=several,
        short_ids=short_ids,
        arguments_as_text=as_text,
        reasoning_key=_reasoning_key(render, call_id, as_text),
        sentinel_in_call=_sentinel_in_call(render, call_id, as_text),
        written=read.written() if calls_shown else "",
    )


def _shape(render: _Renderer) -> tuple[bool, bool, str | None]:
    """Whether ids must be short, whether arguments must be text, and the rendered call; None where all are refused."""
    for as_text in (False, True):
        for call_id in (_LONG_ID, _SHORT_ID):
            turn = {"role": "assistant", "content": "", "tool_calls": [_call(_PLAIN, call_id, as_text=as_text)]}
            whole = render([_USER, turn, _answer(call_id), {"role": "assistant", "content": "a"}], asks=False)
            if whole is None:
                whole = render([_USER, turn], asks=False)
            # a template that puts a string of JSON where it stands would escape text a second time
            if whole is not None and (not as_text or '\\"text\\"' not in whole):
                return call_id == _SHORT_ID, as_text, render([_USER, turn], asks=False) or whole
    return False, False, None


def after_a_call(tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None) -> str:
    """What the template writes after the arguments of an assistant's call, up to the end of the message; "" where it
    writes no call."""
    render = _Renderer(tokenizer, template_kwargs or {})
    for render.blocks in (False, True):
        text = _shape(render)[2]
        if text is not None and "Lovelace" in text:
            return text.rpartition("Lovelace")[2]
    return ""


class _Reading:
    """Rendered calls, read back."""

    def __init__(self, render: _Renderer, call_id: str, as_text: bool) -> None:
        self.render, self.call_id, self.as_text = render, call_id, as_text
        self.special = sorted(control_words_of(render.tokenizer)[0], key=len, reverse=True)
        words = render([_USER, {"role": "assistant", "content": _END}], asks=False) or ""
        self.before, _, self.ending = words.partition(_END)

    def written(self, several: Sequence[Mapping[str, Any]] = (_PLAIN,)) -> str:
        completion, _ = self._completion(several) or ("", "")
        return completion

    def _completion(self, several: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
        """What the template writes for a message of these calls, and the prompt before it."""
        ids = [self.call_id, *(f"{number:09d}" for number in range(1, len(several)))]
        calls = [_call(one, call_id, as_text=self.as_text) for one, call_id in zip(several, ids, strict=True)]
        prompt = self.render([_USER])
        whole = self.render([_USER, {"role": "assistant", "content": "", "tool_calls": calls}], asks=False)
        if prompt is None or whole is None:
            return None
        return completion_of(prompt, whole, self.before)

    def reads(self, several: Sequence[Mapping[str, Any]], form: CallFormat | TemplateFormat) -> bool:
        """Whether the calls come back equal, with nothing left over."""
        found = self._completion(several)
        if found is None:
            return False
        wanted = [(_NAME, dict(one)) for one in several]
        for text in self._endings(found[0]):
            said, calls = read_calls(form, text, found[1], [TOOL])
            if not said and [(call.name, call.arguments) for call in calls if call.error is None] == wanted:
                return True
        return False

    def _endings(self, text: str) -> list[str]:
        """The completion with and without the marks at its end, any of which may be the end of the message."""
        found = [text.rstrip()]
        if self.ending.strip() and text.endswith(self.ending):
            found.append(text.removesuffix(self.ending).rstrip())
        while (ending := next((token for token in self.special if token and found[-1].endswith(token)), None)) and len(
            found
        ) < 5:
            found.append(found[-1].removesuffix(ending).rstrip())
        return found

    def best(self, tokenizer: Any) -> tuple[CallFormat | TemplateFormat, tuple[str, ...]] | None:
        """The format that loses least, and what it loses; None where none reads the plain probe."""
        found: tuple[CallFormat | TemplateFormat, tuple[str, ...]] | None = None
        for form in FORMATS:
            if self.reads([_PLAIN], form):
                losses = self._losses(form)
                if found is None or len(losses) < len(found[1]):
                    found = form, losses
                if not losses:
                    return found
        for other in known_templates(tokenizer):
            if self.reads([_PLAIN], other):
                losses = self._losses(other)
                if found is None or len(losses) < len(found[1]):
                    found = other, losses
        return found

    def _losses(self, form: CallFormat | TemplateFormat) -> tuple[str, ...]:
        return tuple(words for words, arguments in _HARDER if not self.reads([arguments], form))


def shared_length(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def completion_of(prompt: str, whole: str, before: str) -> tuple[str, str]:
    """What a template writes for the last message of `whole`, and what stands before it. `before` is how it begins an
    assistant's words, where it does not as the prompt ends, or ""."""
    if not whole.startswith(prompt) and before and whole.startswith(before):
        return whole[len(before) :], before  # it shows the tools with the last message alone
    length = shared_length(prompt, whole)
    if length < len(prompt):  # it opens the message otherwise than a finished one, and not in the midst of a token
        length = max(whole.rfind(end, 0, length) + 1 for end in ">]\n")
    return whole[length:], whole[:length]


def read_calls(
    form: CallFormat | TemplateFormat, text: str, prefix: str, tools: Sequence[Mapping[str, Any]]
) -> tuple[str, list[CallText]]:
    """The text outside the calls and thinking, and the calls."""
    if isinstance(form, TemplateFormat):
        _, said, calls = form.read_whole(text, prefix, tools)
        return said, calls
    _, said = split_reasoning(text, opening_tag(prefix))
    return form.read(said, tools)


def _reasoning_key(render: _Renderer, call_id: str, as_text: bool) -> str | None:
    call = _call(_PLAIN, call_id, as_text=as_text)
    for key in _REASONING_KEYS:
        words = {"role": "assistant", "content": "a", key: "CM2THOUGHT"}
        called = {"role": "assistant", "content": "", "tool_calls": [call], key: "CM2THOUGHT"}
        shown = (render([_USER, words], asks=False), render([_USER, words], tools=False, asks=False))
        if any("CM2THOUGHT" in (text or "") for text in (*shown, render([_USER, called, _answer(call_id)]))):
            return key
    return None


def _sentinel_in_call(render: _Renderer, call_id: str, as_text: bool) -> bool:
    """Whether what a template writes after a message depends on its calls."""
    words = render([_USER, {"role": "assistant", "content": _END}, _answer(call_id)])
    call = _call({"text": _END}, call_id, as_text=as_text)
    called = render([_USER, {"role": "assistant", "content": "", "tool_calls": [call]}, _answer(call_id)])
    if called is None or _END not in called:
        return False
    after = (words or "").partition(_END)[2]
    return not after or not called.endswith(after) or _RESULT not in after
