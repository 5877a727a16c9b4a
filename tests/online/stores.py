"""The smallest store and scorers, for tests of the path that a finished trace takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cm2_agent.incidents import Incidents
from cm2_agent.online.live import Live
from cm2_agent.online.middleware import Middleware
from cm2_agent.online.saver import Saver
from cm2_agent.online.scoring import ScoringPath
from cm2_agent.spool.files import Spool
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.messages import Message
from cm2_agent.types.protocols import Scorer, Sink, Store
from cm2_agent.types.run import Run
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace


def run(name: str, thread: str | None = None, text: str = "hi") -> Run:
    return Run(id=name, thread=thread, messages=(Message.of("user", text), Message.of("assistant", "hello")))


def live_to(
    store: Store,
    scorer: Scorer | None = None,
    sinks: Sequence[Sink] = (),
    *,
    spool: Spool | None = None,
    size: int = 10_000,
    held: int = 64 << 20,
    slots: int = 8,
    linger: float = 0.2,
) -> Live:
    """The live path of one graph to a store that is there."""
    incidents = Incidents()
    saver = Saver(lambda: store, incidents, spool=spool, size=size, held=held, linger=linger)
    live = Live(saver, ScoringPath(incidents, size=size, slots=slots), Middleware(None, scorer, sinks, incidents))
    live.start(0)
    return live


@dataclass
class Memory:
    """The smallest store: dictionaries. `broken` is raised by every write while it is set."""

    runs: dict[str, Run] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    incidents: dict[str, int] = field(default_factory=dict)
    broken: Exception | None = None

    def _check(self) -> None:
        if self.broken is not None:
            raise self.broken

    def save_run(self, run: Run) -> None:
        self._check()
        self.runs[run.id] = run

    def save_task(self, task: Task) -> None:
        raise NotImplementedError

    def save_checklist(self, checklist: Checklist) -> str:
        return checklist.hash

    def save_score(self, score: Score) -> None:
        self._check()
        self.scores[score.trace_id] = score

    def trace(self, trace_id: str) -> Trace | None:
        self._check()
        runs = tuple(run for run in self.runs.values() if run.trace_id == trace_id)
        return Trace(id=trace_id, runs=runs) if runs else None

    def traces(self) -> Iterator[Trace]:
        return (trace for key in {run.trace_id for run in self.runs.values()} if (trace := self.trace(key)) is not None)

    def count_incident(self, kind: str, detail: str = "", n: int = 1) -> None:
        self._check()
        self.incidents[kind] = self.incidents.get(kind, 0) + n


class Length:
    """Scores a trace by its number of steps."""

    version = "length:1"

    def __init__(self) -> None:
        self.seen: list[int] = []

    async def __call__(self, trace: Trace, task: Task | None = None) -> Score:
        self.seen.append(len(trace.runs))
        return Score(
            trace_id=trace.id, reward_version=self.version, reward=float(len(trace.steps)), runs=len(trace.runs)
        )


class Failing(Length):
    async def __call__(self, trace: Trace, task: Task | None = None) -> Score:
        raise RuntimeError("no idea")
