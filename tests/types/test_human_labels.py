"""How labels meet: the people's consensus, and the verdicts at the places that they judged."""

from __future__ import annotations

from cm2_agent.types.human_labels import Label, consensus, tasks_of, verdicts_at
from cm2_agent.types.score import Score, TurnScore, Verdict


def label(rater: str, value: bool | None, trace: str = "t", turn: int | None = 0, task: str | None = None) -> Label:
    return Label(trace_id=trace, item="told", rater=rater, value=value, turn=turn, task=task)


def test_most_people_decide_and_a_recorded_judge_has_no_vote() -> None:
    said = [label("ann", True), label("bob", True), label("cy", False), label("judge", False), label("judge:2", False)]
    assert consensus(said) == {("t", 0, "told"): True}
    assert consensus([label("ann", True), label("bob", False)]) == {}
    assert consensus([label("ann", None), label("judge", True)]) == {}
    assert consensus([label("ann", None), label("judgement day", False)]) == {("t", 0, "told"): False}


def test_a_label_without_a_turn_meets_the_items_only_verdict() -> None:
    def verdict(item: str, value: bool | None) -> Verdict:
        return Verdict(item=item, value=value, weight=1.0)

    turns = (
        TurnScore(turn=0, reached=True, steps=1, reward=1.0, verdicts=(verdict("told", True), verdict("once", None))),
        TurnScore(turn=1, reached=True, steps=1, reward=0.0, verdicts=(verdict("told", False),)),
        TurnScore(
            turn=2, reached=False, steps=0, reward=0.0, verdicts=(verdict("told", False), verdict("never", False))
        ),
        TurnScore(turn=None, reached=True, steps=2, reward=1.0, verdicts=(verdict("closing", True),)),
    )
    score = Score(trace_id="t", reward_version="v", reward=0.5, turns=turns)
    places = [
        ("t", 1, "told"),
        ("t", None, "told"),
        ("t", None, "once"),
        ("t", None, "closing"),
        ("t", 2, "told"),
        ("t", 2, "never"),
    ]
    found, unclear = verdicts_at([score], [*places, ("other", 0, "told")])
    assert found == {("t", 1, "told"): False, ("t", None, "once"): None, ("t", None, "closing"): True}
    assert unclear == 1


def test_intervals_resample_the_stored_task_else_the_labels_else_the_trace() -> None:
    said = [
        label("ann", True, "a", task="from label"),
        label("ann", True, "b", task="from label"),
        label("ann", True, "c"),
    ]
    assert tasks_of(said, {"a": "stored"}) == {"a": "task stored", "b": "task from label", "c": "trace c"}
