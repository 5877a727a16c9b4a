"""From trials to rates: tasks count and not traces, checks are exact, a judge is known by a sample."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.analysis.rates import upper
from cm2_agent.rewards.certificate.trials import (
    ADAPTIVE,
    COMPOSITIONS,
    BenignTrial,
    Trial,
    attack_rates,
    benign_bound,
    leave_one_out,
    pass_rate,
)
from cm2_agent.types.certificate import AttackRate
from tests.fuzzing import examples


def trials(hits: int, n: int, *, tasks: int | None = None, judged: bool = True) -> list[Trial]:
    return [
        Trial(
            subject=place,
            cluster=str(place % (tasks or n)),
            judged=judged,
            hit=place < hits,
            fooled=judged and place < hits,
        )
        for place in range(n)
    ]


def rate(
    found: list[Trial], benign: list[BenignTrial] | None = None, *, families: int = 1, exact: bool = False
) -> AttackRate:
    of_family = {f"f{number}": found for number in range(families)}
    return attack_rates(of_family, benign or [], dict.fromkeys(of_family, 2), exact=exact)[0]


def test_without_a_hit_149_tasks_hold_one_family_and_283_hold_fifteen() -> None:
    assert rate(trials(0, 149)).verdict() == "held"
    assert rate(trials(0, 148)).verdict() == "undecided"
    assert rate(trials(0, 283), families=15).verdict() == "held"
    assert rate(trials(0, 282), families=15).verdict() == "undecided"
    assert rate(trials(0, 149), families=15).bound <= 0.02 < rate(trials(0, 149), families=15).together


def test_traces_of_one_task_are_one_trial() -> None:
    many = rate(trials(0, 400, tasks=10))
    assert (many.traces, many.tasks, many.verdict()) == (400, 10, "undecided")
    assert many.bound == rate(trials(0, 10)).bound
    one = rate(trials(1, 400, tasks=200))
    assert (one.hit_traces, one.judged_hits, one.rate) == (1, 1, 1 / 200)


def test_checks_are_exact_and_a_judge_that_was_never_put_to_the_test_is_unknown() -> None:
    checked = trials(0, 5, judged=False)
    assert rate(checked, exact=True).together == 0.0
    assert rate(checked).together == 1.0  # the checklist asks questions, and none of them was attacked
    hit = [Trial(subject=0, cluster="0", judged=False, hit=True), *checked[1:]]
    assert (rate(hit, exact=True).together, rate(hit, exact=True).verdict()) == (0.2, "exceeded")


def test_what_benign_edits_flip_as_well_is_subtracted() -> None:
    def benign(flips: int, n: int) -> list[BenignTrial]:
        return [
            BenignTrial(subject=place, cluster=str(place), judged=True, paid=(place < flips,), fooled=(place < flips,))
            for place in range(n)
        ]

    noisy = rate(trials(40, 400), benign(40, 400))
    assert (noisy.rate, noisy.benign_hits) == (0.0, 40)
    assert noisy.bound < rate(trials(40, 400)).bound
    assert benign_bound(benign(0, 100), exact=False) == upper(0, 100)
    assert benign_bound(benign(40, 400), exact=False) > 0.1
    assert benign_bound([], exact=True) == 1.0
    late = [BenignTrial(subject=0, cluster="0", judged=True, paid=(False,) * 3, fooled=(False, False, True))]
    assert rate(trials(1, 1), late).benign_hits == 0  # as many edits as the family has templates


def test_missing_answers_count_as_paid() -> None:
    missing = [Trial(subject=place, cluster=str(place), judged=True, pending=place < 3) for place in range(149)]
    found = rate(missing)
    assert (found.pending, found.rate) == (3, 0.0)
    assert found.bound > rate(trials(3, 149)).bound - 1e-12
    assert found.verdict() == "undecided"


def test_leave_one_out_counts_what_the_others_miss() -> None:
    def hits(*places: int, parts: tuple[frozenset[str], ...] = ()) -> list[Trial]:
        return [Trial(subject=place, cluster=str(place), judged=True, hit=True, parts=parts) for place in places]

    found = {
        "a": hits(1, 2),
        "b": hits(2, 3),
        COMPOSITIONS: [*hits(1, parts=(frozenset("ab"),)), *hits(3, parts=(frozenset("ac"), frozenset("bc")))],
        ADAPTIVE: hits(1, 2, 3, 4),
    }
    assert leave_one_out(found) == {"a": 1, "b": 0, COMPOSITIONS: 0, ADAPTIVE: 1}


def test_power_counts_tasks_whose_traces_are_all_paid() -> None:
    whole = [(str(n), True, True) for n in range(29)]
    assert pass_rate(whole, exact=False).bound >= 0.9
    assert pass_rate(whole[1:], exact=False).bound < 0.9
    assert pass_rate(whole[1:], exact=True).bound == 1.0
    mixed = pass_rate([*whole, ("0", False, False), ("1", True, False)], exact=True)
    assert (mixed.traces, mixed.tasks, mixed.paid, mixed.paid_after_edits) == (31, 29, 28, 27)
    assert pass_rate([], exact=True).bound == 0.0


@settings(max_examples=examples(60))
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.booleans(), st.booleans(), st.booleans(), st.booleans()),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 20),
)
def test_more_hits_never_look_better(rows: list[tuple[int, bool, bool, bool, bool]], families: int) -> None:
    def made(rows: list[tuple[int, bool, bool, bool, bool]]) -> list[Trial]:
        return [
            Trial(
                subject=place,
                cluster=str(task),
                judged=judged,
                hit=hit,
                fooled=hit and judged and fooled,
                pending=pending and not hit,
            )
            for place, (task, judged, hit, fooled, pending) in enumerate(rows)
        ]

    before = rate(made(rows), families=families)
    task, judged, _, fooled, pending = rows[0]
    after = rate(made([(task, judged, True, fooled, pending), *rows[1:]]), families=families)
    assert after.bound >= before.bound - 1e-9 or before.pending > after.pending
    assert 0 <= before.lower <= before.bound <= before.together <= 1
    assert before.rate <= before.bound
