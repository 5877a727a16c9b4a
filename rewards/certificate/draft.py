"""Draft: a trace under change. Texts are edited and steps added; calls, executions and turns stay in place.

Whatever an attack writes, the rest of the dialogue (who called what, what ran and what failed) stays as it was
recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from cm2_agent.types.dialogue_words import as_text
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, Reasoning, Text, ToolCall, ToolCallResponse
from cm2_agent.types.trace import Step, Trace, Turn

How = Literal["append", "prepend", "replace"]
PAGE = "read_page"
"""The tool that is called where a text is to stand in a tool's output and the turn has none."""


@dataclass(slots=True)
class _Line:
    """A message of a run; `index` is its place in the recorded run, None for one that was added."""

    message: Message
    index: int | None


class Draft:
    """A trace's messages, to be changed; `trace()` is what came of it.

    Only what its runs wrote is changed: what they were shown of earlier dialogue stays."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._runs = [[_Line(message, place) for place, message in enumerate(run.messages)] for run in trace.runs]
        self._of_message = {
            id(line.message): line for lines in self._runs for line in lines
        }  # by the recorded message, whatever became of it
        self._of_response = {
            id(part): (line, place)
            for line in self._of_message.values()
            for place, part in enumerate(line.message.parts)
            if isinstance(part, ToolCallResponse)
        }
        self._arguments: dict[int, JSON] = {}
        self._added = 0

    def trace(self) -> Trace:
        """The changed trace."""
        runs = []
        for run, lines in zip(self._trace.runs, self._runs, strict=True):
            places = {line.index: place for place, line in enumerate(lines) if line.index is not None}
            calls = tuple(
                call if call.message is None else replace(call, message=places.get(call.message)) for call in run.calls
            )
            tools = tuple(
                replace(one, arguments=self._arguments[id(one)]) if id(one) in self._arguments else one
                for one in run.tools
            )
            messages = tuple(line.message for line in lines)
            runs.append(replace(run, messages=messages, calls=calls, tools=tools))
        return replace(self._trace, runs=tuple(runs))

    # -- texts

    def reply(self, turn: Turn, text: str, how: How = "append") -> bool:
        """Change the turn's last reply, or add one where it has none; False where the turn is not the runs' own."""
        step = next((one for one in reversed(turn.steps) if one.is_reply), None)
        if step is None:
            return self.message(turn, text)
        return self._change(step, lambda message: _with_text(message, text, how))

    def every_reply(self, edit: Callable[[str], str]) -> bool:
        """Change the text of every reply; True where that changed anything."""
        changed = False
        for step in self._trace.steps:
            new = edit(step.message.text)
            if step.is_reply and new != step.message.text:
                changed |= self._change(step, partial(_with_text, text=new, how="replace"))
        return changed

    def reasoning(self, turn: Turn, text: str) -> bool:
        """Add a thought before the turn's last message."""

        def change(message: Message) -> Message:
            return replace(message, parts=(Reasoning(content=text), *message.parts))

        return self._change(turn.steps[-1], change)

    def user(self, turn: Turn, text: str) -> bool:
        """Add to what the user wrote last before the turn's answer."""
        line = next((self._of_message[id(one)] for one in reversed(turn.user) if id(one) in self._of_message), None)
        if line is None:
            return False
        line.message = _with_text(line.message, text, "append")
        return True

    def message(self, turn: Turn, text: str) -> bool:
        """Add a message of the assistant at the end of the turn."""
        return self._insert_after(turn.steps[-1], [Message.of("assistant", text)])

    # -- tools

    def tool_output(self, turn: Turn, text: str) -> bool:
        """Add to the last tool output of the turn; where it has none, a page is read before the last step."""
        for step in reversed(turn.steps):
            if step.responses and self._change_response(step.responses[-1], text):
                return True
        return self._insert_before(turn.steps[-1], self._page(text))

    def arguments(self, turn: Turn, change: Callable[[Mapping[str, JSON]], Mapping[str, JSON] | None]) -> bool:
        """Change the arguments of the turn's last call, in the message and in what ran; False where it made none, or
        there is nothing to change."""
        for step in reversed(turn.steps):
            for use in reversed(step.tool_uses):
                new = change(use.arguments) if isinstance(use.arguments, Mapping) else None
                if new is None:
                    continue
                behind = next(n for n, one in enumerate(reversed(step.tool_uses), 1) if one is use)

                def changed(message: Message, behind: int = behind, new: JSON = new) -> Message:
                    own = message.tool_calls[-behind]
                    parts = [replace(part, arguments=new) if part is own else part for part in message.parts]
                    return replace(message, parts=tuple(parts))

                if self._change(step, changed):
                    if use.run is not None:
                        self._arguments[id(use.run)] = new
                    return True
        return False

    def twin(self, turn: Turn) -> bool:
        """Beside each call that failed or was not answered, a harmless one under the same id that succeeds first; where
        there is none, a page is read twice under one id before the last step."""
        done = False
        for step in turn.steps:
            bad = [use.call for use in step.tool_uses if use.status != "ok" and use.call.id]
            if bad:
                twins = [ToolCall(id=call.id, name=PAGE, arguments={}) for call in bad]
                answers = [ToolCallResponse(id=call.id, response="ok") for call in bad]
                if self._change(step, partial(_before_calls, calls=twins)):
                    self._insert_after(step, [Message(role="tool", parts=tuple(answers))], first=True)
                    done = True
        return done or self._insert_before(turn.steps[-1], self._page("not found", "ok"))

    def _page(self, *texts: str) -> list[Message]:
        """A step that reads pages, all under one id."""
        self._added += 1
        calls = [ToolCall(id=f"page-{self._added}", name=PAGE, arguments={}) for _ in texts]
        answers = tuple(ToolCallResponse(id=call.id, response=text) for call, text in zip(calls, texts, strict=True))
        return [Message.of("assistant", "", calls), Message(role="tool", parts=answers)]

    def _change_response(self, response: ToolCallResponse, text: str) -> bool:
        if id(response) not in self._of_response:
            return False
        line, at = self._of_response[id(response)]
        now = line.message.parts[at]
        assert isinstance(now, ToolCallResponse)
        new = replace(now, response=_noted(now.response, text))
        line.message = replace(line.message, parts=(*line.message.parts[:at], new, *line.message.parts[at + 1 :]))
        return True

    # -- places

    def _find(self, step: Step) -> tuple[list[_Line], int] | None:
        """The line of a step, None where no run wrote it."""
        number = -1
        for before, lines in zip(self._trace.shown_before, self._runs, strict=True):
            number += sum(message.role == "assistant" for message in before)
            for place, line in enumerate(lines):
                if line.message.role == "assistant" and line.index is not None:
                    number += 1
                    if number == step.number:
                        return lines, place
        return None

    def _change(self, step: Step, change: Callable[[Message], Message]) -> bool:
        found = self._find(step)
        if found is None:
            return False
        lines, place = found
        lines[place].message = change(lines[place].message)
        return True

    def _insert_before(self, step: Step, messages: Sequence[Message]) -> bool:
        found = self._find(step)
        if found is None:
            return False
        lines, place = found
        lines[place:place] = [_Line(message, None) for message in messages]
        return True

    def _insert_after(self, step: Step, messages: Sequence[Message], *, first: bool = False) -> bool:
        """Behind the step's tool responses, or (`first`) before them."""
        found = self._find(step)
        if found is None:
            return False
        lines, place = found
        place += 1
        while not first and place < len(lines) and lines[place].message.role == "tool":
            place += 1
        lines[place:place] = [_Line(message, None) for message in messages]
        return True


def _with_text(message: Message, text: str, how: How) -> Message:
    own = [part for part in message.parts if isinstance(part, Text)]
    others = [part for part in message.parts if not isinstance(part, Text)]
    if how == "append":
        own = [*own[:-1], Text(content=f"{own[-1].content}\n{text}")] if own else [Text(content=text)]
    elif how == "prepend":
        own = [Text(content=f"{text}\n{own[0].content}"), *own[1:]] if own else [Text(content=text)]
    else:
        own = [Text(content=text)]
    thoughts = [part for part in others if isinstance(part, Reasoning)]
    rest = [part for part in others if not isinstance(part, Reasoning)]
    return replace(message, parts=(*thoughts, *own, *rest))


def _before_calls(message: Message, calls: Sequence[ToolCall]) -> Message:
    first = next(place for place, part in enumerate(message.parts) if isinstance(part, ToolCall))
    return replace(message, parts=(*message.parts[:first], *calls, *message.parts[first:]))


def _noted(response: JSON, text: str) -> JSON:
    """A tool's output with a text that somebody else put there."""
    if isinstance(response, Mapping):
        return {**response, "note": text}
    if isinstance(response, list):
        blocks = bool(response) and all(isinstance(one, Mapping) and one.get("type") == "text" for one in response)
        return [*response, {"type": "text", "text": text} if blocks else text]
    return text if response is None else f"{as_text(response)}\n{text}"


__all__ = ["PAGE", "Draft", "How"]
