"""Which stored traces are known to be right or wrong, by whom, and which of them a certificate is made from."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cm2_agent.errors import StoreError
from cm2_agent.types.cluster import cluster_of
from cm2_agent.types.human_labels import PeopleFound
from cm2_agent.types.score_bounds import IN_FULL

if TYPE_CHECKING:
    from cm2_agent.rewards.scoring.scorer import ChecklistScorer
    from cm2_agent.store import SQLStore
    from cm2_agent.types.checklist import Checklist


@dataclass(frozen=True, kw_only=True)
class KnownTrace:
    """A stored trace, its task, and whether it is right; None where nobody knows."""

    id: str
    cluster: str
    right: bool | None


def known_traces(
    store: SQLStore, checklist: Checklist, *, outcome: str | None, passing: ChecklistScorer | None
) -> tuple[list[KnownTrace], dict[str, int]]:
    """The traces of the store, and how many each source says are right: an outcome of 1, people's labels (of the whole
    dialogue, else of the checklist's items), and a checklist of checks. A trace is right where a source says so and
    none denies it.

    Raises StoreError: the outcome that was named is not there, or the store has several and none was named."""
    name = outcome_name(store, outcome)
    people, items = PeopleFound(store.labels()), [item.id for item in checklist.items]
    found, sources = [], Counter[str]()
    for trace in store.traces():
        said: dict[str, bool] = {}
        value = trace.outcomes.get(name) if name is not None else None
        if value is not None:
            said[f"outcome {name}"] = value >= IN_FULL
        if (found_right := people.right(trace.id, items)) is not None:
            said["human labels"] = found_right
        if passing is not None:
            lower = passing.score_sync(trace).lower
            said["--passing"] = lower is not None and lower >= IN_FULL
        sources.update(source for source, right in said.items() if right)
        denied = any(not right for source, right in said.items() if source != "--passing")
        right = False if denied else True if any(said.values()) else None
        cluster = cluster_of(trace.id, trace.task_id)
        found.append(KnownTrace(id=trace.id, cluster=cluster, right=right))
    return found, dict(sources)


def spread(traces: Sequence[KnownTrace], seed: int) -> Iterator[KnownTrace]:
    """The traces in an order drawn by the seed, such that each task gives one before any gives its second."""
    chance = random.Random(seed)
    of_task: dict[str, list[KnownTrace]] = defaultdict(list)
    for trace in sorted(traces, key=lambda trace: trace.id):
        of_task[trace.cluster].append(trace)
    queues = [of_task[name] for name in sorted(of_task)]
    for queue in queues:
        chance.shuffle(queue)
    chance.shuffle(queues)
    while queues:
        for queue in queues:
            yield queue.pop()
        queues = [queue for queue in queues if queue]


def outcome_name(store: SQLStore, named: str | None) -> str | None:
    """The outcome that is named, or the only one; None where there is none. Raises StoreError where it is not there, or
    several are and none is named."""
    names = sorted({name for trace in store.traces() for name in trace.outcomes})
    if named is not None and named not in names:
        raise StoreError(f"no trace has the outcome {named!r}; outcomes there are: {', '.join(names) or 'none'}")
    if named is None and len(names) > 1:
        raise StoreError(
            f"traces have the outcomes {', '.join(names)}; name the one that says what is right: --outcome"
        )
    return named or next(iter(names), None)


__all__ = ["KnownTrace", "known_traces", "outcome_name", "spread"]
