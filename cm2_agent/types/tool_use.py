"""A tool call with what came of it: its answer in the dialogue, its execution, and its status.

Ids of calls are the model's to choose: some leave them out, some give the tool's name each time. So a call and its
answer are matched by position within an id, and nothing is looked up by an id alone."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

from cm2_agent.types.json_values import JSON, same_json
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse, ToolSpec
from cm2_agent.types.run import UNFINISHED, ToolRun
from cm2_agent.types.tool_errors import FAILURE_UNKNOWN, is_error, reads_as_error

CallStatus: TypeAlias = Literal["invalid", "not_run", "failed", "answered", "ok"]
"""What became of a tool call (`ToolUse.status`)."""


@dataclass(frozen=True, kw_only=True)
class ToolUse:
    """One tool call of a step with what came of it.

    Args:
        call: The call as the message holds it.
        response: The tool's answer in the dialogue, None where there is none.
        run: The execution, the last one where the tool was tried again; None where none was recorded.
        tools: The tools that the model was offered, empty where that is unknown.
        recorded: Whether an execution would have been recorded, so that no `run` means that nothing ran.

    >>> from cm2_agent import ToolCall, ToolCallResponse, ToolUse
    >>> call = ToolCall(id="1", name="get_order", arguments={"id": 7})
    >>> ToolUse(call=call, response=ToolCallResponse(id="1", response="shipped")).status, ToolUse(call=call).status
    ('ok', 'not_run')
    """

    call: ToolCall
    response: ToolCallResponse | None = None
    run: ToolRun | None = None
    tools: tuple[ToolSpec, ...] = ()
    recorded: bool = False

    @cached_property
    def status(self) -> CallStatus:
        """What became of the call.

        - `invalid`: it could not be run. Its arguments could not be parsed or are no object, or no tool has its name.
        - `not_run`: nothing was executed to its end: the run ended or was cancelled first, a person or a limit refused
          the call.
        - `failed`: the tool's answer is an error or reads like one (`reads_as_error`), or the tool raised, also where
          that ended the run.
        - `answered`: the tool answered, and the recording does not tell whether the call failed.
        - `ok`: the tool answered."""
        if not self._readable:
            return "invalid"
        refused = self.response is not None and is_error(self.response)
        if ended(self.run) and self.run is not None:
            silent = self.response is None and reads_as_error(self.run.result)
            return "failed" if refused or silent or self.run.error is not None else self._answered
        if self.response is not None and not refused:
            return self._answered
        if self.tools and all(tool.name != self.call.name for tool in self.tools):
            return "invalid"
        marked = self.response is not None and self.response.error
        return "failed" if refused and not (marked and self.recorded) else "not_run"

    @property
    def _answered(self) -> CallStatus:
        unknown = self.response is not None and self.response.extra.get(FAILURE_UNKNOWN) is True
        return "answered" if unknown else "ok"

    @cached_property
    def arguments(self) -> JSON:
        """The arguments that ran. A person or a middleware may have changed those of the message; what the application
        adds for itself is left out."""
        if self.run is None or not ended(self.run):
            return self.call.arguments
        if self.run.name != self.call.name and isinstance(self.run.arguments, Mapping):
            return dict(self.run.arguments)  # another tool was run in its place
        given = {} if self.call.arguments is None else self.call.arguments
        ran = {} if self.run.arguments is None else self.run.arguments
        if type(ran) is dict and same_json(ran, given):  # as it mostly is
            return self.call.arguments
        if not isinstance(ran, Mapping) or not isinstance(given, Mapping):
            return self.call.arguments if not isinstance(ran, Mapping) else dict(ran)
        known = next((tool.parameters for tool in self.tools if tool.name == self.run.name), {}).get("properties")
        known = known if isinstance(known, Mapping) else {}
        changed = {
            key: given[key] if key in given and same_json(given[key], value) else value
            for key, value in ran.items()
            if key in given or (key in known and not _is_default(value, known[key]))
        }
        another_form = bool(given) and not any(key in ran for key in given)
        return self.call.arguments if another_form or same_json(changed, given) else changed

    @property
    def error(self) -> str | None:
        """What the tool raised that never answered, None where it answered or did not fail."""
        return self.run.error if self.run is not None and ended(self.run) and self.response is None else None

    @property
    def _readable(self) -> bool:
        if ended(self.run) and self.run is not None and isinstance(self.run.arguments, Mapping):
            return True  # somebody mended the call
        if self.call.extra.get("error") or not self.call.name:
            return False
        free_form = self.call.extra.get("custom") is True and isinstance(self.call.arguments, str)
        return free_form or self.call.arguments is None or isinstance(self.call.arguments, Mapping)


def ended(run: ToolRun | None) -> bool:
    """Whether there is an execution that came to an end: one that an interrupt or the run's own end broke off has
    neither a result nor an error of its own."""
    return run is not None and run.error != UNFINISHED and (run.error is not None or run.result is not None)


def as_it_ran(message: Message, runs: Sequence[ToolRun | None], tools: tuple[ToolSpec, ...] = ()) -> Message:
    """The message with the arguments, and the tool, with which each of its calls ran; itself where these are its own.

    `runs` holds the execution of each call, None where there was none; `tools` are those that the model was offered."""
    calls = message.tool_calls
    ran: dict[int, ToolCall] = {}
    for call, run in zip(calls, runs, strict=False):
        if run is not None and ended(run) and (run.name != call.name or run.arguments != call.arguments):
            arguments = ToolUse(call=call, run=run, tools=tools).arguments
            if run.name != call.name or not same_json(arguments, call.arguments):
                ran[id(call)] = replace(call, name=run.name, arguments=arguments)
    if not ran:
        return message
    return replace(message, parts=tuple(ran.get(id(part), part) for part in message.parts))


def pair_answers(asked: Sequence[str | None], answered: Sequence[str | None]) -> tuple[int | None, ...]:
    """For each call of a message, by its id, the position of its answer among the ids of the answers, None where
    nothing answers it.

    The n-th call of an id is answered by its n-th answer. What is left over is matched in order where one of the two
    has no id.

    >>> pair_answers(["a", "b", "a"], ["b", "a", "a"]), pair_answers([None, None], ["x", None]), pair_answers(["a"], [])
    ((1, 0, 2), (0, 1), (None,))
    """
    if not asked:
        return ()
    if list(asked) == list(answered) and all(asked):  # as it mostly is
        return tuple(range(len(asked)))
    by_id: dict[str, deque[int]] = defaultdict(deque)
    for place, name in enumerate(answered):
        if name:
            by_id[name].append(place)
    found = [by_id[name].popleft() if name and by_id.get(name) else None for name in asked]
    nameless = deque(place for place, name in enumerate(answered) if not name)
    strangers = deque(sorted(place for places in by_id.values() for place in places))
    for position, name in enumerate(asked):
        if found[position] is None:
            queues = [queue for queue in ((nameless,) if name else (nameless, strangers)) if queue]
            if queues:
                found[position] = min(queues, key=lambda queue: queue[0]).popleft()
    return tuple(found)


def uses(
    calls: Sequence[ToolCall],
    responses: Sequence[ToolCallResponse],
    *,
    runs: Sequence[ToolRun | None] = (),
    recorded: Sequence[bool] = (),
    tools: tuple[ToolSpec, ...] = (),
) -> tuple[ToolUse, ...]:
    """The calls of one message with their answers and, where given, their executions."""
    answers = pair_answers([call.id for call in calls], [response.id for response in responses])
    return tuple(
        [
            ToolUse(
                call=call,
                response=None if answer is None else responses[answer],
                run=runs[place] if place < len(runs) else None,
                recorded=recorded[place] if place < len(recorded) else False,
                tools=tools,
            )
            for place, (call, answer) in enumerate(zip(calls, answers, strict=True))
        ]
    )


@dataclass(slots=True, eq=False)
class AskedCall:
    """A call of a dialogue that looks for its execution: made in a step, at a time (0: unknown)."""

    use: ToolUse
    step: int
    at: int
    run: ToolRun | None = None


class Executions:
    """The executions of a dialogue's calls, which are added in the order in which they were asked, each run's before
    what it executed.

    An execution belongs to a call of its id and tool that was asked before it began and has not run yet: to the latest
    step's, there to the one with its arguments, else to the first. Where all have run it is another try of the last."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str | None, str], list[AskedCall]] = defaultdict(list)
        self._last: dict[tuple[str | None, str], AskedCall] = {}
        self._names: dict[str, set[str]] = defaultdict(set)

    def ask(self, asked: AskedCall) -> None:
        call = asked.use.call
        self._waiting[call.id or None, call.name].append(asked)
        if call.id:
            self._names[call.id].add(call.name)

    def execute(self, tool: ToolRun) -> AskedCall | None:
        """The call that the execution belongs to, None where there is none."""
        key: tuple[str | None, str] = (tool.call_id or None, tool.name)
        if not self._waiting[key] and key not in self._last and tool.call_id:  # a person chose another tool
            names = sorted(self._names.get(tool.call_id, ()))
            key = next(((tool.call_id, name) for name in names if self._waiting[tool.call_id, name]), key)
        waiting = self._waiting[key]
        candidates = [one for one in waiting if one.at <= tool.started] if tool.started else waiting
        if not candidates and key in self._last:
            found = self._last[key]
        elif candidates or waiting:
            found = _nearest(candidates or waiting, tool)
            if ended(tool):
                waiting.remove(found)
                self._last[key] = found
        else:
            return None
        found.run = tool
        return found


def _nearest(candidates: Sequence[AskedCall], tool: ToolRun) -> AskedCall:
    if len(candidates) == 1:
        return candidates[0]
    if tool.started:
        step = candidates[-1].step
    else:  # without times: in the order of the answers, since what was answered was run
        step = next((one.step for one in candidates if one.use.response is not None), candidates[0].step)
    own = [one for one in candidates if one.step == step]
    return next((one for one in own if _same_arguments(one.use.call, tool)), own[0])


def _same_arguments(call: ToolCall, tool: ToolRun) -> bool:
    given, ran = call.arguments or {}, tool.arguments or {}
    if not isinstance(given, Mapping) or not isinstance(ran, Mapping):
        return same_json(given, ran)
    return all(key in ran and same_json(ran[key], value) for key, value in given.items())


def _is_default(value: JSON, schema: JSON) -> bool:
    return isinstance(schema, Mapping) and "default" in schema and same_json(schema["default"], value)


__all__ = ["AskedCall", "CallStatus", "Executions", "ToolUse", "as_it_ran", "ended", "pair_answers", "uses"]
