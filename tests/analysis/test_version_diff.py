"""Flips between two reward versions: McNemar's exact test against scipy's binomial, and that every compared verdict is
counted once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from cm2_agent.analysis.version_diff import compare, mcnemar
from cm2_agent.types.score import Score, TurnScore, Verdict

VALUES = st.sampled_from([True, False, None])


def score(trace: str, reward: float | None, *turns: list[bool | None], reason: str | None = None) -> Score:
    made = tuple(
        TurnScore(
            turn=place,
            reached=True,
            steps=1,
            reward=None,
            verdicts=tuple(Verdict(item=f"i{at}", value=value, weight=1.0) for at, value in enumerate(values)),
        )
        for place, values in enumerate(turns)
    )
    return Score(trace_id=trace, reward_version="v", reward=reward, turns=made, null_reason=reason)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int) -> None:
    expected = binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
    assert abs(mcnemar(lost, gained) - expected) < 1e-9
    assert mcnemar(lost, gained) == mcnemar(gained, lost)


def test_mcnemar_of_many_flips_is_still_a_number() -> None:
    assert mcnemar(20_000, 20_000) == 1.0
    assert 0 <= mcnemar(3000, 5000) < 1e-100


@given(st.lists(st.tuples(VALUES, VALUES), max_size=30), st.integers(1, 5))
def test_every_verdict_is_counted_once(pairs: list[tuple[bool | None, bool | None]], items: int) -> None:
    rows = [pairs[at : at + items] for at in range(0, len(pairs), items)]
    old = [score(str(n), 0.5, [before for before, _ in row]) for n, row in enumerate(rows)]
    new = [score(str(n), 0.5, [after for _, after in row]) for n, row in enumerate(rows)]
    change = compare([*old, score("alone", 1.0, [True])], reversed([*new, score("other", 1.0, [True])]))
    assert change.traces == len(rows)
    assert change.overall.compared == len(pairs) == sum(one.compared for one in change.items)
    assert change.overall.changed == sum(before is not after for before, after in pairs)
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    assert change.overall.p == mcnemar(lost, gained)
    told = change.to_json()["overall"]
    assert sum(count for name, count in told.items() if ">" in name) == len(pairs)
    assert all(one.changed >= two.changed for one, two in zip(change.items, change.items[1:], strict=False))


def test_turns_and_items_that_one_version_lacks_are_left_out_and_rewards_told_apart() -> None:
    old = [
        score("a", 0.2, [True, True], [False]),
        score("b", 0.5, [True]),
        score("c", None, reason="verdicts"),
        score("d", 1.0, [True]),
    ]
    new = [
        score("a", 0.4, [True], [True, True]),
        score("b", None, [None], reason="censored"),
        score("c", 0.1),
        score("d", 1.0, [True]),
    ]
    change = compare(old, new, names=("v1", "v2"))
    assert (change.old, change.new, change.traces, change.overall.compared) == ("v1", "v2", 4, 4)
    assert (change.up, change.down, change.same) == (1, 0, 1)
    assert change.null == {("", "censored"): 1, ("verdicts", ""): 1}
    assert change.to_json()["rewards"]["null"] == {"a reward → censored": 1, "verdicts → a reward": 1}
    assert change.overall.counts == {(True, True): 2, (False, True): 1, (True, None): 1}


def test_verdicts_true_in_both_are_compared_by_the_step_from_which_they_hold() -> None:
    def held(*steps: int | None) -> Score:
        verdicts = tuple(
            Verdict(item=f"i{at}", value=step is not None, weight=1.0, step=step) for at, step in enumerate(steps)
        )
        turn = TurnScore(turn=0, reached=True, steps=3, reward=1.0, verdicts=verdicts)
        return Score(trace_id="t", reward_version="v", reward=1.0, turns=(turn,))

    change = compare([held(1, 2, 3, None)], [held(1, 3, None, None)])
    assert (change.both_true, change.same_step) == (2, 1)
    assert change.to_json()["same_step"] == 1
