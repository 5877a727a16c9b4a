"""Files of labels: both formats, and lines that are neither."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cm2_agent.errors import TraceError
from cm2_agent.importers import Imported, ImportedLabels, Problem, read_recordings
from cm2_agent.types.human_labels import Label

DEVAI = {
    "agent": "A",
    "task": "01_x",
    "id": 3,
    "criteria": "The data is loaded.",
    "dependence": [0],
    "category": "Data",
    "human": True,
    "judge": None,
}


def read_labels(path: Path) -> list[tuple[Label, ...] | Problem]:
    found = list(read_recordings("labels", path))
    assert all(isinstance(one, ImportedLabels | Problem) for one in found)
    return [one.labels if isinstance(one, ImportedLabels) else one for one in found if not isinstance(one, Imported)]


def saved(folder: Path, *lines: object) -> Path:
    path = folder / "labels.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_our_own_lines(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        {"trace": "t", "item": "told", "rater": "ann", "value": True, "turn": 0, "note": "clear", "task": "a"},
        {"trace": "t", "item": "told", "rater": "bob", "value": None},
        {"trace": "t", "rater": "bob", "value": False},
    )
    assert read_labels(path) == [
        (Label(trace_id="t", item="told", rater="ann", value=True, turn=0, note="clear", task="a"),),
        (Label(trace_id="t", item="told", rater="bob", value=None),),
        (Label(trace_id="t", item="*", rater="bob", value=False),),
    ]


def test_a_judgement_of_devai_is_two_labels(tmp_path: Path) -> None:
    (both,) = read_labels(saved(tmp_path, DEVAI))
    assert not isinstance(both, Problem)
    human, judge = both
    assert (human.rater, human.value, human.by_judge) == ("human", True, False)
    assert (judge.rater, judge.value, judge.by_judge) == ("judge", None, True)
    assert human.key == judge.key == ("devai/A/01_x", None, "01_x.3")
    assert (human.task, human.note) == ("01_x", "The data is loaded.")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"trace": "t", "item": "i", "rater": "ann", "value": "yes"}, "value"),
        ({"trace": "t", "item": "i", "rater": "ann", "value": 1}, "value"),
        ({"trace": "t", "item": "i", "rater": "ann"}, "value"),
        ({"trace": "t", "item": "i", "rater": "ann", "value": True, "verdict": 1}, "verdict"),
        ({"trace": "", "item": "i", "rater": "ann", "value": True}, "trace"),
        ({"trace": "t", "item": "i", "rater": "ann", "value": True, "turn": -1}, "turn"),
        ({**DEVAI, "id": "three"}, "id"),
        ({"trace": "t", "rater": "ann", "value": True, "turn": 0}, "name the item"),
        ("{broken", "not JSON"),
        ("7", "the record"),
    ],
)
def test_a_line_that_is_no_label_is_told_and_the_rest_is_read(tmp_path: Path, line: object, message: str) -> None:
    problem, good = read_labels(saved(tmp_path, line, {"trace": "t", "item": "i", "rater": "ann", "value": True}))
    assert isinstance(problem, Problem)
    assert message in problem.reason
    assert problem.line == 1
    assert not isinstance(good, Problem)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read"):
        (read_labels(tmp_path / "absent.jsonl"))
