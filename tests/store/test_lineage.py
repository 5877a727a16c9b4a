"""Which trace a run is part of: lines that go on, branches, conversations that clients keep themselves."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.errors import ConflictError
from cm2_agent.store import SQLStore
from cm2_agent.store.lineage import EMPTY_STATE
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse
from cm2_agent.types.run import Branch, Run, RunFailure, StateMark
from cm2_agent.types.run_attributes import CHECKPOINT
from cm2_agent.types.trace import Trace

NUMBERS = itertools.count(1)


@pytest.fixture
def store(store_url: str) -> Iterator[SQLStore]:
    with SQLStore(store_url) as opened:
        yield opened


def talk(*texts: str) -> tuple[Message, ...]:
    """The user's and the agent's words in turn."""
    return tuple(
        Message.of("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(texts) if text
    )


def run(*texts: str, states: str = "", history: tuple[str, ...] = (), thread: str | None = "t", **more: Any) -> Run:
    """A run that adds these words. `states` names the states from its start to its end; "-" is the empty one."""
    number = next(NUMBERS)
    marks = [StateMark(hash=EMPTY_STATE if name == "-" else f"{name:x>16}", messages=0) for name in states.split()]
    if marks:
        marks = [replace(mark, messages=min(place, len(texts))) for place, mark in enumerate(marks)]
        marks[-1] = replace(marks[-1], messages=len(texts))
    more.setdefault("started", number)
    return Run(
        id=more.pop("id", f"run-{number}"),
        thread=thread,
        messages=more.pop("messages", talk(*texts)),
        history=talk(*history),
        states=tuple(marks),
        **more,
    )


def failed(*texts: str, **more: Any) -> Run:
    return run(*texts, status="error", failure=RunFailure(kind="ModelError", message="rate limit"), **more)


def lines(store: SQLStore) -> dict[str, tuple[list[str], Branch | None]]:
    """Of each trace what was said and where it left another."""
    return {trace.id: ([message.text for message in trace.messages], trace.branch) for trace in store.traces()}


def saved(store: SQLStore, *runs: Run) -> dict[str, tuple[list[str], Branch | None]]:
    for one in runs:
        store.save_run(one)
    return lines(store)


ONE = ("one", "First.")
TWO = ("two", "Second.")
TALK = [*ONE, *TWO]


def test_a_run_that_begins_where_the_thread_ended_goes_on_with_it(store: SQLStore) -> None:
    runs = [run(*ONE, states="- a b"), run(*TWO, states="b c d", history=ONE)]
    assert saved(store, *runs) == {"t": (TALK, None)}
    trace = store.trace("t")
    assert trace is not None
    assert trace.runs == (runs[0], replace(runs[1], history=()))  # its history is in the run before
    assert store.trace_ids([one.id for one in runs]) == {runs[0].id: "t", runs[1].id: "t"}
    store.save_runs(runs)  # again
    assert store.trace("t") == trace


@pytest.mark.parametrize("together", [False, True])
def test_forks_are_branches_that_know_their_parent(store: SQLStore, together: bool) -> None:
    """From an earlier end, from within a run (a regenerated answer), and from the beginning; each goes on."""
    runs = [
        run(*ONE, states="- a b"),
        run(*TWO, states="b c d", history=ONE),
        run("two, otherwise", "Other.", states="b e f", history=ONE),
        run(messages=talk("", "Second, again."), states="c g", history=(*ONE, "two")),
        run("three", "Third.", states="d h i", history=(*ONE, *TWO)),
        run("so?", "So.", states="f j k", history=(*ONE, "two, otherwise", "Other.")),
        run("edited", "Edited.", states="- l m", attributes={CHECKPOINT: "1f"}),
        run("and?", "And.", states="m n o", history=("edited", "Edited.")),
    ]
    if together:
        store.save_runs(reversed(runs))
    else:
        saved(store, *runs)
    assert lines(store) == {
        "t": ([*TALK, "three", "Third."], None),
        "t~1": ([*ONE, "two, otherwise", "Other.", "so?", "So."], Branch(parent="t", messages=2)),
        "t~2": ([*ONE, "two", "Second, again."], Branch(parent="t", messages=3)),
        "t~3": (["edited", "Edited.", "and?", "And."], Branch(parent="t", messages=0)),
    }
    store.save_runs(runs)
    assert len(lines(store)) == 4
    branch = store.trace("t~1")
    assert branch is not None
    assert [one.thread for one in branch.runs] == ["t", "t"]
    assert branch.history == talk(*ONE)
    assert len(branch.turns) == 3


def test_a_branch_of_a_branch(store: SQLStore) -> None:
    found = saved(
        store,
        run(*ONE, states="- a b"),
        run(*TWO, states="b c d"),
        run("x", "X.", states="b e f"),
        run("y", "Y.", states="f g h"),
        run("z", "Z.", states="f i j"),
    )
    assert found["t~2"] == ([*ONE, "x", "X.", "z", "Z."], Branch(parent="t~1", messages=4))


def test_what_a_state_lost_is_no_fork(store: SQLStore) -> None:
    """A node trims the state after each run, or puts a summary in its place: the marks go on."""
    found = saved(store, run(*ONE, states="- a b s"), run(*TWO, states="s c d s2"), run("bye", "Bye.", states="s2 e f"))
    assert found == {"t": ([*TALK, "bye", "Bye."], None)}


def test_what_broke_off_goes_on(store: SQLStore) -> None:
    """A retry from the last checkpoint, the message sent again, and a resumed tool; the message was said once."""
    broken = [run(*ONE, states="- a b"), failed("two", states="b c")]
    retried = run(messages=talk("", "Second."), states="c d", history=(*ONE, "two"))
    assert saved(store, *broken, retried) == {"t": (TALK, None)}
    again = [run(*ONE, states="- a b", thread="s"), failed("two", states="b c", thread="s")]
    resent = run(*TWO, states="b d e", thread="s", history=ONE)  # the failed run left nothing behind
    found = saved(store, *again, resent)["s"]
    assert found[1] is None
    trace = store.trace("s")
    assert trace is not None
    assert [[message.text for message in turn.user] for turn in trace.turns] == [["one"], ["two"]]
    waiting = run("do", "", states="- u v w", thread="r", status="interrupted")
    resumed = run(messages=talk("", "Done."), states="v y", thread="r")
    assert saved(store, waiting, resumed)["r"] == (["do", "Done."], None)


def test_a_person_edits_the_state_of_what_waits(store: SQLStore) -> None:
    waiting = run("order?", "May I?", states="- a b", status="interrupted")
    resumed = run(messages=talk("", "Done."), states="edited c", history=("order?", "May I not?"))
    assert saved(store, waiting, resumed) == {"t": (["order?", "May I?", "Done."], None)}


def test_runs_that_arrive_late_are_no_branches(store: SQLStore) -> None:
    runs = [run(f"u{number}", f"a{number}", states=f"s{number} m{number} s{number + 1}") for number in range(4)]
    for order in ((0, 2, 1, 3), (3, 2, 1, 0), (1, 0, 3, 2)):
        thread = "-".join(map(str, order))
        for number in order:
            store.save_run(replace(runs[number], id=f"{thread}/{number}", thread=thread))
        assert lines(store)[thread] == ([text for n in range(4) for text in (f"u{n}", f"a{n}")], None)


def test_two_runs_at_once_are_two_lines(store: SQLStore) -> None:
    """Both began in the state in which the first run ended."""
    found = saved(
        store, run(*ONE, states="- a b"), run("left", "L.", states="b c d"), run("right", "R.", states="b e f")
    )
    assert found == {
        "t": ([*ONE, "left", "L."], None),
        "t~1": ([*ONE, "right", "R."], Branch(parent="t", messages=2)),
    }


def test_a_client_that_sends_the_history_with_a_thread(store: SQLStore) -> None:
    """Continued, regenerated and edited; states that nobody reached, since ids are new each time."""
    found = saved(
        store,
        run(*ONE, states="- a b"),
        run(*TWO, states="h1 c d", history=ONE),
        run("two", "Second, again.", states="h2 e f", history=ONE),
        run("three", "Third.", states="h3 g h", history=(*ONE, "two", "Second, again.")),
        run("two, edited", "Edited.", states="h4 i j", history=ONE),
        run("one, edited", "Anew.", states="- k l"),
    )
    assert found == {
        "t": (TALK, None),
        "t~1": ([*ONE, "two", "Second, again.", "three", "Third."], Branch(parent="t", messages=2)),
        "t~2": ([*ONE, "two, edited", "Edited."], Branch(parent="t", messages=2)),
        "t~3": (["one, edited", "Anew."], Branch(parent="t", messages=0)),
    }


def test_a_thread_without_states_goes_on(store: SQLStore) -> None:
    """Runs of earlier versions, graphs without messages, an agent that forgets, a checkpointer that was restarted."""
    assert saved(store, run(*ONE), run(*TWO)) == {"t": (TALK, None)}
    forgets = [run(*ONE, states="- a b", thread="f"), run(*TWO, states="- c d", thread="f")]
    assert saved(store, *forgets)["f"] == (TALK, None)
    restarted = [
        run(*ONE, states="- a b", thread="r"),
        run(*TWO, states="b c d", thread="r"),
        run("three", "Third.", states="- e f", thread="r"),
    ]
    assert saved(store, *restarted)["r"] == ([*TALK, "three", "Third."], None)
    old = [run(*ONE, thread="o"), run(*TWO, states="h c d", thread="o", history=ONE)]
    assert saved(store, *old)["o"] == (TALK, None)
    beside = run("two, otherwise", "Other.", states="h2 e", thread="o", history=ONE)
    assert saved(store, beside)["o~1"][1] == Branch(parent="o", messages=2)


def test_a_thread_that_is_called_like_a_branch(store: SQLStore) -> None:
    """Before the branch or after it: neither is taken for the other."""
    runs = [run(*ONE, states="- a b"), run(*TWO, states="b c d"), run("x", "X.", states="b e f")]
    found = saved(store, run("mine", "Yours.", states="- p q", thread="t~1"), *runs)
    assert found["t~1"] == (["mine", "Yours."], None)
    assert found["t~2"] == ([*ONE, "x", "X."], Branch(parent="t", messages=2))
    late = [run("late", "Later.", states="- r s", thread="t~2"), run("on", "On.", states="s u v", thread="t~2")]
    found = saved(store, *late)
    assert found["t~2~1"] == (["late", "Later.", "on", "On."], None)
    assert found["t~2"][0] == [*ONE, "x", "X."]


# Clients that keep the conversation


def chat(*texts: str, history: tuple[str, ...] = (), **more: Any) -> Run:
    return run(*texts, history=history, thread=None, **more)


def test_a_conversation_that_the_client_keeps_is_one_trace(store: SQLStore) -> None:
    """Also where a client sends back only what the user saw, without the calls in between."""
    asked = ToolCall(id="1", name="get", arguments={"id": 7})
    first = chat(
        id="first",
        messages=(
            Message.of("system", "Be kind."),
            Message.of("user", "one"),
            Message.of("assistant", "", [asked]),
            Message(role="tool", parts=(ToolCallResponse(id="1", response="shipped"),)),
            Message.of("assistant", "First."),
        ),
    )
    second, third = chat(*TWO, history=ONE), chat("three", "Third.", history=(*ONE, *TWO))
    found = saved(store, first, second, third)
    assert found == {"first": (["Be kind.", "one", "", "", "First.", *TWO, "three", "Third."], None)}
    trace = store.trace("first")
    assert trace is not None
    assert [one.history for one in trace.runs] == [(), (), ()]
    assert [len(turn.steps) for turn in trace.turns] == [2, 1, 1]
    assert store.trace_ids([third.id]) == {third.id: "first"}
    store.save_runs([third, first, second])
    assert lines(store) == found


def test_what_a_client_goes_back_to_is_a_branch(store: SQLStore) -> None:
    first = chat(*ONE, id="first")
    again = chat("two", "Again.", history=ONE)
    on = chat("on", "On.", history=(*ONE, "two", "Again."))
    other = chat("other", "Other.", history=ONE)
    found = saved(store, first, chat(*TWO, history=ONE), again, on, other)
    assert found == {
        "first": (TALK, None),
        "first~1": ([*ONE, "two", "Again.", "on", "On."], Branch(parent="first", messages=2)),
        "first~2": ([*ONE, "other", "Other."], Branch(parent="first", messages=2)),
    }


def test_a_client_sends_again_what_failed(store: SQLStore) -> None:
    found = saved(store, chat(*ONE, id="first"), failed("two", history=ONE, thread=None), chat(*TWO, history=ONE))
    assert set(found) == {"first"}
    trace = store.trace("first")
    assert trace is not None
    assert [[message.text for message in turn.user] for turn in trace.turns] == [["one"], ["two"]]


def test_an_unknown_history_begins_a_trace(store: SQLStore) -> None:
    (found,) = saved(store, chat(*TWO, history=("one", "What nobody stored."), id="r")).values()
    assert found == (["one", "What nobody stored.", *TWO], None)
    trace = store.trace("r")
    assert trace is not None
    assert [step.call for step in trace.steps] == [None, None]
    assert len(trace.turns) == 2


def test_clients_with_the_same_opening_are_not_one(store: SQLStore) -> None:
    found = saved(
        store,
        chat(*ONE, id="a"),
        chat(*ONE, id="b"),
        chat("left", "L.", history=ONE),
        chat("right", "R.", history=ONE),
    )
    assert sorted(said for said, _ in found.values()) == [[*ONE, "left", "L."], [*ONE, "right", "R."]]
    assert {branch for _, branch in found.values()} == {None}


def test_another_user_s_conversation_is_not_joined(store: SQLStore) -> None:
    found = saved(store, chat(*ONE, id="a", user="ada"), chat(*TWO, history=ONE, id="b", user="bob"))
    assert found["b"] == (TALK, None)
    assert saved(store, chat(*TWO, history=ONE, user="ada"))["a"] == (TALK, None)


def test_threads_and_imports_are_not_joined(store: SQLStore) -> None:
    store.save_trace(Trace.of(chat(*ONE, id="imported")))
    found = saved(store, run(*ONE, states="- a b"), chat(*TWO, history=ONE, id="r"))
    assert {name: said for name, (said, _) in found.items()} == {"imported": list(ONE), "t": list(ONE), "r": TALK}


def test_a_trace_is_read_and_saved_as_it_is(store: SQLStore) -> None:
    """Branches too, in another store, and again in their own."""
    saved(store, run(*ONE, states="- a b"), run(*TWO, states="b c d"), run("x", "X.", states="b e f"))
    traces = list(store.traces())
    assert [store.save_trace(trace) for trace in traces] == [False, False]
    assert list(store.traces()) == traces
    with SQLStore("sqlite://") as other:
        for trace in traces:
            assert other.save_trace(trace)
        assert list(other.traces()) == traces
    with pytest.raises(ConflictError):
        store.save_run(replace(traces[1].runs[0], name="another"))


def test_writers_side_by_side(store_url: str) -> None:
    """Each begins a branch from the first run's end and goes on with it: as many lines as writers, none lost."""
    with SQLStore(store_url) as store:
        store.save_run(run(*ONE, states="- a b"))
        store.save_run(run(*TWO, states="b c d"))

    def write(number: int) -> None:
        with SQLStore(store_url) as own:
            own.save_run(run(f"u{number}", f"a{number}", states=f"b m{number} e{number}"))
            own.save_run(run(f"v{number}", f"b{number}", states=f"e{number} n{number} f{number}"))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with SQLStore(store_url) as store:
        found = lines(store)
    assert set(found) == {"t", *(f"t~{number}" for number in range(1, 7))}
    said = sorted(tuple(words) for name, (words, _) in found.items() if name != "t")
    assert said == sorted((*ONE, f"u{n}", f"a{n}", f"v{n}", f"b{n}") for n in range(6))


@settings(max_examples=40)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=9), st.booleans(), st.booleans())
def test_any_tree_is_stored_as_its_paths(parents: list[int], threaded: bool, together: bool) -> None:
    """Each run begins at the end of an earlier one: every path from the root to a leaf is a trace, and nothing else."""
    paths: list[tuple[str, ...]] = [("u0", "a0")]
    first = run("u0", "a0", states="- x s0", thread="t" if threaded else None, id="r0")
    runs, children = [first], {0: 0}
    for number, choice in enumerate(parents, 1):
        parent = choice % number
        children[parent] = children.get(parent, 0) + 1
        history = paths[parent]
        paths.append((*history, f"u{number}", f"a{number}"))
        states = f"s{parent} m{number} s{number}" if threaded else ""
        texts = (f"u{number}", f"a{number}")
        runs.append(run(*texts, states=states, history=history, thread="t" if threaded else None, id=f"r{number}"))
    with SQLStore("sqlite://") as store:
        if together:
            store.save_runs(runs)
        else:
            for one in runs:
                store.save_run(one)
        found = lines(store)
    leaves = [path for number, path in enumerate(paths) if not children.get(number)]
    assert sorted(tuple(said) for said, _ in found.values()) == sorted(leaves)
    for said, branch in found.values():
        if branch is not None:
            parent_said = found[branch.parent][0]
            assert said[: branch.messages] == parent_said[: branch.messages]
            assert said[branch.messages] != parent_said[branch.messages]
