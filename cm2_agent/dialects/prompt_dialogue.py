"""The dialogue of a run whose nodes show no messages: which its model calls added, and which call wrote which.

Calls show their input and output, and the run perhaps its first and last messages; neither shows what *this run* added:
history may come from the caller, prompts may be trimmed, rewritten or a side question. So the dialogue is grown call by
call: what stands in the last messages before a call's output (or, where they don't show the output, in the call's own
input) after the last message already known is new."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any, Protocol

from cm2_agent.dialects.seen_message import SeenMessage
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, ToolCallResponse
from cm2_agent.types.run_attributes import GUARD_OUTCOME


class Chat(Protocol):
    """A model call: the messages of its prompt, and its answer."""

    @property
    def input(self) -> Sequence[SeenMessage]: ...
    @property
    def output(self) -> SeenMessage | None: ...


class Executed(Protocol):
    """An execution of a tool; `interrupted`: it stopped to ask a human and answered nothing."""

    @property
    def name(self) -> str: ...
    @property
    def call_id(self) -> str | None: ...
    @property
    def result(self) -> JSON: ...
    @property
    def error(self) -> str | None: ...
    @property
    def interrupted(self) -> bool: ...


class Around(Protocol):
    """What holds the calls: the messages of its input and of its last state, where they are known; `resumed` says that
    it goes on with what was interrupted."""

    @property
    def input_messages(self) -> Sequence[SeenMessage] | None: ...
    @property
    def final_messages(self) -> Sequence[SeenMessage] | None: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...
    @property
    def resumed(self) -> bool: ...
    @property
    def interrupted(self) -> bool: ...


@dataclass(slots=True, eq=False)
class _Entry:
    seen: SeenMessage
    added: bool
    call: Chat | None = None


class PromptDialogue:
    """Built from the calls and tool executions of one root that belong to its dialogue, in the order of their starts:
    those inside tools and those of rejected attempts stay out."""

    def __init__(self, root: Around, chats: Sequence[Chat], tools: Sequence[Executed]) -> None:
        self.root, self.tools = root, tools
        self.state = root.final_messages
        self.entries: list[_Entry] = []
        self.positions: dict[Hashable, list[int]] = {}  # a message's key -> its positions in `entries`
        self._walked: Sequence[SeenMessage] = ()
        self._reached = 0  # the position in `entries` after the last of `_walked`, of which every message is known
        self.executed = {tool.call_id for tool in tools if tool.call_id is not None}
        self.new_input = _after_last_assistant(root.input_messages or ())
        self.state_start = _find_block(self.state or (), self.new_input) or 0
        self.answered = [chat for chat in chats if chat.output is not None]
        if self.answered:
            self._from_calls()
        elif chats:
            self._grow(chats[0].input)  # the model failed: what it was asked is all there is
        else:
            self._without_calls()
        if not root.interrupted:
            self._unseen_answers()

    def _from_calls(self) -> None:
        places = self._places()
        if not places and self.state is not None and self.root.facts.get(GUARD_OUTCOME) == "blocked":
            self._without_calls()  # nothing that the model wrote was let through
            return
        in_dialogue = [chat for chat in self.answered if self.state is None or not places or id(chat) in places]
        for chat in in_dialogue:
            place = places.get(id(chat))
            shown = self.state[:place] if place is not None and place >= 0 and self.state is not None else chat.input
            self._grow(shown, chat.input, fork_is_new=self.state is None or not places)
            output = self.state[place] if place is not None and place >= 0 and self.state is not None else chat.output
            self._write(chat, output)
        if self.state is not None:
            after = self._after(self.state)
            if after:
                self._add(self.state[after:])

    def _places(self) -> dict[int, int]:
        """For each call whose answer became part of the dialogue: where it stands in the final state, -1 if only later
        prompts show it."""
        if self.state is None:
            return {}
        by_id = {seen.id: place for place, seen in enumerate(self.state) if seen.id}
        last_asked: dict[Hashable, int] = {}
        for number, chat in enumerate(self.answered):
            for seen in chat.input:
                last_asked[seen.key] = number
        taken: set[int] = set()
        places: dict[int, int] = {}
        for number, chat in enumerate(self.answered):
            assert chat.output is not None
            place = by_id.get(chat.output.id) if chat.output.id else None
            if place is None:
                place = next((i for i in self._assistants(taken) if self.state[i].key == chat.output.key), None)
            if place is not None:
                places[id(chat)] = place
                taken.add(place)
            elif last_asked.get(chat.output.key, -1) > number:
                places[id(chat)] = -1
        for chat in self.answered:  # answers that a node rewrote before it stored them
            if id(chat) not in places and chat.output is not None:
                message = chat.output.message
                place = next((i for i in self._assistants(taken) if _rewritten(message, self.state[i].message)), None)
                if place is not None:
                    places[id(chat)] = place
                    taken.add(place)
        return places

    def _assistants(self, taken: set[int]) -> Iterable[int]:
        state = self.state or ()
        return (
            i for i in range(self.state_start, len(state)) if i not in taken and state[i].message.role == "assistant"
        )

    def _grow(
        self, shown: Sequence[SeenMessage], prompt: Sequence[SeenMessage] = (), fork_is_new: bool = False
    ) -> None:
        if self.entries:
            self._extend(shown, fork_is_new)
        else:
            self._begin(shown, prompt)

    def _begin(self, shown: Sequence[SeenMessage], prompt: Sequence[SeenMessage] = ()) -> None:
        """The dialogue before the first answer: history is known but not added; what follows it is."""
        start = _find_block(shown, self.new_input)
        if start is None:
            start = len(shown) - len(_after_last_assistant(shown))
        new_thread = not any(seen.message.role == "assistant" for seen in shown[:start])
        if new_thread:
            for seen in prompt or shown:
                if seen.message.role == "system" and not any(seen is later for later in shown[start:]):
                    self._append(seen, added=True)
        for number, seen in enumerate(shown):
            role = seen.message.role
            if number < start:
                if role != "system" or not new_thread:
                    self._append(seen, added=False)
            else:
                self._append(seen, added=role != "tool" or self._answered_here(seen))

    def _answered_here(self, seen: SeenMessage) -> bool:
        """Whether a tool's answer before the first call is this run's: an interrupted run leaves its answers to the run
        that resumes."""
        return self.root.resumed or any(part.id in self.executed for part in seen.message.responses)

    def _extend(self, shown: Sequence[SeenMessage], fork_is_new: bool) -> None:
        after = self._after(shown)
        if after:
            whole = len(self._walked) == after
            self._add(shown[after:])
            if whole:
                self._walked, self._reached = shown, len(self.entries)
        elif fork_is_new:  # another prompt altogether, in a graph whose state shows no dialogue
            self._add(seen for seen in shown if seen.message.role in ("user", "tool"))

    def _after(self, shown: Sequence[SeenMessage]) -> int:
        """The position after the last message that is known, going through both in order; 0 where none is. Where the
        prompt begins with the one before, message by message, it goes on from there: what was added since comes later,
        and so changes no place that was found."""
        at, after = 0, 0
        if len(self._walked) <= len(shown) and all(map(is_, self._walked, shown)):
            at, after = self._reached, len(self._walked)
        missed = False
        for number in range(after, len(shown)):
            places = self.positions.get(shown[number].key)
            if places is not None:
                found = bisect_left(places, at)
                if found < len(places):
                    missed = missed or number > after
                    at, after = places[found] + 1, number + 1
        self._walked, self._reached = (() if missed else shown[:after]), (0 if missed else at)
        return after

    def _write(self, chat: Chat, output: SeenMessage | None) -> None:
        if output is None:
            return
        for place in self.positions.get(output.key, ()):  # a parallel call's state may have shown this answer already
            entry = self.entries[place]
            if entry.added and entry.call is None and entry.seen.id == output.id:
                entry.call = chat
                return
        self._append(output, added=True)
        self.entries[-1].call = chat

    def _without_calls(self) -> None:
        """No model was called: what the state shows from this run's input on, or after the first answer of a tool that
        ran here."""
        shown = self.state or []
        if self.entries:
            self._extend(shown, fork_is_new=False)
            return
        start = _find_block(shown, self.new_input) if self.new_input else None
        if start is None:
            answers = (
                i for i, seen in enumerate(shown) if any(part.id in self.executed for part in seen.message.responses)
            )
            start = next(answers, None)
        if start is None:
            shown, start = (self.new_input, 0) if self.new_input else (shown, len(shown))
        if self.new_input:
            self._add(seen for seen in shown[:start] if seen.message.role == "system")
        self._add(shown[start:])

    def _unseen_answers(self) -> None:
        """Answers that no later prompt or state shows, because the run ended first; each goes behind the message that
        asked for it.

        Some models give the same ids again and again: the n-th call of an id is answered by its n-th execution.
        """
        executed: dict[str, list[Executed]] = {}
        for tool in self.tools:
            if tool.call_id:
                executed.setdefault(tool.call_id, []).append(tool)
        if not executed:
            return
        asked: Counter[str] = Counter()
        entries: list[_Entry] = []
        for block in _steps(self.entries):
            entries.extend(block)
            shown = {part.id for entry in block[1:] for part in entry.seen.message.responses}
            for call in block[0].seen.message.tool_calls if block[0].added else ():
                if call.id is None:
                    continue
                done = [
                    tool
                    for tool in executed.get(call.id, ())[asked[call.id] :]
                    if tool.error is None and not tool.interrupted
                ]
                asked[call.id] += 1
                if done and call.id not in shown:
                    response = ToolCallResponse(id=call.id, response=done[0].result)
                    answer = Message(role="tool", parts=(response,), name=done[0].name)
                    entries.append(_Entry(SeenMessage(answer, None), added=True))
        self.entries = entries

    def _add(self, messages: Iterable[SeenMessage]) -> None:
        for seen in messages:
            self._append(seen, added=True)

    def _append(self, seen: SeenMessage, added: bool) -> None:
        self.positions.setdefault(seen.key, []).append(len(self.entries))
        self.entries.append(_Entry(seen, added))


def _steps(entries: Sequence[_Entry]) -> Iterable[list[_Entry]]:
    """The entries cut before everything that is not a tool's answer."""
    block: list[_Entry] = []
    for entry in entries:
        if block and entry.seen.message.role != "tool":
            yield block
            block = []
        block.append(entry)
    if block:
        yield block


def _after_last_assistant(messages: Sequence[SeenMessage]) -> list[SeenMessage]:
    """The messages since the assistant's last one, from the first user message or tool answer on."""
    start = next((i + 1 for i in range(len(messages) - 1, -1, -1) if messages[i].message.role == "assistant"), 0)
    while start < len(messages) and messages[start].message.role == "system":
        start += 1
    return list(messages[start:])


def _find_block(shown: Sequence[SeenMessage], block: Sequence[SeenMessage]) -> int | None:
    """Where the block last stands in what was shown."""
    if not block:
        return None
    keys = [seen.key for seen in block]
    for start in range(len(shown) - len(keys), -1, -1):
        if all(shown[start + i].key == key for i, key in enumerate(keys)):
            return start
    return None


def _rewritten(answer: Message, stored: Message) -> bool:
    """Whether a message of the state is an answer that some node changed: the same calls, or one text within the
    other."""
    asked = [call.id for call in answer.tool_calls if call.id]
    if asked or stored.tool_calls:
        return bool(asked) and asked == [call.id for call in stored.tool_calls]
    before, after = answer.text.strip(), stored.text.strip()
    return bool(before and after) and (before in after or after in before)
