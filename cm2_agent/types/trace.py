"""The dialogue: a trace made of runs, cut into turns and steps (docs/method.md, "Run, trace, turn, step")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

from cm2_agent.errors import TraceError
from cm2_agent.types.dialogue_words import DialogueWords
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse
from cm2_agent.types.run import Branch, ModelCall, Run, RunFailure, ToolRun
from cm2_agent.types.run_attributes import TASK_ID
from cm2_agent.types.scope import Scope
from cm2_agent.types.tool_use import AskedCall, CallStatus, Executions, ToolUse, as_it_ran, uses


@dataclass(frozen=True, kw_only=True)
class Step:
    """One assistant message with the tool responses that follow it. `call` is the model call that wrote it, where it
    was recorded. The message's calls have the arguments that ran: what the model wrote is in `call.output`."""

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
    def agent(self) -> str | None:
        """The agent whose step it is, where the graph holds several: by its call, else by the message's name."""
        return self.call.agent if self.call is not None and self.call.agent is not None else self.message.name

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
        """By identity first: two calls of a message may be equal. The model's own call, where another ran in its
        place, by its position."""
        for same in (lambda own: own is call, lambda own: own == call):
            found = next((use for use in self.tool_uses if same(use.call)), None)
            if found is not None:
                return found
        written = () if self.call is None or self.call.output is None else self.call.output.tool_calls
        return next((use for own, use in zip(written, self.tool_uses, strict=False) if own == call), None)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """From the user's message (several where nobody answered in between) to the assistant's reply."""

    index: int
    user: tuple[Message, ...]
    steps: tuple[Step, ...]

    @cached_property
    def scope(self) -> Scope:
        """What views of this turn share."""
        return Scope.of(self.steps)

    @cached_property
    def dialogue_scope(self) -> Scope:
        """The turn as a part of the dialogue's scope: its steps are counted within the dialogue."""
        first = self.steps[0].number if self.steps else 0
        return Scope.of(self.steps, first=first) if first else self.scope

    @cached_property
    def memo(self) -> dict[object, Any]:
        """What was computed of the dialogue up to and with this turn, by what computed it. A dialogue that goes on has
        the same turns but for the one that goes on, and so what was computed of them."""
        return {}


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """How far the dialogue had come when a run ended: the last turn's index (-1: there was none), its steps so far,
    and whether a user message had come after it that nothing answered."""

    turn: int
    steps: int
    unanswered: bool


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
        """The dialogue: what the first run was shown of it, then what each run added; calls with the arguments that
        ran."""
        steps = iter(self.steps)
        every = chain(self.history, *(run.messages for run in self.runs))
        return tuple(next(steps).message if message.role == "assistant" else message for message in every)

    @cached_property
    def turns(self) -> tuple[Turn, ...]:
        """The dialogue cut at user messages. A user message that no assistant step answers opens no
        turn."""
        return self._cut[0]

    @cached_property
    def run_ends(self) -> tuple[RunEnd, ...]:
        """For each run how far the dialogue had come when it ended."""
        return self._cut[1]

    @cached_property
    def _cut(self) -> tuple[tuple[Turn, ...], tuple[RunEnd, ...]]:
        cutter = _Cutter()
        for run in self.runs:
            cutter.add(run)
        self.__dict__["_cutter"] = cutter
        return cutter.turns(), tuple(cutter.ends)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        return tuple(chain.from_iterable(turn.steps for turn in self.turns))

    @cached_property
    def words(self) -> DialogueWords:
        """Where values stand in what users wrote and tools answered."""
        return DialogueWords(self.turns, self.__dict__.pop("_words_before", None))

    @cached_property
    def _scope(self) -> Scope:
        turns = self.turns
        return Scope(
            steps=self.steps,
            calls=tuple(chain.from_iterable(turn.dialogue_scope.calls for turn in turns)),
            replies=tuple(chain.from_iterable(turn.dialogue_scope.replies for turn in turns)),
        )

    def scope(self, turn: int | None) -> Scope:
        """What views of a turn, or (None) of the whole dialogue, share."""
        return self._scope if turn is None else self.turns[turn].scope

    def user_text(self, turn: int | None, *, alone: bool = False) -> str:
        """The user messages up to and with those of a turn, or that turn's alone; (None) those of the dialogue."""
        turns = self.turns if turn is None else self.turns[turn if alone else 0 : turn + 1]
        return "\n".join(message.text for one in turns for message in one.user)

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
        grown = replace(self, runs=(*others, run))
        if len(others) == len(self.runs):
            self._pass_on(grown, run)
        return grown

    def _pass_on(self, grown: Trace, run: Run) -> None:
        """What is known of this trace and holds of one with a run more is not worked out again."""
        known, more = self.__dict__, grown.__dict__
        if "attributes" in known:
            more["attributes"] = {**known["attributes"], **run.attributes}
        if known.get("words", known.get("_words_before")) is not None:
            more["_words_before"] = known.get("words", known.get("_words_before"))
        cutter: _Cutter | None = known.pop("_cutter", None)
        if cutter is not None and len(cutter.ends) == len(self.runs):  # else another copy of this trace has gone on
            cutter.add(run)
            more["_cutter"] = cutter
            more["_cut"] = cutter.turns(), tuple(cutter.ends)

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


@dataclass(slots=True)
class _StepDraft:
    message: Message
    call: ModelCall | None
    number: int
    recorded: bool
    """Whether executions of its calls were recorded; imported runs have no times, and only answers."""
    responses: list[ToolCallResponse] = field(default_factory=list)
    asked: list[AskedCall] = field(default_factory=list)

    def pair(self) -> None:
        """Match the calls with the answers that there are by now."""
        tools = () if self.call is None else self.call.tools
        found = uses(self.message.tool_calls, self.responses, tools=tools)
        if not self.asked:
            self.asked = [AskedCall(use=use, step=self.number, at=0) for use in found]
        for one, use in zip(self.asked, found, strict=True):
            one.use = use

    @property
    def own_code(self) -> set[str]:
        """The tools that answered without an execution, so that none of theirs is recorded."""
        if not self.recorded:
            return set()
        return {one.use.call.name for one in self.asked if one.run is None and one.use.status == "ok"}


class _Cutter:
    """Cuts a dialogue into turns, run by run. A turn that a run does not touch stays the same object, and so do those
    before it."""

    def __init__(self) -> None:
        self._turns: list[tuple[list[Message], list[_StepDraft]]] = []
        self._built: list[Turn] = []
        self._users: list[Message] = []
        self._steps: list[_StepDraft] = []
        self._drafts: list[_StepDraft] = []
        self._answered = False  # a greeting before the first user message belongs to that user's turn
        self._executions = Executions()
        self._own_code: list[set[str]] = []  # of each turn
        self._own_code_used: set[str] = set()
        self._turn_of: list[int] = []  # of each step
        self._touched = 0  # the first turn that is not built as it is
        self._now = 0
        self._failed = False  # whether the last run did
        self.ends: list[RunEnd] = []

    def add(self, run: Run) -> None:
        first = len(self._drafts)
        if not self.ends:
            for message in run.history:
                self._take(message, None, recorded=False)
        writers = {call.message: call for call in run.calls if call.message is not None}
        for position, message in enumerate(run.messages):
            self._take(message, writers.get(position), recorded=bool(run.started))
        self._ask(first)
        self._failed = run.status in ("error", "cancelled")
        for tool in run.tools:
            found = self._executions.execute(tool)
            if found is not None:
                self._touched = min(self._touched, self._turn_of[found.step])
        steps = len(self._turns[-1][1]) if self._turns else 0
        self.ends.append(
            RunEnd(turn=len(self._turns) - 1, steps=steps, unanswered=not self._steps and bool(self._users))
        )

    def turns(self) -> tuple[Turn, ...]:
        """The turns so far."""
        first = min(self._touched, len(self._own_code))
        self._own_code[first:] = [
            set().union(*(draft.own_code for draft in drafts)) for _, drafts in self._turns[first:]
        ]
        own_code = set().union(*self._own_code)
        if own_code != self._own_code_used:
            first, self._own_code_used = 0, own_code
        self._built[first:] = [self._turn(index) for index in range(first, len(self._turns))]
        self._touched = len(self._turns)
        return tuple(self._built)

    def _take(self, message: Message, call: ModelCall | None, *, recorded: bool) -> None:
        if message.role == "user":
            if self._failed and self._users and not self._answered and self._users[-1].parts == message.parts:
                return  # sent again after the run that should have answered failed
            if self._answered:
                self._users, self._steps = [], []
            self._answered = False
            self._users.append(message)
        elif message.role == "assistant":
            if not self._steps:
                self._turns.append((self._users, self._steps))
            self._answered = bool(self._users)
            draft = _StepDraft(message=message, call=call, number=len(self._drafts), recorded=recorded)
            self._steps.append(draft)
            self._drafts.append(draft)
            self._turn_of.append(len(self._turns) - 1)
        elif message.role == "tool" and self._steps:
            self._steps[-1].responses.extend(message.responses)
        if self._steps:
            self._touched = min(self._touched, len(self._turns) - 1)

    def _ask(self, first: int) -> None:
        """Have the calls of the steps from `first` on look for their executions. Answers may have come to the step
        before these too."""
        if 0 < first <= len(self._drafts):
            self._drafts[first - 1].pair()
        for draft in self._drafts[first:]:
            self._now = max(self._now, draft.call.ended if draft.call is not None else 0)
            draft.pair()
            for one in draft.asked:
                one.at = self._now
                self._executions.ask(one)

    def _turn(self, index: int) -> Turn:
        users, drafts = self._turns[index]
        steps = tuple(self._step(index, place, draft) for place, draft in enumerate(drafts))
        return Turn(index=index, user=tuple(users), steps=steps)

    def _step(self, turn: int, place: int, draft: _StepDraft) -> Step:
        """A later run may show that a person changed the calls before they ran."""
        runs = tuple(one.run for one in draft.asked)
        call = draft.call
        message = as_it_ran(draft.message, runs, () if call is None else call.tools)
        if call is not None and message is not draft.message and call.changed is None:
            call = replace(call, changed="edited")
        return Step(
            turn=turn,
            index=place,
            number=draft.number,
            message=message,
            responses=tuple(draft.responses),
            call=call,
            runs=runs,
            recorded=tuple(draft.recorded and one.use.call.name not in self._own_code_used for one in draft.asked),
        )
