"""The lines of a project's conversations: each trace as the runs that lead along it, read as far as placing a new run
needs, with those that the same write has placed already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from cm2_agent.store.codec import DIGEST, body_of, load, seal, split_digests, unseal, unsealed
from cm2_agent.store.content import Content
from cm2_agent.store.dialogue_key import START, extended
from cm2_agent.store.encoder import PackedRun
from cm2_agent.store.reader import stored_message
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Branch
from cm2_agent.types.spoken import unrecorded

_STORED = """SELECT t.id, r.branch_parent, r.branch_messages, r.branch_reason, r.history, r.dialogue
FROM runs r JOIN traces t ON t.seq = r.trace WHERE r.project = ? AND r.id = ?"""
_FAMILY = """WITH own AS (SELECT seq FROM traces WHERE project = ? AND id = ?
UNION SELECT trace AS seq FROM runs WHERE project = ? AND thread = ?)
SELECT t.seq, t.id, r.started, r.status, r.states, r.dialogue, r.threaded, r.thread
FROM own JOIN traces t ON t.seq = own.seq
JOIN runs r ON r.seq = (SELECT x.seq FROM runs x WHERE x.trace = t.seq ORDER BY x.started DESC, x.seq DESC LIMIT 1)
ORDER BY t.seq"""
_RUNS = """SELECT started, status, states, dialogue, messages, history, "user" FROM runs
WHERE trace = ? ORDER BY started, seq"""
_REACHED = "SELECT 1 FROM runs WHERE trace = ? AND states LIKE ? LIMIT 1"
_SAID = """SELECT DISTINCT t.seq, t.id FROM runs r JOIN traces t ON t.seq = r.trace
WHERE r.project = ? AND r.dialogue = ? AND r.thread IS NULL AND r.threaded = ? ORDER BY t.seq"""
_TAKEN = "SELECT 1 FROM traces WHERE project = ? AND id = ?"
_PARENT = """SELECT r.branch_parent FROM runs r JOIN traces t ON t.seq = r.trace
WHERE t.project = ? AND t.id = ? AND r.branch_parent IS NOT NULL LIMIT 1"""
_BODY = "SELECT body, packed FROM contents WHERE hash = ?"
_LOCK = "SELECT pg_advisory_xact_lock(?)"


@dataclass(kw_only=True, eq=False)
class LineRun:
    """A run as far as placing others needs it: `marks` are the hashes of its states with how many of its messages had
    been added, `dialogue` is the key of all that had been said when it ended, None where it was not taken."""

    started: int
    status: str
    marks: Sequence[tuple[str, int]]
    dialogue: bytes | None
    messages: bytes = b""
    history: bytes = b""
    user: str | None = None

    @property
    def start(self) -> str | None:
        return self.marks[0][0] if self.marks else None

    @property
    def end(self) -> str | None:
        return self.marks[-1][0] if self.marks else None


@dataclass(kw_only=True, eq=False)
class Line:
    """A trace: its last run, and all of them (`Lines.runs`) where they were asked for. `seq` is None for one that this
    write begins."""

    id: str
    seq: int | None
    head: LineRun
    placed: list[LineRun] = field(default_factory=list)
    stored: list[LineRun] | None = None


class Lines:
    """What one transaction knows of the lines. The ids that it takes and gives are as the application has them."""

    def __init__(
        self,
        connection: Connection,
        project: str,
        contents: Mapping[bytes, Content],
        *,
        sqlite: bool,
    ) -> None:
        self._connection = connection
        self._project = project
        self._contents = contents
        self._sqlite = sqlite
        self._families: dict[str, list[Line]] = {}
        self._lines: dict[str, Line] = {}
        self._messages: dict[bytes, Message] = {}

    def lock(self, names: Iterable[str]) -> None:
        """Writers of one conversation wait for each other, before any of them locks a row. (SQLite has one writer.)"""
        if not self._sqlite:
            for key in lock_keys(self._project, names):
                self._rows(_LOCK, key)

    def place_of(self, run_id: str) -> tuple[str, Branch | None, bytes, bytes | None] | None:
        """Of a stored run the trace, the branch, the history and the key of the dialogue; None where it is new."""
        found = self._rows(_STORED, self._project, seal(run_id))
        if not found:
            return None
        trace, parent, messages, reason, history, dialogue = found[0]
        branch = None if parent is None else Branch(parent=unseal(parent), messages=messages, reason=reason)
        return unseal(trace), branch, bytes(history or b""), _bytes(dialogue)

    def family(self, thread: str) -> list[Line]:
        """The thread's trace and its branches, in the order of storing."""
        if thread not in self._families:
            name = seal(thread)
            found = []
            for seq, id, started, status, states, dialogue, threaded, own in self._rows(
                _FAMILY, self._project, name, self._project, name
            ):
                if threaded or own is None or own == name:  # else: another thread's branch that is called like this one
                    head = LineRun(started=started, status=status, marks=_marks(states), dialogue=_bytes(dialogue))
                    found.append(self._lines.setdefault(unseal(id), Line(id=unseal(id), seq=seq, head=head)))
            self._families[thread] = found
        return self._families[thread]

    def reaches(self, line: Line, state: str) -> bool:
        """Whether the graph stood in the state in one of the line's runs."""
        if line.stored is not None or line.seq is None:
            return any(mark == state for run in self.runs(line) for mark, _ in run.marks)
        placed = any(mark == state for run in line.placed for mark, _ in run.marks)
        return placed or bool(self._rows(_REACHED, line.seq, f'%"{state}"%'))

    def said(self, key: bytes) -> list[Line]:
        """The lines without a thread in which somewhere just this was said, the oldest first."""
        found = [self._line(seq, unseal(id)) for seq, id in self._rows(_SAID, self._project, key, False)]
        new = [line for line in self._lines.values() if line not in found]
        return found + [line for line in new if any(run.dialogue == key for run in line.placed)]

    def runs(self, line: Line) -> list[LineRun]:
        """All runs of a line in the order of their starts."""
        if line.stored is None:
            line.stored = [] if line.seq is None else self._stored(line.seq)
        return sorted([*line.stored, *line.placed], key=lambda run: run.started)

    def digests(self, runs: Sequence[LineRun]) -> bytes:
        """The addresses of the messages of the dialogue that these first runs of a line make."""
        return b"".join(part for parts in self.parts(runs) for part in parts)

    def parts(self, runs: Sequence[LineRun]) -> list[tuple[bytes, bytes]]:
        """For each of these first runs of a line the addresses of what stands before its messages that no run wrote,
        and of these."""
        out: list[tuple[bytes, bytes]] = []
        for run in runs:
            out.append((self.unrecorded(run.history, out) if out and run.history else run.history, run.messages))
        return out

    def unrecorded(self, history: bytes, parts: Sequence[tuple[bytes, bytes]]) -> bytes:
        """Of what a run was shown the addresses of what its line lacks (`types.spoken.unrecorded`)."""
        shown = self.messages(history)
        more = unrecorded(shown, self.messages(b"".join(part for own in parts for part in own)))
        address = dict(zip(map(id, shown), split_digests(history), strict=True))
        return b"".join(address[id(message)] for message in more)

    def dialogue(self, line: Line) -> bytes:
        """The key of all that was said in a line; runs of earlier versions were stored without."""
        if line.head.dialogue is None:
            line.head.dialogue = extended(START, self.messages(self.digests(self.runs(line))))
        return line.head.dialogue

    def messages(self, digests: bytes) -> list[Message]:
        """The messages of these addresses, also of what is not written yet."""
        wanted = split_digests(digests)
        for digest in [digest for digest in dict.fromkeys(wanted) if digest not in self._messages]:
            found = self._contents.get(digest)
            if found is not None and isinstance(found.value, Message):
                self._messages[digest] = found.value
            else:
                self._messages[digest] = stored_message(load(body_of(self._rows(_BODY, digest)[0])))
        return [self._messages[digest] for digest in wanted]

    def add(self, trace: str, packed: PackedRun, run: LineRun) -> bool:
        """Remember where a run of this write goes; whether it begins its trace."""
        family = [] if packed.run.thread is None else self.family(packed.run.thread)
        line = self._lines.get(trace)
        begins = line is None
        if line is None:
            line = self._lines[trace] = Line(id=trace, seq=None, head=run)
            family.append(line)
        line.placed.append(run)
        if run.started >= line.head.started:
            line.head = run
        return begins

    def free_name(self, name: str) -> str:
        """The first of `NAME~1`, `NAME~2`, … that no trace has."""
        number = 1
        while self.is_taken(f"{name}~{number}"):
            number += 1
        return f"{name}~{number}"

    def is_taken(self, trace: str) -> bool:
        return trace in self._lines or bool(self._rows(_TAKEN, self._project, seal(trace)))

    def root(self, trace: str) -> str:
        """The conversation that a branch is one of."""
        seen = {trace}
        while found := self._rows(_PARENT, self._project, seal(trace)):
            trace = unseal(found[0][0])
            if trace in seen:
                break
            seen.add(trace)
        return trace

    def _line(self, seq: int, id: str) -> Line:
        if id not in self._lines:
            stored = self._stored(seq)
            self._lines[id] = Line(id=id, seq=seq, head=stored[-1], stored=stored)
        return self._lines[id]

    def _stored(self, trace: int) -> list[LineRun]:
        return [
            LineRun(
                started=started,
                status=status,
                marks=_marks(states),
                dialogue=_bytes(dialogue),
                messages=bytes(messages),
                history=bytes(history or b""),
                user=unsealed(user),
            )
            for started, status, states, dialogue, messages, history, user in self._rows(_RUNS, trace)
        ]

    def _rows(self, sql: str, *values: Any) -> list[Any]:
        text = sql if self._sqlite else sql.replace("?", "%s")
        return list(self._connection.exec_driver_sql(text, values).fetchall())


def lock_keys(project: str, names: Iterable[str]) -> list[int]:
    """The keys of PostgreSQL's advisory locks on these conversations, in the order in which everybody takes them."""
    texts = {f"{project}\0{name}".encode("utf-8", "surrogatepass") for name in names}
    keys = (hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return sorted(int.from_bytes(digest, signed=True) for digest in keys)


def _marks(states: str | None) -> list[tuple[str, int]]:
    found: list[JSON] = [] if states is None else load(states)
    return [(mark, count) for mark, count in found]


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)


def count(digests: bytes) -> int:
    """How many messages these addresses name."""
    return len(digests) // DIGEST
