"""The protocols: what users may bring of their own, mostly a plain function or an object of one method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.group import Group
from cm2_agent.types.imported import ImportResult
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from cm2_agent.types.score import Score, Verdict
from cm2_agent.types.task import Task
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest
from cm2_agent.types.trace import Trace


class ToolBackend(Protocol):
    """Answers tool calls in the place of the tools: `run(…, tools={"get_order": backend})`. A plain async function of a
    request does as well.

    It returns a ToolAnswer, text, or JSON. LangChain's ToolException (or a ToolAnswer with `error`) is a failure of the
    tool that the agent sees; any other exception ends the dialogue, whose reward is NULL. One object may serve many
    dialogues at a time, each with its own log. `name` (else the class's or function's own) and `version`, where it has
    one, stand in the trace, and rollouts that differ in them are never compared.

    >>> class Shipped:
    ...     name, version = "shipped", "1"
    ...     async def answer(self, request, log):
    ...         return {"order_id": request.arguments["order_id"], "status": "shipped"}
    """

    async def answer(self, request: ToolRequest, log: CallLog, /) -> Any: ...


class ReplayBackend(ToolBackend, Protocol):
    """A ToolBackend that knows without being asked which calls it can answer: `find` returns None for the others."""

    def find(self, request: ToolRequest, log: CallLog, /) -> ToolAnswer | None: ...


class FaultInjector(Protocol):
    """Decides, before a call is answered, whether a fault is injected into it (`draw`), and makes the answer that the
    agent then gets (`faulty`); `graphs.Faults` is ours."""

    def draw(self, request: ToolRequest, log: CallLog, /) -> str | None: ...

    def faulty(self, fault: str, request: ToolRequest, answer: ToolAnswer | None, /) -> ToolAnswer: ...


class LastMessage(str):
    """A user's message after which they are done: it is answered, and the dialogue ends.

    >>> LastMessage("No thanks, please close it.").endswith("close it.")
    True
    """


class User(Protocol):
    """The next user message, None when the user is done; a `LastMessage` where they are done once it is answered.

    >>> def scripted(turns):
    ...     async def user(messages):
    ...         number = sum(message.role == "user" for message in messages)
    ...         return turns[number] if number < len(turns) else None
    ...     return user
    """

    async def __call__(self, messages: Sequence[Message]) -> str | None: ...


class Judge(Protocol):
    """Verdicts on a turn's questions, in the items' order. A judge that fails raises JudgeError, or returns verdicts of
    None.

    >>> async def strict(trace, turn, items):
    ...     return [Verdict(item=item.id, value=None, weight=0, cause="content") for item in items]
    """

    async def __call__(self, trace: Trace, turn: int | None, items: Sequence[Item]) -> Sequence[Verdict]: ...


class Scorer(Protocol):
    """Scores a trace. `version` names everything that could change the number.

    >>> class Outcome:
    ...     version = "outcome:1"
    ...     async def __call__(self, trace, task=None):
    ...         return Score(trace_id=trace.id, reward_version=self.version, reward=trace.outcomes.get("success"))
    """

    @property
    def version(self) -> str: ...

    async def __call__(self, trace: Trace, task: Task | None = None) -> Score: ...


class GatedScorer(Scorer, Protocol):
    """A scorer that also says, turn by turn, whether a rollout may go on: what `run(…, scorer=)` takes.

    `checklist` is the one whose items gate and score every rollout, None where there is none or each task brings its
    own. `gate_hash` is None where nothing gates a rollout of the task; `gate` answers None where a strict item has no
    verdict."""

    @property
    def checklist(self) -> Checklist | None: ...

    async def gate(self, trace: Trace, turn: int, task: Task | None = None) -> bool | None: ...

    def gate_hash(self, task: Task | None = None) -> str | None: ...


class GroupScorer(GatedScorer, Protocol):
    """A scorer with rewards that compare the rollouts of a group: a Stack, say. The scores come in the order of the
    traces."""

    async def score_group(self, traces: Sequence[Trace], task: Task | None = None) -> list[Score]: ...


class Reward(Protocol):
    """One component of a reward: a plain function of a trace, or of a trace and its context, sync or async. It answers
    a Component, a number in [0, 1], true or false, or None where nobody could tell.

    A reward with a true attribute `of_group` is given all traces of a group instead and answers one value a trace.
    `name` and `version` are taken from attributes of these names where it has them.

    >>> def short(trace):
    ...     return 1.0 if len(trace.steps) <= 4 else 0.0
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class Store(Protocol):
    """A database of runs, checklists and scores; `SQLStore(url)` is ours.

    >>> def newest(store):
    ...     return next(store.traces(), None)
    """

    def save_run(self, run: Run) -> None: ...

    def save_task(self, task: Task) -> None: ...

    def save_checklist(self, checklist: Checklist) -> str: ...

    def save_score(self, score: Score) -> None: ...

    def trace(self, trace_id: str) -> Trace | None: ...

    def traces(self) -> Iterator[Trace]: ...


class Sink(Protocol):
    """Called with every trace when it is stored and, where it was scored, with its score.

    >>> def alert(trace, score):
    ...     if score is not None and score.reward is not None and score.reward < 0.5:
    ...         print(trace.id, score.reward)
    """

    def __call__(self, trace: Trace, score: Score | None) -> Any: ...


class Importer(Protocol):
    """Reads one record of a file of recordings: what `cm2 import MODULE:IMPORTER FILE` calls.

    `record` is JSON: a line of a JSON Lines file, or an element of a JSON list. `source` is the file's name without its
    ending; `checklists` whether each task shall get a checklist. An importer that needs neither takes `**options`. What
    it raises costs the record alone and is reported with the record's line. A class is made anew for each file, so that
    it may count; a function is called as it is.

    >>> from cm2_agent import Message, Run, Trace
    >>> def read_note(record, **options):
    ...     return Trace.of(Run(id=record["id"], messages=(Message.of("user", record["text"]),)))
    >>> read_note({"id": "n1", "text": "Hi"}).messages[0].text
    'Hi'
    """

    def __call__(self, record: JSON, *, source: str, checklists: bool) -> ImportResult: ...


Progress: TypeAlias = Callable[[int, int, dict[str, float]], object]
"""What a trainer calls with (step, total, metrics) after every step. Where it has a method `resumed`, a run that goes
on from a checkpoint calls that with (step, total, checkpoint) first."""


class Trainer(Protocol):
    """Trains on stored groups and returns the folder of the new policy: what `cm2 train --algorithm MODULE:TRAINER`
    makes and calls.

    It is made with the options that were typed, as keyword arguments (`model`, `out`, `steps`, `learning_rate`, …). A
    `train(groups, progress)` is also given a function to call with (step, total, metrics) after every step; what an
    attribute `report` holds is printed. A trainer that cannot train on the groups raises TrainError.

    >>> from pathlib import Path
    >>> class Unchanged:
    ...     def __init__(self, model, out):
    ...         self.model = model
    ...     def train(self, groups):
    ...         return Path(self.model)
    >>> Unchanged(model="policy-0", out="policy-1").train([]).name
    'policy-0'
    """

    def train(self, groups: Iterable[Group], /) -> Path: ...
