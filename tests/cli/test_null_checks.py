"""What `cm2 train` says and refuses of NULLs, and what a report shows of them by policy."""

from __future__ import annotations

from typing import Any

import pytest

from cm2_agent import SQLStore
from cm2_agent.analysis.report import report
from cm2_agent.cli.null_checks import check_null_items, check_null_rise, null_lines, null_rates, report_groups
from cm2_agent.errors import TrainError
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.human_labels import Label
from cm2_agent.types.messages import Message
from cm2_agent.types.null_rates import NullTally
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.run_attributes import CUT, TASK_ID
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.trace import Trace
from tests.analysis.scored_pairs import ScoredPairs


def rollout(number: int, policy: str, null: str | None = None, **more: Any) -> Rollout:
    """A dialogue of two items, the second NULL for that cause where one is given."""
    name = f"{policy}-{number}"
    run = Run(
        id=name,
        messages=(Message.of("user", "Where is it?"), Message.of("assistant", "There.")),
        calls=(ModelCall(span_id=name, message=1, model_version=policy),),
        attributes={TASK_ID: f"t{number % 20}", **more},
        started=1 + number + (0 if policy == "first" else 10_000),
    )
    known = Verdict(item="replies", value=True, paid=True, step=1, weight=0.5)
    value: Any = {"value": None, "cause": null} if null else {"value": True, "paid": True, "step": 1}
    turn = TurnScore(
        turn=0, reached=True, steps=1, reward=None, verdicts=(known, Verdict(item="kind", weight=0.5, **value))
    )
    score = Score(trace_id=name, reward_version="v1", reward=1.0, turns=(turn,))
    return Rollout(trace=Trace.of(run), score=score)


def group(policy: str, nulls: int, of: int = 40, cause: str = "content") -> Group:
    rollouts = [rollout(number, policy, cause if number < nulls else None) for number in range(of)]
    return Group(key={"task": "t", "policy": policy, "reward": "v1"}, rollouts=tuple(rollouts))


def test_the_shares_by_policy_in_the_order_in_which_they_began() -> None:
    found = null_rates([group("second", 10), group("first", 0), group("first", 4, cause="infrastructure")])
    assert [(one.policy, one.traces, one.pending, one.share) for one in found] == [
        ("first", 80, 4, 0.0),
        ("second", 40, 0, 0.125),
    ]
    assert [dict(one.causes) for one in found] == [{"infrastructure": 4}, {"content": 10}]
    cut = rollout(1, "first", **{CUT: "context"})
    assert dict(NullTally([(cut.trace, cut.score)]).policies[0].cuts) == {"context": 1}


@pytest.mark.parametrize(
    ("first", "second", "most", "refused"),
    [
        (0, 20, 0.05, True),
        (0, 20, 0.3, False),
        (20, 20, 0.05, False),
        (30, 10, 0.05, False),
        (0, 20, 1, False),
        (0, 3, 0.05, False),
    ],
)
def test_a_policy_that_keeps_more_from_being_judged_stops_the_loop(
    first: int, second: int, most: float, refused: bool
) -> None:
    found = null_rates([group("second", second), group("first", first)])
    if not refused:
        check_null_rise(found, most)
        return
    with pytest.raises(TrainError, match=r"policy second keeps 0\.250 .* the first policy \(first\) 0\.000: a rise of"):
        check_null_rise(found, most)
    check_null_rise(found, most, policy="first")


def test_a_rise_that_chance_explains_is_no_rise() -> None:
    """Two traces of one task: 0 and 1 NULL of 2 say nothing."""
    check_null_rise(null_rates([group("first", 0, of=4), group("second", 1, of=4)]), 0.05)


def test_what_is_said_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    report_groups([group("first", 4), group("first", 1, cause="infrastructure")])
    said = capsys.readouterr().err
    assert "1 of 2 groups are left out: a rollout of theirs is pending" in said
    assert "mean reward 0.950 with NULLs unpaid; at most 0.050 is missing by that" in said
    assert "policy first: 0.025" in said
    assert "1 of 80 traces pending; content 4, infrastructure 1" in said


def test_what_is_wholly_known_is_not_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    report_groups([group("first", 0), group("second", 0)])
    said = capsys.readouterr().err
    assert said.startswith("mean reward 1.000\n")
    assert "is missing" not in said
    assert "unknown" not in said


def test_a_report_has_them_too() -> None:
    pairs = [(one.trace, one.score) for one in group("first", 4).rollouts]
    found = report(ScoredPairs(pairs), lambda hash: None)
    (by_policy,) = found.to_json()["nulls_by_policy"]
    assert by_policy == {
        "policy": "first",
        "traces": 40,
        "pending": 0,
        "unknown_share": pytest.approx(0.05),
        "causes": {"content": 4},
        "cuts": {},
    }
    (line,) = null_lines(found.nulls_by_policy)
    assert line.startswith("policy first: 0.050  [0.0")


def stored(tmp_path: Any, rollouts: list[Rollout], outcome: Any = None) -> SQLStore:
    store = SQLStore(f"sqlite:///{tmp_path / 'cm2.db'}")
    for one in rollouts:
        store.save_trace(one.trace)
        store.save_score(one.score)
        if outcome is not None:
            store.save_outcome(one.trace.id, "official", outcome(one))
    return store


@pytest.mark.parametrize(
    ("of", "nulls", "refused"), [(120, 10, True), (120, 1, False), (99, 50, False), (150, 3, True)]
)
def test_an_item_that_is_null_on_right_dialogues_is_refused(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], of: int, nulls: int, refused: bool
) -> None:
    """3 of 150 has an upper bound of 0.0509, 1 of 120 of 0.039."""
    store = stored(tmp_path, list(group("first", nulls, of=of).rollouts), lambda one: 1.0)
    if refused:
        with pytest.raises(TrainError, match=rf"NULL too often on dialogues that are right: kind \({nulls} of {of}"):
            check_null_items(store, "v1")
        return
    check_null_items(store, "v1")
    assert ("not decided whether kind" in capsys.readouterr().err) == (of < 100)


def test_only_right_dialogues_and_the_policys_doing_count(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = stored(tmp_path, list(group("first", 60, of=160).rollouts), lambda one: float(one.score.lower == 1.0))
    check_null_items(wrong, "v1")
    away = group("second", 60, of=120, cause="infrastructure").rollouts
    (tmp_path / "away").mkdir()
    check_null_items(stored(tmp_path / "away", list(away), lambda one: 1.0), "v1")
    assert capsys.readouterr().err == ""


def test_people_may_say_what_is_right(tmp_path: Any) -> None:
    store = stored(tmp_path, list(group("first", 30, of=110).rollouts))
    check_null_items(store, "v1")
    store.save_labels(
        Label(trace_id=f"first-{number}", turn=0, item="kind", rater="ann", value=True) for number in range(110)
    )
    with pytest.raises(TrainError, match=r"kind \(30 of 110"):
        check_null_items(store, "v1")
