"""A GRPO group: rollouts of one task that may be compared with each other (docs/method.md, "Groups")."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass

from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.run import Branch
from cm2_agent.types.run_attributes import (
    FAULTS,
    GATE,
    GROUP,
    SIMULATOR,
    TASK_ID,
    TASK_TURNS,
    TASK_VERSION,
    TOOL_BACKENDS,
    USER,
)
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace

_ENVIRONMENT = {"simulator": SIMULATOR, "faults": FAULTS, "user": USER}
"""Parts of a key that are left out where there are none."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A stored trace with its score under the group's reward version."""

    trace: Trace
    score: Score


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rollouts that share everything `key` names: task and version, policy version, sampling settings, tool backends,
    simulator, gate and reward version. The rollouts are in the order of their rollout number."""

    key: Mapping[str, JSON]
    rollouts: tuple[Rollout, ...]

    @property
    def task_id(self) -> str:
        return str(self.key["task"])

    @property
    def backends(self) -> frozenset[str] | None:
        """Who could answer its tools (`cm2.tool.backend`'s values); None where it is not known, as of
        imported dialogues."""
        return backends_of(self.key)


def backends_of(key: Mapping[str, JSON]) -> frozenset[str] | None:
    """The backends that a group's key names."""
    tools = key.get("tools")
    return frozenset(json.loads(tools).values()) if isinstance(tools, str) else None


def group_key(trace: Trace, reward_version: str) -> dict[str, JSON] | None:
    """What a trace shares with the rest of its group, or None where it belongs to no task and so has no group.

    The sampling settings are those of the calls that wrote the dialogue; a trace whose calls used several has no group
    either. Branches are compared only with samples from the same state of the same dialogue; one that a person made is
    no sample, and has no group."""
    if trace.attributes.get(TASK_ID) is None:
        return None
    wrote = [call for call in trace.calls if call.message is not None]
    settings = {sampling_key(call.sampling) for call in wrote}
    versions = {call.model_version for call in wrote}
    return group_key_of(trace.attributes, settings, versions, trace.branch, reward_version)


def sampling_key(sampling: Mapping[str, JSON]) -> str:
    """The sampling settings of one call, as they stand in a group's key."""
    if not sampling:
        return "{}"
    return canonical_json({name: value for name, value in sampling.items() if name != "untrainable"})


def group_key_of(
    attributes: Mapping[str, JSON],
    settings: Set[str],
    versions: Set[str | None],
    branch: Branch | None,
    reward_version: str,
) -> dict[str, JSON] | None:
    """`group_key` of a trace with these attributes and this branch, whose dialogue was written with these settings
    (`sampling_key`) and policy versions."""
    if attributes.get(TASK_ID) is None or (branch is not None and branch.reason != "sampled"):
        return None
    if len(settings) > 1 or len(versions) > 1:
        return None
    return {
        "task": str(attributes[TASK_ID]),
        "version": attributes.get(TASK_VERSION),
        "turns": attributes.get(TASK_TURNS),
        "group": attributes.get(GROUP),
        "policy": next(iter(versions), None),
        "sampling": next(iter(settings), None),
        "tools": attributes.get(TOOL_BACKENDS),
        **{
            name: attributes[attribute]
            for name, attribute in _ENVIRONMENT.items()
            if attributes.get(attribute) is not None
        },
        **({} if branch is None else {"branch": [branch.parent, branch.messages]}),
        "gate": attributes.get(GATE),
        "reward": reward_version,
    }
