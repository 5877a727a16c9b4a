"""The dialogue as an append-only log of what a graph's nodes wrote to its messages.

What is written is added; what is removed later was said all the same. A message is replaced (by id, or removed for
another) only until somebody speaks after it: that is a draft which nobody read. What an application writes for the
model to read, as a summary, is no part of the dialogue (`_is_shown`)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Literal

from cm2_agent.dialects.seen_message import SeenMessage, state_hash, total_hash
from cm2_agent.tracing.message_lists import (
    between_runs,
    clears,
    find,
    identified,
    identity_of,
    new_messages,
    reduced,
    shown_to,
    written_by,
)
from cm2_agent.tracing.state_log import GraphLog, NodeTask, StateLog
from cm2_agent.types.run import StateMark

_TELLING = 20
"""A model's answer of so many characters is not in another text by chance."""
Origin = Literal["given", "prompt", "node"]


@dataclass(slots=True, eq=False)
class Entry:
    """One message that the run added. `born` counts the states that the run went through before it, `written` is when
    in nanoseconds since 1970 (0 for what was given); `drafts` are the messages it replaced."""

    seen: SeenMessage
    origin: Origin
    born: int = 0
    written: int = 0
    drafts: tuple[SeenMessage, ...] = ()
    dropped: bool = False

    @property
    def role(self) -> str:
        return self.seen.message.role


class StateDialogue:
    """Built from the log of a run's own graph.

    Args:
        log: what the nodes of all graphs of the run did.
        own: the log of the run's own graph.
        given: the messages of the run's input.
        final: those of its output, None where the run did not end by itself.
        resumed: whether it went on from a checkpoint.
        outside: what stands in its first state behind the state that the thread's last run ended in.
        repeated: the ids of what an earlier run of the thread held already.
        words: the texts of the run's input beside its messages, such as a person's answer to an interrupt.
        answers: what the run's models answered, each without white space around it.
    """

    def __init__(
        self,
        log: StateLog,
        own: GraphLog,
        given: Sequence[SeenMessage],
        final: Sequence[SeenMessage] | None,
        resumed: bool,
        outside: Sequence[SeenMessage] = (),
        repeated: Collection[str] = (),
        words: Callable[[], Sequence[str]] = tuple,
        answers: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self.words, self.answers = words, answers
        self.entries: list[Entry] = []
        self.history: list[SeenMessage] = []
        """What was there before the run's own messages."""
        self._by: dict[Hashable, Entry] = {}
        self._drafts: list[Entry] = []  # taken out, and nobody has spoken since
        self._before: set[Hashable] | None = None  # identities of the history; made when it is needed
        self._extra: list[SeenMessage] = []  # history that only a subgraph holds
        self._known: set[Hashable] = set()  # identities of that, and of what was taken out of the state
        self._states: list[tuple[int, int]] = []
        self._born = 0
        self.steps: dict[int, int] = {}
        """The number of each superstep → `born` of what it wrote."""
        steps = own.steps()
        self._begin(steps, given or (between_runs(outside) if resumed else ()), final, resumed, repeated)
        if resumed:
            self._resumed_subgraphs(log)
        for number, tasks in enumerate(steps):
            after = final if number + 1 == len(steps) else shown_to(steps[number + 1])
            self._born += 1
            self.steps[tasks[0].step] = self._born
            written = max([task.ended for task in tasks], default=0)
            self._go(list(after) if after is not None else reduced(self._state, tasks), written, clears(tasks))
            self._mark()
        for task in own.tasks:
            if task.unfinished:
                self._unfinished(log, task)
        self.history += self._extra

    # The state at the start

    def _begin(
        self,
        steps: Sequence[Sequence[NodeTask]],
        given: Sequence[SeenMessage],
        final: Sequence[SeenMessage] | None,
        resumed: bool,
        repeated: Collection[str],
    ) -> None:
        early: list[NodeTask] = []
        first: Sequence[SeenMessage] | None = None
        for tasks in steps:
            first = shown_to(tasks)
            if first is not None:
                break
            early.extend(tasks)
        state = list(given) if first is None and final is None else list(first if first is not None else final or ())
        own = {seen for task in early for seen in written_by(task)}
        if own:  # the first state that anybody was shown holds what this run wrote before
            keys = {seen.key for seen in own}
            state = [seen for seen in state if seen not in own and seen.key not in keys]
        elif resumed and steps:
            state += self._pending(state, steps[0], shown_to(steps[1]) if len(steps) > 1 else final)
        new = new_messages(given)
        start = find(state, new)
        self._state = state
        if start is None:
            known = {seen.key for seen in new}
            mine = [seen for seen in state if seen.key in known]
            self.history = [seen for seen in state if seen.key not in known]
        else:
            mine = state[start : start + len(new)]
            self.history = state[:start] + state[start + len(new) :]
        while mine and mine[0].id is not None and mine[0].id in repeated:  # sent again under its id
            self.history.append(mine.pop(0))
        self._total = total_hash(self.history)
        self._states.append((self._total, -1))
        self._total += total_hash(mine)
        spoken = any(seen.message.role == "assistant" for seen in self.history)
        for seen in self._without_repeats(mine):
            if not spoken or seen.message.role != "system":
                self._append(seen, "given", 0)
        self._mark()

    def _pending(
        self, state: Sequence[SeenMessage], tasks: Sequence[NodeTask], after: Sequence[SeenMessage] | None
    ) -> list[SeenMessage]:
        """What nodes had written beside the one that was interrupted: it comes into the state with the first step of
        the run that goes on, and is not what this step wrote."""
        own = {seen for task in tasks for seen in written_by(task)}
        keys = {seen.key for seen in own} | {identity_of(seen) for seen in state}
        return [seen for seen in after or () if not (seen in own or seen.key in keys or identity_of(seen) in keys)]

    def _without_repeats(self, mine: list[SeenMessage]) -> list[SeenMessage]:
        """A user's message that nobody has answered, sent again after a failure, was said once."""
        last = next((seen for seen in reversed(self.history) if seen.message.role in ("user", "assistant")), None)
        while mine and last is not None and mine[0].message.role == "user" and last.key == mine[0].key:
            mine = mine[1:]
        return mine

    def _resumed_subgraphs(self, log: StateLog) -> None:
        """What a subgraph had written before the run went on is part of the run that was interrupted."""
        for graph in log.graphs.values():
            if graph.resumed and graph.task is not None:
                own = {seen for task in graph.tasks for seen in written_by(task)}
                keys = {seen.key for seen in own}
                for seen in {seen: None for task in graph.tasks for seen in task.before or ()}:
                    if seen not in own and seen.key not in keys and not self._in_history(seen):
                        self._extra.append(seen)
                        self._known.add(identity_of(seen))

    # From state to state

    def _go(self, after: list[SeenMessage], written: int, cleared: bool) -> None:
        """The state is another one: what is new, replaced and gone. Who clears it takes nothing back."""
        before = self._state
        same = min(len(before), len(after))
        if not all(map(is_, before, after)):
            same = next(place for place, pair in enumerate(zip(before, after, strict=False)) if pair[0] is not pair[1])
        elif same == len(before):
            self._added(after, same, written, cleared)
            return
        self._state = after
        old, new = identified(before, same), identified(after, same)
        self._total += total_hash(new.values()) - total_hash(old.values())
        lost = [identity for identity in old if identity not in new]
        users = any(old[identity].message.role == "user" and not old[identity].shown for identity in lost)
        added = [(identity, seen) for identity, seen in new.items() if identity not in old]
        if len(lost) == 1 and users and lost[0] in self._by:  # the user's message under another id
            other = [identity for identity, seen in added if seen.message.role == "user"]
            if len(other) == 1 and self._is_open(self._by[lost[0]]):
                self._by[other[0]] = self._by[lost[0]]
                self._replace(other[0], old[lost[0]], new[other[0]], False)
        self._known.update(lost)
        for identity, seen in new.items():
            if identity in old and old[identity] is not seen:
                self._replace(identity, old[identity], seen, bool(lost))
        stays = max((place for place, identity in enumerate(new) if identity in old), default=-1)
        places = {identity: place for place, identity in enumerate(new)}
        gone = [] if users else [self._by[identity] for identity in lost if identity in self._by]
        self._drafts = [
            entry
            for entry in [*self._drafts, *gone]
            if entry.role == "assistant" and not entry.dropped and self._is_open(entry)
        ]
        for identity, seen in added:
            if identity in self._by or identity in self._known:
                continue  # it was taken out, and is there again
            self._add_new(identity, seen, written, self._is_shown(seen, places[identity] < stays, bool(lost), users))
        if cleared:
            self._drafts = []

    def _added(self, after: list[SeenMessage], start: int, written: int, cleared: bool) -> None:
        """The state goes on, and nothing in it is another: as `_go` does it, without a look at the rest."""
        self._state = after
        if self._drafts:
            self._drafts = [draft for draft in self._drafts if not draft.dropped and self._is_open(draft)]
        for identity, seen in identified(after, start).items():
            self._total += seen.hash
            if identity not in self._by and identity not in self._known:
                self._add_new(identity, seen, written, self._is_shown(seen, False, False, False))
        if cleared:
            self._drafts = []

    def _add_new(self, identity: Hashable, seen: SeenMessage, written: int, shown: bool) -> None:
        if shown:
            seen.mark_shown()
            return
        drafts = self._drafts if seen.message.role == "assistant" else []
        entry = self._append(seen, "node", written, identity)
        for draft in drafts:
            draft.dropped = True
            entry.drafts = (*entry.drafts, *draft.drafts, draft.seen)
        self._drafts = []

    def _is_shown(self, seen: SeenMessage, inserted: bool, removed: bool, users: bool) -> bool:
        """Whether a node wrote it for the model to read. A user's or system message that comes with removals takes the
        place of what was removed; so does an assistant's that is put before messages that stay. Other user messages are
        judged at the end (`judge_users`)."""
        role = seen.message.role
        if seen.shown or (seen.notice and role == "user"):
            return True
        if role == "assistant":
            return inserted and users
        if role == "system":
            return removed or bool(self.history) or any(entry.role == "assistant" for entry in self.entries)
        return role == "user" and removed and not self._is_given(seen)

    def _is_given(self, seen: SeenMessage) -> bool:
        """Whether the message says what the run's input says beside its messages."""
        text = seen.message.text
        return any(word in text for word in self.words())

    def judge_users(self, ended_well: bool) -> None:
        """Which user messages that nodes wrote are a user's words: those that begin the dialogue, say what the input
        says, or come after the assistant's reply and are answered, as where a graph conducts the dialogue with a
        simulated user. Others, such as a reminder after a tool's response or a summary put at the end, are for the
        model to read."""
        if not any(entry.role == "user" and entry.origin == "node" for entry in self.entries):
            return
        last = next((seen.message for seen in reversed(self.history) if seen.message.role != "system"), None)
        speaks = [
            number for number, entry in enumerate(self.entries) if entry.role == "assistant" and not entry.dropped
        ]
        conducts = False
        for number, entry in enumerate(self.entries):
            if entry.dropped or entry.role == "system":
                continue
            if entry.role == "user" and entry.origin == "node" and not self._is_given(entry.seen):
                after_reply = last is not None and last.role == "assistant" and not last.tool_calls
                answered = bool(speaks) and speaks[-1] > number
                if last is not None and not (after_reply and (answered or conducts or not ended_well)):
                    entry.seen.mark_shown()
                    entry.dropped = True
                    continue
                conducts = conducts or (answered and after_reply)
            last = entry.seen.message

    def _replace(self, identity: Hashable, old: SeenMessage, new: SeenMessage, removed: bool) -> None:
        entry = self._by.get(identity)
        counts = entry is not None and not entry.dropped and self._is_open(entry, responses=True)
        if entry is not None and entry.role == "user" and self._is_made_of(old, new):
            counts = False
        if entry is not None and counts:
            entry.drafts = (*entry.drafts, entry.seen)
            entry.seen = new
            return
        if old.shown or (removed and new.message.role in ("user", "system")):
            new.mark_shown()
        new.original = old.original or (None if old.shown else old.message)

    def _is_made_of(self, old: SeenMessage, new: SeenMessage) -> bool:
        """Whether the application put more around the user's words, or had a model put them otherwise."""
        text = new.message.text
        return (
            new.notice
            or old.message.text in text
            or text.strip() in self.answers()
            or any(len(answer) >= _TELLING and answer in text for answer in self.answers())
        )

    def _is_open(self, entry: Entry, responses: bool = False) -> bool:
        """Whether nobody has spoken since."""
        for later in reversed(self.entries):
            if later is entry:
                return True
            if later.dropped or (later.role == "tool" and responses):
                continue
            if entry.role == "assistant" or later.role == "assistant":
                return False
        return False

    def _unfinished(self, log: StateLog, task: NodeTask) -> None:
        """A subgraph did not come to its end: what its nodes wrote is all there is of this node's."""
        for graph in log.graphs.values():
            if graph.task is not task:
                continue
            steps = graph.steps()
            first = shown_to(graph.tasks)
            asked = self.entries[-1].seen.key if self.entries else None  # perhaps in a message of its own
            shared = any(
                self._in_history(seen) or identity_of(seen) in self._by or seen.key == asked for seen in first or ()
            )
            if first and self._state and not shared:
                continue  # a conversation of its own
            state = list(first) if first else list(self._state)
            kept, total = self._state, self._total
            for number, tasks in enumerate(steps):
                later = shown_to(steps[number + 1]) if number + 1 < len(steps) else None
                state = list(later) if later is not None else reduced(state, tasks)
                self._go(state, max((inner.ended for inner in tasks), default=0), clears(tasks))
            self._state, self._total = kept, total
            self._mark()
            for inner in graph.tasks:
                if inner.unfinished:
                    self._unfinished(log, inner)

    def add(self, seen: SeenMessage, at: int) -> Entry:
        """One more message at the end, that no state shows."""
        return self._append(seen, "node", at)

    @property
    def last_born(self) -> int:
        return self._born

    # What is known

    def _append(self, seen: SeenMessage, origin: Origin, written: int, identity: Hashable = None) -> Entry:
        entry = Entry(seen, origin, self._born, written)
        self._by[identity_of(seen) if identity is None else identity] = entry
        place = len(self.entries)
        if entry.role == "tool":
            place = self._place_of_response(seen)
        self.entries.insert(place, entry)
        return entry

    def _place_of_response(self, seen: SeenMessage) -> int:
        """Behind the message that asked and what has answered it so far."""
        ids = {part.id for part in seen.message.responses if part.id is not None}
        place = len(self.entries)
        for number in range(len(self.entries) - 1, -1, -1):
            entry = self.entries[number]
            if entry.role == "tool":
                continue
            if entry.role == "assistant" and any(call.id in ids for call in entry.seen.message.tool_calls):
                place = number + 1
                while place < len(self.entries) and self.entries[place].role == "tool":
                    place += 1
                return place
        asked = (call.id for seen in reversed(self.history) for call in seen.message.tool_calls)
        if ids and any(id in ids for id in asked):  # it comes to the step of an earlier run
            place = next((at for at, entry in enumerate(self.entries) if entry.role != "tool"), place)
        return place

    def _in_history(self, seen: SeenMessage) -> bool:
        if self._before is None:
            self._before = {identity_of(other) for other in self.history}
        identity = identity_of(seen)
        return identity in self._before or identity in self._known

    def _mark(self) -> None:
        self._states.append((self._total, self._born))

    def marks(self, added: Sequence[Entry]) -> tuple[StateMark, ...]:
        """The states in order, each with how many of the messages that the run added were there."""
        born = sorted(entry.born for entry in added)
        out: list[StateMark] = []
        for place, (total, number) in enumerate(self._states):
            if place and total == self._states[place - 1][0]:
                out.pop()
            out.append(StateMark(hash=state_hash(total), messages=bisect_right(born, number)))
        return tuple(out)
