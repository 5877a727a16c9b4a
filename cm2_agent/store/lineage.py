"""Which trace a captured run is part of: a trace is one path through the states of a conversation.

A run that begins where a trace ends goes on with it; one that begins earlier is a branch, a trace of its own that knows
its parent and how many messages they share (docs/method.md, "Branches"). The states in which a run's graph stood decide
first: they are right whatever was summarised, trimmed or removed. Where they are unknown, the words do. A branch of the
conversation T is called `T~1`, `T~2`, …; a thread of the application's that has or gets such a name has a trace of its
own all the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from cm2_agent.store.codec import DIGEST
from cm2_agent.store.content import Content
from cm2_agent.store.dialogue_key import START, extended
from cm2_agent.store.encoder import PackedRun
from cm2_agent.store.lines import Line, LineRun, Lines, count
from cm2_agent.types.run import Branch, Run
from cm2_agent.types.run_attributes import CHECKPOINT
from cm2_agent.types.spoken import spoken

EMPTY_STATE = "0" * 16
"""The mark of a state without messages."""
_FAILED = ("error", "cancelled")


def place_runs(
    connection: Connection,
    project: str,
    packed: Sequence[PackedRun],
    contents: Mapping[bytes, Content],
    *,
    sqlite: bool,
) -> list[PackedRun]:
    """The runs with their traces, in the order in which they started. A run that is stored already keeps its place, and
    one that names its trace itself is left there."""
    lines = Lines(connection, project, contents, sqlite=sqlite)
    ordered = sorted(packed, key=lambda run: run.run.started)
    lines.lock(_said(run.run).hex() if run.run.thread is None else run.run.thread for run in ordered)
    placed: list[PackedRun] = []
    seen: set[tuple[str, bytes]] = set()  # another content under an id is the writer's to refuse
    for run in ordered:
        if (run.id, run.hash) not in seen:
            seen.add((run.id, run.hash))
            placed.append(_placed(lines, run))
    return placed


def quick_place(
    packed: PackedRun, runs: int, began: str | None, end: str | None, dialogue: bytes | None
) -> PackedRun | None:
    """The run with the trace of its own name (its thread's, or its own), where that is its place and no query is
    needed to tell: a conversation begins with it, or it goes on where the only line of its thread ends. None where
    `place_runs` has to look.

    `runs` is how many the trace has, `began` and `end` are the first and the last state of the last one (which began no
    later), `dialogue` is the key of all that was said."""
    run = packed.run
    if run.trace is not None or run.branch is not None:
        return None
    if not runs:
        if run.thread is None and run.history:
            return None
        return replace(packed, dialogue=extended(_said(run), run.messages))
    start = run.states[0].hash if run.states else None
    if start is None:
        goes_on = not run.history
    elif start == end and start != EMPTY_STATE:
        goes_on = True
    elif run.history:
        goes_on = _said(run) == dialogue
    else:  # an agent that forgets, or whose state is cleared
        forgets = end == EMPTY_STATE or began in (None, EMPTY_STATE)
        goes_on = start == EMPTY_STATE and forgets and run.attributes.get(CHECKPOINT) is None
    if not goes_on or dialogue is None:
        return None
    return replace(packed, history=b"", dialogue=extended(dialogue, run.messages))


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a run goes: to the end of a line, or (`shared`) beside one, after so many of its messages. `history` is the
    branch's: the addresses of what the two share and of what the run was shown beyond that."""

    line: Line
    shared: int | None = None
    history: bytes | None = None
    """None: that of the run, as far as the line does not hold it."""


def _said(run: Run) -> bytes:
    """The key of what the run was shown."""
    return extended(START, run.history)


def _placed(lines: Lines, packed: PackedRun) -> PackedRun:
    run = packed.run
    stored = lines.place_of(run.id)
    if stored is not None:
        return packed.placed(*stored)
    place = None
    if run.trace is None and run.branch is None:
        place = _in_thread(lines, packed) if run.thread is not None else _in_conversation(lines, run)
    name, branch, history = run.trace_id, run.branch, packed.history
    if place is None:
        said = _said(run)
        if run.thread is not None and run.trace is None and lines.is_taken(name) and not lines.family(run.thread):
            name = lines.free_name(name)  # another thread's branch has the name
    elif place.shared is None:
        name, said = place.line.id, lines.dialogue(place.line)
        history = packed.history if place.history is None else place.history
        if history and (more := lines.unrecorded(history, lines.parts(lines.runs(place.line)))):
            said = extended(said, lines.messages(more))
    else:
        name = lines.free_name(lines.root(place.line.id) if run.thread is None else run.thread)
        branch = Branch(parent=place.line.id, messages=place.shared, reason="person")
        history = place.history or b""
        said = extended(START, lines.messages(history))
    dialogue = extended(said, run.messages)
    known = LineRun(
        started=run.started,
        status=run.status,
        marks=[(mark.hash, mark.messages) for mark in run.states],
        dialogue=dialogue,
        messages=packed.messages,
        history=history,
        user=run.user,
    )
    begins = lines.add(name, packed, known)
    return packed.placed(name, branch, history, dialogue, begins=begins and name != run.trace_id)


# A thread: the application's checkpointer, or its client, keeps the conversation


def _in_thread(lines: Lines, packed: PackedRun) -> _Place | None:
    run = packed.run
    assert run.thread is not None
    family = sorted(lines.family(run.thread), key=lambda line: -line.head.started)
    if not family:
        return None
    start = run.states[0].hash if run.states else None
    known = start is not None and start != EMPTY_STATE
    for line in family:
        if known and line.head.end == start and line.head.started <= run.started:
            return _Place(line=line, history=b"")
    if known and any(lines.reaches(line, str(start)) for line in family):
        found = _by_state(lines, family, run, str(start))
        if found is not None:
            return found
    if (said := _said(run)) != START:
        for line in family:
            if line.head.dialogue == said and line.head.started <= run.started:
                return _Place(line=line, history=b"")
    return _by_words(lines, family, packed)


def _by_state(lines: Lines, family: Sequence[Line], run: Run, start: str) -> _Place | None:
    """The place that the run's first state gives it. A state belongs to the run that reached it, before those that
    began in it."""
    best: tuple[bool, int, int, int] | None = None
    chosen: tuple[Line, list[LineRun]] | None = None
    for line in family:
        own = lines.runs(line)
        for number, known in enumerate(own):
            for at, (mark, _) in enumerate(known.marks):
                rank = (at > 0, known.started, number, at)
                if mark == start and (best is None or rank > best):
                    best, chosen = rank, (line, own)
    if best is None or chosen is None:
        return None
    (line, own), (_, _, number, at) = chosen, best
    known, later = own[number], [one for one in own[number + 1 :] if one.status not in _FAILED]
    at_end = at == len(known.marks) - 1
    # What broke off goes on from any of its states. A run that arrives late, between two that follow each other, is no
    # branch.
    beside = any(one.started <= run.started or one.start == start for one in later)
    if (at_end or known.status != "ok") and not beside:
        return _Place(line=line, history=b"")
    digests = lines.digests(own[: number + 1])
    shared = count(digests) if at_end else count(digests) - count(known.messages) + known.marks[at][1]
    return _Place(line=line, shared=shared, history=digests[: shared * DIGEST])


def _by_words(lines: Lines, family: Sequence[Line], packed: PackedRun) -> _Place:
    """The place that the words give it which the run was shown; the end of the latest line where they say nothing."""
    run = packed.run
    latest = _Place(line=family[0])
    shown = [words for message in run.history if (words := spoken(message)) is not None]
    if run.messages and run.messages[0].role in ("assistant", "tool"):
        # It goes on with what broke off, whatever a person has changed there, unless the caller went further back.
        elsewhere = run.attributes.get(CHECKPOINT) is not None
        for line in (one for one in family if one.head.status != "ok"):
            if not elsewhere or len(shown) >= len(_words(lines, lines.digests(lines.runs(line)))):
                return _Place(line=line)
    if not shown:
        empty = bool(run.states) and run.states[0].hash == EMPTY_STATE
        if empty and (run.attributes.get(CHECKPOINT) is not None or _resends(lines, family)):
            return _Place(line=lines.family(str(run.thread))[0], shared=0)
        return latest
    compared = [found for line in family if (found := _compared(lines, line, shown, packed)) is not None]
    return max(compared, key=lambda found: found[0])[1] if compared else latest


def _resends(lines: Lines, family: Sequence[Line]) -> bool:
    """Whether the thread's client keeps the history and sends it: its last run began in a state that no run had
    reached. (Where it began without one, or in a reached one, the application does.)"""
    start = family[0].head.start
    if start is None or start == EMPTY_STATE:
        return False
    reached = {mark for line in family for run in lines.runs(line) for mark, _ in run.marks[1:]}
    return start not in reached


def _compared(lines: Lines, line: Line, shown: Sequence[bytes], packed: PackedRun) -> tuple[int, _Place] | None:
    """How well a line fits what the run was shown, and the place that follows; None where they share nothing."""
    own = lines.runs(line)
    digests = lines.digests(own)
    spoke = _words(lines, digests)
    said, ends = [words for words, _ in spoke], [number for _, number in spoke]
    same = 0
    for words, other in zip(said, shown, strict=False):
        if words != other:
            break
        same += 1
    if same == len(said) or (same < len(shown) and shown[-1] == said[-1]):
        return 2 * same + 1, _Place(line=line)  # all of it and perhaps more, or its end after a summary
    shared_before = count(own[0].history)  # a run that left before that is beside the branch's parent
    if same == len(shown) and ends[same - 1] > shared_before:
        return 2 * same, _beside(lines, line, own, digests, ends[same - 1])
    last = next((at for at in range(len(said) - 1, 0, -1) if said[at - 1 : at + 1] == shown[-2:]), None)
    if last is not None and ends[last] > shared_before:
        return 1, _beside(lines, line, own, digests, ends[last])
    if not same or same == len(shown) or ends[same - 1] <= shared_before:
        return None
    shared = ends[same - 1]  # an earlier message was edited: the branch goes on with what the run was shown instead
    left, rest = same, packed.history
    for message in packed.run.history:
        if not left:
            break
        left -= spoken(message) is not None
        rest = rest[DIGEST:]
    return 2 * same - 1, _Place(line=line, shared=shared, history=digests[: shared * DIGEST] + rest)


def _words(lines: Lines, digests: bytes) -> list[tuple[bytes, int]]:
    """What user and agent said in these messages, each with how many messages there are up to and with it."""
    numbered = enumerate(lines.messages(digests), 1)
    return [(words, number) for number, message in numbered if (words := spoken(message)) is not None]


def _beside(lines: Lines, line: Line, own: Sequence[LineRun], digests: bytes, shared: int) -> _Place:
    """A branch after so many messages; the line's end where all that follows there failed."""
    messages = 0
    later = []
    for run, (before, added) in zip(own, lines.parts(own), strict=True):
        messages += count(before)
        if messages >= shared:
            later.append(run)
        messages += count(added)
    if later and all(run.status in _FAILED for run in later):
        return _Place(line=line)
    return _Place(line=line, shared=shared, history=digests[: shared * DIGEST])


# No thread: the client sends the conversation


def _in_conversation(lines: Lines, run: Run) -> _Place | None:
    """A stored conversation of the same user that says just what the run was shown: at its end, or beside it where it
    has gone on. A conversation's first run begins one, whatever others say."""
    said = _said(run)
    if said == START:
        return None
    beside: _Place | None = None
    for line in lines.said(said):
        own = lines.runs(line)
        if run.user is not None and any(one.user not in (None, run.user) for one in own):
            continue
        number = max(at for at, one in enumerate(own) if one.dialogue == said)
        if all(one.status in _FAILED for one in own[number + 1 :]):
            return _Place(line=line, history=b"")
        digests = lines.digests(own[: number + 1])
        beside = beside or _Place(line=line, shared=count(digests), history=digests)
    return beside


__all__ = ["EMPTY_STATE", "place_runs"]
