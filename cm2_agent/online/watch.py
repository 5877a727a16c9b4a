"""`watch`: a graph whose every run is captured, stored and scored in the background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, TypeVar

from cm2_agent.online.live_path import LivePath, is_enabled
from cm2_agent.online.pydantic_agents import check_agent, is_agent, watched_agent
from cm2_agent.online.store_paths import before_end, flush_all
from cm2_agent.online.watchable import check_watchable
from cm2_agent.tracing.graph_values import Selector, check_selectors
from cm2_agent.tracing.handler import end_open_runs, is_watched
from cm2_agent.tracing.span_processor import capture
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.protocols import Judge, Reward, Sink, Store

if TYPE_CHECKING:
    from cm2_agent.redaction.redactor import Redactor

__all__ = ["flush", "watch"]

before_end.append(end_open_runs)

G = TypeVar("G")


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
    project: str | None = None,
    spool: str | PathLike[str] | None = None,
    strict: bool = False,
    input: Selector | None = None,
    output: Selector | None = None,
    check_timeout: float = 2.0,
) -> G:
    """The same kind of graph, whose every run is traced and stored, and scored by the checklist's programmatic items.

    Call it once, where the graph is built. After each run of a conversation (`configurable.thread_id`) its trace is
    scored again; the new score is the current one. Saving and scoring happen in background threads, one of each for a
    store, however many graphs are watched: a store or scorer that fails is logged once, counted (`cm2 doctor` shows the
    counts) and never breaks or slows a call. `flush` waits for both, and is called when the program ends. Where the
    application has an OpenTelemetry logger provider, each verdict also leaves as an event `gen_ai.evaluation.result` on
    the span that it judges.

    Args:
        graph: a compiled graph, or a pydantic-ai Agent.
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
        project: separates applications that share a database: the trace ids of one are not those of another.
        spool: the folder of the write-ahead files: each run is written there as it ends, and saved at the next start
            where the process ends before the store has it. Default: the folder that CM2_SPOOL names; without it beside
            an SQLite file (`FILE.db.spool`), and for PostgreSQL under the user's state folder
            (`~/.local/state/cm2/spool`). A database in memory and a store of your own have none unless one is given.
        strict: True raises where the store cannot be opened, and where the checklist's name and version are stored with
            other content. Default: the application starts. Runs wait in the spool until the store is there; a changed
            checklist is stored under a later version, with a warning.
        input: where the user's message stands in what the graph is given: a key, a dotted path of keys ("form.text"),
            or a function of it. With it or `output`, the dialogue of a run is that message, the steps that called
            tools, and the reply; other model calls are in `Run.calls` only. Default: the graph's messages; for a graph
            without any, its only text (docs/method.md, "Graphs without messages").
        output: where the reply stands in what the graph returns, likewise.
        check_timeout: seconds that a check function may take in one turn, or in the closing block; then it is stopped,
            and its verdict is NULL. One that runs out of time twice in a row rests for a minute.

    Raises:
        TypeError: `graph` is no compiled graph or other LangChain runnable that runs in this process, and no Agent; an
            `input` or `output` that is neither a key nor a function, or is given with an Agent; a `redact` that is no
            Redactor.
        ValueError: a judge without both limits or without a checklist, a graph that is watched already, a `sample`,
            `sample_store`, `budget_usd` or `check_timeout` out of range.
        JudgeError: a judge that cannot be asked, or whose price is not known.
        ChecklistError: a checklist that cannot be used, or a reward that compares the rollouts of a group.
        StoreError: a URL that names no database; with `strict`, one that cannot be opened, or a changed checklist.
        MissingExtra: PostgreSQL without its driver.

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
    agent = is_agent(graph)
    if not agent:
        check_watchable(graph)
    check_selectors(input, output)
    if agent:
        check_agent(graph, selected=input is not None or output is not None)
    elif is_watched(graph):
        raise ValueError(
            "the graph is watched already, so each of its runs would be stored twice; pass what this call adds to the"
            " first watch"
        )
    path = LivePath(
        checklist=checklist,
        rewards=rewards,
        judge=judge,
        sample=sample,
        budget_usd=budget_usd,
        store=store,
        sinks=sinks,
        capture_content=capture_content,
        redact=redact,
        sample_store=sample_store,
        project=project,
        spool=spool,
        strict=strict,
        check_timeout=check_timeout,
    )
    path.check()
    if not is_enabled(enabled):
        return graph
    on_run, incidents = path.open()
    if agent:
        return watched_agent(graph, path.redacted(on_run), incidents)
    handler = capture(
        on_run,
        capture_content=capture_content,
        redactor=redact,
        incidents=incidents,
        input=input,
        output=output,
    )
    watched: G = graph.with_config(callbacks=[handler])  # type: ignore[attr-defined]  # it has one, as checked above
    return watched


def flush(timeout: float | None = None) -> bool:
    """Wait until every run of every watched graph is saved and scored, and sinks that have a `flush(timeout)` have
    sent what they hold. What processes that are gone left in the spool is saved too. A script calls it before it reads
    the store, a server when it shuts down.

    Returns False where that is not so: it took longer than `timeout` seconds, nothing could be saved or scored for a
    minute (with a `timeout` of None too), or a run was refused by the store or dropped since the last flush.

    >>> from cm2_agent import flush
    >>> flush(timeout=5.0)
    True
    """
    return flush_all(timeout)
