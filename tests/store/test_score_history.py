"""Scores of a trace as it grew: one for each number of runs, each storing what differs from the one before."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.run_attributes import ROLLOUT, TASK_ID
from cm2_agent.types.score import Score, TurnScore, Verdict
from tests import strategies
from tests.fuzzing import examples

numbers = itertools.count()


@pytest.fixture
def store(store_url: str) -> Iterator[SQLStore]:
    with SQLStore(store_url) as opened:
        yield opened


def turn(number: int | None, value: bool | None = True, items: int = 4) -> TurnScore:
    verdicts = tuple(
        Verdict(item=f"item-{item}", value=value, weight=1 / items, explanation="because " * 10, cause=None)
        for item in range(items)
    )
    return TurnScore(
        turn=number, reached=True, steps=2, reward=None if value is None else float(value), verdicts=verdicts
    )


def grown(turns: int, version: str = "v") -> Score:
    """The score of a trace of so many runs: a block a turn, and the closing block."""
    blocks = (*(turn(number) for number in range(turns)), turn(None, turns % 2 == 0, 1))
    return Score(trace_id="t", reward_version=version, reward=0.5, turns=blocks, runs=turns)


def count(store: SQLStore, table: str) -> int:
    with store._db.reading() as connection:
        return int(connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one())


def add_run(store: SQLStore, number: int) -> None:
    store.save_run(Run(id=f"r{number}", thread="t", started=number, messages=(Message.of("user", str(number)),)))


def test_scores_keep_their_history_and_the_one_of_most_runs_is_current(store_url: str, store: SQLStore) -> None:
    for number in range(1, 6):
        add_run(store, number)
        store.save_score(grown(number))
    assert store.score("t") == grown(5)
    assert store.score_history("t") == [grown(number) for number in range(1, 6)]
    assert list(store.scores()) == [grown(5)]
    store.save_score(other := replace(grown(5), reward=0.25, turns=(*grown(5).turns[:2], turn(2, None), turn(None))))
    assert store.score("t", "v") == other  # as many runs: replaced
    assert store.score_history("t", "v") == [*(grown(number) for number in range(1, 5)), other]
    store.save_score(grown(2, "w"))
    assert store.score_history("t") == [grown(2, "w")]
    assert store.score_history("t", "gone") == store.score_history("gone") == []
    with SQLStore(store_url) as fresh:  # which remembers nothing
        fresh.save_score(grown(6))
        assert fresh.score("t", "v") == grown(6)
    health = store.health()
    assert (health["scores"], health["null_verdicts"]) == (2, {})
    assert health["verdicts"] == 6 * 4 + 1 + 2 * 4 + 1


def test_a_turn_is_stored_once_however_often_its_trace_is_scored(store: SQLStore) -> None:
    for number in range(1, 41):
        add_run(store, number)
        store.save_score(grown(number))
    assert count(store, "verdicts") == 40 * (4 + 1)  # each turn once, and each closing block
    assert store.score("t") == grown(40)
    with store._db.reading() as connection:
        sizes = connection.exec_driver_sql("SELECT length(turns) FROM scores ORDER BY runs").scalars().all()
    assert max(sizes[2:]) < 200


def test_a_score_that_comes_late_takes_its_place_in_the_history(store_url: str, store: SQLStore) -> None:
    for number in range(1, 6):
        add_run(store, number)
    for number in (5, 2, 4, 1, 3):
        with SQLStore(store_url) as other:
            other.save_score(grown(number))
    assert store.score_history("t") == [grown(number) for number in range(1, 6)]
    changed = replace(grown(3), turns=(turn(0, False), *grown(3).turns[1:]))
    store.save_score(changed)  # the later ones said otherwise, and go on saying it
    assert store.score_history("t") == [grown(1), grown(2), changed, grown(4), grown(5)]


def test_two_processes_that_score_one_trace_do_not_mislead_each_other(store_url: str, store: SQLStore) -> None:
    add_run(store, 1)
    store.save_score(grown(1))
    with SQLStore(store_url) as other:
        replaced = replace(grown(1), turns=(turn(0, False), *grown(1).turns[1:]))
        other.save_score(replaced)
        store.save_score(two := grown(2))
        assert other.score_history("t") == [replaced, two]
        other.save_score(replace(two, reward=0.0))
        assert store.score("t") == replace(two, reward=0.0)


@settings(max_examples=examples(20))
@given(data=st.data(), seed=st.integers(0, 9))
def test_any_history_comes_back_in_whatever_order_it_was_stored(
    store_url: str, store: SQLStore, data: st.DataObject, seed: int
) -> None:
    id = f"h{next(numbers)}"
    store.save_run(Run(id=id))
    pool = data.draw(st.lists(strategies.turn_scores(), min_size=1, max_size=3))
    scores = [
        replace(
            data.draw(strategies.scores(st.just(id))),
            reward_version="v",
            runs=data.draw(st.integers(1, 4)),
            turns=tuple(data.draw(st.lists(st.sampled_from(pool), max_size=3))),
        )
        for _ in range(data.draw(st.integers(1, 6)))
    ]
    dice = random.Random(seed)
    for score in scores:
        if dice.random() < 0.4:
            with SQLStore(store_url) as other:
                other.save_score(score)
        else:
            store.save_score(score)
    last = {score.runs: score for score in scores}
    assert store.score_history(id, "v") == [last[runs] for runs in sorted(last)]
    assert store.score(id, "v") == last[max(last)]


def test_groups_take_the_current_score(store: SQLStore) -> None:
    for rollout in range(2):
        call = ModelCall(span_id="s", message=0, model_version="p", sampling={"temperature": 1.0})
        for number in range(1, 4):
            facts = {TASK_ID: "task", ROLLOUT: rollout}
            run = Run(id=f"{rollout}-{number}", thread=f"{rollout}", attributes=facts, calls=(call,), started=number)
            store.save_dialogue([run], replace(grown(number), trace_id=f"{rollout}", reward=number / 4))
    (group,) = store.groups()
    assert [rollout.score for rollout in group.rollouts] == [
        replace(grown(3), trace_id=f"{rollout}", reward=0.75) for rollout in range(2)
    ]


def test_a_long_thread_weighs_little_more_for_its_scores(tmp_path: Path) -> None:
    weights = []
    for scored in (False, True):
        path = tmp_path / f"{scored}.db"
        with SQLStore(f"sqlite:///{path}") as store:
            for number in range(1, 101):
                add_run(store, number)
                if scored:
                    store.save_score(grown(number))
        weights.append(path.stat().st_size)
    assert weights[1] - weights[0] < 100 * 3_000
