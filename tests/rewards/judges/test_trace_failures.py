"""TraceFailures: a failure is the trace's only where chance is excluded and the judge was seen to answer between."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.rewards.judges.trace_failures import ATTEMPTS, CHANCE, TraceFailures, upper_bound
from tests.fuzzing import examples

BAD = "bad"


def attempted(*attempts: tuple[str, bool]) -> TraceFailures:
    """The attempts one after another, each as (trace, whether it failed)."""
    failures = TraceFailures()
    for trace, failed in attempts:
        failures.end(trace, {"item"} if failed else (), began=failures.begin())
    return failures


def others(number: int, failing: int = 0) -> list[tuple[str, bool]]:
    return [(f"t{place}", place < failing) for place in range(number)]


def spread(*rest: tuple[str, bool], attempts: int = ATTEMPTS) -> list[tuple[str, bool]]:
    """The other attempts, with failed ones at BAD spread among them, and one other at the end."""
    share = max(1, len(rest) // attempts)
    out: list[tuple[str, bool]] = []
    for number in range(attempts):
        until = None if number == attempts - 1 else (number + 1) * share
        out += [(BAD, True), *rest[number * share : until]]
    return out


def test_the_bound_is_exact() -> None:
    for failures, attempts in ((0, 1), (0, 29), (1, 40), (5, 30), (29, 30), (8, 200)):
        bound = upper_bound(failures, attempts)
        drawn = random.Random(7)
        seen = [sum(drawn.random() < bound for _ in range(attempts)) <= failures for _ in range(4000)]
        assert sum(seen) / len(seen) == pytest.approx(0.05, abs=0.015)
    assert upper_bound(0, 0) == upper_bound(3, 3) == 1.0
    assert upper_bound(0, 149) == pytest.approx(0.0199, abs=1e-4)


def test_it_takes_as_many_other_traces_as_exclude_chance() -> None:
    least = next(number for number in range(1, 100) if upper_bound(0, number) ** ATTEMPTS < CHANCE)
    assert least == 29
    assert attempted(*spread(*others(least))).blamed(BAD)
    assert not attempted(*spread(*others(least - 1))).blamed(BAD)
    assert not attempted(*spread(*others(1))).blamed(BAD)
    assert not attempted(*[(BAD, True)] * 9).blamed(BAD)


def test_the_reason_has_the_counts() -> None:
    found = attempted(*spread(*others(60, failing=1))).blamed(BAD)
    assert str(found["item"]) == (
        "the judge failed in all 3 attempts, and in 1 of 60 at other traces meanwhile (at most 0.077 with 95 %)"
    )


def test_a_judge_that_fails_on_others_too_excuses_the_trace() -> None:
    assert attempted(*spread(*others(100, failing=4))).blamed(BAD)
    assert not attempted(*spread(*others(100, failing=8))).blamed(BAD)


def test_an_attempt_that_no_other_follows_tells_nothing() -> None:
    """The judge may have been away for all three."""
    many = others(200)
    assert not attempted(*many, *[(BAD, True)] * 3).blamed(BAD)
    assert not attempted(*many, *[(BAD, True)] * 3, ("t0", False)).blamed(BAD)
    assert not attempted(*many, (BAD, True), ("t0", False), (BAD, True), ("t0", False), (BAD, True)).blamed(BAD)
    assert attempted(*many, *[(BAD, True), ("t0", False)] * 3).blamed(BAD)
    assert not attempted(*many, *[(BAD, True), ("t0", True)] * 3).blamed(BAD), "who fails is no proof of an answer"


def test_one_answer_is_enough_to_be_innocent() -> None:
    tried = [*others(100), (BAD, True), ("t0", False), (BAD, False), ("t0", False), (BAD, True), ("t0", False)]
    assert not attempted(*tried).blamed(BAD)
    assert attempted(*tried).failing(BAD) == frozenset()


def test_only_what_failed_every_time_is_the_traces() -> None:
    failures = attempted(*others(100))
    for failed in ({"a", "b"}, {"b", "c"}, {"b"}):
        failures.end(BAD, failed, began=failures.begin())
        failures.end("t0", began=failures.begin())
    assert set(failures.blamed(BAD)) == {"b"}


def test_several_attempts_at_a_trace_that_breaks_the_judge_count_it_once() -> None:
    worse = [*others(99), ("worse", True), ("t0", False)]
    failures = attempted(*worse, *[(BAD, True), ("worse", True), ("t0", False)] * 3)
    assert failures.others(BAD) == (1, 100)
    assert failures.blamed(BAD)
    assert failures.blamed("worse")


@settings(max_examples=examples(200))
@given(st.lists(st.tuples(st.sampled_from([BAD, *"abcdef"]), st.booleans()), max_size=60), st.data())
def test_the_rule_holds_of_any_sequence_and_a_failure_elsewhere_never_adds_blame(
    attempts: Sequence[tuple[str, bool]], data: st.DataObject
) -> None:
    tried = [*others(40), *attempts]
    failures = attempted(*tried)
    if failures.blamed(BAD):
        own = [place for place, (trace, _) in enumerate(tried) if trace == BAD]
        assert len(own) >= ATTEMPTS
        assert all(tried[place][1] for place in own)
        for start, end in zip(own, [*own[1:], len(tried)], strict=True):
            assert any(not failed for _, failed in tried[start + 1 : end])
        assert upper_bound(*failures.others(BAD)) ** ATTEMPTS < CHANCE
    else:
        places = [place for place, (trace, failed) in enumerate(tried) if trace != BAD and not failed]
        place = data.draw(st.sampled_from(places))
        worse = [*tried[:place], (tried[place][0], True), *tried[place + 1 :]]
        assert not attempted(*worse).blamed(BAD)


def test_chance_is_hardly_ever_taken_for_the_traces_doing() -> None:
    """A judge that fails at random, on all alike: at each rate, the share of traces that are blamed is below 0.001."""
    drawn, blamed, traces = random.Random(11), 0, 0
    for rate in (0.02, 0.05, 0.1, 0.3):
        for _ in range(20):
            failures = attempted(*[(f"t{place}", drawn.random() < rate) for place in range(100)])
            held = [f"t{place}" for place in range(100) if failures.failing(f"t{place}")]
            for _ in range(ATTEMPTS - 1):
                failures.end("probe", began=failures.begin())
                for name in held:
                    failures.end(name, {"item"} if drawn.random() < rate else (), began=failures.begin())
            failures.end("probe", began=failures.begin())
            blamed += sum(bool(failures.blamed(name)) for name in held)
            traces += 100
    assert blamed / traces < CHANCE
