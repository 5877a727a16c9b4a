"""Mean rewards corrected by people's labels, for `cm2 report --labels`: of what training pays, `Score.lower`."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cm2_agent.analysis.report_figures import PolicyMean
from cm2_agent.errors import StoreError

if TYPE_CHECKING:
    from cm2_agent.store import SQLStore, TraceFilter
    from cm2_agent.types.checklist import Checklist
    from cm2_agent.types.checklist_item import Item
    from cm2_agent.types.trace import Trace

UNKNOWN = "unknown"
"""The policy of a trace that names no model."""


@dataclass(kw_only=True)
class _Rewards:
    """One policy's traces: rewards of the labelled ones by people and by the judge, and of the others."""

    people: list[float] = field(default_factory=list)
    judge: list[float] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    other_tasks: list[str] = field(default_factory=list)
    partly: int = 0


def corrected_means(store: SQLStore, version: str, where: TraceFilter | None = None) -> tuple[PolicyMean, ...]:
    """For each policy with traces under a reward version that the filter lets through, the policies in alphabetical
    order. A policy's labels correct its own mean alone: a judge may err on one policy as it does not on another. Raises
    StoreError where no label of people's speaks of a scored trace."""
    from cm2_agent.analysis.corrected_mean import corrected_mean
    from cm2_agent.analysis.people_rewards import people_reward
    from cm2_agent.types.cluster import cluster_of
    from cm2_agent.types.human_labels import DIALOGUE, consensus

    labels = {key: value for key, value in consensus(store.labels()).items() if key[2] != DIALOGUE}
    labelled = {key[0] for key in labels}
    gathered: defaultdict[str, _Rewards] = defaultdict(_Rewards)
    known: dict[str, Checklist | None] = {}
    met = False
    for trace, score in store.scored_traces(where, reward=version):
        if score is None or score.lower is None:
            continue
        met |= trace.id in labelled
        rewards = gathered[_policy(trace)]
        task = cluster_of(trace.id, trace.task_id)
        worth = None
        if trace.id in labelled:
            items = _items(store, score.checklist, known)
            judged = None if items is None else {item.id for item in items if item.question is not None}
            worth = people_reward(score, labels, judged, {item.id: item.any_of for item in items or () if item.any_of})
            rewards.partly += worth is None
        if worth is None:
            rewards.others.append(score.lower)
            rewards.other_tasks.append(task)
        else:
            rewards.people.append(worth)
            rewards.judge.append(score.lower)
            rewards.tasks.append(task)
    if not met:
        raise StoreError(
            f"{store.url} holds no labels of people on items of traces that {version} scored; import some first: cm2"
            f" import labels FILE --store {store.url}"
        )
    return tuple(
        PolicyMean(
            policy=policy,
            mean=corrected_mean(one.people, one.judge, one.others, one.tasks, one.other_tasks) if one.people else None,
            partly=one.partly,
        )
        for policy, one in sorted(gathered.items())
    )


def _items(store: SQLStore, checklist: str | None, known: dict[str, Checklist | None]) -> tuple[Item, ...] | None:
    """The checklist's items; None where it is not stored."""
    if checklist is None:
        return None
    if checklist not in known:
        known[checklist] = store.checklist(checklist)
    found = known[checklist]
    return None if found is None else tuple(found.items)


def _policy(trace: Trace) -> str:
    wrote = [call for call in trace.calls if call.message is not None] or list(trace.calls)
    names = {name for call in wrote if (name := call.model_version or call.model) is not None}
    return ", ".join(sorted(names)) or UNKNOWN
