"""`guard(graph, checklist)`: strict programmatic items keep a live agent's replies. An introducer: it joins the guard
of graphs/, which knows no checklist, and the checks of rewards/, which know no graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from typing import Any

from cm2_agent.errors import ChecklistError, GuardError
from cm2_agent.graphs.guardrail import NOTE, Finding, OnViolation, guarded
from cm2_agent.rewards.scoring.checks import run_check
from cm2_agent.rewards.scoring.plan import Plan, Scope
from cm2_agent.rewards.scoring.shaping import Column, settled
from cm2_agent.tracing.handler import is_watched
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import CheckFunction
from cm2_agent.types.messages import Message
from cm2_agent.types.trace import Run, Trace
from cm2_agent.types.view import View


def guard(
    graph: Any,
    checklist: Checklist | str | PathLike[str],
    *,
    on_violation: OnViolation = "block",
    n: int = 2,
    blocked: str | None = "I can't help with that.",
    note: str = NOTE,
    functions: Mapping[str, CheckFunction] | None = None,
) -> Any:
    """The graph, whose every turn is looked at by the checklist's strict programmatic items before it enters the
    dialogue.

    Strict is `required_for_next_turn`. A turn that breaks one is blocked (`blocked` is said in its place; None raises
    GuardError), retried up to `n` times with the failed items told, or is one of `n` of which the best by the
    checklist's programmatic items is taken. An item whose check fails, and one that hangs on a judged item, breaks
    nothing. What was rejected is stored with the trace as pairs for DPO:
    `cm2_agent.trainers.dpo_pairs`. Tools run in every attempt; see
    `cm2_agent.graphs.guarded` for what else to know.

    Guard first, then watch: `watch(guard(graph, checklist), checklist)`. Raises ChecklistError where no item is strict
    and programmatic, GuardError for a graph that cannot be guarded."""
    if isinstance(checklist, str | PathLike):
        from cm2_agent.types.checklist_yaml import load_checklist

        checklist = load_checklist(fspath(checklist), functions)
    plan = Plan(checklist, functions)
    if not any(item.required_for_next_turn and item.check is not None for item in plan.checklist):
        raise ChecklistError(
            f"checklist {checklist.name!r} has no item that is both strict and programmatic, so it could guard nothing;"
            " give one a check and required_for_next_turn: true"
        )
    if is_watched(graph):
        raise GuardError(
            "the graph is watched already, so each attempt would be a run of its own; guard first:"
            " watch(guard(graph, …))"
        )
    return guarded(graph, look_of(plan), on_violation=on_violation, n=n, blocked=blocked, note=note)


def look_of(plan: Plan) -> Callable[[Sequence[Message]], Finding]:
    """What a checklist finds of a dialogue's last turn: the strict items that are false, and the share of programmatic
    weight satisfied."""

    def look(messages: Sequence[Message]) -> Finding:
        trace = Trace.of(Run(id="guarded", messages=tuple(messages)))
        scope = plan.scope(len(trace.turns) - 1) if trace.turns else None
        if scope is None:
            return Finding()
        columns = _columns(scope, trace)
        failed = {
            item.id: (
                f"{item.id}: {item.question or 'this check failed'}{' (it must not)' if item.kind == 'avoid' else ''}"
            )
            for item, column in zip(scope.items, columns, strict=True)
            if item.required_for_next_turn and item.check is not None and column.value is False
        }
        return Finding(
            failed=failed,
            worth=sum(weight for weight, column in zip(scope.weights, columns, strict=True) if column.value),
        )

    return look


def _columns(scope: Scope, trace: Trace) -> list[Column]:
    steps = len(trace.turns[-1].steps)
    views = [View(trace=trace, turn=scope.turn, seen=seen) for seen in range(1, steps + 1)]
    unknown = Column(value=None, reason="no judge", cause="infrastructure")
    columns = [
        unknown if check is None else run_check(check, item, views)
        for item, check in zip(scope.items, scope.checks, strict=True)
    ]
    return settled(columns, scope.deps)


__all__ = ["guard", "look_of"]
