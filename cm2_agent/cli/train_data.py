"""What `cm2 train` gives a trainer: stored groups, scored rollouts that are in none, or all traces of the project."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cm2_agent.errors import TrainError
from cm2_agent.types.group import Rollout, backends_of
from cm2_agent.types.json_values import JSON
from cm2_agent.types.run_attributes import TOOL_BACKENDS

if TYPE_CHECKING:
    from cm2_agent.store import SQLStore
    from cm2_agent.types.checklist import Checklist
    from cm2_agent.types.trace import Trace


def stored_traces(store: SQLStore, policy: str | None, backends: Sequence[str]) -> Iterator[Trace]:
    """The traces of the store's project, scored or not, of one policy and with tools answered by these backends where
    either is named; read in pages."""
    return (trace for trace in store.traces(policy=policy) if _answered_by(trace, backends))


def scored_rollouts(store: SQLStore, version: str, policy: str | None, backends: Sequence[str]) -> Iterator[Rollout]:
    """The traces with a score under a reward version, whether or not they belong to a task."""
    for trace in store.traces(policy=policy, reward=version):
        score = store.score(trace.id, version)
        if score is not None and _answered_by(trace, backends):
            yield Rollout(trace=trace, score=score)


def newest_version(store: SQLStore, checklist: Checklist) -> str:
    """The newest reward version of a checklist. Raises TrainError where the project has no scores by it."""
    version = next(iter(store.reward_versions(checklist.hash)), None)
    if version is None:
        raise TrainError(
            f"store {store.url} holds no score of {checklist.name} (hash {checklist.hash[:12]}). Score its traces"
            f" first: cm2 score {checklist.name}.yaml --store {store.url}"
        )
    return version


def versions_of(keys: Iterable[Mapping[str, JSON]]) -> list[str]:
    """The reward versions of groups by their keys, in order."""
    return sorted({str(key["reward"]) for key in keys})


def _answered_by(trace: Trace, backends: Sequence[str]) -> bool:
    if not backends:
        return True
    found = backends_of({"tools": trace.attributes.get(TOOL_BACKENDS)})
    return found is not None and found <= set(backends)
