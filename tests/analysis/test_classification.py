"""Predictions against outcomes: every table beside a count by hand, MCC beside Pearson's correlation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.analysis.classification import best_threshold, confusion, held_out, mcc_difference

ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans(), st.sampled_from("abcd")), min_size=1, max_size=20
)


def mcc(predicted: list[bool], success: list[bool]) -> float | None:
    """Pearson's correlation of two 0/1 columns."""
    if len(set(success)) < 2:
        return None
    return 0.0 if len(set(predicted)) < 2 else float(np.corrcoef(predicted, success)[0, 1])


@given(ROWS)
def test_tables_and_mcc_are_the_counts(rows: list[tuple[float, bool, str]]) -> None:
    predicted, success = [value >= 0.5 for value, _, _ in rows], [good for _, good, _ in rows]
    found = confusion(predicted, success, [name for *_, name in rows], draws=10)
    pairs = list(zip(predicted, success, strict=True))
    assert (found.tp, found.fp) == (pairs.count((True, True)), pairs.count((True, False)))
    assert (found.fn, found.tn) == (pairs.count((False, True)), pairs.count((False, False)))
    assert found.accuracy == pytest.approx(sum(one == other for one, other in pairs) / len(pairs))
    assert found.mcc == (None if len(set(success)) < 2 else pytest.approx(mcc(predicted, success), abs=1e-12))


@given(ROWS)
def test_no_other_threshold_has_a_higher_mcc(rows: list[tuple[float, bool, str]]) -> None:
    values, success = [value for value, _, _ in rows], [good for _, good, _ in rows]
    best = best_threshold(values, success)
    if len(set(success)) < 2:
        assert best is None
        return
    assert best is not None
    reached = {at: mcc([value >= at for value in values], success) for at in (*values, math.inf)}
    assert reached[best] == pytest.approx(max(one for one in reached.values() if one is not None), abs=1e-9)


@given(ROWS)
def test_a_task_is_predicted_without_looking_at_it(rows: list[tuple[float, bool, str]]) -> None:
    """The prediction for a task stays the same whatever its own outcomes are."""
    values, success, names = [list(column) for column in zip(*rows, strict=True)]
    found = held_out(values, success, names)
    if len(set(names)) < 2:
        assert found is None
        return
    assert found is not None
    for task in set(names):
        other = [good if name != task else not good for good, name in zip(success, names, strict=True)]
        again = held_out(values, other, names)
        assert again is not None
        own = [place for place, name in enumerate(names) if name == task]
        assert [found[place] for place in own] == [again[place] for place in own]


def test_a_difference_is_paired() -> None:
    """Where both are wrong about the same tasks the difference is sure, however unsure each of them is."""
    success = [True, False] * 20
    left = [bool(place % 3) for place in range(40)]
    tasks = [place // 2 for place in range(40)]
    assert mcc_difference(left, left, success, tasks) == (0.0, (0.0, 0.0))
    value, interval = mcc_difference(success, left, success, tasks)
    assert value == pytest.approx(1 - (mcc(left, success) or 0.0))
    assert value is not None
    assert interval is not None
    assert interval[0] < value < interval[1]


def test_what_is_undetermined_is_none() -> None:
    assert confusion([True, False], [True, True]).mcc is None
    assert confusion([], []).accuracy is None
    assert confusion([True, True], [True, False]).mcc == 0.0
    assert best_threshold([0.9, 0.1], [False, True]) == math.inf  # never to predict it beats what is upside down
    assert confusion([False], [True], threshold=math.inf).threshold is None
    with pytest.raises(ValueError, match="as many of each"):
        confusion([True], [True, False])
