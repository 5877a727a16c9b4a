"""Writing twice, writing something else under a known name, and writing half: what the store keeps and what it
refuses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cm2_agent.errors import ConflictError, StoreError
from cm2_agent.store import SQLStore
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.messages import Message, Text, ToolCall, ToolSpec
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View


@pytest.fixture
def store(store_url: str) -> Iterator[SQLStore]:
    with SQLStore(store_url) as opened:
        yield opened


def run(name: str, thread: str | None = None, said: str = "hello", started: int = 0) -> Run:
    message = Message.of("user", said)
    call = ModelCall(
        span_id="s",
        input=(message,),
        prompt_ids=(1, 2),
        completion_ids=(3,),
        logprobs=(-0.5,),
        tools=(ToolSpec(name="t"),),
    )
    return Run(id=name, thread=thread, messages=(message,), calls=(call,), attributes={"b": 1, "a": 2}, started=started)


def score(trace_id: str, reward: float | None = 0.5, version: str = "v1", **more: object) -> Score:
    verdicts = (
        Verdict(item="a", value=True, weight=1.0, step=1, paid=True),
        Verdict(item="b", value=None, weight=0.0, cause="content"),
    )
    turns = (TurnScore(turn=0, reached=True, steps=2, reward=reward, verdicts=verdicts),)
    return replace(Score(trace_id=trace_id, reward_version=version, reward=reward, turns=turns), **more)  # type: ignore[arg-type]


def rows(store: SQLStore) -> dict[str, int]:
    """How many rows each table holds."""
    from cm2_agent.store.schema import metadata

    with store._db.reading() as connection:
        return {
            name: connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar_one() for name in metadata.tables
        }


def test_saving_again_changes_nothing(store_url: str, store: SQLStore) -> None:
    trace = Trace(id="t", runs=(run("a", "t"), run("b", "t", started=1)), outcomes={"success": 1.0})
    task, checklist = Task(id="task", turns=("x",)), Checklist(Item("a", "Is it?"), name="c")

    def save(into: SQLStore) -> list[object]:
        into.save_task(task)
        into.save_outcome("t", "success", 1.0)
        into.save_score(score("t"))
        return [into.save_trace(trace), into.save_runs(trace.runs), into.save_checklist(checklist)]

    assert store.save_trace(trace) is True
    first = save(store)
    before = rows(store)
    assert save(store) == first == [False, 0, checklist.hash]
    with SQLStore(store_url) as other:  # which remembers nothing
        assert save(other) == first
    assert rows(store) == before
    assert store.trace("t") == trace


def test_runs_are_counted_when_they_are_new(store: SQLStore) -> None:
    assert store.save_runs([]) == 0
    assert store.save_runs([run("a"), run("b", "t"), run("a")]) == 2
    assert store.save_runs([run("b", "t"), run("c", "t")]) == 1
    assert store.save_dialogue([run("c", "t"), run("d", "t")]) == 1
    assert [trace.id for trace in store.traces()] == ["a", "t"]


def test_the_order_of_attributes_makes_no_other_run(store: SQLStore) -> None:
    store.save_run(run("a"))
    assert store.save_runs([replace(run("a"), attributes={"a": 2, "b": 1})]) == 0


@pytest.mark.parametrize(
    "changed",
    [
        replace(run("a"), name="other"),
        replace(run("a"), attributes={"a": 2, "b": True}),
        replace(run("a"), messages=()),
        replace(run("a"), calls=()),
        replace(run("a"), calls=(replace(run("a").calls[0], completion_ids=(4,)),)),
        replace(run("a"), calls=(replace(run("a").calls[0], prompt_ids=(1,), completion_ids=(2, 3)),)),
        replace(run("a"), calls=(replace(run("a").calls[0], logprobs=(-0.25,)),)),
        replace(run("a"), calls=(replace(run("a").calls[0], logprobs=None),)),
        replace(run("a"), calls=(replace(run("a").calls[0], tools=()),)),
        replace(run("a"), calls=(replace(run("a").calls[0], output=Message.of("assistant", "x")),)),
        replace(run("a"), thread="t"),
    ],
)
def test_another_content_under_a_runs_id_is_a_conflict(store: SQLStore, changed: Run) -> None:
    store.save_run(run("a"))
    before = rows(store)
    with pytest.raises(ConflictError, match="run 'a' is stored already with other content"):
        store.save_runs([run("new"), changed])
    with pytest.raises(ConflictError):
        store.save_runs([run("both"), changed, run("a")])
    assert rows(store) == before
    assert store.trace("a") == Trace.of(run("a"))


def test_other_content_under_a_version_is_a_conflict(store: SQLStore) -> None:
    task = Task(id="t", turns=("a",))
    store.save_task(task)
    with pytest.raises(
        ConflictError,
        match="task 't' version 1 is stored already with other content; give the changed task a new version",
    ):
        store.save_task(Task(id="t", turns=("b",)))
    assert store.task("t") == task
    checklist = Checklist(Item("a", "Is it?"), name="c", version=3)
    store.save_checklist(checklist)
    with pytest.raises(ConflictError, match=r"checklist 'c' version 3 .* version: 4"):
        store.save_checklist(Checklist(Item("a", "Is it so?"), name="c", version=3))
    assert store.checklist("c") == checklist


def test_another_source_of_a_function_is_another_content(store: SQLStore) -> None:
    def make(value: bool) -> object:
        if value:

            def check(view: View) -> bool:
                return True
        else:

            def check(view: View) -> bool:
                return False

        return check

    store.save_checklist(Checklist(make(True), name="c"))  # type: ignore[arg-type]
    with pytest.raises(ConflictError, match="a function's source counts"):
        store.save_checklist(Checklist(make(False), name="c"))  # type: ignore[arg-type]


def test_reward_settings_are_immutable_and_newest_is_last_registered(store: SQLStore) -> None:
    store.save_run(run("a"))
    store.save_score(score("a", version="implicit"))
    store.register_reward("explicit", "hash", {"judge": "m", "votes": 3})
    store.register_reward("implicit", None, {"judge": None})
    store.register_reward("explicit", "hash", {"votes": 3, "judge": "m"})
    assert store.reward_versions() == ["explicit", "implicit"]
    with pytest.raises(ConflictError, match="reward version 'explicit' is stored with other settings"):
        store.register_reward("explicit", "hash", {"judge": "m", "votes": 5})


def test_a_score_is_replaced_with_its_verdicts(store: SQLStore) -> None:
    store.save_runs([run("a"), run("b")])
    store.save_scores([score("a", 0.25), score("b", 0.75), score("a", 0.1, "v2")])
    shorter = replace(score("a", None, null_reason="verdicts"), turns=())
    store.save_score(shorter)
    assert store.score("a", "v1") == shorter
    assert store.score("a") == score("a", 0.1, "v2")
    assert store.score("b") == score("b", 0.75)  # the newest version that it has
    assert list(store.scores("v1")) == [shorter, score("b", 0.75)]
    assert list(store.scores()) == [score("a", 0.1, "v2")]
    assert rows(store)["verdicts"] == 4


def test_nulls_stay_null(store: SQLStore) -> None:
    store.save_dialogue(
        [run("a")],
        replace(score("a", None), null_reason="failure: ToolError", components={"x": None}),
        {"success": None},
    )
    with store._db.reading() as connection:
        assert connection.exec_driver_sql("SELECT value, checklist FROM scores").all() == [(None, None)]
        assert connection.exec_driver_sql("SELECT value FROM outcomes").all() == [(None,)]
        told = connection.exec_driver_sql("SELECT item, value, paid, step FROM verdicts ORDER BY item").all()
    assert [tuple(row) for row in told] == [("a", True, True, 1), ("b", None, None, None)]
    read, trace = store.score("a"), store.trace("a")
    assert read is not None
    assert trace is not None
    assert read.reward is None
    assert read.verdicts[1].value is None
    assert read.components == {"x": None}
    assert trace.outcomes == {"success": None}


def test_an_outcome_is_replaced(store: SQLStore) -> None:
    store.save_run(run("a"))
    store.save_outcome("a", "success", 1)
    store.save_outcome("a", "success", None)
    store.save_outcome("a", "other", 0.0)
    trace = store.trace("a")
    assert trace is not None
    assert trace.outcomes == {"success": None, "other": 0.0}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused_whole(store: SQLStore, value: float) -> None:
    verdict = Verdict(item="a", value=True, weight=value)
    turn = TurnScore(turn=0, reached=True, steps=1, reward=1.0, verdicts=(verdict,))
    before = rows(store)
    for wrong in (
        replace(score("a"), reward=value),
        replace(score("a"), turns=(turn,)),
        replace(score("a"), components={"x": value}),
        replace(score("a"), turns=(replace(turn, reward=value, verdicts=()),)),
    ):
        with pytest.raises(StoreError, match=r"trace 'a'"):
            store.save_dialogue([run("a")], wrong)
    with pytest.raises(StoreError, match="outcome 'success'"):
        store.save_dialogue([run("a")], None, {"success": value})
    spoken = Message.of("assistant", calls=[ToolCall(name="t", arguments={"x": value})])
    with pytest.raises(StoreError, match=r"run 'a': a message is not JSON.*expected text, finite numbers"):
        store.save_run(replace(run("a"), messages=(spoken,)))
    assert rows(store) == before
    assert store.save_dialogue([run("a")], score("a")) == 1


def test_what_does_not_belong_together_is_refused(store: SQLStore) -> None:
    with pytest.raises(StoreError, match="run 'b' belongs to trace 'u', not to 't'"):
        store.save_dialogue([run("a", "t"), run("b", "u")])
    with pytest.raises(StoreError, match="run 'a' belongs to trace 'a', not to 't'"):
        store.save_trace(Trace(id="t", runs=(run("a"),)))
    with pytest.raises(StoreError, match="the score is of trace 'u'"):
        store.save_dialogue([run("a", "t")], score("u"))
    with pytest.raises(StoreError, match="no runs"):
        store.save_dialogue([])
    with pytest.raises(StoreError, match="trace 'gone' is not in store"):
        store.save_score(score("gone"))
    with pytest.raises(StoreError, match="trace 'gone' is not in store"):
        store.save_outcome("gone", "x", 1.0)
    assert set(rows(store).values()) == {0}


@pytest.mark.parametrize("ids", [(2**31,), (-(2**31) - 1,), (1.5,), ("a",)])
def test_token_ids_that_are_none_are_refused(store: SQLStore, ids: tuple[int, ...]) -> None:
    with pytest.raises(StoreError, match="token ids are not 32-bit integers"):
        store.save_run(Run(id="a", calls=(ModelCall(span_id="s", prompt_ids=ids),)))
    assert store.trace("a") is None


def test_times_beyond_64_bits_are_refused(store: SQLStore) -> None:
    with pytest.raises(StoreError):
        store.save_run(Run(id="a", started=2**63))
    assert store.trace("a") is None
    store.save_run(Run(id="a", started=2**63 - 1))


def test_traces_are_chosen_and_come_in_order(store: SQLStore) -> None:
    from cm2_agent.types.run_attributes import TASK_ID

    runs = []
    for number in range(150):  # more than two pages
        call = ModelCall(span_id="s", message=0, model_version=f"p{number % 2}")
        runs.append(
            Run(id=f"r{number:03d}", started=number // 10, attributes={TASK_ID: f"t{number % 3}"}, calls=(call,))
        )
    store.save_runs(reversed(runs))
    ids = [run.id for run in runs]
    assert [trace.id for trace in store.traces()] == ids
    assert [trace.id for trace in store.traces(limit=70)] == ids[:70]
    assert [trace.id for trace in store.traces(limit=0)] == []
    assert [trace.id for trace in store.traces(task="t1", policy="p0")] == [
        id for n, id in enumerate(ids) if n % 3 == 1 and n % 2 == 0
    ]
    assert [trace.id for trace in store.traces(ids=[ids[90], "gone", ids[3], ids[3]], limit=5)] == [ids[3], ids[90]]
    assert [trace.id for trace in store.traces(ids=ids, task="t2")] == ids[2::3]
    for trace in store.traces(unscored=True):  # saving while reading neither skips nor repeats
        store.save_score(score(trace.id, None if trace.id.endswith("7") else 1.0))
    assert [read.trace_id for read in store.scores()] == ids
    assert list(store.traces(unscored=True)) == []  # a NULL is a score too: somebody tried
    assert [trace.id for trace in store.traces(unscored=True, reward="v2", limit=1)] == ids[:1]
    store.save_score(score(ids[5], version="v2"))
    assert [trace.id for trace in store.traces(reward="v2")] == [ids[5]]
    assert len(list(store.traces(unscored=True, reward="v2"))) == 149


def test_a_late_first_run_moves_the_trace(store: SQLStore) -> None:
    store.save_run(run("b", "t", started=50))
    store.save_run(run("other", started=20))
    assert [trace.id for trace in store.traces()] == ["other", "t"]
    store.save_run(run("a", "t", started=10))
    assert [trace.id for trace in store.traces()] == ["t", "other"]
    trace = store.trace("t")
    assert trace is not None
    assert [mine.id for mine in trace.runs] == ["a", "b"]


def test_strange_text_reaches_no_statement(store: SQLStore) -> None:
    nasty = "'); DROP TABLE runs; --"
    store.save_dialogue(
        [Run(id=nasty, thread=nasty, messages=(Message(role="user", parts=(Text(content=nasty),)),))],
        score(nasty, version=nasty),
    )
    store.count_incident(nasty, nasty)
    assert store.trace(nasty) is not None
    assert [trace.id for trace in store.traces(ids=[nasty], reward=nasty)] == [nasty]
    assert store.incidents()[nasty]["detail"] == nasty
