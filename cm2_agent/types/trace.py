"""The dialogue: a trace made of runs, cut into turns and steps (docs/method.md, "Run, trace, turn, step")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from cm2_agent.errors import TraceError
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse
from cm2_agent.types.run import Branch, ModelCall, Run, RunFailure, ToolRun
from cm2_agent.types.run_attributes import TASK_ID
from cm2_agent.types.tool_use import AskedCall, CallStatus, Executions, ToolUse, uses


@dataclass(frozen=True, kw_only=True)
class Step:
    """One assistant message with the tool responses that follow it. `call` is the model call that wrote it, where it
    was recorded."""

    turn: int
    index: int
    """0-based within the turn."""
    number: int
    """0-based within the dialogue."""
    message: Message
    responses: tuple[ToolCallResponse, ...] = ()
    call: ModelCall | None = None
    runs: tuple[ToolRun | None, ...] = ()
    """For each tool call of the message its execution, None where there was none; empty where nothing is known."""
    recorded: tuple[bool, ...] = ()
    """For each tool call of the message whether an execution would have been recorded."""

    @property
    def is_reply(self) -> bool:
        """True where the step speaks to the user: text and no tool call."""
        return not self.message.tool_calls and bool(self.message.text.strip())

    @cached_property
    def tool_uses(self) -> tuple[ToolUse, ...]:
        """The message's tool calls in order, each with its answer and its execution, which are matched by position
        within an id."""
        tools = () if self.call is None else self.call.tools
        return uses(self.message.tool_calls, self.responses, runs=self.runs, recorded=self.recorded, tools=tools)

    def response_to(self, call: ToolCall) -> ToolCallResponse | None:
        """The response to one of this step's calls."""
        found = self._use(call)
        return None if found is None else found.response

    def status_of(self, call: ToolCall) -> CallStatus:
        """What became of one of this step's calls (`ToolUse.status`). Raises TraceError: the step has no such call."""
        found = self._use(call)
        if found is None:
            raise TraceError(f"step {self.number} made no call {call!r}; expected one of step.message.tool_calls")
        return found.status

    def _use(self, call: ToolCall) -> ToolUse | None:
        """By identity first: two calls of a message may be equal."""
        same = next((use for use in self.tool_uses if use.call is call), None)
        return same or next((use for use in self.tool_uses if use.call == call), None)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """From the user's message (several where nobody answered in between) to the assistant's reply."""

    index: int
    user: tuple[Message, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A dialogue: the runs of one conversation in order. `outcomes` are results known from elsewhere, such as a
    benchmark's own reward.

    >>> from cm2_agent import Message, Run, Trace
    >>> hello = (Message.of("user", "Hello"), Message.of("assistant", "Hello, how can I help?"))
    >>> trace = Trace.of(Run(id="run-1", messages=hello))
    >>> len(trace.turns), trace.turns[0].user[0].text, trace.steps[0].is_reply
    (1, 'Hello', True)
    """

    id: str
    runs: tuple[Run, ...]
    outcomes: Mapping[str, float | None] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run) -> Trace:
        """The trace of a single run."""
        return cls(id=run.trace_id, runs=(run,))

    @cached_property
    def attributes(self) -> dict[str, JSON]:
        """The runs' attributes, later runs over earlier ones."""
        return {key: value for run in self.runs for key, value in run.attributes.items()}

    @property
    def task_id(self) -> str | None:
        value = self.attributes.get(TASK_ID)
        return None if value is None else str(value)

    @property
    def failure(self) -> RunFailure | None:
        """Why the dialogue ended badly: the failure of its last run."""
        return self.runs[-1].failure if self.runs else None

    @property
    def history(self) -> tuple[Message, ...]:
        """The beginning of the dialogue that none of the trace's runs wrote: a branch's, or the caller's own."""
        return self.runs[0].history if self.runs else ()

    @property
    def branch(self) -> Branch | None:
        """Where the trace left another one, None for one that began by itself."""
        return self.runs[0].branch if self.runs else None

    @cached_property
    def messages(self) -> tuple[Message, ...]:
        """The dialogue: what the first run was shown of it, then what each run added."""
        return (*self.history, *(message for run in self.runs for message in run.messages))

    @cached_property
    def turns(self) -> tuple[Turn, ...]:
        """The dialogue cut at user messages. A user message that no assistant step answers opens no
        turn."""
        return _turns(self.runs)

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(step for turn in self.turns for step in turn.steps)

    @property
    def calls(self) -> tuple[ModelCall, ...]:
        return tuple(call for run in self.runs for call in run.calls)

    @property
    def policy(self) -> str | None:
        """The one policy version that wrote every step, None where it is unknown or there were several."""
        versions = {call.model_version for call in self.calls if call.message is not None}
        return versions.pop() if len(versions) == 1 else None

    def with_run(self, run: Run) -> Trace:
        """The trace with one more run, or with the run of that id replaced."""
        others = tuple(other for other in self.runs if other.id != run.id)
        return replace(self, runs=(*others, run))

    def to_json(self) -> dict[str, JSON]:
        return {"id": self.id, "runs": [run.to_json() for run in self.runs], "outcomes": dict(self.outcomes)}

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> Trace:
        """Raises TraceError on a malformed record."""
        if not isinstance(data, Mapping) or not isinstance(data.get("id"), str):
            raise TraceError(f"not a trace: {str(data)[:80]!r}; expected the object that Trace.to_json writes")
        return cls(
            id=data["id"],
            runs=tuple(Run.from_json(run) for run in data.get("runs", ())),
            outcomes=dict(data.get("outcomes") or {}),
        )


def _turns(runs: tuple[Run, ...]) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    users: list[Message] = []
    steps: list[Step] = []
    number = 0
    answered = False  # a greeting before the first user message belongs to that user's turn

    def close() -> None:
        nonlocal users, steps
        if steps:
            turns.append(Turn(index=len(turns), user=tuple(users), steps=tuple(steps)))
            users, steps = [], []

    def take(message: Message, call: ModelCall | None) -> None:
        nonlocal answered, number
        if message.role == "user":
            if answered:
                close()
            answered = False
            users.append(message)
        elif message.role == "assistant":
            answered = bool(users)
            steps.append(Step(turn=len(turns), index=len(steps), number=number, message=message, call=call))
            number += 1
        elif message.role == "tool" and steps:
            steps[-1] = replace(steps[-1], responses=(*steps[-1].responses, *message.responses))

    for message in runs[0].history if runs else ():
        take(message, None)
    first_steps: list[int] = []  # of each run
    for run in runs:
        first_steps.append(number)
        writers = {call.message: call for call in run.calls if call.message is not None}
        for position, message in enumerate(run.messages):
            take(message, writers.get(position))
    close()
    return _with_executions(turns, runs, first_steps)


def _with_executions(turns: Sequence[Turn], runs: Sequence[Run], first_steps: Sequence[int]) -> tuple[Turn, ...]:
    """The turns with what the runs executed of their calls."""
    steps = [step for turn in turns for step in turn.steps]
    executions = Executions()
    asked: list[list[AskedCall]] = []
    own_code: set[str] = set()  # tools that answered without an execution, so that none of theirs is recorded
    captured: set[int] = set()
    now = 0
    for place, run in enumerate(runs):
        end = first_steps[place + 1] if place + 1 < len(runs) else len(steps)
        for step in steps[len(asked) : end]:
            now = max(now, step.call.ended if step.call is not None else 0)
            asked.append([AskedCall(use=use, step=step.number, at=now) for use in step.tool_uses])
            for one in asked[-1]:
                executions.ask(one)
            if run.started and step.number >= first_steps[place]:  # imported runs have no times, and only answers
                captured.add(step.number)
        for tool in run.tools:
            executions.execute(tool)
    for number in captured:
        own_code.update(one.use.call.name for one in asked[number] if one.run is None and one.use.status == "ok")

    def known(step: Step) -> Step:
        own = asked[step.number]
        recorded = (step.number in captured and one.use.call.name not in own_code for one in own)
        return replace(step, runs=tuple(one.run for one in own), recorded=tuple(recorded)) if own else step

    return tuple(replace(turn, steps=tuple(map(known, turn.steps))) for turn in turns)
