"""Erased traces are gone from every table and from the bytes of the files, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from cm2_agent.errors import StoreError
from cm2_agent.store import Erasure, SQLStore
from cm2_agent.store.codec import pack_text
from cm2_agent.types.human_labels import Label
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse, ToolSpec
from cm2_agent.types.run import Branch, ModelCall, Run, ToolRun
from cm2_agent.types.run_attributes import TASK_ID
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.task import Task

SYSTEM = Message.of("system", "You are the order desk of a shop that sells garden furniture.")
SECRET = "My passport has the number C01X00T47, please do not tell anybody about it"
LONG = "the parcel was left behind the third rose bush; " * 400
"""Longer than a page of the database."""


@pytest.fixture
def store(store_url: str) -> Iterator[SQLStore]:
    with SQLStore(store_url) as opened:
        yield opened


def dialogue(thread: str, said: str, *, user: str | None = None, started: int = 0, **more: Any) -> Run:
    words = (SYSTEM, Message.of("user", said))
    ask = Message.of("assistant", calls=[ToolCall(id="c", name="note", arguments={"text": f"noted: {said}"})])
    answer = Message(role="tool", parts=(ToolCallResponse(id="c", response={"stored": f"{LONG} {said}"}),))
    call = ModelCall(span_id="s", input=words, output=ask, message=2, tools=(ToolSpec(name=f"note_{thread}"),))
    tool = ToolRun(span_id="t", name="note", call_id="c", arguments={"text": f"noted: {said}"}, result=said)
    facts = {"ticket": f"ticket about {said}", TASK_ID: thread}
    return Run(
        id=f"run-of-{thread}",
        thread=thread,
        user=user,
        messages=(*words, ask, answer),
        calls=(call,),
        tools=(tool,),
        input={"question": said},
        attributes=facts,
        started=started,
        ended=started + 1,
        **more,
    )


def scored(store: SQLStore, trace: str, said: str) -> None:
    quote = ({"quote": said[:30], "message": 1},)
    verdict = Verdict(item="kind", value=True, weight=1.0, explanation=f"They said: {said}", evidence=quote)
    turn = TurnScore(turn=0, reached=True, steps=1, reward=1.0, verdicts=(verdict,))
    store.save_score(Score(trace_id=trace, reward_version="v", reward=1.0, turns=(turn,)))
    store.save_labels([Label(trace_id=trace, item="kind", rater="kim", value=True, note=f"about {said}")])
    store.save_outcome(trace, "success", 1.0)
    store.verdict_cache().put({f"key of {trace}": verdict})
    store.simulation_cache().put(f"key of {trace}", "note", f'{{"stored": "{said}"}}')


def content(store: SQLStore) -> str:
    """Every value of every table as text."""
    from cm2_agent.store.schema import metadata

    with store._db.reading() as connection:
        rows = [
            repr([bytes(value) if isinstance(value, memoryview) else value for value in row])
            for table in metadata.sorted_tables
            for row in connection.exec_driver_sql(f"SELECT * FROM {table.name}")
        ]
    return "\n".join(rows)


def files(url: str) -> bytes:
    """The bytes of a database's files."""
    path = Path(url.removeprefix("sqlite:///"))
    return b"".join(file.read_bytes() for file in sorted(path.parent.glob(f"{path.name}*")))


def test_an_erased_user_is_gone_from_tables_and_files(store_url: str, store: SQLStore) -> None:
    other = "Where is the bench that I have ordered in March?"
    for thread, said, user in (("thread-ann", SECRET, "ann@example.org"), ("thread-bob", other, "bob@example.org")):
        store.save_run(dialogue(thread, said, user=user))
        scored(store, thread, said)
        place: Any = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
        state: Any = {**empty_checkpoint(), "channel_values": {"said": said}}
        store.checkpointer().put(place, state, {"step": 1}, {})
    store.count_incident("a score was not saved", f"the judge said: {SECRET}")
    before = store.trace("thread-bob")
    assert SECRET in content(store)
    packed = [pack_text(message.json_text) for message in dialogue("thread-ann", SECRET).messages]
    if store_url.startswith("sqlite"):
        assert SECRET.encode() in files(store_url)
        assert all(own is None or own in files(store_url) for own in packed)

    dry = store.erase(user="ann@example.org", dry_run=True)
    assert (dry.traces, dry.searched, SECRET in content(store)) == (("thread-ann",), (), True)
    erasure = store.erase(user="ann@example.org")

    assert erasure.traces == ("thread-ann",)
    assert erasure.removed == dry.removed
    assert {name: erasure.removed[name] for name in ("runs", "scores", "verdicts", "labels", "checkpoints")} == {
        "runs": 1,
        "scores": 1,
        "verdicts": 1,
        "labels": 1,
        "checkpoints": 1,
    }
    assert erasure.removed["verdict_cache"] == erasure.removed["simulations"] == erasure.removed["incidents"] == 1
    assert (erasure.found, erasure.texts > 10) == ({}, True)
    for word in ("C01X00T47", "thread-ann", "ann@example.org"):
        assert word not in content(store)
        if store_url.startswith("sqlite"):
            assert word.encode() not in files(store_url)
    if store_url.startswith("sqlite"):
        kept = (pack_text(SYSTEM.json_text) or b"") in files(store_url)
        assert (kept, [own for own in packed[1:] if own is not None and own in files(store_url)]) == (True, [])
    else:
        assert "write-ahead log" in erasure.notes[0]
    assert store.trace("thread-bob") == before
    assert store.score("thread-bob") is not None
    assert len(store.labels()) == len(store.verdict_cache()) == len(store.simulation_cache()) == 1
    assert store.checkpointer().pending() == ("thread-bob",)
    assert store.health()["incidents"]["a score was not saved"] | {"first": 0, "last": 0} == {
        "count": 1,
        "detail": "",
        "first": 0,
        "last": 0,
    }
    assert store.erase(user="ann@example.org").traces == ()


def test_a_process_that_remembers_what_was_erased_stores_it_anew(store_url: str, store: SQLStore) -> None:
    """Contents, group keys and states that it knows to be stored are not."""
    first, second = dialogue("t", SECRET), dialogue("u", SECRET)
    store.save_run(first)
    scored(store, "t", SECRET)
    with SQLStore(store_url) as other:
        assert other.erase(thread="t").traces == ("t",)
    store.save_run(second)
    store.save_run(first)
    for run in (first, second):
        trace = store.trace(run.trace_id)
        assert trace is not None
        assert trace.runs == (run,)
    assert store.score("t") is None
    scored(store, "t", SECRET)
    assert store.score("t") is not None
    store.erase(thread="u")  # its own erasures too
    store.save_run(second)
    assert store.trace("u") is not None


def test_branches_go_with_what_they_begin_with(store: SQLStore) -> None:
    store.save_runs([dialogue("t", SECRET), dialogue("other", "Something else entirely, of no concern")])
    branch = Branch(parent="t", messages=2)
    store.save_run(Run(id="b1", thread="t", trace="t~1", branch=branch, history=dialogue("t", SECRET).messages[:2]))
    store.save_run(Run(id="b2", trace="lone", branch=Branch(parent="t~1", messages=2)))
    assert set(store.erase(thread="t").traces) == {"t", "t~1", "lone"}
    assert [trace.id for trace in store.traces()] == ["other"]


def test_erasing_by_age_and_by_project(store_url: str, store: SQLStore) -> None:
    import time

    now = time.time_ns()
    store.save_run(dialogue("old", SECRET, started=now - int(100 * 86_400e9)))
    store.save_run(dialogue("new", "Nothing that anybody would want to hide", started=now))
    with SQLStore(store_url, project="shop") as shop:
        shop.save_run(dialogue("old", SECRET, started=0))
        assert store.erase(older_than=timedelta(days=90), user="nobody").traces == ()
        erasure = store.erase(older_than=timedelta(days=90))
        assert erasure.traces == ("old",)
        assert erasure.held  # the shop's trace says the same, and stays
        assert [trace.id for trace in store.traces()] == ["new"]
        assert shop.holds("old")
        assert shop.erase(everything=True).traces == ("old",)
        assert SECRET not in content(store)
        assert store.holds("new")


def test_what_other_places_still_hold_is_said(store: SQLStore, tmp_path: Path) -> None:
    store.save_task(Task(id="made", turns=(SECRET,)))
    store.save_run(dialogue("t", SECRET))
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "1.spool").write_bytes(b"\0\1" + SECRET[40:].encode())
    erasure = store.erase(thread="t", spool=[spool])
    assert erasure.tasks == ("made (version 1)",)
    assert store.task("made") is not None
    assert list(erasure.held) == ["tasks.body"]
    (spool / "1.spool").write_bytes(b"\0\1" + f"noted: {SECRET}".encode())
    store.save_run(dialogue("t", SECRET))
    found: Erasure = store.erase(thread="t", spool=[spool])
    assert list(found.found) == [str(spool / "1.spool")]
    (spool / "1.spool").write_bytes(b"\0\1" + (pack_text(dialogue("t", SECRET).messages[1].json_text) or b""))
    store.save_run(dialogue("t", SECRET))
    assert store.erase(thread="t", spool=[spool]).found == {str(spool / "1.spool"): 1}


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({}, "erase was given nothing to go by; expected user="),
        ({"user": "a", "everything": True}, "expected one or the other"),
        ({"user": 7}, "user is int 7; expected text"),
        ({"older_than": 90}, "older_than is 90; expected a timedelta"),
        ({"user": "a", "spool": ["/no/such/folder"]}, "spool /no/such/folder is no folder"),
    ],
)
def test_what_cannot_be_erased_is_refused(tmp_path: Path, wrong: dict[str, Any], problem: str) -> None:
    with SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}") as store, pytest.raises(StoreError, match=problem):
        store.erase(**wrong)
