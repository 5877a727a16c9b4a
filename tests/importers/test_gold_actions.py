"""The checklist out of gold actions: it agrees with the official check, and for the same reasons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cm2_agent.analysis.ranking import auc
from cm2_agent.importers import OFFICIAL, Imported, read_recordings
from cm2_agent.importers.gold_actions import WRITES, GoldAction, compile_gold
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.score import Score
from tests.importers.recordings import STOP, call, cancelling, changing, denying, dialogues, record, saved, say, write

CANCEL_1, CANCEL_2 = (
    write("cancel_reservation", reservation_id="AAAA11"),
    write("cancel_reservation", reservation_id="BBBB22"),
)
CHANGE_1 = write("update_reservation_flights", reservation_id="AAAA11", cabin="economy", flights=[], payment_id="p")


def scored(folder: Path, *records: dict[str, Any]) -> list[Score]:
    found = [
        one
        for one in read_recordings("tau-bench", saved(folder, list(records)), checklists=True)
        if isinstance(one, Imported)
    ]
    assert len(found) == len(records)
    return [ChecklistScorer().score_sync(one.trace, one.task) for one in found]


def dialogue(
    actions: list[dict[str, Any]], *done: list[dict[str, Any]], outputs: tuple[str, ...] = (), reply: str = "Done."
) -> dict[str, Any]:
    turns = [
        say("user", "Go."),
        *(message for pair in done for message in pair),
        say("assistant", reply),
        say("user", STOP),
    ]
    return record(9, 0, 0.0, actions, list(outputs), turns)


def made(action: dict[str, Any], answer: Any = "{}", **changed: Any) -> list[dict[str, Any]]:
    return call(action["name"], {**action["kwargs"], **changed}, answer)


def test_the_reward_is_whole_exactly_when_all_is_right(tmp_path: Path) -> None:
    right = [cancelling(0, extra=False), denying(0, gives_in=False), changing(0, tells=True)]
    wrong = [cancelling(1, extra=True), denying(1, gives_in=True), changing(1, tells=False)]
    assert [score.reward for score in scored(tmp_path, *right)] == [1.0, 1.0, 1.0]
    assert [score.reward for score in scored(tmp_path, *wrong)] == pytest.approx([0.5, 0.0, 0.75])


def test_it_orders_dialogues_as_the_official_check_does(tmp_path: Path) -> None:
    """Area under the curve at least 0.95, on the real dialogues where they are at hand."""
    found = [
        one for one in read_recordings("tau-bench", dialogues(tmp_path), checklists=True) if isinstance(one, Imported)
    ]
    rewards = [ChecklistScorer().score_sync(one.trace, one.task).reward for one in found]
    assert None not in rewards
    area = auc([float(reward or 0) for reward in rewards], [float(one.trace.outcomes[OFFICIAL] or 0) for one in found])
    assert area is not None
    assert area >= 0.95


def test_doing_nothing_earns_nothing_where_something_was_due(tmp_path: Path) -> None:
    assert [score.reward for score in scored(tmp_path, dialogue([CANCEL_1, CANCEL_2]))] == [0.0]


@pytest.mark.parametrize(
    ("done", "reward"),
    [
        ([made(CANCEL_1), made(CANCEL_2)], 1.0),
        ([made(CANCEL_2), made(CANCEL_1)], 1.0),  # two reservations: the order leaves no mark
        ([made(CANCEL_1)], 0.25),
        ([made(CANCEL_1), made(CANCEL_2, "Error: reservation not found")], 0.25),
        (
            [made(CANCEL_2, "Error: reservation not found"), made(CANCEL_1), made(CANCEL_2)],
            1.0,
        ),  # a failed call is no write
        ([made(CANCEL_1), made(CANCEL_2), made(CANCEL_2, reservation_id="CCCC33")], 0.5),
        ([made(CANCEL_1), made(CANCEL_2), made(CANCEL_2)], 0.5),  # each expected write once
        ([made(CANCEL_1), call("cancel_reservation", "not json", "{}"), made(CANCEL_2)], 0.5),
    ],
)
def test_writes_are_counted_by_what_they_left(tmp_path: Path, done: list[list[dict[str, Any]]], reward: float) -> None:
    assert [score.reward for score in scored(tmp_path, dialogue([CANCEL_1, CANCEL_2], *done))] == pytest.approx(
        [reward]
    )


def test_writes_to_one_reservation_keep_their_order(tmp_path: Path) -> None:
    right, wrong = scored(
        tmp_path,
        dialogue([CHANGE_1, CANCEL_1], made(CHANGE_1), made(CANCEL_1)),
        dialogue([CHANGE_1, CANCEL_1], made(CANCEL_1), made(CHANGE_1)),
    )
    assert right.reward == 1.0
    assert wrong.reward is not None
    assert wrong.reward < 1.0


def test_equal_arguments_are_structurally_equal(tmp_path: Path) -> None:
    book = write("book_reservation", user_id="u", passengers=[{"first_name": "A", "dob": "1"}], amount=5)
    same = {"amount": 5.0, "passengers": [{"dob": "1", "first_name": "A"}], "user_id": "u"}
    other = {**same, "passengers": [{"dob": "2", "first_name": "A"}]}
    rewards = [
        score.reward
        for score in scored(tmp_path, *(dialogue([book], call("book_reservation", one, "{}")) for one in (same, other)))
    ]
    assert rewards == [1.0, 0.0]


def test_a_free_bag_names_any_payment(tmp_path: Path) -> None:
    """Bags that cost nothing leave no payment in the desk's database."""
    free = write(
        "update_reservation_baggages", reservation_id="AAAA11", total_baggages=2, nonfree_baggages=0, payment_id="p"
    )
    paid = write(
        "update_reservation_baggages", reservation_id="AAAA11", total_baggages=2, nonfree_baggages=1, payment_id="p"
    )
    rewards = [
        score.reward
        for score in scored(tmp_path, *(dialogue([one], made(one, payment_id="q")) for one in (free, paid)))
    ]
    assert rewards == [1.0, 0.0]


@pytest.mark.parametrize(
    ("reply", "tells"),
    [
        ("It is $23,553 in all.", True),
        ("It is 23553.", True),
        ("It is 23,554.", False),
        ("That is X1, for you.", False),
    ],
)
def test_outputs_are_found_without_commas(tmp_path: Path, reply: str, tells: bool) -> None:
    (score,) = scored(tmp_path, dialogue([], outputs=("23553",), reply=reply))
    assert {verdict.item: verdict.value for verdict in score.verdicts}["tells_1"] is tells


def test_words_beside_a_call_were_never_told(tmp_path: Path) -> None:
    """A text in the same message as a tool call does not reach the user of that benchmark."""
    beside = call("get_user_details", {"user_id": "u"}, "{}")
    beside[0]["content"] = "It is 23553."
    (score,) = scored(tmp_path, dialogue([], beside, outputs=("23553",)))
    assert score.reward == 0.5


def test_a_cut_dialogue_is_not_whole(tmp_path: Path) -> None:
    one = cancelling(0, extra=False)
    (score,) = scored(tmp_path, {**one, "traj": one["traj"][:-1]})
    assert score.reward == 0.5


def test_a_write_asked_for_twice_may_be_made_twice(tmp_path: Path) -> None:
    gift = write("send_certificate", user_id="u", amount=50)
    twice, thrice = scored(
        tmp_path, *(dialogue([gift, gift], *[made(gift, "Certificate 1 added")] * times) for times in (2, 3))
    )
    assert twice.reward == 1.0
    assert thrice.reward == 0.5


def test_the_checklist_is_a_sound_one() -> None:
    actions = [GoldAction(name=one["name"], kwargs=one["kwargs"]) for one in (CHANGE_1, CANCEL_1, CANCEL_2)]
    model = compile_gold(actions, ["a+b", "1,000"], name="t", writes=WRITES["airline"])
    checklist = Checklist.from_json(model.model_dump(mode="json"))
    assert {item.turn for item in checklist} == {"trace"}
    assert checklist.by_id["no_other_write"].weight == 5
    assert checklist.by_id["write_2_cancel_reservation"].depends_on == ("write_1_update_reservation_flights",)
    assert checklist.by_id["write_3_cancel_reservation"].depends_on == ()
