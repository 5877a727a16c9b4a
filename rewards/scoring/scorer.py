"""The checklist scorer: a trace in, a Score out. It runs checks, asks the judge and adds up (docs/method.md §2–4).

What is NULL, and never a number: a dialogue that died (`failure: …`), a rollout without a gate's verdict (`gate
undecided`), a trace that another checklist's gate ended where this one's would not have (`censored`), too large a share
of items without a verdict (`verdicts`), a dialogue in which nothing counts or nothing happened (`no turn`), a trace
without a checklist (`no checklist`)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

from cm2_agent.errors import ChecklistError
from cm2_agent.llm.usage import metered
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import CheckFunction, function_source
from cm2_agent.types.json_values import content_hash
from cm2_agent.types.protocols import Judge
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

from ..judges.judge_pass import attempt_at
from .check_limits import CHECK_TIMEOUT, CheckLimits
from .checked_trace import CheckedTrace
from .ending import Ending
from .function_checks import ask_functions, ask_functions_async
from .judge_items import ask_judge, leave_unjudged
from .plan import Plan
from .score import add_up, passes, turn_score

CODE = 5
"""The version of this arithmetic; raised whenever the same trace, checklist and verdicts could get another number."""
_MOST_PLANS = 4096


class ChecklistScorer:
    """Scores traces by a checklist, or (None) each by its own task's.

    Args:
        checklist: The one checklist, or None where each task brings its own.
        judge: Answers its questions: without one they are NULL (infrastructure, `no judge`).
        functions: The check functions that the checklist names.
        tolerance: The largest share of weight without a verdict at which the stored reward is still a number
            (docs/method.md §4).
        check_timeout: Seconds that a check function may take in one turn, or in the closing block, by the clock; then
            it is stopped, and its verdict is NULL.
        incremental: Of a trace that grows (`Trace.with_run`), check and judge only those turns again that have changed.

    Raises:
        ChecklistError: A check cannot be resolved, or the tolerance is out of range.
        ValueError: The timeout is no positive number.

    >>> from cm2_agent import Checklist, Item, Trace
    >>> from cm2_agent.rewards import ChecklistScorer
    >>> scorer = ChecklistScorer(Checklist(Item("looked_up", check={"called": "get_order"}), name="support"))
    >>> scorer.score_sync(Trace(id="t", runs=())).null_reason
    'no turn'
    """

    def __init__(
        self,
        checklist: Checklist | None = None,
        *,
        judge: Judge | None = None,
        functions: Mapping[str, CheckFunction] | None = None,
        tolerance: float = 0.2,
        check_timeout: float = CHECK_TIMEOUT,
        incremental: bool = False,
    ) -> None:
        if not 0 <= tolerance < 1:
            raise ChecklistError(
                f"tolerance is {tolerance}; expected the largest share of missing verdicts, from 0 up to but not with 1"
            )
        self._functions = dict(functions or {})
        self._fixed = None if checklist is None else Plan(checklist, self._functions)
        self._plans: OrderedDict[int, tuple[Task, Plan | None]] = OrderedDict()
        self.judge = judge
        self.tolerance = tolerance
        self.incremental = incremental
        self.limits = CheckLimits(check_timeout)
        self.version = self._version()

    @property
    def checklist(self) -> Checklist | None:
        """The one checklist, with its functions; None where each task brings its own."""
        return None if self._fixed is None else self._fixed.checklist

    async def __call__(self, trace: Trace, task: Task | None = None) -> Score:
        """Score the trace as far as it has come. A failing check or judge is a NULL verdict, never an exception. Raises
        ChecklistError where the task's own checklist is malformed or names a function that was not given,
        BudgetExhausted where the judge may not be asked any more."""
        with metered() as usage:
            score = await self._scored(trace, task)
        return replace(score, usage=usage.to_json())

    async def _scored(self, trace: Trace, task: Task | None) -> Score:
        checked = self._checked(trace, task)
        if isinstance(checked, Score):
            return checked
        attempt = attempt_at(trace.id)
        await ask_functions_async(trace, checked.turns, self.limits, attempt)
        await ask_judge(self.judge, trace, checked.turns, attempt)
        score = add_up(trace, checked, version=self.version, tolerance=self.tolerance)
        if self.incremental:
            checked.remember(trace, self.judge)
        return score

    def score_sync(self, trace: Trace, task: Task | None = None) -> Score:
        """The same without an event loop, for programmatic items. Raises ChecklistError where items need the judge that
        was given."""
        checked = self._checked(trace, task)
        if isinstance(checked, Score):
            return checked
        if checked.plan.judged and self.judge is not None:
            judged = (item for item in checked.plan.checklist if item.is_judged or item.when_question is not None)
            names = ", ".join(item.id for item in judged)
            raise ChecklistError(
                f"the items {names} need the judge, which is asked over a network; use `await scorer(trace, task)`"
            )
        ask_functions(trace, checked.turns, self.limits, attempt_at(trace.id))
        leave_unjudged(checked.turns)
        score = add_up(trace, checked, version=self.version, tolerance=self.tolerance)
        if self.incremental:
            checked.remember(trace, self.judge)
        return score

    async def gate(self, trace: Trace, turn: int, task: Task | None = None) -> bool | None:
        """Whether the next user message may come after `turn`: all its strict items that apply are satisfied (paid or
        not). None where one has no verdict and none is false, or the dialogue died: the rollout is unscored then. True
        where the turn has no strict item."""
        plan = self._plan(task)
        ending = Ending.of(trace, task)
        strict = None if plan is None else plan.strict(turn, ending.messages)
        if strict is None:
            return True
        if ending.failure is not None:
            return None
        if turn >= ending.turns:
            return False  # nothing was answered, so nothing is satisfied
        checked = strict.check(trace, cut=ending.cuts.get(turn))
        attempt = attempt_at(trace.id)
        await ask_functions_async(trace, [checked], self.limits, attempt)
        await ask_judge(self.judge, trace, [checked], attempt)
        return passes(strict.items, turn_score(checked).verdicts)

    def gate_hash(self, task: Task | None = None) -> str | None:
        """The hash of the checklist whose strict items gate a rollout of the task; None where it has none."""
        plan = self._plan(task)
        return plan.checklist.hash if plan is not None and plan.gated else None

    def _checked(self, trace: Trace, task: Task | None) -> CheckedTrace | Score:
        """The trace with the checks run that were written as data, or its score where there is nothing to check."""
        plan = self._plan(task)
        reason = "no checklist"
        if plan is not None:
            ending = Ending.of(trace, task)
            if ending.failure is None:
                return plan.check(trace, ending, reuse=self.incremental, judge=self.judge)
            reason = ending.failure
        return Score(
            trace_id=trace.id,
            reward_version=self.version,
            reward=None,
            checklist=None if plan is None else plan.checklist.hash,
            runs=len(trace.runs),
            null_reason=reason,
        )

    def _plan(self, task: Task | None) -> Plan | None:
        if self._fixed is not None or task is None:
            return self._fixed
        known = self._plans.get(id(task))
        if known is None or known[0] is not task:
            own = task.own_checklist()
            known = (task, None if own is None else Plan(own, self._functions))
            self._plans[id(task)] = known
            if len(self._plans) > _MOST_PLANS:
                self._plans.popitem(last=False)
        return known[1]

    def _version(self) -> str:
        if self._fixed is None:
            sources = {name: function_source(function) for name, function in self._functions.items()}
            name = "task-checklists" + (f":{content_hash(sources)[:12]}" if sources else "")
        else:
            name = f"{self._fixed.checklist.name}@{self._fixed.checklist.version}:{self._fixed.checklist.hash[:12]}"
        judge = "" if self.judge is None else f";judge={getattr(self.judge, 'version', None) or _name(self.judge)}"
        tolerance = "" if self.tolerance == 0.2 else f";tolerance={self.tolerance:g}"
        return f"{name}{judge}{tolerance};code={CODE}"


def _name(judge: object) -> str:
    return str(getattr(judge, "__qualname__", None) or type(judge).__qualname__)


__all__ = ["CODE", "ChecklistScorer"]
