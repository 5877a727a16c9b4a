"""One set of filters: what SQL chooses is what a slow look at every trace chooses, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from itertools import count
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.errors import StoreError
from cm2_agent.store import SQLStore, TraceFilter
from cm2_agent.store.trace_filter import metadata_text, nanoseconds
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run, ToolRun
from cm2_agent.types.run_attributes import TASK_ID
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.trace import Trace
from tests.fuzzing import examples

T = TypeVar("T")
NAMES = ("a", "b", "A", "a_", '"a":', "b64:AA==", "\0", "\ud800", "é")
VALUES = ("a", "3", 3, 3.0, True, "true", None, {"a": 1}, '{"a":1}', "\ud800", "%")
ITEMS = ("x", "y", "z")
_projects = count()


class Draw:
    """Runs, scores and filters whose values meet often, by a seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def name(self) -> str:
        return self.random.choice(NAMES[:3] if self.random.random() < 0.7 else NAMES)

    def maybe(self, value: Callable[[], T]) -> T | None:
        return value() if self.random.random() < 0.7 else None

    def some(self, value: Callable[[], T], most: int) -> list[T]:
        return [value() for _ in range(self.random.randint(0, most))]

    def metadata(self) -> dict[str, JSON]:
        return {self.name(): self.random.choice(VALUES) for _ in range(self.random.randint(0, 2))}

    def runs(self, trace: str) -> tuple[Run, ...]:
        starts = sorted(self.random.randint(0, 4) for _ in range(self.random.randint(1, 2)))
        task = self.maybe(self.name)
        return tuple(
            Run(
                id=f"{trace}.{at}",
                thread=trace,
                name=self.name(),
                user=self.maybe(self.name),
                session=self.maybe(self.name),
                tags=tuple(self.some(self.name, 2)),
                messages=(Message.of("user", "Hi"), Message.of("assistant", "Hello")),
                calls=(ModelCall(span_id="s", message=1, model_version=self.name(), agent=self.maybe(self.name)),),
                tools=tuple(self.some(lambda: ToolRun(span_id="t", name="look", agent=self.maybe(self.name)), 1)),
                attributes={**self.metadata(), **({} if task is None else {TASK_ID: task})},
                started=start * 10**9,
            )
            for at, start in enumerate(starts)
        )

    def verdict(self) -> Verdict:
        value = self.random.choice([True, False, False, None])
        reason = self.random.choice([None, None, "when", "dependency"])
        return Verdict(item=self.random.choice(ITEMS), value=value, weight=1.0, reason=reason)

    def scores(self, trace: str) -> Iterator[Score]:
        """Under no, one or two versions, when the trace had one run and two; blocks may be fewer later."""
        for version in self.random.sample(["v1", "v2"], self.random.randint(0, 2)):
            for runs in self.random.choice([(1,), (1, 2), (1, 2), (2,)]):
                turns = tuple(
                    TurnScore(turn=at, reached=True, steps=1, reward=None, verdicts=tuple(self.some(self.verdict, 2)))
                    for at in range(self.random.randint(0, 2))
                )
                reward = self.random.choice([0.0, 0.5, 1.0, None])
                yield Score(trace_id=trace, reward_version=version, reward=reward, turns=turns, runs=runs)

    def moment(self) -> datetime:
        """Within the seconds in which runs begin, with or without a zone."""
        second = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=self.random.randint(0, 4))
        zone = self.random.choice([None, timezone(timedelta(hours=2))])
        return second.replace(tzinfo=None) if zone is None else second.astimezone(zone)

    def filter(self, places: int) -> TraceFilter:
        """With a condition at each bit of `places`."""
        every: dict[str, Callable[[], Any]] = {
            "since": self.moment,
            "until": self.moment,
            "user": self.name,
            "session": self.name,
            "task": self.name,
            "policy": self.name,
            "agent": self.name,
            "tags": lambda: self.some(self.name, 2),
            "metadata": self.metadata,
            "reward_below": lambda: self.random.choice([0.0, 0.5, 2.0]),
            "failed": lambda: self.random.sample(ITEMS, self.random.randint(1, 2)),
        }
        chosen = self.random.sample(sorted(every), places)
        return TraceFilter(
            reward=self.maybe(lambda: self.random.choice(["v1", "v2"])), **{name: every[name]() for name in chosen}
        )


def meets(trace: Trace, score: Score | None, where: TraceFilter) -> bool:
    """The slow way: by the trace and its score as they are read back."""
    runs = trace.runs
    started = min(run.started for run in runs)
    last = {
        "user": next((run.user for run in reversed(runs) if run.user is not None), None),
        "session": next((run.session for run in reversed(runs) if run.session is not None), None),
        "task": trace.task_id,
        "policy": trace.policy,
    }
    agents: set[str | None] = {run.name for run in runs}
    agents |= {call.agent for run in runs for call in run.calls} | {tool.agent for run in runs for tool in run.tools}
    tags = next((run.tags for run in reversed(runs) if run.tags), ())
    held = {name: metadata_text(value) for name, value in trace.attributes.items() if not name.startswith("cm2.")}
    failed = {verdict.item for verdict in score.verdicts if verdict.failed} if score is not None else set()
    below = where.reward_below
    return (
        (where.since is None or 0 < started >= nanoseconds(where.since))
        and (where.until is None or 0 < started < nanoseconds(where.until))
        and all(getattr(where, name) in (None, value) for name, value in last.items())
        and (where.agent is None or where.agent in agents)
        and set(where.tags) <= set(tags)
        and all(held.get(name) == metadata_text(value) for name, value in where.metadata.items())
        and (below is None or (score is not None and score.reward is not None and score.reward < below))
        and set(where.failed) <= failed
    )


@pytest.fixture
def store(store_url: str) -> Iterator[SQLStore]:
    with SQLStore(store_url) as opened:
        opened.save_checklist(Checklist(*(Item(name, f"{name}?") for name in "xyz"), name="all"))
        for version in ("v1", "v2"):
            opened.register_reward(version)
        yield opened


@settings(max_examples=examples(2))
@given(seed=st.integers(0, 2**32))
def test_what_is_chosen_is_what_a_slow_look_chooses(store: SQLStore, seed: int) -> None:
    draw = Draw(seed)
    mine = store.in_project(f"p{next(_projects)}")
    for id in (f"t{number}" for number in range(24)):
        mine.save_trace(Trace(id=id, runs=draw.runs(id)))
        mine.save_scores(draw.scores(id))
    every = list(mine.traces())
    scores = {(trace.id, version): mine.score(trace.id, version) for trace in every for version in ("v1", "v2", None)}
    assert [trace.id for trace in mine.traces(newest_first=True)] == [trace.id for trace in reversed(every)]
    for where in (draw.filter(number % 3) for number in range(40)):
        slow = [trace.id for trace in every if meets(trace, scores[trace.id, where.reward], where)]
        assert mine.selected(where) == slow
        assert mine.count_traces(where) == len(slow)
    for where in (draw.filter(number % 2) for number in range(4)):
        slow = mine.selected(where)
        assert [trace.id for trace in mine.traces(where)] == slow
        pairs = list(mine.scored_traces(where, reward=where.reward, newest_first=True))
        assert [(trace.id, score) for trace, score in pairs] == [(id, scores[id, where.reward]) for id in slow[::-1]]
        if slow:
            assert [trace.id for trace in mine.traces(where, after=slow[0], limit=2)] == slow[1:3]
            assert [trace.id for trace in mine.traces(where, ids=slow, newest_first=True, after=slow[-1])] == slow[
                -2::-1
            ]


def test_an_item_that_no_checklist_has_is_named_with_those_near_it(store: SQLStore) -> None:
    store.save_checklist(Checklist(Item("looks_up_first", "Is it looked up?"), name="other"))
    assert list(store.traces(TraceFilter(failed=["looks_up_first"]))) == []
    with pytest.raises(
        StoreError, match="has an item 'look_up_first'; expected one of its items, such as looks_up_first"
    ):
        list(store.traces(TraceFilter(failed=["look_up_first"])))
    with pytest.raises(StoreError, match="no trace 'r9' to go on after"):
        list(store.traces(after="r9"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tags": "beta"}, "tags is 'beta'; expected a list of texts"),
        ({"failed": [1]}, r"failed is \[1\]"),
        ({"user": 7}, "user is int 7; expected text"),
        ({"since": "2026"}, "since is '2026'; expected a datetime"),
        ({"reward_below": float("nan")}, "reward_below is nan; expected a finite number"),
        ({"metadata": {"a": object()}}, "metadata 'a' is <object"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        TraceFilter(**wrong)
