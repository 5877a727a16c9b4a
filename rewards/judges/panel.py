"""Several judges as one: a panel that votes, and a cascade that asks a strong judge where a cheap one cannot tell."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cm2_agent.errors import BudgetExhausted, JudgeError
from cm2_agent.llm.usage import Usage, note
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.json_values import JSON
from cm2_agent.types.protocols import Judge
from cm2_agent.types.score import Verdict
from cm2_agent.types.secrets import error_text
from cm2_agent.types.trace import Trace


def majority(votes: Sequence[Verdict]) -> Verdict:
    """What the votes on one item come to. A NULL is no vote; at least half must have voted. The matrix is decided cell
    by cell: the item is true in a row where more than half of those who voted have it true, so the flip is where the
    majority is reached. Ties are NULL (content).

    `{votes: {yes, no, null}, agreement}` stands last in the evidence, yes being satisfied and agreement the winning
    share of the votes cast.

    >>> one, two = Verdict(item="a", value=True, weight=0, step=1), Verdict(item="a", value=True, weight=0, step=3)
    >>> majority([one, two, Verdict(item="a", value=False, weight=0)]).step
    3
    """
    cast = [vote for vote in votes if vote.value is not None]
    yes = sorted((vote for vote in cast if vote.value), key=lambda vote: vote.step or 0)
    no = [vote for vote in cast if not vote.value]
    tally: dict[str, JSON] = {
        "votes": {"yes": len(yes), "no": len(no), "null": len(votes) - len(cast)},
        "agreement": max(len(yes), len(no)) / len(cast) if cast else None,
    }
    if 2 * len(cast) < len(votes):
        unknown = [vote for vote in votes if vote.value is None]
        blank = next(
            (vote for vote in unknown if vote.cause == "infrastructure"), unknown[0]
        )  # asking again can still mend it
        return replace(blank, evidence=(*blank.evidence, tally))
    if len(yes) == len(no):
        return Verdict(
            item=votes[0].item,
            value=None,
            weight=0,
            reason="tie",
            cause="content",
            explanation="the votes are even",
            evidence=(tally,),
        )
    won = yes[len(cast) // 2] if len(yes) > len(no) else no[0]
    return replace(won, evidence=(*won.evidence, tally))


def split(verdict: Verdict) -> bool:
    """Whether a verdict came of votes that differed."""
    return any((quote.get("agreement") or 1) < 1 for quote in verdict.evidence if "agreement" in quote)


class Panel:
    """Several judges, decided by majority. A judge that fails casts no vote.

    >>> from cm2_agent.rewards import LLMJudge, Panel
    >>> Panel(LLMJudge("test"), LLMJudge("test", settings={"temperature": 1})).version.count("|")
    1
    """

    def __init__(self, *judges: Judge) -> None:
        """Raises JudgeError for less than two judges."""
        if len(judges) < 2:
            raise JudgeError(
                f"a panel of {len(judges)} judges was asked for; expected two or more (votes=… for samples of one)"
            )
        self.judges = judges

    @property
    def version(self) -> str:
        return f"panel({'|'.join(map(_version, self.judges))})"

    @property
    def usage(self) -> Usage:
        return _sum(self.judges)

    async def __call__(self, trace: Trace, turn: int | None, items: Sequence[Item]) -> Sequence[Verdict]:
        """Raises BudgetExhausted where one judge's budget stops it."""
        ballots = await asyncio.gather(
            *(_ballot(judge, trace, turn, items) for judge in self.judges), return_exceptions=True
        )
        for ballot in ballots:
            if isinstance(ballot, BaseException):
                raise ballot
        return [
            majority([ballot[place] for ballot in ballots if not isinstance(ballot, BaseException)])
            for place in range(len(items))
        ]


@dataclass(frozen=True, kw_only=True)
class Escalation:
    """What a cascade did. `saving` is the share of the strong judge's dollars that was not spent, against the strong
    judge asked of every scope at its mean cost a call so far; None where prices are not known or it was never asked."""

    items: int
    escalated: int
    scopes: int
    strong_scopes: int
    usd: float | None
    usd_strong_alone: float | None

    @property
    def share(self) -> float | None:
        """Items escalated of those asked."""
        return self.escalated / self.items if self.items else None

    @property
    def saving(self) -> float | None:
        if self.usd is None or not self.usd_strong_alone:
            return None
        return 1 - self.usd / self.usd_strong_alone

    def to_json(self) -> dict[str, JSON]:
        return {**self.__dict__, "share": self.share, "saving": self.saving}


class Cascade:
    """A cheap judge first, a strong one for the items that the cheap one leaves open.

    An item is open where the cheap judge gives NULL or its votes (`votes=3`, or a Panel) differ; the strong judge's
    verdict counts then. `usage` is that of both; `escalation` says how many items went to the strong one and what that
    saved.

    Args:
        cheap: The judge that is asked first.
        strong: The judge of the items left open.

    >>> import asyncio
    >>> from cm2_agent import Item, Message, Run, Trace, Verdict
    >>> from cm2_agent.rewards import Cascade
    >>> def scripted(value):  # a real one: LLMJudge("openai:gpt-5-nano", votes=3)
    ...     async def judge(trace, turn, items):
    ...         return [Verdict(item=item.id, value=value, weight=0) for item in items]
    ...     return judge
    >>> judge = Cascade(cheap=scripted(None), strong=scripted(True))
    >>> trace = Trace.of(Run(id="t", messages=[Message.of("user", "Hi"), Message.of("assistant", "Hello!")]))
    >>> (verdict,) = asyncio.run(judge(trace, 0, [Item("polite", "Is the reply polite?")]))
    >>> verdict.value, judge.escalation.escalated
    (True, 1)
    """

    def __init__(self, cheap: Judge, strong: Judge) -> None:
        self.cheap, self.strong = cheap, strong
        self.judges = (cheap, strong)
        self._items = self._escalated = self._scopes = self._strong_scopes = 0

    @property
    def version(self) -> str:
        return f"cascade({_version(self.cheap)}>{_version(self.strong)})"

    @property
    def usage(self) -> Usage:
        return replace(_sum([self.cheap, self.strong]), escalated=self._escalated)

    @property
    def escalation(self) -> Escalation:
        strong: Usage | None = getattr(self.strong, "usage", None)
        alone = None
        if strong is not None and strong.usd is not None and self._strong_scopes:
            alone = strong.usd / self._strong_scopes * self._scopes
        return Escalation(
            items=self._items,
            escalated=self._escalated,
            scopes=self._scopes,
            strong_scopes=self._strong_scopes,
            usd=self.usage.usd,
            usd_strong_alone=alone,
        )

    async def __call__(self, trace: Trace, turn: int | None, items: Sequence[Item]) -> Sequence[Verdict]:
        """Raises BudgetExhausted where a budget stops it."""
        first = await _ballot(self.cheap, trace, turn, items)
        self._items += len(items)
        self._scopes += 1
        open_ = [place for place, verdict in enumerate(first) if verdict.value is None or split(verdict)]
        if not open_:
            return first
        self._escalated += len(open_)
        self._strong_scopes += 1
        note(escalated=len(open_))
        second = await _ballot(self.strong, trace, turn, [items[place] for place in open_])
        for place, verdict in zip(open_, second, strict=True):
            first[place] = verdict
        return first


async def _ballot(judge: Judge, trace: Trace, turn: int | None, items: Sequence[Item]) -> list[Verdict]:
    """One judge's verdicts in the items' order, taken by id; NULL (infrastructure) for all that it failed at."""
    try:
        reply = await judge(trace, turn, items)
    except BudgetExhausted:
        raise
    except Exception as error:  # a judge that fails, in whatever way, has not judged
        return [_lost(item, f"the judge raised {type(error).__name__}: {error_text(error)}") for item in items]
    if {verdict.item for verdict in reply} - {item.id for item in items}:
        return [_lost(item, "the judge gave verdicts on items that were not asked") for item in items]
    by_id: dict[str, list[Verdict]] = {}
    for verdict in reply:
        by_id.setdefault(verdict.item, []).append(verdict)
    return [
        found[0]
        if len(found := by_id.get(item.id, [])) == 1
        else _lost(item, f"the judge gave {len(found)} verdicts on the item")
        for item in items
    ]


def _lost(item: Item, explanation: str) -> Verdict:
    return Verdict(
        item=item.id, value=None, weight=0, reason="judge failed", cause="infrastructure", explanation=explanation
    )


def _version(judge: Any) -> str:
    return str(getattr(judge, "version", None) or getattr(judge, "__qualname__", None) or type(judge).__qualname__)


def _sum(judges: Sequence[Any]) -> Usage:
    total = Usage()
    for judge in judges:
        usage = getattr(judge, "usage", None)
        if isinstance(usage, Usage):
            total.add(**usage.__dict__)
    return total


__all__ = ["Cascade", "Escalation", "Panel", "majority", "split"]
