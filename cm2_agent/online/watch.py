"""`watch`: a graph whose every run is captured, stored and scored in the background."""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

from cm2_agent.errors import ChecklistError
from cm2_agent.incidents import Incidents
from cm2_agent.online.live import Live
from cm2_agent.online.live_scorer import JudgeBudget, LiveScorer
from cm2_agent.online.middleware import Middleware
from cm2_agent.online.sampling import sampled
from cm2_agent.online.watchable import check_watchable
from cm2_agent.tracing.evaluation_events import EvaluationEvents
from cm2_agent.tracing.graph_values import Selector, check_selectors
from cm2_agent.tracing.handler import is_watched
from cm2_agent.tracing.span_processor import capture
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.protocols import Judge, Reward, Sink, Store
from cm2_agent.types.secrets import mask_secrets

if TYPE_CHECKING:
    from cm2_agent.datasets.redaction import Redactor
    from cm2_agent.rewards.components.component import RewardComponent
    from cm2_agent.rewards.judges.llm_judge import LLMJudge

__all__ = ["flush", "watch"]

G = TypeVar("G")
_EXIT_TIMEOUT = 10.0
"""Seconds for which the end of the program waits for what is still to be stored."""
_watched: weakref.WeakSet[Live] = weakref.WeakSet()


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
    capture_content: bool | None = None,
    redact: Redactor | None = None,
    sample_store: float | None = None,
    enabled: bool | None = None,
    input: Selector | None = None,
    output: Selector | None = None,
) -> G:
    """The same kind of graph, whose every run is traced and stored, and scored by the checklist's programmatic items.

    Call it once, where the graph is built. After each run of a conversation (`configurable.thread_id`) the whole trace
    is scored again and its score replaced. All of it happens in a background thread: a store or scorer that fails is
    logged once, counted (`cm2 doctor` shows the counts) and never breaks or slows a call. `flush` waits for the thread,
    and is called when the program ends. Where the application has an OpenTelemetry logger provider, each verdict also
    leaves as an event `gen_ai.evaluation.result` on the span that it judges.

    Args:
        graph: a compiled graph.
        checklist: a Checklist, or the path of a YAML file. Without one and without rewards, runs are only stored.
        rewards: further components of the score, by name: RewardComponents, scorers, or functions of a trace. They are
            asked for the same share of the traces as the judge; they stand beside the reward and do not change it.
        judge: answers the checklist's questions. A model's name such as "openai:gpt-5-mini" is an LLMJudge whose
            verdicts are cached in the store; any other Judge reports what it has spent in an attribute `spent_usd`. It
            needs `sample` and `budget_usd`, since it sends data out and costs money.
        sample: the share of the traces, 0…1, that judge and rewards see; drawn by trace id.
        budget_usd: US dollars that the judge may spend; 0 for a judge that costs nothing. A trace for which the budget
            does not suffice gets the score of its programmatic items alone, under their own reward version.
        store: a Store, or the URL of a database, which is created where it does not exist.
        sinks: called with every trace and its score (`Webhook`, `Threshold`, or a function of both).
        capture_content: whether message content stands on the spans and events of the application's own OpenTelemetry
            providers. Default: where OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT says so (`span_only`,
            `event_only`, `span_and_event`, `true`). The store has it in any case.
        redact: replaces personal data and secrets before anything is stored, scored, judged or sent. Give the Redactor
            a `key`, so that every process makes the same placeholders. Model calls whose text changed lose their token
            ids and are not trained on.
        sample_store: the share of the traffic, 0…1, that is stored, and so scored and sent to sinks; drawn by thread,
            so that a conversation is stored whole or not at all. None: all of it. `sample` is a share of all traffic
            too: `sample=0.1` with `sample_store=0.5` has a fifth of what is stored judged.
        enabled: False returns the graph as it is: nothing is traced, stored, scored or opened. Default: True, unless
            CM2_DISABLED=1 stands in the environment.
        input: where the user's message stands in what the graph is given: a key, a dotted path of keys ("form.text"),
            or a function of it. With it or `output`, the dialogue of a run is that message, the steps that called
            tools, and the reply; other model calls are in `Run.calls` only. Default: the graph's messages; for a graph
            without any, its only text (docs/method.md, "Graphs without messages").
        output: where the reply stands in what the graph returns, likewise.

    Raises:
        TypeError: `graph` is no compiled graph or other LangChain runnable that runs in this process; an `input` or
            `output` that is neither a key nor a function.
        ValueError: a judge without both limits or without a checklist, a graph that is watched already, a `sample`,
            `sample_store` or `budget_usd` out of range.
        JudgeError: a judge that cannot be asked, or whose price is not known.
        ChecklistError: a checklist that cannot be used, or a reward that compares the rollouts of a group.
        StoreError: a database that cannot be opened.

    >>> from langchain_core.language_models import FakeListChatModel
    >>> from cm2_agent import Checklist, Item, SQLStore, flush, watch
    >>> from cm2_agent.graphs import agent
    >>> support = Checklist(Item("says_when", check={"reply_matches": "today|tomorrow"}), name="support")
    >>> graph = watch(agent(FakeListChatModel(responses=["It comes tomorrow."]), []), support, store="sqlite:///cm2.db")
    >>> state = graph.invoke({"messages": [("user", "Where is order 7?")]}, {"configurable": {"thread_id": "t1"}})
    >>> flush()
    True
    >>> SQLStore("sqlite:///cm2.db").score("t1").reward
    1.0
    """
    check_watchable(graph)
    check_selectors(input, output)
    if is_watched(graph):
        raise ValueError(
            "the graph is watched already, so each of its runs would be stored twice; pass what this call adds to the"
            " first watch"
        )
    _check_share("sample", sample)
    _check_share("sample_store", sample_store)
    _check_judge(judge, sample, budget_usd, checklist)
    if not (_is_enabled() if enabled is None else enabled):
        return graph
    from cm2_agent.rewards.judges.cache import attach_cache

    loaded = _load_checklist(checklist)
    components = _components(rewards)
    asked = _llm_judge(judge, budget_usd) if isinstance(judge, str) else judge
    budget = JudgeBudget(asked, budget_usd, holds_itself=isinstance(judge, str))
    scorer = _scorer(loaded, components, asked, 1.0 if sample is None else sample, budget)
    opened = _open(store)
    cache: Any = getattr(opened, "verdict_cache", None)
    if asked is not None and cache is not None:
        attach_cache(asked, cache())
    if loaded is not None:
        opened.save_checklist(loaded)
    incidents = Incidents() if redact is None else Incidents(lambda text: redact.redact(mask_secrets(text)))
    for sink in sinks:
        if callable(report_to := getattr(sink, "report_to", None)):
            report_to(incidents)
    if scorer is not None:
        scorer.incidents = incidents
    live = Live(Middleware(opened, scorer, (*sinks, EvaluationEvents(capture_content=capture_content)), incidents))
    _watched.add(live)
    handler = capture(
        sampled(live.submit, sample_store),
        capture_content=capture_content,
        redactor=redact,
        incidents=incidents,
        input=input,
        output=output,
    )
    watched: G = graph.with_config(callbacks=[handler])  # type: ignore[attr-defined]
    return watched


def flush(timeout: float | None = None) -> bool:
    """Wait until every run of every watched graph is saved and scored, and sinks that have a `flush(timeout)` have
    sent what they hold. A script calls it before it reads the store; a server has no reason to.

    Returns False if that took longer than `timeout` seconds (None: however long it takes).

    >>> from cm2_agent import flush
    >>> flush(timeout=5.0)
    True
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    done = True
    for live in list(_watched):
        waiting = [live.flush, *(getattr(sink, "flush", None) for sink in live.middleware.sinks)]
        for wait in filter(callable, waiting):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done = wait(left) is not False and done
    return done


atexit.register(flush, _EXIT_TIMEOUT)


def _is_enabled() -> bool:
    return os.environ.get("CM2_DISABLED", "").strip().lower() not in ("1", "true", "yes", "on")


def _check_share(name: str, share: float | None) -> None:
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"{name} is {share}; expected a share of the traces between 0 and 1")


def _check_judge(judge: object, sample: float | None, budget_usd: float | None, checklist: object) -> None:
    if budget_usd is not None and not budget_usd >= 0:
        raise ValueError(f"budget_usd is {budget_usd}; expected US dollars, 0 or more")
    if judge is None:
        return
    if sample is None or budget_usd is None:
        missing = " and ".join(
            name for name, value in (("sample", sample), ("budget_usd", budget_usd)) if value is None
        )
        raise ValueError(
            f"a judge was given without {missing}; it sends dialogues out and costs money, so expected both the share"
            " of the traces that it may see and what it may spend: watch(graph, checklist, judge=…, sample=0.1,"
            " budget_usd=5.0)"
        )
    if checklist is None:
        raise ValueError(
            "a judge was given without a checklist; it answers the checklist's questions: watch(graph, checklist,"
            " judge=…)"
        )
    if budget_usd and not isinstance(judge, str) and not hasattr(judge, "spent_usd"):
        raise ValueError(
            f"budget_usd is {budget_usd}, but the judge has no attribute spent_usd to hold it to; give it one (US"
            " dollars spent so far), or pass budget_usd=0 for a judge that costs nothing"
        )


def _llm_judge(model: str, budget_usd: float | None) -> LLMJudge:
    from cm2_agent.llm.limits import RateLimits
    from cm2_agent.rewards.judges.llm_judge import LLMJudge

    return LLMJudge(model, limits=RateLimits(concurrency=8, budget_usd=budget_usd))


def _scorer(
    checklist: Checklist | None,
    rewards: Sequence[RewardComponent],
    judge: Judge | None,
    sample: float,
    budget: JudgeBudget,
) -> LiveScorer | None:
    if checklist is None and not rewards:
        return None
    from cm2_agent.rewards.scoring.scorer import ChecklistScorer

    programmatic = ChecklistScorer(checklist)
    judged = programmatic if judge is None else ChecklistScorer(checklist, judge=judge)
    return LiveScorer(programmatic, judged, rewards, sample, budget)


def _load_checklist(checklist: Checklist | str | PathLike[str] | None) -> Checklist | None:
    if checklist is None or isinstance(checklist, Checklist):
        return checklist
    from cm2_agent.types.checklist_yaml import checklist_of

    return checklist_of(checklist, otherwise="; other rewards are given as rewards=")


def _components(rewards: Mapping[str, Reward] | Sequence[Reward] | None) -> list[RewardComponent]:
    from cm2_agent.rewards.components.component import as_component

    components = [as_component(reward, name=name) for name, reward in _by_name(rewards or {}).items()]
    grouped = [component.name for component in components if component.of_group]
    if grouped:
        raise ChecklistError(
            f"the reward {grouped[0]} compares the rollouts of a group, and a live trace has none; score groups with a"
            " Stack"
        )
    return components


def _by_name(rewards: Mapping[str, Reward] | Sequence[Reward]) -> dict[str, Reward]:
    if isinstance(rewards, Mapping):
        return dict(rewards)
    found = {
        str(getattr(reward, "name", None) or getattr(reward, "__name__", type(reward).__name__)): reward
        for reward in rewards
    }
    if len(found) != len(rewards):
        raise ValueError(f"two rewards have the same name among {sorted(found)}; give a mapping of name to reward")
    return found


def _open(store: Store | str) -> Store:
    if not isinstance(store, str):
        return store
    from cm2_agent.store import SQLStore

    return SQLStore(store)
