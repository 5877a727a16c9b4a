"""Tasks, demonstrations and checklist: held out by entity, and worth what method.md says."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import cm2_agent.quickstart
from cm2_agent.quickstart import demonstrations as demos
from cm2_agent.quickstart import order_desk as desks
from cm2_agent.quickstart.app import success
from cm2_agent.quickstart.checks import FUNCTIONS
from cm2_agent.quickstart.config import CONFIG
from cm2_agent.quickstart.tasks import KINDS, heldout_tasks, training_tasks
from cm2_agent.types.checklist_yaml import load_checklist

HERE = Path(cm2_agent.quickstart.__file__).parent


def heldout_words() -> Any:
    return {word for order in desks.orders("heldout") for word in (order.id, order.item)}


def test_a_quarter_of_the_heldout_tasks_has_two_turns_and_kinds_are_even() -> None:
    for tasks, count in ((heldout_tasks(0), 240), (training_tasks(0), 600)):
        assert len(tasks) == len({task.id for task in tasks}) == count
        assert Counter(task.metadata["kind"] for task in tasks) == dict.fromkeys(KINDS, count / 4)
        assert sum(len(task.turns) == 2 for task in tasks) == count / 4
        assert all(len(task.turns) == len(task.metadata["asks"]) for task in tasks)


def test_the_seed_decides_the_tasks() -> None:
    assert training_tasks(1) == training_tasks(1)
    assert training_tasks(1) != training_tasks(2)


def test_training_never_reads_what_is_held_out(monkeypatch: Any) -> None:
    real, opened = desks.orders, []

    def watched(book: Any) -> Any:
        opened.append(book)
        return real(book)

    words = heldout_words()
    monkeypatch.setattr(demos, "orders", watched)
    dialogues = demos.demonstrations(CONFIG.cold_start.demonstrations, 0.6, 0)
    assert set(opened) == {"training"}
    text = json.dumps(dialogues) + "".join(task.model_dump_json() for task in training_tasks(0))
    text += (HERE / "support.yaml").read_text() + (HERE / "checks.py").read_text()
    assert not [word for word in words if word in text]
    entities = {entity for task in heldout_tasks(0) for entity in task.entities}
    assert not entities & {entity for task in training_tasks(0) for entity in task.entities}


def test_the_checklist_is_valid_and_its_functions_are_found() -> None:
    checklist = load_checklist(HERE / "support.yaml", FUNCTIONS)
    assert [item.id for item in checklist.items] == [
        "looks_up",
        "does_what_was_asked",
        "cancels_unchecked",
        "tells_what_was_found",
    ]
    assert [item.id for item in checklist.items if item.required_for_next_turn] == ["looks_up"]


def test_demonstrations_are_mostly_sloppy_and_the_careful_ones_are_right() -> None:
    def share_right(sloppy: Any, seed: Any = 3, count: Any = 120) -> Any:
        right = 0
        rng = random.Random(seed)
        orders = desks.orders("training")
        for number in range(count):
            desk, order = desks.open_desk(), orders[number]
            clerk = demos.Clerk(desk, rng)
            ask = ("status", "stock", "cancel")[number % 3]
            clerk.hear("…")
            clerk.serve(ask, order.id, sloppy=sloppy)
            right += success(desk, {"order_id": order.id, "asks": [ask]}, [clerk.messages[-1]["content"]])
        return right / count

    assert share_right(False) == 1
    assert share_right(True) < 0.05
    looked_up = [
        '"get_order' in json.dumps(d[:3]) or "get_order" in json.dumps(d[2]) for d in demos.demonstrations(600, 0.6, 0)
    ]
    assert sum(looked_up) / 600 == pytest.approx(0.4, abs=0.07)
