"""Checks that hang, break off or change what they see: each costs its own verdict and nothing else."""

from __future__ import annotations

import asyncio
import copy
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.run import ModelCall
from cm2_agent.types.score import Score, Verdict
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View
from tests.rewards.talk import call, say, trace, turn

SHORT = 0.5
"""Seconds; the checks below that run out of them would never end by themselves."""


def talk(id: str = "t") -> Trace:
    return trace(turn("Where is order 7?", call("get_order", {"date": "May 3"}, order_id=7), say("On May 3.")), id=id)


def fine(view: View) -> bool:
    return bool(view.calls("get_order", {"order_id": 7})) and "May 3" in str(view.results())


def items(check: Callable[[View], Any], kind: Any = "reach") -> Checklist:
    return Checklist(
        Item("before", check=fine), Item("it", check=check, kind=kind), Item("after", check=fine), name="c"
    )


def by_item(score: Score) -> dict[str, Verdict]:
    return {verdict.item: verdict for verdict in score.verdicts}


def score_of(check: Callable[[View], Any], *, one: Trace | None = None, kind: Any = "reach") -> Verdict:
    """The verdict of a check between two others, which must both be satisfied."""
    found = by_item(ChecklistScorer(items(check, kind), check_timeout=SHORT).score_sync(one or talk()))
    assert found["before"].value is found["after"].value is True
    return found["it"]


def loops(view: View) -> bool:
    while True:
        pass


def calls_without_end(view: View) -> bool:
    while True:
        len(view.reply)


def exits(view: View) -> bool:
    sys.exit(3)


def interrupts(view: View) -> bool:
    raise KeyboardInterrupt


def ends_all(view: View) -> bool:
    raise BaseException("base")


def recurs(view: View) -> bool:
    return recurs(view)


def needs_memory(view: View) -> bool:
    return bool(bytearray(sys.maxsize))


def closes(view: View) -> bool:
    raise GeneratorExit


@pytest.mark.parametrize("check", [loops, calls_without_end])
@pytest.mark.parametrize("kind", ["reach", "hold", "avoid"])
def test_a_check_that_loops_is_stopped(check: Callable[[View], Any], kind: Any) -> None:
    got = score_of(check, kind=kind)
    assert (got.value, got.paid, got.reason, got.cause) == (None, None, "check timed out", "content")
    assert "longer than 0.5 s" in (got.explanation or "")


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (exits, "SystemExit: 3"),
        (interrupts, "KeyboardInterrupt"),
        (ends_all, "BaseException: base"),
        (recurs, "RecursionError"),
        (needs_memory, "MemoryError"),
        (closes, "GeneratorExit"),
    ],
)
def test_a_check_that_would_end_the_program_is_null(check: Callable[[View], Any], words: str) -> None:
    got = score_of(check)
    assert (got.value, got.reason, got.cause) == (None, "check failed", "content")
    assert words in (got.explanation or "")


class Unreadable(Exception):
    def __str__(self) -> str:
        raise SystemExit


class Odd:
    def __str__(self) -> str:
        raise ValueError("no text")


def raises_unreadably(view: View) -> bool:
    raise Unreadable


@pytest.mark.parametrize("check", [raises_unreadably, lambda view: Odd()])
def test_what_a_check_raises_or_answers_may_have_no_text(check: Callable[[View], Any]) -> None:
    got = score_of(check)
    assert (got.value, got.reason) == (None, "check failed")


# -- checks that cannot be stopped


class Stuck:
    """A check that hangs in a call into C until it is let go."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.gate = threading.Event()
        self.threads: list[threading.Thread] = []
        self.stubborn = stubborn

    def __call__(self, view: View) -> bool:
        self.threads.append(threading.current_thread())
        while self.stubborn and not self.gate.is_set():
            try:
                while not self.gate.is_set():
                    pass
            except BaseException:
                continue
        self.gate.wait()
        return True

    def let_go(self) -> None:
        self.gate.set()
        for thread in self.threads:
            thread.join()


@pytest.fixture(params=[False, True], ids=["in C", "catching all"])
def stuck(request: pytest.FixtureRequest) -> Iterator[Stuck]:
    check = Stuck(stubborn=request.param)
    yield check
    check.let_go()


def named(check: Stuck) -> Callable[[View], bool]:
    def hangs(view: View) -> bool:
        return check(view)

    return hangs


def test_a_check_that_does_not_end_is_abandoned_and_not_asked_again_while_it_hangs(stuck: Stuck) -> None:
    scorer = ChecklistScorer(items(named(stuck)), check_timeout=SHORT)
    first, second = (by_item(scorer.score_sync(talk(name))) for name in ("one", "two"))
    assert [found["it"].reason for found in (first, second)] == ["check timed out", "check disabled"]
    assert {found["it"].cause for found in (first, second)} == {"content"}
    for found in (first, second):
        assert found["before"].value is found["after"].value is True
    assert len(stuck.threads) == 1, "it was asked once"
    assert scorer.limits.incidents.counts == {
        "the check it does not end: it is not asked again while it runs": 1,
        "the check it took longer than 0.5 s": 1,
    }
    stuck.let_go()
    assert by_item(scorer.score_sync(talk("three")))["it"].value is True, "it ended, so it may be asked"


def test_the_event_loop_runs_while_a_check_does() -> None:
    seen, let = threading.Event(), threading.Event()

    def waits_for_the_loop(view: View) -> bool:
        seen.set()
        return let.wait()

    async def scored() -> Score:
        task = asyncio.create_task(ChecklistScorer(items(waits_for_the_loop), check_timeout=60)(talk()))
        await asyncio.to_thread(seen.wait)
        let.set()
        return await task

    assert asyncio.run(scored()).reward == 1.0


def test_a_check_that_hangs_does_not_hold_up_other_traces() -> None:
    gate, hanging = threading.Event(), threading.Event()

    def hangs(view: View) -> bool:
        hanging.set()
        return gate.wait()

    async def scored() -> tuple[Score, list[Score]]:
        task = asyncio.create_task(ChecklistScorer(items(hangs), check_timeout=60)(talk("slow")))
        await asyncio.to_thread(hanging.wait)
        others = await asyncio.gather(*(ChecklistScorer(items(fine))(talk(str(number))) for number in range(20)))
        gate.set()
        return await task, others

    slow, others = asyncio.run(scored())
    assert slow.reward == 1.0
    assert [other.reward for other in others] == [1.0] * 20


def test_a_scoring_that_is_cancelled_stops_its_checks() -> None:
    hanging = threading.Event()
    threads: list[threading.Thread] = []

    def spins(view: View) -> bool:
        threads.append(threading.current_thread())
        hanging.set()
        while True:
            pass

    async def scored() -> None:
        task = asyncio.create_task(ChecklistScorer(items(spins), check_timeout=60)(talk()))
        await asyncio.to_thread(hanging.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scored())
    threads[0].join()
    assert score_of(fine).value is True


def test_a_check_that_runs_out_of_time_again_and_again_rests() -> None:
    asked = []

    def spins(view: View) -> bool:
        asked.append(view)
        while True:
            pass

    scorer = ChecklistScorer(items(spins), check_timeout=SHORT)
    scorer.limits.rest_after = 2
    reasons = [by_item(scorer.score_sync(talk(str(number))))["it"].reason for number in range(4)]
    assert reasons == ["check timed out", "check timed out", "check disabled", "check disabled"]
    assert len(asked) == 2


def test_checks_run_from_any_thread_and_in_a_forked_child() -> None:
    found: list[Verdict] = []
    thread = threading.Thread(target=lambda: found.append(score_of(exits)))
    thread.start()
    thread.join()
    assert found[0].reason == "check failed"
    assert score_of(loops).reason == "check timed out"
    child = os.fork()
    if not child:
        os._exit(0 if score_of(exits).reason == "check failed" and score_of(fine).value else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_limit_is_a_positive_number_of_seconds(timeout: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        ChecklistScorer(items(fine), check_timeout=timeout)


# -- checks that change what they see


def changes_arguments(view: View) -> bool:
    view.all_calls[0].arguments["order_id"] = 8
    return True


def changes_a_result(view: View) -> bool:
    view.results()[0].clear()
    return True


def changes_attributes(view: View) -> bool:
    view.trace.attributes["cm2.task.id"] = "other"
    return True


def changes_a_runs_attributes(view: View) -> bool:
    view.trace.runs[0].attributes["x"] = "y"  # type: ignore[index]
    return True


def changes_a_frozen_message(view: View) -> bool:
    object.__setattr__(view.trace.steps[0].message, "parts", ())
    return True


def changes_a_frozen_call(view: View) -> bool:
    object.__setattr__(view.all_calls[0], "name", "other")
    return True


def changes_a_frozen_step(view: View) -> bool:
    object.__setattr__(view.steps[-1], "responses", ())
    return True


def changes_the_trace(view: View) -> bool:
    object.__setattr__(view.trace, "runs", ())
    return True


def changes_a_prompt(view: View) -> bool:
    object.__setattr__(view.trace.calls[0].input[0], "parts", ())
    return True


def changes_and_raises(view: View) -> bool:
    view.all_calls[0].arguments.clear()
    raise LookupError


CHANGING = [
    changes_arguments,
    changes_a_result,
    changes_attributes,
    changes_a_runs_attributes,
    changes_a_frozen_message,
    changes_a_frozen_call,
    changes_a_frozen_step,
    changes_the_trace,
    changes_a_prompt,
    changes_and_raises,
]


@pytest.mark.parametrize("check", CHANGING)
def test_a_check_that_changes_its_view_changes_nothing_else(check: Callable[[View], Any]) -> None:
    one = talk()
    prompt = one.runs[0].messages[:1]
    one = Trace.of(replace(one.runs[0], calls=(ModelCall(span_id="s", input=prompt, message=1),)))
    before = one.to_json()
    got = score_of(check, one=one)
    assert (got.value, got.reason, got.cause) == (None, "check changed its view", "content")
    assert one.to_json() == before
    assert Trace.from_json(before).turns == one.turns
    assert score_of(fine, one=one).value is True


def test_a_check_may_copy_what_it_sees_and_change_the_copy() -> None:
    def works_on_copies(view: View) -> bool:
        twin = copy.deepcopy(view.trace)
        twin.attributes["x"] = 1
        arguments = dict(view.all_calls[0].arguments)
        arguments.clear()
        changed = replace(view.trace, runs=())
        return not changed.turns and changed.id == view.trace.id and len(twin.turns) == len(view.turns)

    assert score_of(works_on_copies).value is True
