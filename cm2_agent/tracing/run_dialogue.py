"""What a run added to its dialogue, which model call wrote which message, and the states its graph went through.

What capture promises of a Run, in the order of time:

- `messages` is what user and agent said in this run: the messages of the input that were not there before, then what
  the graph's nodes wrote. What reached the user is the reply: a reply that is replaced before anybody speaks again (by
  its id, or removed for another) is a draft, which stays on its model call (`changed` is `rewritten`). What is removed
  without a replacement was said. A call that ran with other arguments than the model gave has those that ran
  (`changed` is `edited`).
- What the application writes into the state for the model to read, as a summary, is not in it; in `ModelCall.input`
  such a message bears `cm2.shown` in its `extra`.
- `history` is what was there before: what the state held when the run began; where the caller sends the whole
  conversation, its earlier messages. It is empty for the first run of a thread.
- `states` begins with the state before the input and ends with the last one; between them stands each state that a
  superstep left. A hash names the messages by id and content, whatever their order; the state without messages is
  `0000000000000000`. A run that begins in a state that another run of the thread went through continues from there:
  after `update_state`, it begins in a state that no run has left. States are known only where the graph has `messages`;
  without a checkpointer ids are new in each run, and no two runs share a state.

A graph whose state shows no messages has the dialogue that its model calls show (`prompt_dialogue`)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from langgraph.types import Command

from cm2_agent.dialects.prompt_dialogue import PromptDialogue
from cm2_agent.dialects.seen_message import SeenMessage
from cm2_agent.langchain_messages import plain
from cm2_agent.tracing.span_records import ChatRecord, RootRecord, ToolRecord
from cm2_agent.tracing.state_dialogue import Entry, StateDialogue
from cm2_agent.types.messages import Message, ToolCallResponse
from cm2_agent.types.run import StateMark, ToolRun
from cm2_agent.types.tool_use import AskedCall, Executions, as_it_ran, ended, pair_answers, uses


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """`written` and `changed` are by the identity of a call's record: the index of the message it wrote, and what was
    done to it."""

    messages: tuple[Message, ...]
    history: tuple[Message, ...] = ()
    states: tuple[StateMark, ...] = ()
    written: Mapping[int, int] = field(default_factory=dict)
    changed: Mapping[int, Literal["edited", "rewritten"]] = field(default_factory=dict)


def run_dialogue(
    root: RootRecord, chats: list[ChatRecord], tools: list[ToolRecord], runs: Sequence[ToolRun]
) -> Dialogue:
    """The dialogue of a root from the calls and executions that belong to it, in the order of their starts: those
    inside tools and those of rejected attempts stay out. `runs` are the executions as a Run holds them."""
    own = root.log.graphs.get(root.run_id)
    if own is None or not any(task.before is not None or task.writes for task in own.tasks):
        return _from_prompts(root, chats, tools)
    return _RunDialogue(root, chats, runs).dialogue()


def _from_prompts(root: RootRecord, chats: list[ChatRecord], tools: list[ToolRecord]) -> Dialogue:
    entries = PromptDialogue(root, chats, tools).entries
    added = [entry for entry in entries if entry.added]
    return Dialogue(
        messages=tuple(entry.seen.message for entry in added),
        history=tuple(entry.seen.message for entry in entries if not entry.added),
        written={id(entry.call): number for number, entry in enumerate(added) if entry.call is not None},
    )


class _RunDialogue:
    """The messages that a graph's state shows, joined with the calls and executions behind them."""

    def __init__(self, root: RootRecord, chats: list[ChatRecord], tools: Sequence[ToolRun]) -> None:
        self.root, self.chats, self.tools = root, chats, tools
        answered = self.answered = [chat for chat in chats if chat.output is not None]
        self.state = StateDialogue(
            root.log,
            root.log.graphs[root.run_id],
            root.input_messages or (),
            root.final_messages,
            root.resumed,
            root.message_index.outside,
            root.message_index.repeated,
            cache(lambda: _words(root.inputs)),
            cache(lambda: {chat.output.message.text.strip() for chat in answered if chat.output is not None}),
        )
        self.calls: dict[int, list[ChatRecord]] = {}  # an entry's identity → the calls behind it
        self.linked: set[int] = set()
        self._link_by_identity()
        self._unfinished_nodes()
        if root.status == "ok":
            self._take_reply()
        self.state.judge_users(root.status == "ok")
        self._link_rewritten()
        self._add_system()
        self.final: dict[int, Message] = {}
        self._executed()

    def dialogue(self) -> Dialogue:
        added = [entry for entry in self.state.entries if not entry.dropped]
        written: dict[int, int] = {}
        changed: dict[int, Literal["edited", "rewritten"]] = {}
        for number, entry in enumerate(added):
            for chat in self.calls.get(id(entry), ()):
                written[id(chat)] = number
                assert chat.output is not None
                how = _change(chat.output.message, self.final.get(id(entry), entry.seen.message))
                if how is not None:
                    changed[id(chat)] = how
        return Dialogue(
            messages=tuple(self.final.get(id(entry), entry.seen.message) for entry in added),
            history=tuple(_originals(self.state.history)),
            states=self.state.marks(added),
            written=written,
            changed=changed,
        )

    # Which call wrote which message

    def _link(self, chat: ChatRecord, entry: Entry) -> None:
        self.calls.setdefault(id(entry), []).append(chat)
        self.linked.add(id(chat))

    def _link_by_identity(self) -> None:
        """By LangChain's id, or where a state keeps none by content."""
        ids: dict[str, Entry] = {}
        written = self._written()
        for entry in written:
            for seen in (entry.seen, *entry.drafts):
                if seen.id is not None:
                    ids[seen.id] = entry
        for chat in self.answered:
            assert chat.output is not None
            found = ids.get(chat.output.id) if chat.output.id else None
            if found is not None:
                self._link(chat, found)
        left = [chat for chat in self.answered if id(chat) not in self.linked]
        if not left:
            return
        keys: dict[Hashable, list[Entry]] = {}
        for entry in written:
            for seen in (entry.seen, *entry.drafts):
                keys.setdefault(seen.key, []).append(entry)
        for chat in left:
            assert chat.output is not None
            born = self._born(chat)
            for entry in keys.get(chat.output.key, ()):
                if id(entry) not in self.calls and entry.born >= born:
                    self._link(chat, entry)
                    break

    def _take_reply(self) -> None:
        """A model's answer that its node wrote as a user's message, as teams of agents do, is the reply at the end."""
        said = [entry for entry in self.state.entries if not entry.dropped and entry.role != "system"]
        replied = any(entry.role == "assistant" and not entry.seen.message.tool_calls for entry in said)
        last = said[-1] if said and said[-1].role == "user" and said[-1].origin == "node" else None
        if last is not None and not replied and last.seen.message.text.strip() in self.state.answers():
            last.seen = SeenMessage(replace(last.seen.message, role="assistant"), last.seen.id)

    def _link_rewritten(self) -> None:
        """Drafts that never stood in the state: an answer that its node changed before it wrote it, or that a later
        node wrote otherwise."""
        for entry in self._written():
            if entry.dropped or id(entry) in self.calls:
                continue
            drafts = [chat for chat in self.answered if id(chat) not in self.linked and self._may_draft(chat, entry)]
            close = [chat for chat in drafts if chat.output is not None and _rewritten(chat.output.message, entry)]
            asked = [chat for chat in drafts if self._was_asked_for(chat, entry)]
            if close or asked:
                self._link(close[0] if close else asked[-1], entry)

    def _may_draft(self, chat: ChatRecord, entry: Entry) -> bool:
        return (
            not chat.internal and self._born(chat) <= entry.born and (not entry.written or chat.ended <= entry.written)
        )

    def _was_asked_for(self, chat: ChatRecord, entry: Entry) -> bool:
        """Whether the call was to answer what the message answers."""
        if entry.seen.message.tool_calls or chat.output is None or chat.output.message.tool_calls or not chat.input:
            return False
        before = self._last_before(entry)
        return before is not None and before.message.role != "assistant" and _same(chat.input[-1], before)

    def _last_before(self, entry: Entry) -> SeenMessage | None:
        last = self.state.history[-1] if self.state.history else None
        for other in self.state.entries:
            if other is entry:
                break
            if not other.dropped and other.role != "system":
                last = other.seen
        return last

    def _written(self) -> list[Entry]:
        entries = self.state.entries
        return [entry for entry in entries if entry.origin == "node" and entry.seen.message.role == "assistant"]

    def _born(self, chat: ChatRecord) -> int:
        return 0 if chat.task is None else self.state.steps.get(chat.task.top.step, 0)

    # What the state does not show

    def _unfinished_nodes(self) -> None:
        """A node that failed after its model had answered wrote nothing: what it had been answered was said."""
        for chat in self.answered:
            task = chat.task
            if id(chat) in self.linked or task is None or not task.unfinished or task.stopped or chat.internal:
                continue
            known = {seen.key for seen in self.state.history}
            known |= {seen.key for entry in self.state.entries for seen in (entry.seen, *entry.drafts)}
            after = max((place + 1 for place, seen in enumerate(chat.input) if seen.key in known), default=0)
            if after or not known:
                for seen in chat.input[after:]:
                    if seen.message.role != "system":
                        self.state.add(seen, chat.started)
                assert chat.output is not None
                self._link(chat, self.state.add(chat.output, chat.ended))

    def _add_system(self) -> None:
        """The prompt of a dialogue that begins here, unless an attempt that failed has it."""
        history, thread = self.state.history, self.root.message_index.thread
        if (history and thread.prompted) or any(seen.message.role == "assistant" for seen in history):
            return
        shown = [seen for seen in history if seen.message.role == "system" and not seen.shown]
        first = next((chat for chat in self.chats if id(chat) in self.linked), None)
        if first is None and not self.answered:
            first = self.chats[0] if self.chats else None
        if first is not None:
            shown = [seen for seen in first.input if seen.message.role == "system" and not seen.shown] or shown
        if shown:
            known = {entry.seen.key for entry in self.state.entries}
            prompts = [Entry(seen, "prompt") for seen in shown if seen.key not in known]
            self.state.entries[:0] = prompts
            thread.prompted = thread.prompted or bool(prompts)
        self.state.history = [seen for seen in history if seen.message.role != "system"]

    def _executed(self) -> None:
        """Calls as they ran, and responses that no state shows because the run ended first."""
        asking = [
            (step, entry)
            for step, entry in enumerate(self.state.entries)
            if entry.seen.message.role == "assistant" and not entry.dropped and entry.seen.message.tool_calls
        ]
        for entry, runs in self._executions(asking) if asking else ():
            chats = self.calls.get(id(entry))
            message = as_it_ran(entry.seen.message, runs, chats[0].tools if chats else ())
            if message is not entry.seen.message:
                self.final[id(entry)] = message
            if not self.root.interrupted:
                self._unseen_responses(entry, runs)

    def _executions(self, asking: Sequence[tuple[int, Entry]]) -> list[tuple[Entry, list[ToolRun | None]]]:
        """The executions of each message's calls. Mostly every call has an id of its own and ran once, by its name."""
        names = [(call.id, call.name) for _, entry in asking for call in entry.seen.message.tool_calls]
        ran = {tool.call_id: tool for tool in self.tools}
        if len(ran) == len(self.tools) and len({id for id, _ in names}) == len(names):
            asked = dict(names)
            if all(id and asked.get(id) == tool.name for id, tool in ran.items()) and all(asked):
                return [(entry, [ran.get(call.id) for call in entry.seen.message.tool_calls]) for _, entry in asking]
        executions = Executions()
        found: list[tuple[Entry, list[AskedCall]]] = []
        for step, entry in asking:
            calls = uses(entry.seen.message.tool_calls, ())
            found.append((entry, [AskedCall(use=use, step=step, at=self._time(entry)) for use in calls]))
            for one in found[-1][1]:
                executions.ask(one)
        for tool in self.tools:
            executions.execute(tool)
        return [(entry, [one.run for one in own]) for entry, own in found]

    def _time(self, entry: Entry) -> int:
        calls = self.calls.get(id(entry))
        return calls[0].ended if calls else entry.written

    def _unseen_responses(self, entry: Entry, runs: Sequence[ToolRun | None]) -> None:
        entries = self.state.entries
        start = end = entries.index(entry) + 1
        while end < len(entries) and (entries[end].role == "tool" or entries[end].dropped):
            end += 1
        shown = [part.id for other in entries[start:end] if not other.dropped for part in other.seen.message.responses]
        calls = entry.seen.message.tool_calls
        asked = [call.id for call in calls]
        if asked == shown and all(asked):  # as it mostly is
            return
        for call, answer, run in zip(calls, pair_answers(asked, shown), runs, strict=True):
            if answer is None and ended(run) and run is not None and run.error is None:
                response = ToolCallResponse(id=call.id, response=run.result)
                message = Message(role="tool", parts=(response,), name=run.name)
                entries.insert(end, Entry(SeenMessage(message, None), "node", self.state.last_born))
                end += 1


def _originals(history: Sequence[SeenMessage]) -> list[Message]:
    """The messages as they were when they were written, without those that nobody wrote to anybody."""
    return [seen.original or seen.message for seen in history if seen.original or not (seen.shown or seen.notice)]


def _words(inputs: Any) -> list[str]:
    """The texts of a graph's input beside its messages; of a Command, what it resumes with."""
    given = inputs.resume if isinstance(inputs, Command) else inputs
    if isinstance(given, Mapping) and not isinstance(inputs, Command):
        given = {key: value for key, value in given.items() if key != "messages"}
    found: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, str) and value.strip():
            found.append(value)
        elif isinstance(value, dict):
            for item in value.values():
                look(item)
        elif isinstance(value, list):
            for item in value:
                look(item)

    if isinstance(given, str | dict | list):
        look(given if isinstance(given, str) else plain(given))
    return found


def _same(left: SeenMessage, right: SeenMessage) -> bool:
    return left is right or left.key == right.key


def _rewritten(answer: Message, entry: Entry) -> bool:
    """Whether a message is an answer that some node changed: the same calls, or one text within the other."""
    stored = entry.seen.message
    asked = [call.id for call in answer.tool_calls if call.id]
    if asked or stored.tool_calls:
        return bool(asked) and asked == [call.id for call in stored.tool_calls]
    before, after = answer.text.strip(), stored.text.strip()
    return bool(before and after) and (before in after or after in before)


def _change(draft: Message, final: Message) -> Literal["edited", "rewritten"] | None:
    if draft is final:
        return None
    if draft.text.strip() != final.text.strip():
        return "rewritten"
    asked, ran = ([(call.name, call.arguments) for call in message.tool_calls] for message in (draft, final))
    return None if asked == ran else "edited"
