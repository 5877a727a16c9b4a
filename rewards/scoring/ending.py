"""Ending: how a dialogue ended, as far as its score depends on it (docs/method.md §2–4)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from cm2_agent.types.checklist_rules import MAX_TURNS
from cm2_agent.types.run_attributes import CENSORED_TURN, CRASH, CUT, GATE, TASK_MESSAGES, TASK_TURNS
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

UNDECIDED = "verdict"
"""What the runner writes under `cm2.cut` where the gate had no verdict: nobody's limit, so nobody's zero."""

FAILURE = "failure"
"""The reason of items of a turn that ended in an exception."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a dialogue ended.

    `failure` is the null reason of a dialogue that died, `turns` how many user turns were answered and `planned`
    how many were fixed before the rollout (None where nobody knows, or a simulated user decides), with the user's
    `messages` in them where these are known. `live` says that no task is known at all. `gate` is the turn after
    which a gate closed and `gated_by` the hash of that gate's checklist; `undecided` says that a gate had no
    verdict. `limited` says that a limit ended the dialogue, `crashed` that a crash did which the same call brought
    about again. `cuts` are the turns that ended early with the reason, the closing block under None. A limit cuts a
    turn that neither ended in a whole reply nor went on: one that fell after the reply cuts the closing block
    alone. An exception (`failure`) cuts the turn that it ended, whole reply or not, unless that went on later."""

    failure: str | None
    turns: int
    planned: int | None
    messages: tuple[str, ...] | None
    live: bool
    gate: int | None
    gated_by: str | None
    undecided: bool
    limited: bool
    crashed: bool
    cuts: Mapping[int | None, str]

    @classmethod
    def of(cls, trace: Trace, task: Task | None = None) -> Ending:
        """The trace's ending. The planned turns are the given task's, else what the trace says of its own."""
        closed = trace.attributes.get(CENSORED_TURN)
        gate = closed if isinstance(closed, int) else None
        turns, planned = len(trace.turns), _planned_turns(trace) if task is None else task.scripted_turns
        crashed = _crashed(trace)
        limited = bool(trace.runs) and trace.runs[-1].attributes.get(CUT) is not None and not crashed
        cuts: dict[int | None, str] = {}
        for place in trace.broken_off:
            reason = "limit" if trace.runs[place].attributes.get(CUT) not in (None, CRASH) else FAILURE
            if (cut := _cut_turn(trace, place, reason)) is not None:
                cuts[cut] = reason
        if gate is not None and (planned is None or turns < planned):
            cuts[None] = "gate"
        elif limited or crashed:
            cuts[None] = "limit" if limited else FAILURE
        return cls(
            failure=failure_of(trace),
            turns=turns,
            planned=planned,
            messages=_planned_messages(trace, planned) if task is None else task.turns if planned else None,
            live=planned is None and task is None and trace.task_id is None,
            gate=gate,
            gated_by=trace.attributes.get(GATE),
            undecided=bool(trace.runs) and trace.runs[-1].attributes.get(CUT) == UNDECIDED,
            limited=limited,
            crashed=crashed,
            cuts=cuts,
        )

    @property
    def unreached(self) -> str:
        """Why a turn that did not happen did not; `unreached` where nothing but the user's silence is known."""
        if self.gate is not None:
            return "gate"
        return "limit" if self.limited else FAILURE if self.crashed else "unreached"


def failure_of(trace: Trace) -> str | None:
    """`failure: …` where the dialogue died of what is not the agent's doing, so that no reward may count it."""
    if _crashed(trace):
        return None
    if trace.failure is not None:
        return f"failure: {trace.failure.kind}"
    status = trace.runs[-1].status if trace.runs else "ok"
    return f"failure: {status}" if status in ("error", "cancelled") else None


def _crashed(trace: Trace) -> bool:
    """Whether a crash ended the dialogue that the same call brought about again."""
    return bool(trace.runs) and trace.runs[-1].attributes.get(CUT) == CRASH


def _planned_turns(trace: Trace) -> int | None:
    turns = trace.attributes.get(TASK_TURNS)
    return turns if isinstance(turns, int) and not isinstance(turns, bool) and 0 < turns <= MAX_TURNS else None


def _planned_messages(trace: Trace, planned: int | None) -> tuple[str, ...] | None:
    """The messages of the task's turns as the trace has them from its task: what the dialogue came to does not
    matter."""
    messages = trace.attributes.get(TASK_MESSAGES)
    if isinstance(messages, str):  # as spans carry a list
        try:
            messages = json.loads(messages)
        except ValueError:
            return None
    if not isinstance(messages, list) or len(messages) != planned:
        return None
    return tuple(messages) if all(isinstance(one, str) for one in messages) else None


def _cut_turn(trace: Trace, place: int, reason: str) -> int | None:
    """The turn that the run at `place` broke off, None where it ended between turns or the turn went on later."""
    end = trace.run_ends[place]
    if end.turn < 0 or len(trace.turns[end.turn].steps) > end.steps:
        return None
    if reason == FAILURE:
        return None if end.unanswered else end.turn
    step = trace.turns[end.turn].steps[end.steps - 1]
    whole = step.is_reply and "length" not in (
        step.message.finish_reason,
        step.call.finish_reason if step.call else None,
    )
    return None if whole else end.turn


__all__ = ["UNDECIDED", "Ending", "failure_of"]
