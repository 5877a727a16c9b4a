"""The statistics of raters: textbook figures, laws, and what is undetermined."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.analysis.agreement import alpha, drift, kappa, reliability

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=25)


def table(neither: int, human_only: int, judge_only: int, both: int) -> tuple[list[bool], list[bool]]:
    """A judge's and people's answers with these counts."""
    rows = (
        [(False, False)] * neither + [(False, True)] * human_only + [(True, False)] * judge_only + [(True, True)] * both
    )
    return [row[0] for row in rows], [row[1] for row in rows]


def test_the_figures_of_a_worked_table() -> None:
    """50 proposals read by two people, 20 both yes, 5 and 10 split, 15 both no: κ = (0.7 − 0.5) / (1 − 0.5)."""
    judge, human = table(15, 5, 10, 20)
    found = reliability(judge, human, draws=200)
    assert found.n == 50
    assert found.kappa == pytest.approx(0.4)
    assert (found.agreement, found.tpr, found.tnr, found.prevalence, found.judged) == (0.7, 0.8, 0.6, 0.5, 0.6)
    for name, interval in found.ci.items():
        assert interval is not None
        assert interval[0] <= getattr(found, name) <= interval[1]


def test_nulls_are_counted_and_nothing_else() -> None:
    judge, human = table(3, 1, 1, 5)
    with_nulls = reliability([*judge, None, None], [*human, True, False], draws=0)
    assert with_nulls.nulls == 2
    assert replace(with_nulls, nulls=0) == reliability(judge, human, draws=0)


def test_what_the_data_does_not_determine_is_none() -> None:
    always = reliability([True, True], [True, True], draws=0)
    assert (always.agreement, always.kappa, always.tpr, always.tnr) == (1.0, None, 1.0, None)
    nothing = reliability([None], [True], draws=0)
    assert (nothing.n, nothing.agreement, nothing.kappa, nothing.ci["kappa"]) == (0, None, None, None)
    assert alpha([{"a": True}, {}]) == (None, None)
    assert alpha([{"a": True, "b": True}]) == (None, None)
    with pytest.raises(ValueError, match="as many of each"):
        kappa([True], [])


def test_intervals_resample_tasks_not_labels() -> None:
    """A task whose places were labelled ten times each tells no more than once."""
    judge, human = table(6, 2, 2, 6)
    once = reliability(judge, human, range(16), draws=500)
    often = reliability(judge * 10, human * 10, list(range(16)) * 10, draws=500)
    assert often.ci["kappa"] == pytest.approx(once.ci["kappa"])
    alone = reliability(judge * 10, human * 10, draws=500)
    assert alone.ci["kappa"] is not None
    assert once.ci["kappa"] is not None
    assert alone.ci["kappa"][1] - alone.ci["kappa"][0] < (once.ci["kappa"][1] - once.ci["kappa"][0]) / 2
    assert reliability(judge, human, [0] * 16, draws=500).ci["kappa"] is None


def test_alpha_with_missing_answers() -> None:
    """Krippendorff's own example of four observers and twelve units (2011, C): nominal α = 0.743."""
    observers = {
        "A": [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        "B": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        "C": [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        "D": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    }
    units = [{name: said[unit] for name, said in observers.items() if said[unit] is not None} for unit in range(12)]
    value, interval = alpha(units, draws=300)
    assert value == pytest.approx(0.743, abs=5e-4)
    assert interval is not None
    assert interval[0] < 0.743 < interval[1]


def plain_alpha(units: list[dict[str, bool]]) -> float | None:
    """From the definition: mean disagreement of pairs within units over that of all pairs, each unit weighed by its
    answers."""
    paired = [list(unit.values()) for unit in units if len(unit) > 1]
    every = [value for unit in paired for value in unit]
    if len(set(every)) < 2:
        return None
    seen = sum(2 * sum(a != b for a, b in combinations(unit, 2)) / (len(unit) - 1) for unit in paired) / len(every)
    expected = 2 * sum(a != b for a, b in combinations(every, 2)) / (len(every) * (len(every) - 1))
    return 1 - seen / expected


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), st.booleans()), max_size=12))
def test_alpha_is_its_definition(units: list[dict[str, bool]]) -> None:
    value, _ = alpha(units, draws=0)
    assert value == (None if plain_alpha(units) is None else pytest.approx(plain_alpha(units)))


@given(PAIRS)
def test_laws_of_kappa(pairs: list[tuple[bool, bool]]) -> None:
    left, right = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    value = kappa(left, right)
    assert value is None or -1 - 1e-9 <= value <= 1 + 1e-9
    swapped, negated = kappa(right, left), kappa([not one for one in left], [not one for one in right])
    assert swapped == (None if value is None else pytest.approx(value))
    assert negated == (None if value is None else pytest.approx(value))
    assert kappa(left, left) in (None, pytest.approx(1.0))


def test_drift_tells_which_way_a_judge_moved() -> None:
    human = [True] * 10 + [False] * 10
    old = [True] * 8 + [False] * 2 + [True] * 4 + [False] * 6
    new = [True] * 9 + [False] * 1 + [True] * 1 + [False] * 9
    found = drift([*old, None, True], [*new, True, False], [*human, True, None], [*range(20), 20, 21], draws=300)
    assert (found.n, found.labelled, found.to_true, found.to_false) == (21, 20, 1, 4)
    assert (found.kappa_old, found.kappa_new) == (kappa(old, human), kappa(new, human))
    assert found.change == pytest.approx(0.4)
    assert found.ci["change"] is not None
    assert found.ci["change"][0] < 0.4 < found.ci["change"][1]
    still = drift(old, old, human, draws=50)
    assert (still.to_true, still.to_false, still.change, still.kappa_between) == (0, 0, 0.0, 1.0)
    unlabelled = drift(old, new, draws=0)
    assert (unlabelled.labelled, unlabelled.kappa_old, unlabelled.change) == (0, None, None)
