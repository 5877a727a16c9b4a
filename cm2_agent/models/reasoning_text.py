"""Thinking that a model writes into its text, and splitting it off.

A tag counts wherever it stands, but in Markdown code and in the arguments of a tool call it is text. The spellings are
`<think>`, `<thinking>`, `<thought>` and `<reasoning>`, small or capital, `<seed:think>`, `<longcat_think>`, Apertus'
`<|inner_prefix|>`, Magistral's `[THINK]`, Kimi's
`◁think▷`, Cohere's `<|START_THINKING|>`, `<|begin_of_thought|>`, the channels of gpt-oss, and what Muse writes
`to=self`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

__all__ = ["TAG", "ReasoningStream", "opening_tag", "split_reasoning"]

_WORDS = r"(?:think|thinking|thought|reasoning|seed:think|longcat_think)"
_OPEN = rf"<{_WORDS}>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|begin_of_thought\|>|<\|inner_prefix\|>"
_CLOSE = rf"</{_WORDS}>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<\|end_of_thought\|>|<\|inner_suffix\|>"
TAG = re.compile(f"(?P<open>{_OPEN})|(?P<close>{_CLOSE})", re.IGNORECASE)
"""A tag of thinking; its group `open` or `close` says which."""
_IN_TAGS = ("hink", "HINK", "hought", "HOUGHT", "easoning", "EASONING", "<|inner_")
_LONGEST = 20
"""Characters of the longest tag: so many may be the beginning of one."""
# What is text whatever it holds: a fenced block (one that no other fence begins in), and a tool call.
_MARK = re.compile(
    rf"{TAG.pattern}|(?P<call><tool_call>)"
    r"|(?P<fence>^(?P<ticks>```|~~~)[^\n]*\n(?:(?!^(?:```|~~~)).)*?^(?P=ticks)[ \t]*$)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_AT_THE_END = re.compile(rf"(?:{_OPEN}|<\|channel\|>analysis<\|message\|>)\s*\Z", re.IGNORECASE)
# gpt-oss: every message has a channel, and `analysis` is what it thinks.
_CHANNELS = re.compile(r"\s*(?:<\|start\|>assistant)?<\|channel\|>")
_CHANNEL = re.compile(
    r"(?:<\|start\|>assistant(?P<to>[^<]*))?<\|channel\|>(?P<name>\w+)(?P<about>[^<]*(?:<\|constrain\|>[^<]*)?)<\|message\|>"
    r"(?P<text>.*?)(?:<\|(?:end|return|call)\|>|(?=<\|(?:start|channel)\|>)|\Z)",
    re.DOTALL,
)
# Muse: every message has a recipient, and what it writes to itself is thinking.
_TO_SELF = re.compile(
    r"(?:\A\s*|<\|start\|>assistant\s*)to=self<\|message\|>(?P<text>.*?)(?:<\|eo[mt]\|>|(?=<\|start\|>)|\Z)", re.DOTALL
)
_CALL_END = re.compile(r"\s*</tool_call>")
_JSON = json.JSONDecoder(strict=False)
_MOST_BROKEN_CALLS = 16
"""A call that is no JSON is looked through to its end, so a text of many would take a quadratic time."""


def split_reasoning(text: str, opening: str = "") -> tuple[str, str]:
    """The thinking and the rest. `opening` is the tag with which the prompt ended, if it did: the text begins inside.

    Thinking that never ends runs to the end of the text; an end without a beginning makes everything before it
    thinking. Several blocks are joined by line breaks. A text without thinking comes back unchanged.

    >>> split_reasoning("<think>It is 7.</think> Your order was shipped.")
    ('It is 7.', 'Your order was shipped.')
    >>> split_reasoning("It is 7.</think>Your order was shipped."), split_reasoning("It is 7.", opening="<think>")
    (('It is 7.', 'Your order was shipped.'), ('It is 7.', ''))
    """
    text = opening + text
    if _CHANNELS.match(text):
        return _split_channels(text)
    if "to=self<|message|>" in text and _TO_SELF.search(text):
        return _joined(_TO_SELF.findall(text), "\n"), _TO_SELF.sub("", text).strip()
    if not _may_hold_a_tag(text) or not TAG.search(text):
        return "", text
    thought: list[str] = []
    said: list[str] = []
    begin, position, inside, broken, found = 0, 0, False, 0, False
    while mark := (TAG if inside else _MARK).search(text, position):
        position = mark.end()
        if inside:
            if mark["close"]:
                thought.append(text[begin : mark.start()])
                begin, inside = position, False
        elif mark["close"] and not _quoted(text, mark):  # its beginning was the prompt's
            thought += [*said, text[begin : mark.start()]]
            said, begin, found = [], position, True
        elif mark["open"] and not _quoted(text, mark):
            said.append(text[begin : mark.start()])
            begin, inside, found = position, True, True
        elif mark["call"] and broken < _MOST_BROKEN_CALLS:
            end = _end_of_call(text, position)
            broken += end is None
            position = end or position
    (thought if inside else said).append(text[begin:])
    if not found:
        return "", text
    return _joined(thought, "\n"), _joined(said, "")


def opening_tag(prompt: str) -> str:
    """The tag of thinking with which a rendered prompt ends, "" where it ends otherwise.

    >>> opening_tag("<|im_start|>assistant\\n<think>\\n"), opening_tag("<think>\\n\\n</think>\\n\\n")
    ('<think>', '')
    """
    found = _AT_THE_END.search(prompt[-64:])
    return found[0].strip() if found else ""


@dataclass
class ReasoningStream:
    """Splits a text that comes in pieces. What may be the beginning of a tag is held back until the next piece.

    An end of thinking without its beginning stays in the text, which was given out by then.

    >>> stream = ReasoningStream()
    >>> [stream.feed(piece) for piece in ("<thi", "nk>It is 7.</", "think>Yes.")], stream.end()
    ([('', ''), ('It is 7.', ''), ('', 'Yes.')], ('', ''))
    """

    inside: bool = False
    _held: str = ""
    _last: str = field(default="", repr=False)
    _fences: int = 0
    _begun: bool = False

    def feed(self, piece: str) -> tuple[str, str]:
        """The thinking and the text that can be given out now."""
        return self._take(self._held + piece, final=False)

    def end(self) -> tuple[str, str]:
        """What was held back."""
        return self._take(self._held, final=True)

    def _take(self, text: str, *, final: bool) -> tuple[str, str]:
        self._held = ""
        thought: list[str] = []
        said: list[str] = []
        while tag := TAG.search(text):
            before, word = text[: tag.start()], tag[0]
            text = text[tag.end() :]
            if self.inside:
                thought.append(before)
                if tag["close"]:
                    self.inside = False
                else:
                    thought.append(word)
                continue
            self._say(before, said)
            if tag["open"] and not self._fences % 2 and not self._last.endswith("`"):
                self.inside = True
            else:
                self._say(word, said)
        if not final:
            cut = _beginning_of_a_tag(text)
            text, self._held = text[:cut], text[cut:]
        if self.inside:
            thought.append(text)
        else:
            self._say(text, said)
        return "".join(thought), "".join(said)

    def _say(self, text: str, said: list[str]) -> None:
        if not self._begun:
            text = text.lstrip()
        if text:
            self._begun = True
            self._fences += (self._last + text).count("```") - self._last.count("```")
            self._last = (self._last + text)[-3:]
            said.append(text)


def _split_channels(text: str) -> tuple[str, str]:
    """gpt-oss: `final` is the reply, `analysis` the thinking; a message to a tool stays as it is."""
    thought: list[str] = []
    said: list[str] = []
    end = 0
    for channel in _CHANNEL.finditer(text):
        end = channel.end()
        addressed = "to=" in f"{channel['to'] or ''}{channel['about']}"
        if channel["name"] == "analysis" and not addressed:
            thought.append(channel["text"])
        else:
            said.append(channel[0] if addressed else channel["text"])
    return _joined(thought, "\n"), _joined([*said, text[end:]], "\n")


def _may_hold_a_tag(text: str) -> bool:
    """Whether to look closer: most texts hold no bracket, or no such word, and finding that out is much cheaper."""
    if "<" not in text and "[" not in text and "◁" not in text:
        return False
    return any(word in text for word in _IN_TAGS)


def _quoted(text: str, mark: re.Match[str]) -> bool:
    """Whether a tag stands in inline code."""
    return mark.start() > 0 and text[mark.start() - 1] == "`"


def _end_of_call(text: str, position: int) -> int | None:
    """Where the tool call whose JSON begins here ends, None where it is none."""
    start = position + len(text[position : position + 64]) - len(text[position : position + 64].lstrip())
    try:
        _, end = _JSON.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    closed = _CALL_END.match(text, end)
    return closed.end() if closed else None


def _joined(pieces: list[str], between: str) -> str:
    """The pieces with no two words, and no two halves of a tag, run together."""
    joined = ""
    for piece in pieces:
        gap = between or ("\n" if joined and piece and not joined[-1].isspace() and not piece[0].isspace() else "")
        if piece.strip():
            joined = joined + gap + piece if joined else piece
    return joined.strip()


def _beginning_of_a_tag(text: str) -> int:
    """Where the end of the text may be the beginning of a tag."""
    for start in range(max(0, len(text) - _LONGEST), len(text)):
        if text[start] in "<[◁" and not any(char in ">]▷" for char in text[start:]):
            return start
    return len(text)
