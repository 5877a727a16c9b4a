"""What a report holds: pass rates, failures that come together, first failures, the worst traces. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from cm2_agent.analysis.corrected_mean import CorrectedMean
from cm2_agent.types.json_values import JSON
from cm2_agent.types.null_rates import PolicyNulls


@dataclass(frozen=True, kw_only=True)
class PassRate:
    """How often `name` was satisfied of the `n` verdicts that looked at it. `interval` is of 95 %, over tasks; None
    where one task is all there is. `decided` verdicts were false for another reason (a dependency, the gate, a limit),
    `inapplicable` ones were on what the item does not apply to, and `nulls` NULL: none of these is in `n`."""

    name: str
    n: int
    passed: int
    rate: float | None
    interval: tuple[float, float] | None
    nulls: int = 0
    decided: int = 0
    inapplicable: int = 0
    question: str | None = None
    facet: str | None = None
    level: str | None = None


@dataclass(frozen=True, kw_only=True)
class CoFailure:
    """Two items that failed in the same `both` of `n` traces that judged both, where `expected` would by chance; `phi`
    in [-1, 1]."""

    left: str
    right: str
    n: int
    both: int
    expected: float
    phi: float


@dataclass(frozen=True, kw_only=True)
class FirstFailure:
    """How many traces failed first at this place: `step` counts from 1 within the turn; `turn` is None for the closing
    block."""

    turn: int | None
    step: int
    n: int


@dataclass(frozen=True, kw_only=True)
class FailedItem:
    """A failed verdict of a bad trace. `quotes` are the judge's evidence, `said` the last reply of the judged turn
    where there is none."""

    item: str
    turn: int | None
    question: str | None
    why: str | None
    quotes: tuple[str, ...] = ()
    said: str | None = None


@dataclass(frozen=True, kw_only=True)
class WorstTrace:
    """One of the traces with the lowest rewards."""

    trace: str
    task: str | None
    reward: float
    opening: str
    failed: tuple[FailedItem, ...]


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """A parent item and those that are `part_of` it, over `n` turns in which all were judged. `parent_alone`: the
    parent satisfied with a child failed; `children_alone`: all children satisfied and the parent failed; `rate` is the
    share without the first."""

    parent: str
    children: tuple[str, ...]
    n: int
    parent_alone: int
    children_alone: int
    rate: float | None


@dataclass(frozen=True, kw_only=True)
class PolicyMean:
    """The mean reward of one policy's traces corrected by people's labels of these (`mean`, None where nobody labelled
    any), and how many labelled traces could not be used: `partly` were not labelled in all that a judge decided."""

    policy: str
    mean: CorrectedMean | None
    partly: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything about one reward version. `histogram` counts rewards in ten bins of [0, 1]; `first` and
    `first_items` count where and by which item the traces with a failure failed first; `cost` holds the agent's
    tokens, as far as known, and what judging took where a judge was asked (`judge_usd` None: a price is not known),
    `judged_traces` being those that it was asked about. `corrected` holds the mean rewards by people's labels,
    where they were asked for; `nulls_by_policy` what each policy kept from being judged, the first policy first;
    `certificate` what the reward version's certificate says (`Certificate.summary`), None where it has none."""

    version: str
    traces: int
    rewarded: int
    mean_reward: float | None
    reward_interval: tuple[float, float] | None
    null_rewards: Mapping[str, int]
    histogram: tuple[int, ...]
    items: tuple[PassRate, ...]
    facets: tuple[PassRate, ...]
    levels: tuple[PassRate, ...]
    together: tuple[CoFailure, ...]
    first: tuple[FirstFailure, ...]
    first_items: Mapping[str, int]
    without_failure: int
    worst: tuple[WorstTrace, ...]
    null_causes: Mapping[str, int]
    cost: Mapping[str, float | int | None]
    consistency: tuple[Consistency, ...] = field(default=())
    corrected: tuple[PolicyMean, ...] = field(default=())
    certificate: Mapping[str, JSON] | None = None
    nulls_by_policy: tuple[PolicyNulls, ...] = field(default=())

    def to_json(self) -> dict[str, JSON]:
        return {**asdict(self), "nulls_by_policy": [one.to_json() for one in self.nulls_by_policy]}


__all__ = ["CoFailure", "Consistency", "FailedItem", "FirstFailure", "PassRate", "PolicyMean", "Report", "WorstTrace"]
