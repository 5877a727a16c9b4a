"""What a process remembers of stored traces: a later run costs no more statements than the second, and a process that
has been overtaken notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cm2_agent.errors import StoreError
from cm2_agent.store import SQLStore
from cm2_agent.store.trace_state import Bounded
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run, StateMark
from cm2_agent.types.run_attributes import TASK_ID
from cm2_agent.types.score import Score, TurnScore, Verdict


def runs(turns: int, thread: str = "t") -> list[Run]:
    """A thread as capture sees it: histories of the same objects, states that follow each other."""
    said: list[Message] = []
    made = []
    for turn in range(turns):
        history = tuple(said)
        said += [Message.of("user", f"{thread} question {turn}"), Message.of("assistant", f"{thread} answer {turn}")]
        call = ModelCall(span_id=f"{turn}", input=tuple(said[:-1]), output=said[-1], message=1, model_version="p")
        states = tuple(StateMark(hash=f"{thread}-{2 * turn + at}", messages=2 * at) for at in (0, 2))
        made.append(
            Run(
                id=f"{thread}{turn}",
                thread=thread,
                history=history,
                messages=tuple(said[-2:]),
                calls=(call,),
                states=states,
                attributes={TASK_ID: "task"},
                started=turn,
            )
        )
    return made


def score(turns: int) -> Score:
    blocks = [TurnScore(turn=one, reached=True, steps=1, reward=1.0, verdicts=(VERDICT,)) for one in range(turns)]
    return Score(trace_id="t", reward_version="v", reward=1.0, turns=tuple(blocks), runs=turns)


VERDICT = Verdict(item="a", value=True, weight=1.0)


def test_a_later_run_and_its_score_take_as_many_statements_as_the_second(tmp_path: Path) -> None:
    statements: list[str] = []
    counts = []
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as store:
        held: Any = store._db.engine.raw_connection()  # the pool gives it back for every write
        held.driver_connection.set_trace_callback(statements.append)
        held.close()
        for number, run in enumerate(runs(40), 1):
            statements.clear()
            store.save_run(run)
            store.save_score(score(number))
            counts.append(len(statements))
        assert len(set(counts[1:])) == 1, counts
        assert 10 < counts[-1] < 25
        trace = store.trace("t")
        assert trace is not None
        assert [message.text for message in trace.messages][-1] == "t answer 39"
        assert store.score("t") == score(40)


def test_a_process_that_was_overtaken_reads_what_the_other_stored(store_url: str) -> None:
    first = runs(9)
    with SQLStore(store_url) as one, SQLStore(store_url) as other:
        for number, run in enumerate(first):
            (one, other)[number % 3 == 0].save_run(run)
        trace = one.trace("t")
        assert trace is not None
        assert [run.id for run in trace.runs] == [run.id for run in first]
        assert [run.calls for run in trace.runs] == [run.calls for run in first]
        assert [run.history for run in trace.runs] == [()] * 9
        with one._db.reading() as connection:
            row = connection.exec_driver_sql("SELECT runs, started, policy FROM traces").one()
        assert tuple(row) == (9, 0, "p")


def test_a_write_that_fails_leaves_nothing_remembered(store_url: str) -> None:
    first, second = runs(2)
    with SQLStore(store_url) as store:
        store.save_run(first)
        with pytest.raises(StoreError):
            store.save_runs([second, Run(id="bad", started=2**63)])
        assert store.trace_ids(["t1"]) == {}
        store.save_run(second)
        trace = store.trace("t")
        assert trace is not None
        assert len(trace.messages) == 4


def test_what_weighs_too_much_makes_the_oldest_go() -> None:
    held: Bounded[str] = Bounded(10)
    for name in "abc":
        held.put(name, name.upper(), 4)
    assert (held.pop("a"), held.pop("b"), held.pop("c")) == (None, "B", "C")
    held.put("d", "D", 11)
    assert held.pop("d") is None
