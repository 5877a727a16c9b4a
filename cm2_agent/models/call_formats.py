"""How families of models write tool calls: one strict reader for each format.

A reader takes the text of a completion, its thinking split off, and the tools that were offered. What is no whole call
of its format becomes a call with the reason why it cannot be run; nothing is completed or guessed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cm2_agent.models.call_values import argument_types, json_at, python_calls, typed
from cm2_agent.models.quoted_calls import block_calls, quoted_calls
from cm2_agent.models.tool_call_text import CallText, call_in, find_calls

__all__ = ["FORMATS", "HERMES", "CallFormat", "Reader"]

Reader = Callable[[str, Sequence[Mapping[str, Any]]], tuple[str, list[CallText]]]


@dataclass(frozen=True, kw_only=True)
class CallFormat:
    """A way to write tool calls. `read` takes a text and the tools as OpenAI lists them, and gives the text outside
    the calls and the calls in order; it never raises."""

    name: str
    read: Reader
    example: str


@dataclass(frozen=True, kw_only=True)
class _Marked:
    """Calls between marks. `opening` may name the tool; the JSON after it is then the arguments, else a call or, where
    `lists`, a list of calls. `around` are marks of the whole group, which say nothing."""

    opening: re.Pattern[str]
    closing: re.Pattern[str]
    lists: bool = False
    around: re.Pattern[str] | None = None

    def __call__(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[CallText]]:
        del tools  # JSON has types of its own
        said: list[str] = []
        calls: list[CallText] = []
        position = 0
        while opened := self.opening.search(text, position):
            said.append(text[position : opened.start()])
            found, position = self._calls(text, opened)
            calls += found
        rest = "".join([*said, text[position:]])
        if calls and self.around is not None:
            rest = self.around.sub("", rest)
        return rest.strip(), calls

    def _calls(self, text: str, opened: re.Match[str]) -> tuple[list[CallText], int]:
        name = opened.groupdict().get("name")
        start = opened.end() + len(text[opened.end() :]) - len(text[opened.end() :].lstrip())
        try:
            value, end = json_at(text, start)
        except ValueError as error:
            return self._broken(text, opened, name, f"not JSON: {error}")
        closed = self.closing.match(text, end)
        if closed is None:
            return self._broken(text, opened, name, "the tool call is not closed, or more follows its JSON")
        whole = text[opened.start() : closed.end()]
        if name is not None:
            return [_checked(whole, name, value)], closed.end()
        listed = value if self.lists and isinstance(value, list) else [value]
        if not listed:
            return [CallText(text=whole, name=None, error="an empty list of calls")], closed.end()
        return [call_in(one, whole) for one in listed], closed.end()

    def _broken(self, text: str, opened: re.Match[str], name: str | None, error: str) -> tuple[list[CallText], int]:
        """A call that cannot be read, up to its closing mark, the next call, or the end of the text."""
        later = self.opening.search(text, opened.end())
        end = later.start() if later else len(text)
        return [CallText(text=text[opened.start() : end].strip(), name=name, error=error)], end


def _checked(text: str, name: str, arguments: Any) -> CallText:
    if isinstance(arguments, dict):
        return CallText(text=text, name=name, arguments=arguments)
    return CallText(text=text, name=name, error="the arguments are not an object")


@dataclass(frozen=True, kw_only=True)
class _Tagged:
    """Calls whose arguments stand each between tags, as text. The tool's schema says which are strings."""

    opening: re.Pattern[str]
    argument: re.Pattern[str]
    closing: re.Pattern[str]
    around: re.Pattern[str] | None = None
    header: re.Pattern[str] | None = None
    """To whom a message is, which is none of its words."""

    def __call__(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[CallText]]:
        said: list[str] = []
        calls: list[CallText] = []
        position = 0
        while opened := self.opening.search(text, position):
            said.append(text[position : opened.start()])
            call, position = self._call(text, opened, tools)
            calls.append(call)
        rest = "".join([*said, text[position:]])
        if self.header is not None:
            rest = self.header.sub("", rest)
        if calls and self.around is not None:
            rest = self.around.sub("", rest)
        return rest.strip(), calls

    def _call(self, text: str, opened: re.Match[str], tools: Sequence[Mapping[str, Any]]) -> tuple[CallText, int]:
        name, position = opened["name"].strip(), opened.end()
        types = argument_types(tools, name)
        arguments: dict[str, Any] = {}
        error = None
        while argument := self.argument.match(text, position):
            key, position = argument["key"].strip(), argument.end()
            if key in arguments:
                error = error or f"the argument {key[:80]!r} is given twice"
            arguments[key] = typed(argument["value"], types.get(key))
        closed = self.closing.match(text, position)
        if closed is None:
            later = self.opening.search(text, position)
            end = later.start() if later else len(text)
            why = "an argument or the tool call is not closed"
            return CallText(text=text[opened.start() : end].strip(), name=name, error=why), end
        whole = text[opened.start() : closed.end()]
        if error is not None:
            return CallText(text=whole, name=name, error=error), closed.end()
        return CallText(text=whole, name=name, arguments=arguments), closed.end()


@dataclass(frozen=True, kw_only=True)
class _Python:
    """Calls as Python code, between marks or, where there are none, as the whole text."""

    marks: tuple[tuple[str, str], ...]
    bare: bool = False

    def __call__(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[CallText]]:
        del tools  # literals have types of their own
        said: list[str] = []
        calls: list[CallText] = []
        position = 0
        while (mark := self._next(text, position)) is not None:
            start, opening, closing = mark
            said.append(text[position:start])
            found, position = block_calls(text, start, start + len(opening), closing, python_calls)
            calls += found
        rest = "".join([*said, text[position:]]).strip()
        if not calls and self.bare and re.match(r"\[\s*[A-Za-z_][\w.]*\(", rest) and rest.endswith(")]"):
            found_calls = python_calls(rest)
            if isinstance(found_calls, str):
                return "", [CallText(text=rest, name=None, error=found_calls)]
            return "", [CallText(text=rest, name=name, arguments=values) for name, values in found_calls]
        return rest, calls

    def _next(self, text: str, position: int) -> tuple[int, str, str] | None:
        found = [(at, opening, closing) for opening, closing in self.marks if (at := text.find(opening, position)) >= 0]
        return min(found, default=None)


_LLAMA_CALL = re.compile(
    r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"(?P<name>[^"]*)"\s*,\s*"parameters"\s*:'
)
_LLAMA_END = re.compile(r"\s*(?:<\|eom_id\|>|<\|eot_id\|>)?\s*\Z")
_BETWEEN = re.compile(r"\s*;\s*")
_PYTHON_TAG = "<|python_tag|>"


def _llama(text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[CallText]]:
    """The whole text is one call as JSON, or several with a semicolon between them; a python tag may stand first."""
    del tools
    body = text.strip()
    tagged = body.startswith(_PYTHON_TAG)
    if tagged:
        body = body[len(_PYTHON_TAG) :].lstrip()
    written = _LLAMA_CALL.search(body)
    if not tagged and written is None:
        return text.strip(), []
    name = written["name"] if written else None
    if written is None or written.start():
        why = "code is not run" if tagged else "words stand before the call; a call is the whole message"
        return "", [CallText(text=text.strip(), name=name, error=why)]
    calls: list[CallText] = []
    position = 0
    while True:
        try:
            value, end = json_at(body, position)
        except ValueError as error:
            return "", [CallText(text=text.strip(), name=name, error=f"not JSON: {error}")]
        calls.append(call_in(value, body[position:end]))
        if _LLAMA_END.match(body, end):
            return "", calls
        following = _BETWEEN.match(body, end)
        if following is None:
            return "", [CallText(text=text.strip(), name=name, error="more follows the JSON of the call")]
        position = following.end()


def _alone(reader: Reader, example: str) -> Reader:
    """What stands outside the calls may still be a call in another form: it never ran, and is no reply."""

    def read(text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[CallText]]:
        said, calls = reader(text, tools)
        rest, others = find_calls(said)
        error = f"the call is not written as this model's template writes calls; expected {example}"
        return rest, [*calls, *(CallText(text=call.text, name=call.name, error=error) for call in others)]

    return read


def _hermes(text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[CallText]]:
    del tools
    return find_calls(text)


def _format(name: str, reader: Reader, example: str) -> CallFormat:
    return CallFormat(name=name, read=_alone(reader, example), example=example)


HERMES = CallFormat(
    name="hermes", read=_hermes, example='<tool_call>{"name": "NAME", "arguments": {"KEY": 7}}</tool_call>'
)
"""What Qwen 2.5 and 3, Hermes and many fine-tunes write; also read where a template writes no calls at all."""

FORMATS: tuple[CallFormat, ...] = (
    HERMES,
    _format(
        "qwen3-coder",
        _Tagged(
            opening=re.compile(r"<tool_call>\s*<function=(?P<name>[^>\n]+)>\s*"),
            argument=re.compile(
                r"\s*<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>\s*(?=<parameter=|</function>)",
                re.DOTALL,
            ),
            closing=re.compile(r"\s*</function>\s*</tool_call>"),
        ),
        "<tool_call><function=NAME><parameter=KEY>7</parameter></function></tool_call>",
    ),
    _format(
        "glm",
        _Tagged(
            opening=re.compile(r"<tool_call>\s*(?P<name>[^\s<>{}\[\]\"]+)\s*(?=<arg_key>|</tool_call>)"),
            argument=re.compile(
                r"\s*<arg_key>(?P<key>[^<]+)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>"
                r"\s*(?=<arg_key>|</tool_call>)",
                re.DOTALL,
            ),
            closing=re.compile(r"\s*</tool_call>"),
        ),
        "<tool_call>NAME<arg_key>KEY</arg_key><arg_value>7</arg_value></tool_call>",
    ),
    _format("llama", _llama, '{"name": "NAME", "parameters": {"KEY": 7}}'),
    _format(
        "mistral",
        _Marked(
            opening=re.compile(
                r"\[TOOL_CALLS\](?:\s*(?P<name>[\w.\-]+)(?:\[CALL_ID\][A-Za-z0-9]+)?\[ARGS\])?(?=\s*[\[{])"
            ),
            closing=re.compile(r"\s*(?:</s>|(?=\[TOOL_CALLS\]|\Z))"),
            lists=True,
        ),
        '[TOOL_CALLS][{"name": "NAME", "arguments": {"KEY": 7}}] or [TOOL_CALLS]NAME[ARGS]{"KEY": 7}',
    ),
    _format(
        "granite",
        _Marked(
            opening=re.compile(r"<\|tool_call\|>"),
            closing=re.compile(r"\s*(?:<\|/tool_call\|>|(?=<\|tool_call\|>|<\|end_of_text\|>|<\|end\|>|\Z))"),
            lists=True,
        ),
        '<|tool_call|>[{"name": "NAME", "arguments": {"KEY": 7}}]',
    ),
    _format(
        "deepseek",
        _Marked(
            opening=re.compile(r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>(?P<name>[^\s<｜]+)\n```json\n(?=\{))"),
            closing=re.compile(r"\s*```\s*<｜tool▁call▁end｜>"),
            around=re.compile(r"<｜tool▁calls▁(?:begin|end)｜>"),
        ),
        '<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\\n```json\\n{"KEY": 7}\\n```<｜tool▁call▁end｜>',
    ),
    _format(
        "deepseek-3.1",
        _Marked(
            opening=re.compile(r"<｜tool▁call▁begin｜>(?P<name>[^\s<｜]+)<｜tool▁sep｜>(?=\s*\{)"),
            closing=re.compile(r"\s*<｜tool▁call▁end｜>"),
            around=re.compile(r"<｜tool▁calls▁(?:begin|end)｜>"),
        ),
        '<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{"KEY": 7}<｜tool▁call▁end｜>',
    ),
    _format(
        "kimi",
        _Marked(
            opening=re.compile(
                r"<\|tool_call_begin\|>\s*(?:functions\.)?(?P<name>[\w.\-]+?)(?::\d+)?\s*<\|tool_call_argument_begin\|>"
            ),
            closing=re.compile(r"\s*<\|tool_call_end\|>"),
            around=re.compile(r"<\|tool_calls_section_(?:begin|end)\|>"),
        ),
        '<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{"KEY": 7}<|tool_call_end|>',
    ),
    _format(
        "harmony",
        _Marked(
            opening=re.compile(
                r"(?:<\|start\|>assistant)?(?:<\|channel\|>\w+)?\s*\bto=functions\.(?P<name>[\w.\-]+)"
                r"\s*(?:<\|channel\|>\w+)?\s*(?:<\|constrain\|>)?\s*(?:json)?\s*<\|message\|>"
            ),
            closing=re.compile(r"\s*(?:<\|call\|>|<\|end\|>|(?=<\|start\|>)|\Z)"),
        ),
        '<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{"KEY": 7}<|call|>',
    ),
    _format(
        "pythonic",
        _Python(
            marks=(("<|tool_call_start|>", "<|tool_call_end|>"), ("<|python_start|>", "<|python_end|>")), bare=True
        ),
        "[NAME(KEY=7)], between <|tool_call_start|> and <|tool_call_end|> or as the whole message",
    ),
    _format(
        "lfm2.5",
        quoted_calls,
        "<|tool_call_start|>[NAME(KEY='words')]<|tool_call_end|>",
    ),
    _format(
        "gemma-tool-code",
        _Python(marks=(("```tool_code\n", "```"),)),
        "```tool_code\\nNAME(KEY=7)\\n```",
    ),
    _format(
        "invoke",
        _Tagged(
            opening=re.compile(r'<(?:\w+:)?invoke name="(?P<name>[^"\n]+)">\s*'),
            argument=re.compile(
                r'\s*<(?:\w+:)?parameter name="(?P<key>[^"\n]+)">\n?(?P<value>.*?)\n?</(?:\w+:)?parameter>'
                r"\s*(?=<(?:\w+:)?parameter name=|</(?:\w+:)?invoke>)",
                re.DOTALL,
            ),
            closing=re.compile(r"\s*</(?:\w+:)?invoke>"),
            around=re.compile(r"\s*</?\w+:(?:function_calls|tool_call)>\s*"),
            header=re.compile(r"(?:\A\s*|(?:<\|eom\|>)?\s*<\|start\|>assistant\s*)to=[\w.\-]+<\|message\|>"),
        ),
        '<invoke name="NAME"><parameter name="KEY">7</parameter></invoke>',
    ),
)
"""Every format, in the order in which a template's calls are tried."""
