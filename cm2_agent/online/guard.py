"""`guard`: a live agent's turns have to pass the strict programmatic items of a checklist.

It joins the guard of graphs/, which knows no checklist, and the checks of rewards/, which know no graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

from cm2_agent.errors import ChecklistError, GuardError
from cm2_agent.graphs.guardrail import NOTE, Finding, OnViolation, guarded_graph
from cm2_agent.rewards.scoring.check_limits import CheckLimits
from cm2_agent.rewards.scoring.function_checks import ask_functions
from cm2_agent.rewards.scoring.judge_items import leave_unjudged
from cm2_agent.rewards.scoring.plan import Plan
from cm2_agent.rewards.scoring.score import turn_score
from cm2_agent.tracing.handler import is_watched
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import CheckFunction, Item
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from cm2_agent.types.score import Verdict
from cm2_agent.types.trace import Trace


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
    """The graph with a guard around it: a turn enters the dialogue only if it breaks no strict programmatic item.

    Strict is `required_for_next_turn`. A turn that its check cannot get through (out of time, memory or depth: the
    turn's doing) breaks the item; an item whose check raises, and one that depends on a judged item, breaks nothing.
    What was rejected is stored with the trace, as pairs for DPO: `cm2_agent.trainers.dpo_pairs`.

    Tools run in every attempt, so guard agents whose tools may run twice. The inner graph's steps are not checkpointed:
    a node that interrupts for a human is asked again from the start of the turn. Token streams show rejected attempts
    too. Guard first, then watch: `watch(guard(graph, checklist), checklist)`.

    Args:
        graph: a compiled graph whose state has `messages`.
        checklist: a Checklist, or the path of a YAML file.
        on_violation: "block" replaces the reply of a turn that breaks an item by `blocked`; "retry" makes up to `n`
            more attempts first; "best_of" makes `n` attempts and takes, of those that break nothing, the one that
            is paid most of the programmatic items' weight.
        n: the number of attempts, 1 or more; "block" does not use it.
        blocked: what the user reads in place of a blocked reply. None: GuardError is raised instead.
        note: what the next attempt of "retry" reads about the last, with {failed} for the items that it broke. The
            dialogue never shows it.
        functions: the check functions that a YAML file names.

    Raises:
        ChecklistError: no item is both strict and programmatic, or the file is no checklist.
        GuardError: a graph that is not compiled, has no `messages` or is watched already; an unknown `on_violation`, or
            `n` under 1. When called: `blocked` is None and no attempt passed.

    >>> from langchain_core.language_models import FakeListChatModel
    >>> from cm2_agent import Checklist, Item, guard
    >>> from cm2_agent.graphs import agent
    >>> no_promise = Item("no_promise", check={"reply_matches": "refund"}, kind="avoid", required_for_next_turn=True)
    >>> support = Checklist(no_promise, Item("replies", check={"replied": True}), name="support")
    >>> model = FakeListChatModel(responses=["You get a full refund!", "It was shipped yesterday."])
    >>> guarded_agent = guard(agent(model, []), support, on_violation="retry")
    >>> guarded_agent.invoke({"messages": [("user", "Where is order 7?")]})["messages"][-1].content
    'It was shipped yesterday.'
    """
    if not isinstance(checklist, Checklist):
        from cm2_agent.types.checklist_yaml import checklist_of

        checklist = checklist_of(checklist, functions)
    plan = Plan(checklist, functions)
    if not any(item.required_for_next_turn and not item.is_judged for item in plan.checklist):
        raise ChecklistError(
            f"checklist {checklist.name!r} has no item that is both strict and programmatic, so there is nothing to"
            " guard; give one a check and required_for_next_turn: true"
        )
    if is_watched(graph):
        raise GuardError(
            "the graph is watched already, so each attempt would be stored as a run of its own; guard first:"
            " watch(guard(graph, …))"
        )
    return guarded_graph(graph, _turn_check(plan), on_violation=on_violation, n=n, blocked=blocked, note=note)


def _turn_check(plan: Plan) -> Callable[[Sequence[Message]], Finding]:
    """A function that checks a dialogue's last turn: which strict items it breaks, and the weight of the programmatic
    items that it is paid."""

    def look(messages: Sequence[Message]) -> Finding:
        trace = Trace.of(Run(id="guarded", messages=tuple(messages)))
        turn = plan.turn(len(trace.turns) - 1) if trace.turns else None
        if turn is None:
            return Finding()
        checked = turn.check(trace, live=True)
        ask_functions(trace, [checked], CheckLimits())
        leave_unjudged([checked])
        verdicts = turn_score(checked).verdicts
        failed = {
            item.id: f"{item.id}: {_broken(item, verdict)}"
            for item, verdict in zip(turn.items, verdicts, strict=False)
            if item.required_for_next_turn
            and not item.is_judged
            and (verdict.value is False or (verdict.value is None and verdict.cause == "content"))
        }
        worth = (weight * (verdict.pays or 0.0) for weight, verdict in zip(turn.weights, verdicts, strict=False))
        unchecked = any(
            verdict.value is None and verdict.cause == "infrastructure"
            for item, verdict in zip(turn.items, verdicts, strict=False)
            if item.required_for_next_turn and not item.is_judged
        )
        return Finding(failed=failed, worth=sum(worth), unchecked=unchecked)

    return look


def _broken(item: Item, verdict: Verdict) -> str:
    """What the next attempt reads about a strict item that the turn breaks, or keeps from being checked."""
    if verdict.value is None:
        return f"this turn could not be checked ({verdict.reason or verdict.explanation or 'no verdict'})"
    return f"{item.question or 'this check failed'}{' (it must not)' if item.kind == 'avoid' else ''}"


__all__ = ["guard"]
