"""Scores for traces that are stored already: trace by trace, or a group at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Container, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from cm2_agent.errors import StoreError
from cm2_agent.runner.concurrency import as_they_finish
from cm2_agent.runner.judge_retries import JudgeRetries, summed
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_yaml import checklist_of
from cm2_agent.types.group import group_key
from cm2_agent.types.json_values import canonical_json
from cm2_agent.types.protocols import GroupScorer, Judge, Scorer
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace

if TYPE_CHECKING:
    from cm2_agent.store import SQLStore


async def score_traces(
    traces: Iterable[Trace],
    checklist: Checklist | str | None = None,
    *,
    judge: Judge | None = None,
    store: SQLStore | None = None,
    scorer: Scorer | None = None,
    concurrency: int = 64,
) -> AsyncIterator[tuple[Trace, Score]]:
    """Score stored traces; yields each with its score.

    A trace that cannot be scored stops no other: it stays without a score, and its error is raised when the others are
    done. Where the judge's budget runs out, what is under way is finished as far as it allows and everything else stays
    without a score; scoring the same traces again goes on from there, and a cached verdict is not asked for again.

    A trace at which the judge fails is scored again later, others between. Where it fails in three attempts and hardly
    ever on the others, the failure is the trace's (docs/method.md §4); else its verdicts stay pending.

    Args:
        traces: What to score, `store.traces()` say.
        checklist: A Checklist or its YAML file; None: each trace's own task's (which needs the store).
        judge: Answers the checklist's questions; its verdicts are cached in the store, in memory without one.
        store: Where the scores are saved, and the tasks' own checklists are.
        scorer: Scores in place of checklist and judge.
        concurrency: Traces at a time, 1 or more. With a judge or a scorer they come as they finish (those at which the
            judge failed at the end), else in their order.

    Raises:
        ChecklistError: A checklist that cannot be read, or an item that cannot be scored.
        StoreError: Neither a checklist nor a store was given, or the store refuses.
        BudgetExhausted: The judge may spend no more, or (JudgeRefused) its provider refuses it.

    >>> import asyncio
    >>> from cm2_agent import Checklist, Item, Message, Run, Trace, score_traces
    >>> run = Run(id="r", messages=[Message.of("user", "Hi"), Message.of("assistant", "Hello!")])
    >>> checklist = Checklist(Item("replies", check={"replied": True}), name="shop")
    >>> async def rewards():
    ...     return [score.reward async for _, score in score_traces([Trace.of(run)], checklist)]
    >>> asyncio.run(rewards())
    [1.0]
    """
    from cm2_agent.rewards.scoring.scorer import ChecklistScorer

    require_store(store)
    chosen = read_if_path(checklist)
    if chosen is None and store is None and scorer is None:
        raise StoreError(
            "no checklist was given and no store to read the tasks' own from; give score_traces one of the two"
        )
    scoring = scorer or ChecklistScorer(chosen, judge=with_cache(judge, store))
    if store is not None and chosen is not None:
        store.save_checklist(chosen)

    async def scored(trace: Trace) -> Score:
        task = (
            store.task(trace.task_id, trace.task_version) if store is not None and trace.task_id is not None else None
        )
        return await scoring(trace, task)

    at_a_time = concurrency if judge is not None or scorer is not None else 1
    if at_a_time < 1:
        raise StoreError(f"concurrency is {concurrency}; expected how many traces to score at a time, 1 or more")
    retries = JudgeRetries(scored)
    pending: dict[str, tuple[Trace, Score]] = {}
    failed: Exception | None = None
    for part in (as_they_finish(retries.jobs(iter(traces)), at_a_time), retries.rest(at_a_time)):
        try:
            async with aclosing(part) as finishing:
                async for batch in finishing:
                    refused: StoreError | None = None
                    for trace, score in batch if store is None else saved(store, batch, pending):
                        if isinstance(score, StoreError):
                            refused = score
                        elif retries.is_held(trace):
                            pending[trace.id] = trace, score
                        else:
                            pending.pop(trace.id, None)
                            yield trace, score
                    if refused is not None:
                        raise refused
        except Exception as error:  # raised below, when those that stay pending are yielded
            failed = error
            break
    for one in pending.values():
        yield one
    if failed is not None:
        raise failed


def with_cache(judge: Judge | None, store: SQLStore | None) -> Judge | None:
    """The judge, with its verdicts cached in the store, or in memory where there is none."""
    if judge is not None:
        from cm2_agent.rewards.judges.cache import MemoryCache, attach_cache

        attach_cache(judge, MemoryCache() if store is None else store.verdict_cache())
    return judge


def saved(
    store: SQLStore, batch: Sequence[tuple[Trace, Score]], again: Container[str] = ()
) -> list[tuple[Trace, Score | StoreError]]:
    """Save what finished together in one transaction; where the store refuses that, one by one, so that one trace fails
    alone. `again` are traces that were scored before in this pass."""
    version = batch[0][1].reward_version
    # what a score that is now replaced took was paid too
    asked = [trace.id for trace, score in batch if score.usage or trace.id in again]
    paid = store.usage(version, asked) if asked else {}
    whole = [
        (trace, replace(score, usage=summed(paid[trace.id], score.usage)) if trace.id in paid else score)
        for trace, score in batch
    ]
    try:
        store.save_scores([score for _, score in whole])
        return list(whole)
    except StoreError:
        ended: list[tuple[Trace, Score | StoreError]] = []
        for trace, score in whole:
            try:
                store.save_score(score)
                ended.append((trace, score))
            except StoreError as error:
                ended.append((trace, error))
        return ended


async def score_groups(
    traces: Iterable[Trace], scorer: GroupScorer, *, store: SQLStore | None = None
) -> AsyncIterator[tuple[Trace, Score]]:
    """Score stored traces a GRPO group at a time; yields each with its score.

    For a `Stack` with rewards that compare rollouts. A group shares task, policy version, sampling settings, tool
    backends and reward version; a trace that belongs to no task is scored alone. Verdicts that a judge failed at stay
    pending: no group is scored twice in one call.

    Args:
        traces: What to score, `store.traces()` say.
        scorer: A `Stack`, or another scorer with `score_group(traces, task)`.
        store: Where each group's scores are saved as soon as it is scored, and where the tasks are read. None: nothing
            is saved, and the scorer gets no task.

    Raises:
        ChecklistError: An item that cannot be scored.
        StoreError: The store refuses.
        BudgetExhausted: A judge may spend no more; the groups yielded so far are saved.

    >>> import asyncio
    >>> from cm2_agent import Message, Run, Stack, Trace, score_groups
    >>> def shortest(traces):
    ...     least = min(len(trace.steps) for trace in traces)
    ...     return [len(trace.steps) == least for trace in traces]
    >>> shortest.of_group = True
    >>> def rollout(name, *replies):
    ...     messages = [Message.of("user", "Hi"), *(Message.of("assistant", reply) for reply in replies)]
    ...     return Trace.of(Run(id=name, messages=messages, attributes={"cm2.task.id": "greet"}))
    >>> async def rewards():
    ...     traces = [rollout("a", "Hello!"), rollout("b", "Wait.", "Hello!")]
    ...     return {trace.id: score.reward async for trace, score in score_groups(traces, Stack(shortest))}
    >>> asyncio.run(rewards())
    {'a': 1.0, 'b': 0.0}
    """
    require_store(store)
    groups: dict[str, list[Trace]] = {}
    for trace in traces:
        key = group_key(trace, scorer.version)
        groups.setdefault(f"alone:{trace.id}" if key is None else canonical_json(key), []).append(trace)
    if store is not None and scorer.checklist is not None:
        store.save_checklist(scorer.checklist)
    for members in groups.values():
        first = members[0]
        task = (
            store.task(first.task_id, first.task_version) if store is not None and first.task_id is not None else None
        )
        scores = await scorer.score_group(members, task)
        if store is not None:
            store.save_scores(scores)
        for scored in zip(members, scores, strict=True):
            yield scored


def require_store(store: object) -> None:
    """Raises StoreError for the URL of a store, which `watch` opens and keeps open, and nothing else does."""
    if isinstance(store, str):
        raise StoreError(f"store is {store!r}; expected an SQLStore: store=SQLStore({store!r})")


def read_if_path(checklist: Checklist | str | None) -> Checklist | None:
    """The checklist, read where it is a YAML file. Raises ChecklistError."""
    if checklist is None or isinstance(checklist, Checklist):
        return checklist
    return checklist_of(checklist, otherwise="; a scorer, such as a Stack, is given as scorer=")


__all__ = ["read_if_path", "require_store", "saved", "score_groups", "score_traces", "with_cache"]
