"""Advantages beside a NULL that the policy caused, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cm2_agent.trainers.advantage import advantages
from tests.trainers.turns import score, turn

LEVELS = ("trajectory", "turn", "step", "return_to_go", "evidence")
GOOD, BAD = score(turn(0, 2, 1, 2), id="good"), score(turn(0, 3, None, 2), id="bad")


def test_a_null_by_the_policys_doing_is_unpaid_at_every_level() -> None:
    group = [GOOD, BAD, score(turn(0, 2, "?", 1), id="null", null_reason="verdicts")]
    failed = [GOOD, BAD, score(turn(0, 2, None, 1), id="null")]
    for level in LEVELS:
        assert advantages(group, level=level).rollouts == advantages(failed, level=level).rollouts, level  # type: ignore[arg-type]


def test_breaking_the_judge_is_no_better_than_failing() -> None:
    """Where a NULL was left out of its item's mean: +0.17, +0.17, −0.33, 0.0."""
    group = [score(turn(0, 1, flip), id=str(at)) for at, flip in enumerate((1, 1, None, "?"))]
    assert [one.scalar for one in advantages(group).rollouts] == [0.5, 0.5, -0.5, -0.5]


def test_the_step_level_takes_the_least_that_a_null_allows() -> None:
    """C1 needs C0. A NULL of C0 may hide that it came in step 1, and then C1 could have been earned in step 2."""
    deps: Any = ((), (0,), ())
    ws = (0.25, 0.25, 0.5)
    full, broken = turn(0, 2, 1, 2, 2, weights=ws, deps=deps), turn(0, 2, "?", "?", 2, weights=ws, deps=deps)
    got = advantages([score(full), score(broken)], level="step").rollouts
    assert got[0].steps[0] == pytest.approx(((0.25 * 0.5 + 0) / 0.75, (0.25 * 0.5 + 0) / 0.75))
    assert got[1].steps[0] == pytest.approx(((0.5 * -0.5 + 0) / 1.0,) * 2)
    plain = turn(0, 2, None, None, 2, weights=ws, deps=deps)
    honest = advantages([score(full), score(plain)], level="step").rollouts[1]
    assert honest.steps[0] == pytest.approx(((0.25 * -0.5 + 0) / 0.75,) * 2), "C1 could not be earned"


def test_what_a_null_may_have_satisfied_earlier_is_credited_no_later_step() -> None:
    """C1 is any of C0 and another item, which paid it in step 3; had C0 not been NULL, it might have in step 1."""
    known = turn(0, 3, None, 3)
    late = replace(turn(0, 3, "?", 3).verdicts[1], reason="any_of")
    hidden = replace(known, verdicts=(turn(0, 3, "?", 3).verdicts[0], late))
    other = score(turn(0, 3, None, None))
    for level in ("step", "evidence"):
        honest = advantages([score(known), other], level=level).rollouts[0].steps[0]
        broken = advantages([score(hidden), other], level=level).rollouts[0].steps[0]
        assert broken[0] <= honest[0]
        assert broken[1:] == (0.0, 0.0), level
        assert honest[1] > 0
