"""What a process remembers of stored traces and contents, so that saving a later run of a trace costs what saving the
first did."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from cm2_agent.errors import StoreError
from cm2_agent.store.codec import address, dump, dump_mapping, dump_tags, seal, sealed, split_digests
from cm2_agent.store.content import KnownContents
from cm2_agent.store.encoder import CANDIDATES, Base, PackedRun, Prefixes
from cm2_agent.types.group import group_key_of, sampling_key
from cm2_agent.types.json_values import JSON
from cm2_agent.types.run import Branch, Run
from cm2_agent.types.run_attributes import ROLLOUT, TASK_ID

T = TypeVar("T")
ATTEMPTS = 8
"""How often a write is begun anew because another process was faster."""
CONTENTS = 65_536
"""How many contents are known to be stored."""
BYTES = 64_000_000
"""How much is remembered of traces."""
MESSAGES = 50_000
"""How many messages of dialogues are remembered as objects: they have been stored, and often come again."""


class Stale(Exception):
    """What this process remembers is not what is stored; `erasures` where something was erased since."""

    def __init__(self, erasures: int | None = None) -> None:
        super().__init__()
        self.erasures = erasures


@dataclass
class TraceState:
    """A stored trace as far as its next run is concerned."""

    id: str
    """As it is stored: sealed."""
    seq: int = 0
    runs: int = 0
    first: int = 0
    last: int = 0
    """When the first and the last of its runs began."""
    attributes: dict[str, JSON] = field(default_factory=dict)
    settings: set[str] = field(default_factory=set)
    """The sampling settings of the calls that wrote the dialogue."""
    versions: set[str | None] = field(default_factory=set)
    user: str | None = None
    session: str | None = None
    tags: tuple[str, ...] = ()
    branch: Branch | None = None
    began: str | None = None
    end: str | None = None
    """The first and the last state of the last run."""
    dialogue: bytes | None = None
    """The key of all that was said (`dialogue_key`); None where nobody asked."""
    tail: list[Base] = field(default_factory=list)
    """The last calls, which later ones may share a beginning with."""
    said: set[bytes] = field(default_factory=set)
    """The addresses of the messages that its runs were shown and added."""

    def add(self, run: Run, dialogue: bytes | None) -> None:
        """Take note of its next run: one that began no earlier than the others."""
        if not self.runs:
            self.branch = run.branch
        self.first = min(self.first, run.started) if self.runs else run.started
        self.last = max(self.last, run.started) if self.runs else run.started
        self.began, self.end = (run.states[0].hash, run.states[-1].hash) if run.states else (None, None)
        self.dialogue = dialogue
        self.runs += 1
        self.attributes.update(run.attributes)
        for call in run.calls:
            if call.message is not None:
                self.versions.add(call.model_version)
                try:
                    self.settings.add(sampling_key(call.sampling))
                except (TypeError, ValueError) as error:
                    raise StoreError(f"run {run.id!r}: sampling settings are not JSON: {error}") from error
        self.user = self.user if run.user is None else run.user
        self.session = self.session if run.session is None else run.session
        self.tags = run.tags or self.tags

    def holds(self, history: bytes) -> bool:
        """Whether its runs hold all that the next one was shown; a trace's first run has none before it."""
        return self.runs > 0 and self.said.issuperset(split_digests(history))

    def group(self) -> tuple[bytes, tuple[Any, ...]] | None:
        """The address of what it shares with its group, and the row of that; None where it has no group."""
        key = group_key_of(self.attributes, self.settings, self.versions, self.branch, "")
        if key is None:
            return None
        del key["reward"]
        where = f"trace {self.id!r}: what it shares with its group"
        digest = address(key, where)
        return digest, (digest, seal(str(key["task"])), sealed(key["policy"]), dump(key, where))

    def facts(self, group: int | None) -> tuple[Any, ...]:
        """The columns of its row from `started` on."""
        rollout = self.attributes.get(ROLLOUT)
        task = self.attributes.get(TASK_ID)
        policy = next(iter(self.versions)) if len(self.versions) == 1 else None
        metadata = {name: value for name, value in self.attributes.items() if not name.startswith("cm2.")}
        return (
            self.first,
            self.runs,
            None if task is None else seal(str(task)),
            sealed(policy),
            group,
            rollout if type(rollout) is int and abs(rollout) < 2**63 else None,
            sealed(self.user),
            sealed(self.session),
            dump_tags(self.tags, f"trace {self.id!r}") if self.tags else None,
            dump_mapping(metadata, f"trace {self.id!r}: metadata") if metadata else None,
        )

    def weight(self) -> int:
        """Roughly its bytes in memory."""
        return 2_000 + 100 * len(self.said) + sum(len(base.tokens) + len(base.dialogue) for base in self.tail)


def state_of(id: str, seq: int, stored: Iterable[tuple[Run, bytes | None]], new: Sequence[PackedRun]) -> TraceState:
    """The state of a trace with these runs (each with the key of its dialogue), whatever order they came in, but for
    its messages and calls."""
    state = TraceState(id=id, seq=seq)
    given = [*stored, *((packed.run, packed.dialogue) for packed in new)]
    for run, dialogue in sorted(given, key=lambda pair: pair[0].started):
        state.add(run, dialogue)
    return state


class Bounded(Generic[T]):
    """Values by name, each with a weight: where they weigh too much together, the least recent go."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._weight = 0

    def pop(self, name: str) -> T | None:
        found = self._held.pop(name, None)
        if found is None:
            return None
        self._weight -= found[1]
        return found[0]

    def put(self, name: str, value: T, weight: int) -> None:
        self.pop(name)
        self._held[name] = value, weight
        self._weight += weight
        while self._weight > self._most:
            self._weight -= self._held.popitem(last=False)[1][1]

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def clear(self) -> None:
        self._held.clear()
        self._weight = 0


class Caches:
    """What a process knows to be stored. Filled after a commit only, bounded, and good as long as nothing is erased:
    `erasures` is the last one seen. States and dialogues are taken out while a write changes them, so that a write that
    fails leaves none behind."""

    def __init__(self) -> None:
        self.erasures = 0
        self.group_keys: dict[bytes, int] = {}
        self.contents = KnownContents(CONTENTS)
        self._traces: Bounded[TraceState] = Bounded(BYTES)
        self._prefixes: Bounded[Prefixes] = Bounded(MESSAGES)
        self._lock = threading.Lock()

    def take(self, trace_id: str) -> TraceState | None:
        """The state of a trace, by its sealed id."""
        with self._lock:
            return self._traces.pop(trace_id)

    def knows(self, trace_id: str) -> bool:
        """Whether the state of a trace is known, by its sealed id: one that may go on."""
        with self._lock:
            return trace_id in self._traces

    def take_prefixes(self, runs: Iterable[Run]) -> dict[str, Prefixes]:
        """The last dialogues of the runs' traces."""
        with self._lock:
            found = {run.trace_id: self._prefixes.pop(run.trace_id) for run in runs}
            return {id: prefixes for id, prefixes in found.items() if prefixes is not None}

    def learn(
        self,
        states: Iterable[TraceState],
        contents: Iterable[bytes],
        group_keys: Mapping[bytes, int],
        prefixes: Mapping[str, Prefixes],
        erasures: int,
    ) -> None:
        """Take note of what a committed write has stored, unless something was erased since."""
        with self._lock:
            if erasures != self.erasures:
                return
            if len(self.group_keys) > CONTENTS:
                self.group_keys.clear()
            self.group_keys.update(group_keys)
            self.contents.add(contents)
            for state in states:
                del state.tail[:-CANDIDATES]
                self._traces.put(state.id, state, state.weight())
            for id, dialogues in prefixes.items():
                self._prefixes.put(id, dialogues, len(dialogues))

    def forget(self, erasures: int) -> None:
        """Something was erased: what is known may be gone."""
        with self._lock:
            self.erasures = erasures
            self.group_keys.clear()
            self.contents.clear()
            self._traces.clear()
            self._prefixes.clear()
