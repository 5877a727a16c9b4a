"""Projects share a database and nothing else; what a run says of its user, session and tags is what traces are chosen
by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint

from cm2_agent.errors import ConflictError, StoreError
from cm2_agent.store import SQLStore
from cm2_agent.store.codec import dump_tags, tag_pattern
from cm2_agent.types.human_labels import Label
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Branch, ModelCall, Run, StateMark
from cm2_agent.types.run_attributes import ROLLOUT, TASK_ID
from cm2_agent.types.score import Score
from tests import strategies


@pytest.fixture
def store(store_url: str) -> Iterator[SQLStore]:
    with SQLStore(store_url) as opened:
        yield opened


def said(text: str) -> tuple[Message, ...]:
    return (Message.of("user", text),)


def test_the_same_ids_in_two_projects_are_two_traces(store_url: str, store: SQLStore) -> None:
    with SQLStore(store_url, project="shop's") as shop:
        for number, each in enumerate((store, shop)):
            call = ModelCall(span_id="s", message=0, model_version="p")
            for rollout in range(2):
                facts = {TASK_ID: "t", ROLLOUT: rollout}
                run = Run(id=f"r{rollout}", messages=said(each.project), attributes=facts, calls=(call,))
                each.save_dialogue([run], Score(trace_id=run.id, reward_version="v", reward=number / 2))
            each.save_outcome("r0", "success", float(number))
            each.save_labels([Label(trace_id="r0", item="a", rater="ann", value=bool(number))])
        assert store.projects() == shop.projects() == ["default", "shop's"]
        for number, each in enumerate((store, shop)):
            trace = each.trace("r0")
            assert trace is not None
            assert (trace.messages[0].text, trace.outcomes) == (each.project, {"success": float(number)})
            assert [trace.messages[0].text for trace in each.traces()] == [each.project] * 2
            assert [score.reward for score in each.scores()] == [number / 2] * 2
            assert each.labels() == [Label(trace_id="r0", item="a", rater="ann", value=bool(number))]
            assert each.labelled_tasks() == {"r0": "t"}
            (group,) = each.groups()
            assert [rollout.score.reward for rollout in group.rollouts] == [number / 2] * 2
        with pytest.raises(ConflictError):
            shop.save_run(Run(id="r1", messages=said("default")))
        shop.save_run(Run(id="only", thread="here"))
        assert (store.trace("here"), store.holds("here"), shop.holds("here")) == (None, False, True)
        with pytest.raises(StoreError, match=r"trace 'r9' is not in store .*, project \"shop's\"; save its runs"):
            shop.save_outcome("r9", "x", 1.0)
    assert store.health()["projects"] == {"shop's": 3, "default": 2}


def test_a_reward_version_of_another_project_is_not_the_newest_here(store_url: str, store: SQLStore) -> None:
    with SQLStore(store_url, project="shop") as shop:
        for each, version in ((store, "v1"), (shop, "v2")):
            each.save_dialogue([Run(id="r")], Score(trace_id="r", reward_version=version, reward=1.0))
        store.register_reward("v3")
        assert (store.reward_versions(), shop.reward_versions()) == (["v3", "v1"], ["v3", "v2"])
        with pytest.raises(StoreError, match="holds no score under reward version 'v2'; it has scores under v3, v1"):
            store.groups(reward="v2")


def test_threads_under_way_are_the_projects_own(store_url: str, store: SQLStore) -> None:
    with SQLStore(store_url, project="shop") as shop:
        place: RunnableConfig = {"configurable": {"thread_id": "1", "checkpoint_ns": ""}}
        for number, each in enumerate((store, shop)):
            config = each.checkpointer().put(place, {**empty_checkpoint(), "id": f"{number}"}, {"step": 1}, {})
            each.checkpointer().put_writes(config, [("answer", each.project)], "task")
        for number, each in enumerate((store, shop)):
            found = each.checkpointer().get_tuple(place)
            assert found is not None
            assert found.checkpoint["id"] == f"{number}"
            assert found.pending_writes == [("task", "answer", each.project)]
            assert [one.checkpoint["id"] for one in each.checkpointer().list(None)] == [f"{number}"]
        shop.checkpointer().delete_thread("1")
        assert (store.checkpointer().pending(), shop.checkpointer().pending()) == (("1",), ())


@pytest.mark.parametrize("project", ["", "  ", 7, None])
def test_a_project_is_named_by_text(tmp_path: object, project: object) -> None:
    with pytest.raises(StoreError, match=r"project is .*; expected its name, such as 'default'"):
        SQLStore(f"sqlite:///{tmp_path}/cm2.db", project=project)  # type: ignore[arg-type]


def test_traces_are_chosen_by_user_session_and_tag(store: SQLStore) -> None:
    store.save_run(Run(id="1", thread="a", user="ann", session="s1", tags=("beta", "100%"), attributes={"plan": "x"}))
    store.save_run(Run(id="2", thread="a", started=1, attributes={"plan": "y", "cm2.cut": "steps"}))
    store.save_run(Run(id="3", thread="b", user="ann", session="s2", tags=('be"ta', ",", "für")))
    store.save_run(Run(id="4", thread="b", user="bob", started=1))  # the last one that says counts
    store.save_run(Run(id="5", thread="c", tags=("a,", "b"), started=2))

    def ids(**wanted: str) -> list[str]:
        return [trace.id for trace in store.traces(**wanted)]  # type: ignore[arg-type]

    assert (ids(user="ann"), ids(user="bob"), ids(user="eve")) == (["a"], ["b"], [])
    assert (ids(session="s1"), ids(session="s2"), ids(user="ann", session="s2")) == (["a"], ["b"], [])
    assert (ids(tag="beta"), ids(tag='be"ta'), ids(tag="be_a"), ids(tag="100%")) == (["a"], ["b"], [], ["a"])
    assert (ids(tag=","), ids(tag="für"), ids(tag="b")) == (["b"], ["b"], ["c"])
    with store._db.reading() as connection:
        rows = connection.exec_driver_sql("SELECT metadata FROM traces ORDER BY id").scalars().all()
    assert rows == ['{"plan":"y"}', None, None]


@given(tags=st.lists(strategies.texts(), max_size=4))
def test_a_tag_is_found_in_the_text_of_its_list(tags: list[str]) -> None:
    text = dump_tags(tags, "run")
    for tag in tags:
        assert tag_pattern(tag)[1:-1].replace("!!", "\0").replace("!", "").replace("\0", "!") in text


def test_a_history_is_stored_where_no_earlier_run_holds_it(store_url: str, store: SQLStore) -> None:
    before, first, second = said("before"), said("first"), said("second")
    shown = [
        Run(id="1", thread="t", history=before, messages=first),
        Run(id="2", thread="t", history=(*before, *first), messages=second, started=1),
        Run(id="3", thread="t", history=said("a summary"), messages=said("third"), started=2),
    ]
    for run in shown[:2]:
        store.save_run(run)
    with SQLStore(store_url) as other:
        other.save_run(shown[2])
    stored = [shown[0], replace(shown[1], history=()), shown[2]]
    trace = store.trace("t")
    assert trace is not None
    assert list(trace.runs) == stored
    assert [message.text for message in trace.messages] == ["before", "first", "second", "third"]
    assert store.save_runs([*shown, *stored]) == 0  # what is dropped makes no other run
    late = Run(id="0", thread="t", history=first, messages=said("late"), started=-1)
    store.save_run(late)  # nothing is before it, though others hold what it was shown
    trace = store.trace("t")
    assert trace is not None
    assert trace.runs[0] == late


@pytest.mark.parametrize(
    "changed",
    [
        {"input": {"question": 1}},
        {"output": [None]},
        {"states": (StateMark(hash="ab", messages=1),)},
        {"user": "u"},
        {"session": "s"},
        {"tags": ("x",)},
        {"calls": (ModelCall(span_id="s", agent="a"),)},
        {"calls": (ModelCall(span_id="s", changed="edited"),)},
    ],
)
def test_what_capture_sees_comes_back_and_is_part_of_the_content(store: SQLStore, changed: dict[str, object]) -> None:
    plain = Run(id="r", thread="t", calls=(ModelCall(span_id="s"),))
    run = replace(plain, **changed)  # type: ignore[arg-type]
    store.save_run(run)
    trace = store.trace(run.trace_id)
    assert trace is not None
    assert trace.runs == (run,)
    assert store.save_runs([run]) == 0
    with pytest.raises(ConflictError):
        store.save_run(plain)


@pytest.mark.parametrize("place", [{"trace": "t~2"}, {"branch": Branch(parent="t", messages=2, reason="sampled")}])
def test_a_runs_place_comes_back_and_is_no_part_of_the_content(store: SQLStore, place: dict[str, object]) -> None:
    """The run as capture saw it, saved again, is the one that was placed."""
    plain = Run(id="r", thread="t")
    run = replace(plain, **place)  # type: ignore[arg-type]
    store.save_run(run)
    trace = store.trace(run.trace_id)
    assert trace is not None
    assert trace.runs == (run,)
    assert store.save_runs([run, plain]) == 0


@pytest.mark.parametrize("wrong", [{"user": 7}, {"session": 7}, {"trace": 7}, {"tags": (7,)}])
def test_ids_that_are_no_text_are_refused(store: SQLStore, wrong: dict[str, object]) -> None:
    with pytest.raises(StoreError, match="is int 7; expected text"):
        store.save_run(Run(id="r", **wrong))  # type: ignore[arg-type]
