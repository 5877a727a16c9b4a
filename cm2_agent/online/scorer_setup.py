"""What `watch` is asked to score by: checked when it is called, put together when the store is open."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from cm2_agent.errors import ChecklistError, ConflictError
from cm2_agent.online.forks import DATABASE
from cm2_agent.online.live_scorer import JudgeBudget, LiveScorer
from cm2_agent.rewards.components.component import RewardComponent, as_component
from cm2_agent.rewards.judges.cache import attach_cache
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.protocols import Judge, Reward, Store
from cm2_agent.types.score import Verdict

if TYPE_CHECKING:
    from cm2_agent.redaction.redactor import Redactor
    from cm2_agent.rewards.judges.llm_judge import LLMJudge

__all__ = ["ScorerSetup", "check_judge", "check_share", "stored_checklist"]

_logger = logging.getLogger("cm2_agent")
_VERSIONS = 1000
"""How many later versions are tried for a checklist that changed."""


class ScorerSetup:
    """Checklist, further rewards and judge of one graph. Raises what `watch` says of them."""

    def __init__(
        self,
        checklist: Checklist | str | PathLike[str] | None,
        rewards: Mapping[str, Reward] | Sequence[Reward] | None,
        judge: Judge | str | None,
        sample: float | None,
        budget_usd: float | None,
        redact: Redactor | None = None,
        check_timeout: float = 2.0,
    ) -> None:
        self._check_timeout = check_timeout
        self.checklist = _load_checklist(checklist, redact)
        self.judge: Judge | None = _llm_judge(judge, budget_usd) if isinstance(judge, str) else judge
        self._components = _components(rewards)
        self._sample = 1.0 if sample is None else sample
        self._cache = _Cache()
        self._budget = JudgeBudget(self.judge, budget_usd, holds_itself=isinstance(judge, str))

    @property
    def key(self) -> str | None:
        """What the runs are scored by: the checklist's name, "" for other rewards alone, None for nothing."""
        return self.checklist.name if self.checklist is not None else "" if self._components else None

    def scorer(self, checklist: Checklist | None) -> LiveScorer | None:
        """The scorer by this checklist, which is the given one or a later version of it."""
        if checklist is None and not self._components:
            return None
        limits: dict[str, Any] = {"check_timeout": self._check_timeout, "incremental": True}
        programmatic = ChecklistScorer(checklist, **limits)
        judged = programmatic if self.judge is None else ChecklistScorer(checklist, judge=self.judge, **limits)
        return LiveScorer(programmatic, judged, self._components, self._sample, self._budget)

    def attach_cache(self, store: Store) -> None:
        """Keep the judge's verdicts in the store, where it has a place for them: in this one from now on, as the one
        before may be closed, or the parent's."""
        cache: Any = getattr(store, "verdict_cache", None)
        if self.judge is not None and cache is not None:
            self._cache.verdicts = cache()
            attach_cache(self.judge, self._cache)


class _Cache:
    """The `verdicts` of the store that is open, which no fork meets halfway."""

    verdicts: Any = None

    def get(self, keys: Sequence[str]) -> dict[str, Verdict]:
        with DATABASE:
            found: dict[str, Verdict] = self.verdicts.get(keys)
        return found

    def put(self, verdicts: Mapping[str, Verdict]) -> None:
        with DATABASE:
            self.verdicts.put(verdicts)


def stored_checklist(store: Store, checklist: Checklist, *, strict: bool) -> Checklist:
    """The checklist as it is stored: where its name and version stand with other content (the text of a function
    changed, say), the first later version that is free or has this content. With `strict`, ConflictError."""
    for version in range(checklist.version, checklist.version + _VERSIONS):
        tried = (
            checklist
            if version == checklist.version
            else Checklist(*checklist.items, name=checklist.name, version=version)
        )
        try:
            store.save_checklist(tried)
        except ConflictError:
            if strict or version == checklist.version + _VERSIONS - 1:
                raise
            continue
        if tried is not checklist:
            _logger.warning(
                "checklist %r version %d is stored with other content (the text of its functions counts too): scores"
                " are stored under version %d; give the changed checklist that version",
                checklist.name,
                checklist.version,
                version,
            )
        return tried
    raise AssertionError("not reached: the last version raises")


def check_share(name: str, share: float | None) -> None:
    """Raises ValueError where a share of the traces is out of range."""
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"{name} is {share}; expected a share of the traces between 0 and 1")


def check_judge(judge: object, sample: float | None, budget_usd: float | None, checklist: object) -> None:
    """Raises ValueError for a judge without limits or without a checklist, or with a budget that it cannot be held
    to."""
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


def _load_checklist(checklist: Checklist | str | PathLike[str] | None, redact: Redactor | None) -> Checklist | None:
    """The checklist; redacted like the runs, so that a check that names a value still finds it."""
    if checklist is None:
        return None
    if not isinstance(checklist, Checklist):
        from cm2_agent.types.checklist_yaml import checklist_of

        checklist = checklist_of(checklist, otherwise="; other rewards are given as rewards=")
    if redact is None:
        return checklist
    from cm2_agent.redaction.redacted_checklist import redacted_checklist

    return redacted_checklist(checklist, redact)


def _components(rewards: Mapping[str, Reward] | Sequence[Reward] | None) -> list[RewardComponent]:
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
