"""The three sets of a loop share no task, and a split of one file shares no entity either."""

from __future__ import annotations

import pytest

from cm2_agent import Task
from cm2_agent.errors import TaskError
from cm2_agent.loop.task_sets import TaskSets, split_tasks
from tests.loop.simulated import tasks


def test_a_task_of_two_sets_is_refused_by_id_and_by_content() -> None:
    for other in (Task(id="train-1", turns=("Anything else?",)), Task(id="another", turns=("train 1?",))):
        with pytest.raises(TaskError, match="judged by what it was trained on"):
            TaskSets(training=tasks("train", 3), promotion=tasks("p", 2), test=[other])
    with pytest.raises(TaskError, match="the promotion set lists a task twice"):
        TaskSets(training=tasks("train", 3), promotion=tasks("p", 2) * 2, test=tasks("t", 1))
    with pytest.raises(TaskError, match="the test set is empty"):
        TaskSets(training=tasks("train", 3), promotion=tasks("p", 2), test=[])


def test_rounds_go_through_the_training_tasks_and_begin_again() -> None:
    sets = TaskSets(training=tasks("train", 5), promotion=tasks("p", 7), test=tasks("t", 1))
    assert [[task.id[-1] for task in sets.round(number, 2)] for number in (1, 2, 3)] == [
        ["0", "1"],
        ["2", "3"],
        ["4", "0"],
    ]
    assert len(sets.round(4, None)) == len(sets.round(4, 99)) == 5
    shares = [sets.compared(number, 3, fresh=True) for number in (1, 2, 3)]
    assert sorted(task.id for share in shares for task in share) == sorted(task.id for task in sets.promotion)
    assert sets.compared(2, 3, fresh=False) == list(sets.promotion)


def test_a_split_shares_no_entity() -> None:
    given = [Task(id=f"t{n}", turns=(f"{n}?",), entities=(f"order:{n // 2}",)) for n in range(40)]
    sets = split_tasks(given, promotion=0.25, test=0.25, seed=3)
    assert [len(one) for one in sets.sets.values()] == [20, 10, 10]
    assert sets.shared_entities == []
    assert split_tasks(given, promotion=0.25, test=0.25, seed=3).hashes == sets.hashes
    assert split_tasks(given, promotion=0.25, test=0.25, seed=4).hashes != sets.hashes
    crossed = TaskSets(training=given[::2], promotion=given[1:20:2], test=given[21::2])
    assert crossed.shared_entities == sorted(f"order:{n}" for n in range(20))
    for promotion, test in ((0.0, 0.2), (0.6, 0.4)):
        with pytest.raises(TaskError, match="leave tasks to train on"):
            split_tasks(given, promotion=promotion, test=test)
