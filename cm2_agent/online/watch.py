"""`watch`, which traces, scores and stores every run of a graph, and `flush`, which waits for it."""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, TypeVar

from cm2_agent.errors import BudgetExhausted, ChecklistError, JudgeError
from cm2_agent.incidents import Incidents
from cm2_agent.online.middleware import Live, Middleware
from cm2_agent.tracing.evaluation_events import EvaluationEvents
from cm2_agent.tracing.handler import is_watched
from cm2_agent.tracing.span_processor import capture
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.json_values import content_hash
from cm2_agent.types.protocols import Judge, Reward, Scorer, Sink, Store
from cm2_agent.types.score import Score
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

if TYPE_CHECKING:
    from cm2_agent.rewards.components.component import Plug
    from cm2_agent.rewards.judges.llm_judge import LLMJudge

__all__ = ["flush", "watch"]

G = TypeVar("G")
_AT_EXIT = 10.0
_watching: weakref.WeakSet[Live] = weakref.WeakSet()


def watch(
    graph: G,
    checklist: Checklist | str | PathLike[str] | None = None,
    *,
    rewards: Mapping[str, Reward] | Sequence[Reward] | None = None,
    judge: Judge | str | None = None,
    sample: float | None = None,
    budget_usd: float | None = None,
    store: Store | str = "sqlite:///cm2.db",
    sinks: Sequence[Sink] = (),
    enabled: bool | None = None,
) -> G:
    """The same kind of graph, whose every run is traced and stored, and scored by the checklist's programmatic items.

    Call it once, where the graph is built. After each run of a conversation (`configurable.thread_id`) the whole trace
    is scored again and its score replaced. All of it happens in a background thread: a store or scorer that fails is
    logged once, counted (`cm2 doctor` shows it) and never breaks or slows a call; `flush` waits for it, and is called
    when the program ends.

    `checklist`: a Checklist, or the path of a YAML file. `judge` answers its questions, for the share `sample` (0…1) of
    the traces and until `budget_usd` is spent: it needs both, since it sends data out and costs money. A model's name
    such as "openai:gpt-5-mini" is an LLMJudge whose verdicts are kept in the store; another judge tells what it has
    spent by an attribute `spent_usd`; for one that costs nothing say `budget_usd=0`. A trace for which the budget does
    not suffice gets the score of its programmatic items alone, under their own reward version. `rewards`: further
    components of the score, by name, for the same share of the traces: anything that `rewards.components.plug` takes;
    they stand beside the reward and do not change it. `sinks` are told of every trace and its score; where the
    application has an OpenTelemetry logger provider, each verdict also leaves as an event on the span that it judges
    (`evaluation_events`). `enabled=False`, or CM2_DISABLED=1 in the environment where `enabled` is left out, gives the
    graph back as it is: nothing is traced, stored, scored or opened.

    Raises ValueError for a judge without both limits or a graph that is watched already, JudgeError for a judge that
    cannot be asked or whose price nobody knows, ChecklistError, StoreError.

        graph = watch(graph, "support.yaml")
    """
    if not callable(getattr(graph, "with_config", None)):
        raise TypeError(
            f"watch was given a {type(graph).__name__}; expected a compiled graph: call graph.compile() first"
        )
    if is_watched(graph):
        raise ValueError(
            "the graph is watched already, each of its runs would be stored twice; give the first watch what this one"
            " adds"
        )
    _check_judge(judge, sample, budget_usd, checklist)
    if not (_enabled() if enabled is None else enabled):
        return graph
    from cm2_agent.rewards.judges.cache import remember
    from cm2_agent.rewards.scoring.scorer import ChecklistScorer

    items = _checklist(checklist)
    plugs = _plugs(rewards)
    scorer: Scorer | None = None
    hosted = _hosted(judge, budget_usd) if isinstance(judge, str) else None
    asked = judge if not isinstance(judge, str) else hosted
    if items is not None or plugs:
        plain = ChecklistScorer(items)
        judged = plain if asked is None else ChecklistScorer(items, judge=asked)
        budget = _Budget(asked, budget_usd, kept=hosted is not None)
        scorer = _LiveScorer(plain, judged, plugs, 1.0 if sample is None else sample, budget)
    kept = _open(store)
    cache: Any = getattr(kept, "verdict_cache", None)
    if asked is not None and cache is not None:
        remember(asked, cache())
    if items is not None:
        kept.save_checklist(items)
    incidents = Incidents()
    for sink in sinks:
        if callable(report_to := getattr(sink, "report_to", None)):
            report_to(incidents)
    live = Live(Middleware(kept, scorer, (*sinks, EvaluationEvents()), incidents))
    if isinstance(scorer, _LiveScorer):
        scorer.incidents = incidents
    _watching.add(live)
    handler = capture(live.submit, incidents=incidents)
    watched: G = graph.with_config(callbacks=[handler])  # type: ignore[attr-defined]
    return watched


def flush(timeout: float | None = None) -> bool:
    """Wait until every run of every watched graph is saved and scored, and sinks that have a `flush(timeout)` are done;
    False if that took longer than `timeout` seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    done = True
    for live in list(_watching):
        waiting = [live.flush, *(getattr(sink, "flush", None) for sink in live.middleware.sinks)]
        for wait in filter(callable, waiting):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done = wait(left) is not False and done
    return done


atexit.register(flush, _AT_EXIT)


class _Budget:
    """Whether the judge may still be asked; one that is `kept` by the judge itself is left to it."""

    def __init__(self, judge: Any, budget: float | None, *, kept: bool) -> None:
        self._judge, self._budget, self._kept = judge, budget, kept

    def left(self) -> bool:
        if self._judge is None or self._budget is None:
            return False
        if self._kept or not hasattr(self._judge, "spent_usd"):
            return True
        spent = self._judge.spent_usd
        return spent is not None and spent < self._budget


class _LiveScorer:
    """The checklist's score of every trace, with judge and further components for a sample of them that is drawn by
    trace id."""

    def __init__(self, plain: Scorer, judged: Scorer, rewards: Sequence[Plug], sample: float, budget: _Budget) -> None:
        self.incidents = Incidents()
        self._plain, self._judged, self._rewards, self._sample, self._budget = plain, judged, rewards, sample, budget

    @property
    def version(self) -> str:
        return self._judged.version

    async def __call__(self, trace: Trace, task: Task | None = None) -> Score:
        drawn = int(content_hash(trace.id)[:8], 16) / 16**8 < self._sample
        try:
            score = await (self._judged if drawn and self._budget.left() else self._plain)(trace, task)
        except BudgetExhausted as error:
            self.incidents.add("the judge's budget did not suffice for a trace", error)
            score = await self._plain(trace, task)
        if not drawn or not self._rewards:
            return score
        return replace(
            score,
            components={**score.components, **{one.name: await self._ask(one, trace, task) for one in self._rewards}},
        )

    async def _ask(self, reward: Plug, trace: Trace, task: Task | None) -> float | None:
        from cm2_agent.rewards.components.component import Context

        try:
            component = await reward(trace, Context(task=task))
        except BudgetExhausted as error:
            self.incidents.add(f"the reward {reward.name} has no budget left", error)
            return None
        if component.value is None:
            self.incidents.add(f"the reward {reward.name} gave no value", JudgeError(component.explanation))
        return component.value


def _enabled() -> bool:
    return os.environ.get("CM2_DISABLED", "").strip().lower() not in ("1", "true", "yes", "on")


def _check_judge(judge: object, sample: float | None, budget_usd: float | None, checklist: object) -> None:
    if sample is not None and not 0 <= sample <= 1:
        raise ValueError(f"sample is {sample}; expected a share of the traces between 0 and 1")
    if budget_usd is not None and not budget_usd >= 0:
        raise ValueError(f"budget_usd is {budget_usd}; expected US dollars, 0 or more")
    if judge is None:
        return
    if sample is None or budget_usd is None:
        missing = " and ".join(
            name for name, value in (("sample", sample), ("budget_usd", budget_usd)) if value is None
        )
        raise ValueError(
            f"a judge was given without {missing}; it sends dialogues out and costs money, so say both what share of"
            " the traces it may see and what it may spend: watch(graph, checklist, judge=…, sample=0.1,"
            " budget_usd=5.0)"
        )
    if checklist is None:
        raise ValueError(
            "a judge was given without a checklist; it answers the checklist's questions: watch(graph, checklist,"
            " judge=…)"
        )
    if budget_usd and not isinstance(judge, str) and not hasattr(judge, "spent_usd"):
        raise ValueError(
            f"budget_usd is {budget_usd}, but the judge has no attribute spent_usd by which it could be kept; give it"
            " one (US dollars spent so far), or say budget_usd=0 for a judge that costs nothing"
        )


def _hosted(model: str, budget_usd: float | None) -> LLMJudge:
    from cm2_agent.llm.limits import Limits
    from cm2_agent.rewards.judges.llm_judge import LLMJudge

    return LLMJudge(model, limits=Limits(concurrency=8, budget_usd=budget_usd))


def _checklist(checklist: Checklist | str | PathLike[str] | None) -> Checklist | None:
    if checklist is None or isinstance(checklist, Checklist):
        return checklist
    from cm2_agent.types.checklist_yaml import load_checklist

    return load_checklist(fspath(checklist))


def _plugs(rewards: Mapping[str, Reward] | Sequence[Reward] | None) -> list[Plug]:
    from cm2_agent.rewards.components.component import plug

    plugs = [plug(reward, name=name) for name, reward in _named(rewards or {}).items()]
    grouped = [one.name for one in plugs if one.of_group]
    if grouped:
        raise ChecklistError(
            f"the reward {grouped[0]} compares the rollouts of a group, a live trace has none; score groups with a"
            " Stack"
        )
    return plugs


def _named(rewards: Mapping[str, Reward] | Sequence[Reward]) -> dict[str, Reward]:
    if isinstance(rewards, Mapping):
        return dict(rewards)
    named = {
        str(getattr(reward, "name", None) or getattr(reward, "__name__", type(reward).__name__)): reward
        for reward in rewards
    }
    if len(named) != len(rewards):
        raise ValueError(
            f"two rewards have the same name among {sorted(named)}; give them as a mapping of name to reward"
        )
    return named


def _open(store: Store | str) -> Store:
    if not isinstance(store, str):
        return store
    from cm2_agent.store import SQLStore

    return SQLStore(store)
