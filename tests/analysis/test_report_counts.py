"""A report counted from narrow columns is the one made of whole traces and scores, on both databases and with every
kind of filter."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from cm2_agent.analysis.bootstrap import MANY, ratio_interval
from cm2_agent.analysis.report import report
from cm2_agent.analysis.report_tally import FailureTally, ItemTally, cluster_sums
from cm2_agent.store import SQLStore, TraceFilter
from cm2_agent.store.schema import verdicts
from cm2_agent.store.scores import current_verdict
from cm2_agent.types.certificate import policies_of
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.run_attributes import CUT, TASK_ID
from cm2_agent.types.score import NullCause, Score, TurnScore, Verdict
from tests.analysis import slow_report
from tests.fuzzing import examples

ITEMS = Checklist(
    Item("b64:looks", check={"called": "look"}, facet="tool_usage", level="action"),
    Item("tells", "Is the date told?", facet="context", level="task"),
    Item("day", "Is the day told?", facet="context", part_of="tells"),
    Item("polite", "Is it polite?", part_of="tells"),
    name="items",
)
NAMES = [item.id for item in ITEMS]
FILTERS = (
    *(None, TraceFilter(task="a"), TraceFilter(tags=("beta",)), TraceFilter(failed=("tells",), reward="v")),
    *(TraceFilter(policy="p1"), TraceFilter(metadata={"plan": "gold"}), TraceFilter(reward_below=0.5, reward="v")),
    TraceFilter(agent="desk"),
    TraceFilter(since=datetime.fromtimestamp(2e-6, UTC), until=datetime.fromtimestamp(4e-6, UTC)),
)
_projects = count()


class Draw:
    """Traces and their scores by a seed; what is counted of them meets often."""

    def __init__(self, seed: int) -> None:
        self.dice = Random(seed)

    def runs(self, trace: str) -> list[Run]:
        dice = self.dice
        starts = sorted(dice.choice((0, 1000, 2000, 3000, 5000)) for _ in range(dice.randint(1, 3)))
        attributes = {TASK_ID: dice.choice("ab")} if dice.random() < 0.7 else {}
        return [
            Run(
                id=f"{trace}.{at}",
                thread=trace,
                name=dice.choice(("agent", "desk")),
                messages=(Message.of("user", f"Hi {at}"), Message.of("assistant", f"Yes {at}")),
                calls=tuple(self.call(at) for _ in range(dice.randint(0, 2))),
                tags=("beta",) if dice.random() < 0.4 else (),
                attributes={
                    **attributes,
                    **({CUT: dice.choice(("limit", "context"))} if dice.random() < 0.3 else {}),
                    **({"plan": dice.choice(("gold", "free"))} if dice.random() < 0.5 else {}),
                },
                started=start,
                ended=start + 1,
            )
            for at, start in enumerate(starts)
        ]

    def call(self, at: int) -> ModelCall:
        dice = self.dice
        return ModelCall(
            span_id=f"s{dice.random()}",
            model_version=dice.choice(("p1", "p1", "p2", None)),
            message=1 if dice.random() < 0.8 else None,
            usage={} if dice.random() < 0.3 else {"input_tokens": dice.randint(1, 3), "output_tokens": 2},
        )

    def scores(self, trace: str, runs: int) -> Iterator[Score]:
        """One a run, or some of them; blocks stay as they were, change, come or go."""
        blocks: list[TurnScore] = []
        for seen in range(1, runs + 1):
            turns = [*range(self.dice.randint(0, runs)), None]
            blocks = [
                blocks[at] if at < len(blocks) and blocks[at].turn == turn and self.dice.random() < 0.5
                else self.block(turn, runs)
                for at, turn in enumerate(turns)
            ]  # fmt: skip
            if seen < runs and self.dice.random() < 0.4:
                continue
            reward = self.dice.choice((None, 0.0, 1.0, 1 / 7, 3 / 7))
            usage = {} if self.dice.random() < 0.4 else {"calls": 1, "usd": self.dice.choice((0.1, 0.7, 0.1, None))}
            reason = self.dice.choice(("verdicts", "failure: x", "b64:")) if reward is None else None
            known: dict[str, Any] = {"checklist": ITEMS.hash, "usage": usage, "null_reason": reason}
            yield Score(trace_id=trace, reward_version="v", reward=reward, turns=tuple(blocks), runs=seen, **known)

    def block(self, turn: int | None, turns: int) -> TurnScore:
        reached = self.dice.random() < 0.8
        items = self.dice.choices(NAMES, k=self.dice.randint(1, 4)) if self.dice.random() < 0.95 else []
        verdicts = tuple(self.verdict(item, turns) for item in items)
        return TurnScore(turn=turn, reached=reached, steps=self.dice.randint(1, 3), reward=0.5, verdicts=verdicts)

    def verdict(self, item: str, turns: int) -> Verdict:
        dice = self.dice
        value = dice.choice((True, True, False, False, None))
        reason = dice.choice((None, None, None, "when", "dependency", "not applicable", "judge failed", "unreached"))
        quote: dict[str, Any] = {"turn": dice.randrange(turns), "step": dice.choice((0, 1, None))}
        quote |= {"snippet": "Yes"} if dice.random() < 0.7 else {}
        causes: tuple[NullCause | None, ...] = (None, "content", "infrastructure")
        cause = dice.choice(causes) if value is None else None
        evidence = ({"votes": 2}, quote) if dice.random() < 0.5 else ()
        return Verdict(item=item, value=value, weight=0.25, reason=reason, cause=cause, evidence=evidence)


@pytest.fixture
def base(store_url: str) -> Iterator[SQLStore]:
    with SQLStore(store_url) as opened:
        opened.save_checklist(ITEMS)
        yield opened


@settings(max_examples=examples(6), deadline=None)
@given(seed=st.integers(0, 10_000))
def compare(base: SQLStore, seed: int) -> None:
    store, draw = base.in_project(f"p{next(_projects)}"), Draw(seed)
    for number in range(draw.dice.randint(1, 9)):
        runs = draw.runs(f"t{number}")
        store.save_runs(runs)
        for score in draw.scores(f"t{number}", len(runs)) if draw.dice.random() < 0.9 else ():
            store.save_score(score)
    for where in (None, *draw.dice.sample(FILTERS[1:], 2)):
        pairs = [(trace, score) for trace, score in store.scored_traces(where, reward="v") if score is not None]
        scored = store.scored_rows(where, reward="v")
        found, slow = report(scored, store.checklist), slow_report.report(pairs, store.checklist)
        assert found == slow
        assert scored.policies() == policies_of(trace for trace, _ in pairs)
    with base.database.reading() as connection:
        current = select(func.count()).select_from(verdicts).where(current_verdict())
        assert base.health()["verdicts"] == connection.scalar(current)


def test_the_quick_report_is_the_slow_one(base: SQLStore) -> None:
    compare(base)


def test_what_is_folded_counts_as_before() -> None:
    dice = Random(0)
    rows = [(dice.randrange(30), 2, dice.randrange(3)) for _ in range(500)]
    folded = ItemTally(None, folded=20)
    expected: dict[int, list[int]] = {}
    for cluster, looked, passed in rows:
        folded.add(cluster, looked, passed)
        own = expected.setdefault(cluster, [0, 0])
        own[0] += passed
        own[1] += looked
    sums, counts = cluster_sums([folded])
    assert [list(pair) for pair in zip(sums, counts, strict=True)] == list(expected.values())


def test_failures_of_many_items_are_folded_into_pairs() -> None:
    dice, tally, plain = Random(1), FailureTally(distinct=40), np.zeros((3, 20, 20))
    names = [f"i{number:02d}" for number in range(20)]
    for _ in range(300):
        failed = {name: dice.random() < 0.5 for name in names if dice.random() < 0.9}
        tally.add(failed)
        judged = np.asarray([float(name in failed) for name in names])
        fails = np.asarray([float(failed.get(name, False)) for name in names])
        plain += np.stack([np.outer(judged, judged), np.outer(fails, fails), np.outer(fails, judged)])
    found, sums = tally.sums()
    assert found == names
    assert (sums == plain).all()


def test_many_clusters_that_are_alike_are_drawn_together() -> None:
    dice = np.random.default_rng(0)
    counts = dice.integers(1, 4, MANY * 2)
    sums = dice.binomial(counts, 0.7)
    found = ratio_interval(sums, counts, draws=1000)
    assert found is not None
    residual = sums - counts * sums.sum() / counts.sum()
    error = float(np.sqrt((residual**2).sum()) / counts.sum())  # of the ratio, by linearisation
    middle = sums.sum() / counts.sum()
    assert found == pytest.approx((middle - 1.96 * error, middle + 1.96 * error), abs=0.15 * error)
