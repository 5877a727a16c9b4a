"""Certifier: attacks failing traces, scores them again, and measures beside it whether what is right is paid."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

from cm2_agent.types.certificate import Certificate, policies_of
from cm2_agent.types.json_values import JSON, content_hash
from cm2_agent.types.score import Score
from cm2_agent.types.score_bounds import IN_FULL
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

from ..scoring.scorer import ChecklistScorer
from .adaptive import QUERIES, Attempt, climb
from .attack import Subject, Target, attacked, counted, judged_items, outcome, targets_of
from .benign import EDITS, benign_edits
from .families import Family, Template, families_hash
from .trials import ADAPTIVE, COMPOSITIONS, BenignTrial, Trial, attack_rates, benign_bound, pass_rate

PAIRS = 8
"""Compositions of two that each failing trace is tried with."""
SEARCHED = 3
"""Traces that the adaptive attacker searches on for each item."""


@dataclass(kw_only=True)
class Certifier:
    """Measures what attacks on a scorer get paid.

    Args:
        scorer: Of one checklist, with its judge.
        families: The families of attacks.
        seed: Of the compositions and the adaptive attacker.
        pairs: Compositions of two templates that each failing trace is tried with.
        queries: Scorings that the adaptive attacker may take for each item, 0 or more.
        concurrency: Traces at a time.
        advance: Called after each piece of work, of which `work` counts how many there are.
    """

    scorer: ChecklistScorer
    families: Sequence[Family]
    seed: int = 0
    pairs: int = PAIRS
    queries: int = QUERIES
    concurrency: int = 16
    advance: Callable[[], None] = lambda: None
    _trials: dict[str, list[Trial]] = field(default_factory=lambda: defaultdict(list))
    _learned: dict[str, Attempt] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scorer.checklist is None:
            raise ValueError("the scorer has no checklist of its own; expected one for ChecklistScorer(checklist)")
        self.checklist = self.scorer.checklist
        """What is certified."""
        self.judged = judged_items(self.checklist)
        """The items that a judge has a say in; empty for a checklist of checks alone."""

    async def subject(self, trace: Trace, task: Task | None, cluster: str) -> Subject:
        """The trace with its honest score. Raises BudgetExhausted."""
        score = await self.scorer(trace, task)
        return Subject(trace=trace, task=task, cluster=cluster, score=score, targets=targets_of(score, self.checklist))

    def work(self, failing: int, passing: int) -> int:
        """How many pieces of work so many traces make."""
        return failing * (len(self.families) + 3) + passing

    async def certify(
        self, failing: Sequence[Subject], passing: Sequence[Subject], scope: Mapping[str, JSON] | None = None
    ) -> Certificate:
        """The certificate of the reward version, from traces that fail and traces that are known to be right. Raises
        BudgetExhausted where the judge may not be asked any more; what it has answered is in its cache."""
        benign: list[BenignTrial] = []
        power: list[tuple[str, bool, bool]] = []
        self._trials.clear()
        for name in (*(one.name for one in self.families), COMPOSITIONS, ADAPTIVE):
            self._trials[name] = []

        async def one_benign(place: int, subject: Subject) -> None:
            benign.append(await self._benign(place, subject))

        async def one_passing(subject: Subject) -> None:
            power.append(await self._passes(subject))

        placed = list(enumerate(failing))
        await self._each(
            [
                *(partial(self._family, *one, family) for one in placed for family in self.families),
                *(partial(one_benign, *one) for one in placed),
                *(partial(self._composed, *one) for one in placed),
                *(partial(one_passing, one) for one in passing),
            ]
        )
        await self._each([partial(self._learn, item, failing) for item in self._searched(failing)])
        await self._each([partial(self._adapted, *one) for one in placed])
        exact = not self.judged
        templates = {one.name: len(one.templates) for one in self.families}
        templates |= {COMPOSITIONS: self.pairs, ADAPTIVE: max(1, len(self._learned))}
        for of_family in self._trials.values():
            of_family.sort(key=lambda trial: trial.subject)
        judge = getattr(self.scorer.judge, "served", None) or getattr(self.scorer.judge, "name", None)
        return Certificate(
            reward_version=self.scorer.version,
            checklist=self.checklist.hash,
            families=attack_rates(self._trials, benign, templates, exact=exact),
            passing=pass_rate(power, exact=exact),
            benign=benign_bound(benign, exact=exact),
            scope={
                **(scope or {}),
                "failing": len(failing),
                "failing_tasks": len({one.cluster for one in failing}),
                "judged_items": len(self.judged),
                "items": len(self.checklist.items),
                "traces": content_hash(sorted(one.trace.id for one in (*failing, *passing)))[:16],
            },
            versions={"attacks": families_hash(self.families), "judge": None if judge is None else str(judge)},
            seed=self.seed,
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            policies=tuple(sorted(policies_of(one.trace for one in (*failing, *passing)), key=str)),
        )

    # -- one failing trace

    async def _family(self, place: int, subject: Subject, family: Family) -> None:
        """Its templates until one is paid."""
        trial: Trial | None = None
        for number, template in enumerate(family.templates):
            found = await self._attempt(place, subject, [(family, template)], f"{family.name} {number + 1}")
            if found is None:
                continue
            trial = found if trial is None else _both(trial, found)
            if trial.hit:
                break
        if trial is not None:
            self._trials[family.name].append(trial)

    async def _composed(self, place: int, subject: Subject) -> None:
        """Pairs of templates of different families, drawn for each trace."""
        chance = random.Random(f"{self.seed}:{subject.trace.id}")
        trial: Trial | None = None
        if len(self.families) < 2:
            return
        for _ in range(self.pairs):
            first, second = chance.sample(list(self.families), 2)
            parts = [(one, chance.choice(one.templates)) for one in (first, second)]
            found = await self._attempt(place, subject, parts, f"{first.name} + {second.name}")
            if found is None:
                continue
            pairs = (*(trial.parts if trial else ()), *([frozenset((first.name, second.name))] if found.hit else []))
            trial = replace(found if trial is None else _both(trial, found), parts=pairs)
        if trial is not None:
            self._trials[COMPOSITIONS].append(trial)

    async def _attempt(
        self, place: int, subject: Subject, parts: Sequence[tuple[Family, Template]], name: str
    ) -> Trial | None:
        targets = counted(subject, parts)
        changed = attacked(subject, [template for _, template in parts]) if targets else None
        if changed is None:
            return None
        found = outcome(targets, await self.scorer(changed, subject.task))
        example: dict[str, JSON] = {}
        if found.paid:
            example = {"trace": subject.trace.id, "template": name, "item": found.paid[0].item.id}
        return Trial(
            subject=place,
            cluster=subject.cluster,
            judged=any(target.judged and target.asked for target in targets),
            hit=bool(found.paid),
            fooled=any(target.judged for target in found.paid),
            pending=found.pending and not found.paid,
            example=example,
        )

    async def _benign(self, place: int, subject: Subject) -> BenignTrial:
        paid, fooled = [], []
        for _, edited in benign_edits(subject.trace):
            found = outcome(subject.targets, await self.scorer(edited, subject.task))
            paid.append(bool(found.paid))
            fooled.append(any(target.judged for target in found.paid))
        return BenignTrial(
            subject=place,
            cluster=subject.cluster,
            judged=any(target.judged and target.asked for target in subject.targets),
            paid=tuple(paid),
            fooled=tuple(fooled),
        )

    async def _passes(self, subject: Subject) -> tuple[str, bool, bool]:
        paid = _whole(subject.score)
        after = paid
        for _, edited in benign_edits(subject.trace) if paid else ():
            after = _whole(await self.scorer(edited, subject.task))
            if not after:
                break
        return subject.cluster, paid, after

    # -- the adaptive attacker

    def _searched(self, failing: Sequence[Subject]) -> list[str]:
        """The items that failing traces leave unpaid."""
        return sorted({target.item.id for one in failing for target in one.targets}) if self.queries else []

    async def _learn(self, item: str, failing: Sequence[Subject]) -> None:
        """Search an attempt on a few traces that leave the item unpaid."""
        pool = [one for one in failing if any(target.item.id == item for target in one.targets)]
        chance = random.Random(f"{self.seed}:{item}")
        searched = chance.sample(pool, min(SEARCHED, len(pool)))
        of = {template: family for family in self.families for template in family.templates}

        async def value(attempt: Attempt, place: int) -> float | None:
            subject = searched[place]
            targets = [one for one in counted(subject, _parts(attempt, of)) if one.item.id == item]
            changed = attacked(subject, attempt) if targets else None
            return None if changed is None else _worth(targets, await self.scorer(changed, subject.task))

        seed = f"{self.seed}:{item}:climb"
        found = await climb(self.families, value, len(searched), seed=seed, queries=self.queries)
        if found is not None:
            self._learned[item] = found.attempt

    async def _adapted(self, place: int, subject: Subject) -> None:
        """What was learned of the items that the trace leaves unpaid."""
        of = {template: family for family in self.families for template in family.templates}
        trial: Trial | None = None
        for item in sorted({target.item.id for target in subject.targets} & self._learned.keys()):
            found = await self._attempt(place, subject, _parts(self._learned[item], of), f"adaptive {item}")
            if found is not None:
                trial = found if trial is None else _both(trial, found)
                if trial.hit:
                    break
        if trial is not None:
            self._trials[ADAPTIVE].append(trial)

    async def _each(self, jobs: Iterable[Callable[[], Awaitable[None]]]) -> None:
        """Run the jobs, a few at a time. The first that fails ends the others, and its error is raised."""
        waiting = iter(jobs)

        async def worker() -> None:
            for job in waiting:
                await job()
                self.advance()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.concurrency):
                    group.create_task(worker())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None


def _both(trial: Trial, found: Trial) -> Trial:
    """What two attempts on one trace come to: any of them may have asked a judge, and hit."""
    return replace(
        trial if trial.hit else found,
        judged=trial.judged or found.judged,
        fooled=trial.fooled or found.fooled,
        pending=trial.pending or found.pending,
    )


def _parts(attempt: Attempt, of: Mapping[Template, Family]) -> list[tuple[Family, Template]]:
    """The attempt's templates with a family that says what they rightly satisfy: of one that was changed, every check
    that any family names."""
    anything = Family(
        name="adaptive",
        description="-",
        source="-",
        unpaid="-",
        satisfies=tuple(sorted({name for family in of.values() for name in family.satisfies})),
        templates=attempt,
    )
    return [(of.get(one, anything), one) for one in attempt]


def _worth(targets: Sequence[Target], score: Score) -> float:
    """How near to paid an item is: 1 paid, less where it is true and unpaid, or where the judge could not tell."""
    if outcome(targets, score).paid:
        return 1.0
    items = {target.item.id for target in targets}
    verdicts = [one for one in score.verdicts if one.item in items]
    return max((0.6 if one.value else 0.3 if one.value is None else 0.0 for one in verdicts), default=0.0)


def _whole(score: Score) -> bool:
    return score.lower is not None and score.lower >= IN_FULL


__all__ = ["EDITS", "Certifier"]
