"""The checklist scorer: a trace in, a Score out (method.md §2–4, §7). It asks the checks and the judge, and adds up by
shaping.py.

What is NULL, and never a number: a dialogue that died (`failure: …`), a rollout without a gate's verdict (`gate
undecided`), a trace that another checklist's gate ended where this one's would not have (`censored`), too large a share
of items without a verdict (`verdicts`), a dialogue in which nothing counts or nothing happened (`no turn`), a trace
without a checklist (`no checklist`)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cm2_agent.errors import ChecklistError
from cm2_agent.llm.usage import metered
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import CheckFunction, function_source
from cm2_agent.types.json_values import content_hash
from cm2_agent.types.protocols import Judge
from cm2_agent.types.run_attributes import CUT, GATE
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.task import Task, check_trainable
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View

from .checks import run_check
from .judge_items import ask, open_items
from .plan import UNDECIDED, Ending, Plan, Scope, planned_turns
from .shaping import Column, paid, settled, stored_reward, weigh

CODE = 1
"""The version of this arithmetic; raised whenever the same trace, checklist and verdicts could get another number."""
_REMEMBERED = 4096


@dataclass(kw_only=True)
class _Part:
    """One counted scope at work: its columns, None where the judge is still to be asked."""

    scope: Scope
    steps: int
    cut: str | None
    reached: bool
    columns: list[Column | None]


class ChecklistScorer:
    """Scores traces by a checklist, or (None) each by its own task's.

    `functions` are the checks that the checklist names; `judge` answers its questions: without one they are NULL
    (infrastructure, `no judge`). `tolerance` is the largest share of weight without a verdict at which the stored
    reward is still a number (§4). Raises ChecklistError where a check cannot be resolved.

    >>> from cm2_agent import Item
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
            score = await self._asked(trace, task)
        return replace(score, usage=usage.to_json())

    async def _asked(self, trace: Trace, task: Task | None) -> Score:
        plan = self._plan(task)
        if plan is None:
            return self._null(trace, None, "no checklist")
        if (dead := died(trace)) is not None:
            return self._null(trace, plan, dead)
        ending = Ending.of(trace)
        parts = _parts(plan, trace, task, ending)
        for part in parts:
            await self._judge(trace, part)
        return self._score(plan, trace, task, ending, parts)

    def score_sync(self, trace: Trace, task: Task | None = None) -> Score:
        """The same without an event loop, for programmatic items. Raises ChecklistError where items need the judge that
        was given."""
        plan = self._plan(task)
        if plan is None:
            return self._null(trace, None, "no checklist")
        if (dead := died(trace)) is not None:
            return self._null(trace, plan, dead)
        if plan.judged and self.judge is not None:
            names = ", ".join(item.id for item in plan.checklist if item.check is None)
            raise ChecklistError(
                f"the items {names} need the judge, which is asked over a network; use `await scorer(trace, task)`"
            )
        ending = Ending.of(trace)
        parts = _parts(plan, trace, task, ending)
        for part in parts:
            _fill(part, {index: _NO_JUDGE for index, column in enumerate(part.columns) if column is None})
        return self._score(plan, trace, task, ending, parts)

    async def gate(self, trace: Trace, turn: int, task: Task | None = None) -> bool | None:
        """Whether the next user message may come after `turn`: all its strict items are satisfied (paid or not). None
        where one has no verdict and none is false, or the dialogue died: the rollout is unscored then. True where the
        turn has no strict item."""
        plan = self._plan(task)
        scope = None if plan is None else plan.strict(turn)
        if scope is None:
            return True
        if died(trace) is not None:
            return None
        if turn >= len(trace.turns):
            return False  # nothing was answered, so nothing is satisfied
        part = _part(scope, trace, Ending.of(trace), planned_turns(trace, task))
        await self._judge(trace, part)
        return _passes(scope, [column.value for column in settled(_known(part), scope.deps)])

    def gate_hash(self, task: Task | None = None) -> str | None:
        """The hash of the checklist whose strict items gate a rollout of the task; None where it has none."""
        plan = self._plan(task)
        return plan.checklist.hash if plan is not None and plan.gated else None

    def _plan(self, task: Task | None) -> Plan | None:
        if self._fixed is not None or task is None:
            return self._fixed
        known = self._plans.get(id(task))
        if known is None or known[0] is not task:
            own = task.own_checklist()
            known = (task, None if own is None else Plan(own, self._functions))
            self._plans[id(task)] = known
            if len(self._plans) > _REMEMBERED:
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

    def _null(self, trace: Trace, plan: Plan | None, reason: str, turns: tuple[TurnScore, ...] = ()) -> Score:
        return Score(
            trace_id=trace.id,
            reward_version=self.version,
            reward=None,
            checklist=None if plan is None else plan.checklist.hash,
            turns=turns,
            runs=len(trace.runs),
            null_reason=reason,
        )

    async def _judge(self, trace: Trace, part: _Part) -> None:
        waiting = [index for index, column in enumerate(part.columns) if column is None]
        if not waiting:
            return
        if self.judge is None:
            _fill(part, dict.fromkeys(waiting, _NO_JUDGE))
            return
        asked = open_items(part.columns, part.scope.deps)
        answers = await ask(self.judge, trace, part.scope, asked, part.steps) if asked else {}
        # an item that is not asked hangs on a false or NULL one, and takes its verdict from that in any case
        _fill(part, {index: answers.get(index, Column(value=None, reason="dependency")) for index in waiting})

    def _score(self, plan: Plan, trace: Trace, task: Task | None, ending: Ending, parts: Sequence[_Part]) -> Score:
        turns = tuple(_turn_score(part) for part in parts)
        reason = _unscorable(plan, trace, task, ending, turns)
        if reason is not None:
            return self._null(trace, plan, reason, turns)
        reward = stored_reward(
            [[verdict.paid for verdict in turn.verdicts] for turn in turns],
            [part.scope.weights for part in parts],
            tolerance=self.tolerance,
        )
        score = self._null(trace, plan, "verdicts", turns)
        return score if reward is None else replace(score, reward=reward, null_reason=None)


_NO_JUDGE = Column(
    value=None, reason="no judge", cause="infrastructure", explanation="the item is a question and no judge was given"
)


def _parts(plan: Plan, trace: Trace, task: Task | None, ending: Ending) -> list[_Part]:
    planned = planned_turns(trace, task)
    return [_part(scope, trace, ending, planned) for scope in plan.counted(trace, task)]


def _part(scope: Scope, trace: Trace, ending: Ending, planned: int | None) -> _Part:
    if scope.turn is not None and scope.turn >= len(trace.turns):
        never: list[Column | None] = [Column(value=False, reason=ending.unreached) for _ in scope.items]
        return _Part(scope=scope, steps=0, cut=None, reached=False, columns=never)
    steps = len(trace.steps if scope.turn is None else trace.turns[scope.turn].steps)
    cut = ending.cuts(scope, trace, planned)
    views = [View(trace=trace, turn=scope.turn, seen=seen) for seen in range(1, steps + 1)]
    columns: list[Column | None] = []
    for item, check in zip(scope.items, scope.checks, strict=True):
        if cut is not None and item.kind != "reach":
            columns.append(Column(value=False, reason=cut))
        elif check is not None:
            columns.append(run_check(check, item, views))
        else:
            columns.append(None if steps else Column(value=False))
    return _Part(scope=scope, steps=steps, cut=cut, reached=True, columns=columns)


def _fill(part: _Part, columns: Mapping[int, Column]) -> None:
    for index, column in columns.items():
        part.columns[index] = column


def _known(part: _Part) -> list[Column]:
    return [column for column in part.columns if column is not None]


def _turn_score(part: _Part) -> TurnScore:
    scope, known = part.scope, _known(part)
    columns = settled(known, scope.deps) if part.reached else known
    payments = paid([column.flip for column in columns], scope.deps)
    verdicts = tuple(
        Verdict(
            item=item.id,
            value=column.value,
            weight=weight,
            step=column.flip,
            paid=None if column.value is None else one,
            depends_on=deps,
            reason=column.reason,
            cause=column.cause,
            explanation=column.explanation,
            evidence=column.evidence,
        )
        for item, column, weight, deps, one in zip(
            scope.items, columns, scope.weights, scope.deps, payments, strict=True
        )
    )
    whole = all(column.value is not None for column in columns)
    reward = weigh(payments, scope.weights) if whole else None
    return TurnScore(turn=scope.turn, reached=part.reached, steps=part.steps, reward=reward, verdicts=verdicts)


def _passes(scope: Scope, values: Sequence[bool | None]) -> bool | None:
    strict = [value for item, value in zip(scope.items, values, strict=True) if item.required_for_next_turn]
    return False if False in strict else None if None in strict else True


def died(trace: Trace) -> str | None:
    """`failure: …` where the dialogue ended for no reason of the agent's, which no reward may count."""
    if trace.failure is not None:
        return f"failure: {trace.failure.kind}"
    status = trace.runs[-1].status if trace.runs else "ok"
    return f"failure: {status}" if status in ("error", "cancelled") else None


def _unscorable(plan: Plan, trace: Trace, task: Task | None, ending: Ending, turns: Sequence[TurnScore]) -> str | None:
    """Why the trace has no reward whatever its verdicts say (the reasons at the top of this file), None where it may
    have one."""
    if not turns or (not trace.turns and ending.unreached == "unreached"):
        return "no turn"
    if trace.runs[-1].attributes.get(CUT) == UNDECIDED:
        return "gate undecided"
    last = len(trace.turns) - 1
    planned = planned_turns(trace, task)
    scored = next((turn for turn in turns if turn.turn == last), None)
    if ending.gate is not None and trace.attributes.get(GATE) != plan.checklist.hash:
        at = next((turn for turn in turns if turn.turn == ending.gate), None)
        passed = True if at is None else _reopens(plan, at)
        return None if passed is False else "censored" if passed else "gate undecided"
    if (
        ending.gate is None
        and not ending.limited
        and planned is not None
        and len(trace.turns) < planned
        and scored is not None
    ):
        return "gate undecided" if _reopens(plan, scored) is None else None
    return None


def _reopens(plan: Plan, turn: TurnScore) -> bool | None:
    """What this checklist's gate says after a scored turn."""
    by_id = plan.checklist.by_id
    strict = [verdict.value for verdict in turn.verdicts if by_id[verdict.item].required_for_next_turn]
    return False if False in strict else None if None in strict else True


def _name(judge: object) -> str:
    return str(getattr(judge, "__qualname__", None) or type(judge).__qualname__)


__all__ = ["CODE", "ChecklistScorer", "check_trainable", "died"]
