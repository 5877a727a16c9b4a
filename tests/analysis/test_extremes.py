"""Figures over extreme numbers: whatever is finite goes in, a number or None comes out."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cm2_agent.analysis.agreement import alpha, drift, reliability
from cm2_agent.analysis.bootstrap import bootstrap, mean, mean_interval, ratio
from cm2_agent.analysis.ranking import agreement
from cm2_agent.analysis.report import report
from cm2_agent.analysis.report_html import page
from cm2_agent.analysis.version_diff import compare, mcnemar
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.run_attributes import TASK_ID
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.trace import Trace
from tests.analysis.scored_pairs import ScoredPairs

LARGEST = 1.7976931348623157e308
EXTREMES = (LARGEST, -LARGEST, 5e-324, -5e-324, 1e150, -1.8e307, 0.0, -0.0, 1.0)
FLOATS = st.sampled_from(EXTREMES) | st.floats(allow_nan=False, allow_infinity=False)
ROWS = st.lists(st.tuples(FLOATS, FLOATS, st.integers(0, 3)), min_size=1, max_size=8)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """An overflow that numpy only warns of is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def numbers(value: object) -> Iterator[float]:
    """Every number of a result, wherever it stands in it."""
    if isinstance(value, float | int):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from numbers(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from numbers(one)
    elif hasattr(value, "__dict__"):
        yield from numbers(vars(value))


def scored(rows: list[tuple[float, float, int]]) -> Iterator[tuple[Trace, Score]]:
    for number, (reward, usd, task) in enumerate(rows):
        usage = {"input_tokens": usd, "output_tokens": 1}
        run = Run(
            id=f"r{number}",
            messages=(Message.of("user", "Hi"), Message.of("assistant", "Ho")),
            calls=(ModelCall(span_id="s", usage=usage),),  # type: ignore[arg-type]
            attributes={TASK_ID: f"t{task}"},
        )
        verdict = Verdict(item="polite", value=False, weight=reward)
        turn = TurnScore(turn=0, steps=1, reached=True, reward=reward, verdicts=(verdict,))
        yield (
            Trace.of(run),
            Score(
                trace_id=run.id,
                reward_version="v",
                reward=reward,
                turns=(turn,),
                usage={"usd": usd, "calls": 1, "input_tokens": usd},
            ),
        )


@given(ROWS)
@example([(-LARGEST, LARGEST, 0), (LARGEST, LARGEST, 1), (-LARGEST, LARGEST, 2)])
@example([(-LARGEST, 1.0, 0)])
def test_a_report_of_any_rewards_is_json_and_a_page(rows: list[tuple[float, float, int]]) -> None:
    found = report(ScoredPairs(scored(rows)), lambda hash: None)
    json.dumps(found.to_json(), allow_nan=False)
    assert found.mean_reward is not None
    assert found.rewarded == len(rows)
    page(found)


@given(ROWS)
@example([(LARGEST, -LARGEST, 0), (-LARGEST, LARGEST, 0), (LARGEST, LARGEST, 1)])
def test_rankings_and_differences_of_any_rewards(rows: list[tuple[float, float, int]]) -> None:
    rewards, outcomes, groups = ([row[at] for row in rows] for at in (0, 1, 2))
    found = agreement([float(one) for one in rewards], [float(one) for one in outcomes], groups, draws=50)
    assert all(map(math.isfinite, numbers(found)))
    old = [score for _, score in scored(rows)]
    new = [score for _, score in scored([(b, a, task) for a, b, task in rows])]
    assert all(map(math.isfinite, numbers(compare(old, new).to_json())))


@given(ROWS)
@example([(LARGEST, 0.0, 0), (LARGEST, 0.0, 1), (LARGEST, 0.0, 1)])
@example([(LARGEST, 0.0, 0), (-LARGEST, 0.0, 1)])
def test_means_and_their_intervals(rows: list[tuple[float, float, int]]) -> None:
    values, clusters = [row[0] for row in rows], [row[2] for row in rows]
    for names in (None, clusters):
        middle, interval = mean_interval(values, names, draws=50)
        assert all(map(math.isfinite, (middle, *interval)))
        assert math.isfinite(mean(values))
        if len(set(values)) == 1:
            assert middle == pytest.approx(values[0], rel=1e-12)
    assert mean(values) == mean(values[::-1])


@given(st.lists(FLOATS, min_size=2, max_size=8))
@example([LARGEST, -LARGEST])
def test_the_bootstrap_of_any_figure(values: list[float]) -> None:
    def figure(weights: object) -> float:
        return values[int(weights[0])] if int(weights[0]) < len(values) else math.inf  # type: ignore[index]

    found = bootstrap(figure, len(values), draws=50)
    assert found is None or all(map(math.isfinite, found))


@given(FLOATS, FLOATS)
@example(LARGEST, 5e-324)
def test_a_ratio_is_a_number_or_none(part: float, whole: float) -> None:
    found = ratio(part, whole)
    assert found is None or math.isfinite(found)
    assert whole or found is None


@given(st.lists(st.tuples(st.sampled_from([True, False, None]), st.booleans(), st.integers(0, 2)), max_size=8))
def test_agreement_of_any_answers(rows: list[tuple[bool | None, bool, int]]) -> None:
    judge, human, clusters = ([row[at] for row in rows] for at in (0, 1, 2))
    truth = [bool(one) for one in human]
    assert all(map(math.isfinite, numbers(reliability(judge, truth, clusters, draws=50))))  # type: ignore[arg-type]
    assert all(map(math.isfinite, numbers(drift(judge, truth, truth, clusters, draws=50))))  # type: ignore[arg-type]
    units = [{"a": row[0], "b": row[1]} for row in rows]
    assert all(map(math.isfinite, numbers(alpha(units, clusters, draws=50))))


@given(st.integers(0, 10**9), st.integers(0, 10**9))
@example(0, 10**9)
def test_mcnemar_of_any_counts(lost: int, gained: int) -> None:
    assert 0.0 <= mcnemar(lost, gained) <= 1.0
