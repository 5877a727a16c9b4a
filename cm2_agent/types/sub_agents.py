"""Steps of sub-agents: model calls off the main line of a dialogue, each placed at the step during which it ran."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from cm2_agent.types.messages import ToolCall, ToolCallResponse
from cm2_agent.types.run import ModelCall, Run, ToolRun
from cm2_agent.types.scope import Scope
from cm2_agent.types.turn import Step

__all__ = ["scope_of_steps", "steps_of_sub_agents"]


def steps_of_sub_agents(
    runs: Sequence[Run], steps: Sequence[Step], unwritten: Collection[int] = ()
) -> dict[str, tuple[Step, ...]]:
    """For each agent that wrote no step of the dialogue itself (one inside a tool, or in a graph that keeps no
    messages) what its calls wrote. `turn`, `index` and `number` are those of the dialogue's step around it: the last
    one that had begun, else the run's first. `unwritten` are the numbers of the steps that no run wrote."""
    known = {step.agent for step in steps}
    found: dict[str, list[Step]] = defaultdict(list)
    written = [step for step in steps if step.number not in unwritten]
    first = 0
    for run in runs:
        own = written[first : first + sum(message.role == "assistant" for message in run.messages)]
        first += len(own)
        if not own:
            continue
        executions = _Executions(run.tools)
        for call in sorted(run.calls, key=lambda call: call.started):
            if call.message is None and call.output is not None and call.agent is not None and call.agent not in known:
                found[call.agent].append(_step(call, _around(call, own), executions))
    return {agent: tuple(sorted(own, key=lambda step: step.number)) for agent, own in found.items()}


def scope_of_steps(whole: Scope, steps: Iterable[Step]) -> Scope:
    """The scope with the calls and replies of these steps, which are placed at its own."""
    at = {step.number: place for place, step in enumerate(whole.steps)}
    inside = [Scope.of([step], first=at[step.number]) for step in steps if step.number in at]
    return Scope(
        steps=whole.steps,
        calls=tuple(call for scope in inside for call in scope.calls),
        replies=tuple(reply for scope in inside for reply in scope.replies),
    )


def _around(call: ModelCall, own: Sequence[Step]) -> Step:
    begun = [step for step in own if step.call is not None and step.call.started <= call.started]
    return begun[-1] if begun else own[0]


def _step(call: ModelCall, around: Step, executions: _Executions) -> Step:
    assert call.output is not None
    runs = tuple(executions.take(one, call.started) for one in call.output.tool_calls)
    return Step(
        turn=around.turn,
        index=around.index,
        number=around.number,
        message=call.output,
        responses=tuple(
            ToolCallResponse(
                id=run.call_id,
                response=run.error if run.result is None and run.error is not None else run.result,
                error=run.error is not None,
            )
            for run in runs
            if run is not None
        ),
        call=call,
        runs=runs,
        recorded=(True,) * len(runs),
    )


class _Executions:
    """The executions of a run; each is handed out once, to a call of its id and tool that was made before it."""

    def __init__(self, tools: Sequence[ToolRun]) -> None:
        self._waiting = sorted(tools, key=lambda tool: tool.started)

    def take(self, call: ToolCall, asked: int) -> ToolRun | None:
        for place, tool in enumerate(self._waiting):
            if tool.call_id == call.id and tool.name == call.name and tool.started >= asked:
                return self._waiting.pop(place)
        return None
