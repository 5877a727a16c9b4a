"""How much of the rewards nobody could tell, by the policy that wrote the traces: a policy that learns to break its
judge shows here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cm2_agent.types.cluster import cluster_of
from cm2_agent.types.json_values import JSON
from cm2_agent.types.run_attributes import CUT

if TYPE_CHECKING:
    from cm2_agent.types.score import Score
    from cm2_agent.types.trace import Trace


@dataclass(frozen=True, kw_only=True)
class PolicyNulls:
    """The NULLs of one policy's traces (`policy` None: unknown, or several in a dialogue), under one reward version.

    Args:
        policy: The policy version.
        traces: How many of its traces were scored.
        pending: How many of them have no bounds: a verdict or the dialogue failed by nobody's doing.
        shares: Of each other trace the share of the reward that the policy kept from being known (`upper − lower`), in
            [0, 1], with the name of its task, by which they are clustered.
        causes: How many verdicts are NULL, by `cause: reason`.
        cuts: How many dialogues a limit, the model's context or a crash cut, by which.
    """

    policy: str | None
    traces: int
    pending: int
    shares: tuple[tuple[float, str], ...]
    causes: Mapping[str, int] = field(default_factory=dict)
    cuts: Mapping[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """The mean share of the reward that the policy kept from being known; None where all its traces are pending."""
        return math.fsum(share for share, _ in self.shares) / len(self.shares) if self.shares else None

    def to_json(self) -> dict[str, JSON]:
        """The figures, without the single traces."""
        return {
            "policy": self.policy,
            "traces": self.traces,
            "pending": self.pending,
            "unknown_share": self.share,
            "causes": dict(self.causes),
            "cuts": dict(self.cuts),
        }


class NullTally:
    """Counts the NULLs of scored traces; `policies` has them by policy, in the order in which the policies began.

    >>> from cm2_agent import Score, Trace
    >>> tally = NullTally()
    >>> tally.add(Trace(id="t", runs=()), Score(trace_id="t", reward_version="v1", reward=0.5))
    >>> [(one.policy, one.traces, one.share) for one in tally.policies]
    [(None, 1, 0.0)]
    """

    def __init__(self, scored: Iterable[tuple[Trace, Score]] = ()) -> None:
        self._began: dict[str | None, int] = {}
        self._traces: Counter[str | None] = Counter()
        self._pending: Counter[str | None] = Counter()
        self._shares: dict[str | None, list[tuple[float, str]]] = {}
        self._causes: dict[str | None, Counter[str]] = {}
        self._cuts: dict[str | None, Counter[str]] = {}
        self._known: dict[tuple[float, str], tuple[float, str]] = {}  # each held once, since tasks come again
        for trace, score in scored:
            self.add(trace, score)

    def add(self, trace: Trace, score: Score) -> None:
        policy = trace.policy
        started = min((run.started for run in trace.runs if run.started), default=0)
        self._began[policy] = min(self._began.get(policy, started), started)
        self._traces[policy] += 1
        cluster = cluster_of(trace.id, trace.task_id)
        shares = self._shares.setdefault(policy, [])
        if (bounds := score.bounds) is None:
            self._pending[policy] += 1
        else:
            share = bounds.upper - bounds.lower, cluster
            shares.append(share if trace.task_id is None else self._known.setdefault(share, share))
        causes = self._causes.setdefault(policy, Counter())
        for verdict in score.verdicts:
            if verdict.value is None and verdict.cause is not None:
                causes[": ".join(filter(None, (verdict.cause, verdict.reason)))] += 1
        cuts = self._cuts.setdefault(policy, Counter())
        if trace.runs and (cut := trace.runs[-1].attributes.get(CUT)) is not None:
            cuts[str(cut)] += 1

    @property
    def policies(self) -> tuple[PolicyNulls, ...]:
        order = sorted(self._began, key=lambda policy: (self._began[policy], str(policy)))
        return tuple(
            PolicyNulls(
                policy=policy,
                traces=self._traces[policy],
                pending=self._pending[policy],
                shares=tuple(self._shares[policy]),
                causes=dict(self._causes[policy].most_common()),
                cuts=dict(self._cuts[policy].most_common()),
            )
            for policy in order
        )


__all__ = ["NullTally", "PolicyNulls"]
