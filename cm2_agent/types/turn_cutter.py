"""TurnCutter: cuts a dialogue into turns and steps, run by run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cm2_agent.types.messages import Message, ToolCallResponse
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.spoken import unrecorded
from cm2_agent.types.tool_use import AskedCall, Executions, ToolUse, as_it_ran, uses
from cm2_agent.types.turn import RunEnd, Step, Turn


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
        if not self.message.tool_calls:
            return
        tools = () if self.call is None else self.call.tools
        found = uses(self.message.tool_calls, self.responses, tools=tools)
        if not self.asked:
            self.asked = [AskedCall(use=use, step=self.number, at=0) for use in found]
        for one, use in zip(self.asked, found, strict=True):
            one.use = use

    @property
    def own_code(self) -> set[str]:
        """The tools that answered without an execution, so that none of theirs is recorded."""
        if not self.recorded or not self.asked:
            return set()
        return {one.use.call.name for one in self.asked if one.run is None and one.use.status == "ok"}


def _with_run(asked: AskedCall, *, recorded: bool) -> ToolUse:
    use = asked.use
    return ToolUse(call=use.call, response=use.response, run=asked.run, tools=use.tools, recorded=recorded)


class TurnCutter:
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
        self._own_code: list[frozenset[str]] = []  # of the turns up to and with each
        self._own_code_used: frozenset[str] = frozenset()
        self._turn_of: list[int] = []  # of each step
        self._touched = 0  # the first turn that is not built as it is
        self._now = 0
        self._failed = False  # whether the last run did
        self.ends: list[RunEnd] = []
        self.before: list[tuple[Message, ...]] = []
        """For each run what stands before its messages that no run wrote."""
        self.dialogue: list[Message] = []
        """All messages so far, as they were captured."""
        self._end: str | None = None  # the state in which the last run ended
        self.runs: set[str] = set()
        """The ids of the runs so far."""

    def add(self, run: Run) -> None:
        self.runs.add(run.id)
        first = len(self._drafts)
        before = self._before(run)
        for message in before:
            self._take(message, None, recorded=False)
        self.dialogue += before
        self.dialogue += run.messages
        self.before.append(before)
        self._end = run.states[-1].hash if run.states else None
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

    def _before(self, run: Run) -> tuple[Message, ...]:
        """What stands before the run's messages that no run wrote: the first one's history, and what a later one was
        shown behind the dialogue. Nothing where it was shown nothing (the store drops what earlier runs hold), or began
        in the state in which the run before it ended."""
        if not self.before:
            return tuple(run.history)
        if not run.history:  # without a look through the dialogue, however long it is
            return ()
        if run.states and run.states[0].hash == self._end:
            return ()
        return unrecorded(run.history, self.dialogue)

    def turns(self) -> tuple[Turn, ...]:
        """The turns so far."""
        first = min(self._touched, len(self._own_code))
        own_code = self._own_code[first - 1] if first else frozenset[str]()
        del self._own_code[first:]
        for _, drafts in self._turns[first:]:
            own_code = own_code.union(*(draft.own_code for draft in drafts))
            self._own_code.append(own_code)
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
        runs = tuple([one.run for one in draft.asked])
        call = draft.call
        message = as_it_ran(draft.message, runs, () if call is None else call.tools)
        if call is not None and message is not draft.message and call.changed is None:
            call = replace(call, changed="edited")
        recorded = [draft.recorded and one.use.call.name not in self._own_code_used for one in draft.asked]
        step = Step(
            turn=turn,
            index=place,
            number=draft.number,
            message=message,
            responses=tuple(draft.responses),
            call=call,
            runs=runs,
            recorded=tuple(recorded),
        )
        if message is draft.message:  # what was paired is not paired again
            step.__dict__["tool_uses"] = tuple(
                [
                    _with_run(one, recorded=known) if known or one.run is not None else one.use
                    for one, known in zip(draft.asked, recorded, strict=True)
                ]
            )
        return step


__all__ = ["TurnCutter"]
