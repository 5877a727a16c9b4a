"""What a judge is shown: the transcript up to the judged turn, then the items.

A transcript is hostile. Each part is one line of JSON in which no line break, no `<`, no invisible character and no
beginning of a special token survives, so nothing inside can begin a line or pass for a mark of the chat. The line that
ends it carries a nonce drawn for the call. The nonce stands *after* the transcript alone: before it, it would differ in
the first line of every call, and a provider's prefix cache could not serve a trace's later turns."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from json.encoder import encode_basestring
from pathlib import Path

from pydantic_ai.messages import BinaryContent

from cm2_agent.errors import JudgeError
from cm2_agent.llm.untrusted_text import escaped
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.dialogue_words import as_text
from cm2_agent.types.json_values import JSON, canonical_json, content_hash
from cm2_agent.types.messages import Blob, Message, Reasoning, Text, ToolCall, ToolCallResponse, Uri, part_to_json
from cm2_agent.types.tool_use import ToolUse
from cm2_agent.types.trace import Step, Trace

from .context import Context, context_of
from .evidence import PartText, allowed, places
from .transcript import REASONING, call_text, part_texts, shown_status

_FOLDER = Path(__file__).resolve().parent.parent / "prompts"
INSTRUCTIONS = (_FOLDER / "judge_2.md").read_text(encoding="utf-8").strip()
_ITEMS = (_FOLDER / "judge_items.md").read_text(encoding="utf-8").strip("\n")
_RENDERING = 4
"""Raised whenever the same trace would be shown otherwise."""
PROMPT_VERSION = content_hash([INSTRUCTIONS, _ITEMS, _RENDERING])[:8]


def quoted(text: str, control: frozenset[str] = frozenset()) -> str:
    """The text as a JSON string of one line that shows everything in it; `control` are the reader's special tokens."""
    return escaped(encode_basestring(text), control)


@dataclass(frozen=True, kw_only=True)
class Window:
    """What is shown of a trace for one scope: everything up to its end, the model's thinking with `reasoning` alone.
    `first` and `last` are the judged steps, dialogue-wide from 1."""

    text: str
    first: int
    last: int
    turn: int | None
    digest: str
    images: tuple[BinaryContent, ...] = ()
    reasoning: bool = False
    whole: bool = True
    """False where a part of the judged steps was left out of the text: what is not seen there is not proved absent."""

    @property
    def scope(self) -> str:
        steps = f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"
        return f"{steps}, the whole dialogue" if self.turn is None else f"{steps}, turn {self.turn + 1} of the dialogue"


@dataclass(kw_only=True)
class Transcript:
    """A trace rendered once for all its calls.

    `ends[n]` is how many lines the dialogue has after step n + 1. Where several agents take part, each step names its
    own. `images=True` shows images by value; otherwise, and for any other file, their type alone is named. `redact` is
    applied to every text before anything is shown or compared. `control` are the special tokens of the judge's own
    tokenizer, where it is known."""

    trace: Trace
    images: bool = False
    redact: Callable[[str], str] | None = None
    control: frozenset[str] = frozenset()
    lines: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    pictures: list[tuple[int, BinaryContent]] = field(default_factory=list)
    _texts: dict[tuple[int, str], list[PartText]] = field(default_factory=dict)
    _contexts: dict[tuple[int, str, str], tuple[Context, ...]] = field(default_factory=dict)
    _named_only: set[tuple[int, str]] = field(default_factory=set)
    _steps: tuple[Step, ...] = ()
    _named: bool = False
    _thoughts: set[int] = field(default_factory=set)
    _windows: dict[tuple[int | None, int, bool], Window] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._steps = self.trace.steps
        self._named = len({step.agent for step in self._steps} - {None}) > 1
        for message in self.trace.messages:
            uses: tuple[ToolUse, ...] = ()
            if message.role == "assistant":
                uses = self._steps[len(self.ends)].tool_uses
                self.ends.append(0)
            self._show(message, uses)
            if self.ends and message.role in ("assistant", "tool"):
                self.ends[-1] = len(self.lines)

    def window(self, turn: int | None, upto: int | None = None, *, reasoning: bool = False) -> Window:
        """The window of a turn, or (None) of the whole dialogue; with `upto` as it was after that step of the scope
        (1…S), with `reasoning` as who judges the model's thinking sees it. Raises JudgeError where the scope has no
        step: there is nothing to judge."""
        steps = self._steps if turn is None else self.trace.turns[turn].steps if turn < len(self.trace.turns) else ()
        if not steps:
            raise JudgeError(
                f"turn {turn} of trace {self.trace.id!r} has no step; a judge can only be asked of what happened"
            )
        first = steps[0].number + 1
        last = steps[-1].number + 1 if upto is None else first + upto - 1
        reasoning = reasoning and bool(self._thoughts)
        key = (turn, last, reasoning)
        if key not in self._windows:
            end = len(self.lines) if turn is None and upto is None else self.ends[last - 1]
            shown = self.lines[:end]
            if self._thoughts and not reasoning:
                shown = [line for place, line in enumerate(shown) if place not in self._thoughts]
            text = "\n".join(shown)
            self._windows[key] = Window(
                text=text,
                first=first,
                last=last,
                turn=turn,
                digest=hashlib.sha256(text.encode()).hexdigest(),
                images=tuple(picture for place, picture in self.pictures if place < end),
                reasoning=reasoning,
            )
        return self._windows[key]

    def texts(self, number: int, part: str) -> list[PartText]:
        """The texts of a part of a step (dialogue-wide, from 1): a quote may stand in each."""
        key = (number, part)
        if key not in self._texts:
            self._texts[key] = [
                PartText(raw=self._seen(text), may_be_code=part == "tool.content")
                for text in part_texts(self._steps[number - 1], part)
            ]
        return self._texts[key]

    def contexts(self, number: int, part: str, quote: str) -> Iterator[Context]:
        """The contexts of all places at which the quote stands in the part, in order. Those up to the first that lacks
        nothing are sought once, since items, votes and judges quote the same."""
        key = (number, part, quote)
        known = self._contexts.get(key)
        if known is None:
            found = []
            for context in self._contexts_of(number, part, quote):
                found.append(context)
                if context.missing is None:
                    break
            known = self._contexts[key] = tuple(found)
        yield from known
        if known and known[-1].missing is None:
            yield from islice(self._contexts_of(number, part, quote), len(known), None)

    def _contexts_of(self, number: int, part: str, quote: str) -> Iterator[Context]:
        return (context_of(place) for text in self.texts(number, part) for place in places(quote, text))

    def last_step(self, item: Item, window: Window) -> int:
        """The last judged step that says anything about the item: of its agent, with a part that it may be shown by."""
        for number in range(window.last, window.first, -1):
            if item.agent in (None, self.step(number).agent) and any(
                part_texts(self.step(number), part) for part in allowed(item)
            ):
                return number
        return window.first

    def unseen(self, item: Item, window: Window) -> str | None:
        """What of the item's scope the judge was not shown, so that its absence there is not proved; None where it saw
        all."""
        if not window.whole:
            return "parts of the judged steps were not shown"
        for number in range(window.first, window.last + 1) if self._named_only else ():
            if item.agent in (None, self.step(number).agent):
                for part in allowed(item):
                    if (number, part) in self._named_only:
                        return f"{part} of step {number} holds what was not shown, such as an image"
        if item.agent is not None and all(
            self.step(number).agent != item.agent for number in range(window.first, window.last + 1)
        ):
            calls = (call for run in self.trace.runs for call in run.calls)
            if any(call.agent == item.agent and call.message is None and call.output is not None for call in calls):
                return f"what the agent {item.agent} did is not in the dialogue"
        return None

    def step(self, number: int) -> Step:
        """A step by its dialogue-wide number from 1."""
        return self._steps[number - 1]

    def _seen(self, text: str) -> str:
        return text if self.redact is None else self.redact(text)

    def _quoted(self, text: str) -> str:
        return quoted(self._seen(text), self.control)

    def excerpt(self, item: str, step: int, part: str, text: str) -> str:
        """A line that shows some sentences of a part again."""
        return f'{{"excerpt_for":{quoted(item)},"of":"step {step}, {part}","content":{quoted(text, self.control)}}}'

    def _show(self, message: Message, uses: Sequence[ToolUse]) -> None:
        step = f'"step":{len(self.ends)},' if message.role in ("assistant", "tool") and self.ends else ""
        agent = self._steps[len(self.ends) - 1].agent if step and self._named else None
        if agent is not None:
            step += f'"agent":{self._quoted(agent)},'
        own = {"assistant": "assistant.reply", "tool": "tool.content"}.get(message.role, message.role)
        # a part that others' messages hold must not pass for theirs, least of all a tool's result
        strange = f"{message.role}.other"
        calls = iter(uses)
        for part in message.parts:
            if isinstance(part, Text):
                self._line(step, own, part.content)
            elif isinstance(part, Reasoning):
                if message.role == "assistant":
                    self._thoughts.add(len(self.lines))
                self._line(step, REASONING if message.role == "assistant" else strange, part.content)
            elif isinstance(part, ToolCall):
                use = next(calls, None)  # None in a message that is not the assistant's
                status = None if use is None else shown_status(use)
                self._line(
                    step,
                    strange if use is None else "assistant.tool_calls",
                    call_text(ToolUse(call=part) if use is None else use),
                    "" if status is None else f',"status":"{status}"',
                )
            elif isinstance(part, ToolCallResponse):
                where = "tool.content" if message.role == "tool" else strange
                if isinstance(part.response, list) and any(map(_is_no_text, part.response)):
                    self._note_unseen(where)
                self._line(step, where, as_text(part.response), ',"error":true' if part.error else "")
            elif isinstance(part, Uri):
                self._note_unseen(own)
                self._line(
                    step,
                    strange,
                    part.uri,
                    f',"address_of":{self._quoted(part.modality or part.mime_type or "file")},"fetched":false',
                )
            elif isinstance(part, Blob):
                self._blob(step, own, strange, part)
            else:
                self._note_unseen(own)
                self._line(step, strange, canonical_json(part_to_json(part)))
        if step and all(
            isinstance(part, Reasoning) for part in message.parts
        ):  # the step happened, so it is shown, even where nothing was said
            self._line(step, own, "")

    def _blob(self, step: str, own: str, part: str, blob: Blob) -> None:
        kind = blob.mime_type or blob.modality or "file"
        digest = hashlib.sha256(blob.content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        about = f',"file":{self._quoted(kind)},"sha256":"{digest}"'
        before = len(self.pictures)
        if self.images and kind.startswith("image/"):
            try:
                data = base64.b64decode(blob.content, validate=True)
            except (binascii.Error, ValueError):
                data = b""
            if data:
                about += f',"image":{len(self.pictures) + 1}'
                self.pictures.append((len(self.lines), BinaryContent(data=data, media_type=kind)))
        if len(self.pictures) == before:
            self._note_unseen(own)
        self._line(step, part, "", about)

    def _note_unseen(self, part: str) -> None:
        if self.ends:
            self._named_only.add((len(self.ends), part))

    def _line(self, step: str, part: str, content: str, about: str = "") -> None:
        self.lines.append(f'{{{step}"part":"{part}"{about},"content":{self._quoted(content)}}}')


def _is_no_text(block: JSON) -> bool:
    return isinstance(block, dict) and "type" in block and block["type"] != "text"


def item_line(item: Item) -> str:
    """An item as the judge reads it. Weights, dependencies and strictness are not the judge's business, so they change
    no verdict."""
    shown = {
        "id": item.id,
        "kind": item.kind,
        "question": item.question,
        "yes_requires" if item.kind != "avoid" else "no_requires": item.pass_condition,
        "no_examples" if item.kind != "avoid" else "yes_examples": list(item.failure_examples) or None,
        "quote_from": item.focus_on,
        "only_steps_of_agent": item.agent,
    }
    return escaped(canonical_json({key: value for key, value in shown.items() if value is not None}))


def tail(window: Window, items: Sequence[tuple[str, str]], note: str = "") -> str:
    """What follows the transcript: its end, the judged steps and the items, as (id, line), under a nonce drawn here."""
    return _ITEMS.format(
        nonce=secrets.token_hex(16),
        scope=window.scope,
        note=f"{note}\n" if note else "",
        items="\n".join(line for _, line in items),
        count=len(items),
        ids=", ".join(name for name, _ in items),
    )


__all__ = ["INSTRUCTIONS", "PROMPT_VERSION", "Transcript", "Window", "item_line", "quoted", "tail"]
