"""The data of a training run and of a scored trace goes one way, with few returns to a file that it had left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.journeys import JOURNEYS, ROOT, journey

CROOKED: Mapping[str, str] = {
    "trainers/door.py": """
from cm2_agent.trainers.parts import Box, pack, weigh

class Door:
    def train(self, groups, other=None):
        box = pack(groups)
        count = len(groups)
        self.note(count)
        if weigh(box):
            box = box.without(self.light)
        self.run = Run(box)
        self.run_it()
        return other

    def light(self, one):
        return True

    def note(self, number):
        return number

    def run_it(self):
        return weigh(self.run.box)


class Run:
    def __init__(self, box):
        self.box = box
""",
    "trainers/parts.py": """
from __future__ import annotations

from . import scales


def pack(groups) -> Box:
    made = []
    for group in groups:
        made.append(group)
    return Box(made)


def weigh(box: Box) -> float:
    return scales.total(one for one in box.items)


class Box:
    def __init__(self, items):
        self.items = items

    def without(self, drop) -> Box:
        return Box([one for one in self.items if drop(one)])
""",
    "trainers/scales.py": """
def total(items) -> float:
    return sum(items)
""",
}
STRAIGHT: Mapping[str, str] = {
    **CROOKED,
    "trainers/door.py": """
from .parts import pack
from .scales import total


class Door:
    def train(self, groups, other=None):
        box = pack(groups)
        return total(box.items)
""",
}


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(("entry", "most"), JOURNEYS.items())
def test_the_data_returns_no_oftener_than_the_design_allows(entry: str, most: int) -> None:
    found = journey(ROOT, entry)
    assert found.files > 4, f"the value was lost on its way:\n{found}"
    assert found.returns <= most, str(found)


def test_a_crooked_way_is_counted(tmp_path: Path) -> None:
    found = journey(tree(tmp_path, CROOKED), "trainers/door.py:Door.train:groups")
    door, parts, scales = "trainers/door.py", "trainers/parts.py", "trainers/scales.py"
    assert found.stays == (door, parts, scales, parts, door, parts)  # weigh is entered again, not walked again
    assert (found.files, found.returns) == (3, 3)
    assert str(found).startswith("6 stays, 3 files, 3 returns\n   1. trainers/door.py\n")


def test_a_straight_way_has_no_returns(tmp_path: Path) -> None:
    found = journey(tree(tmp_path, STRAIGHT), "trainers/door.py:Door.train:groups")
    assert found.stays == ("trainers/door.py", "trainers/parts.py", "trainers/scales.py")
    assert found.returns == 0


def test_only_the_value_is_followed(tmp_path: Path) -> None:
    found = journey(tree(tmp_path, CROOKED), "trainers/door.py:Door.train:other")
    assert found.stays == ("trainers/door.py",)


@pytest.mark.parametrize(
    "entry", ["trainers/none.py:f:x", "trainers/door.py:Door.none:x", "trainers/door.py:Door.train:none"]
)
def test_an_entry_that_is_not_there_is_refused(tmp_path: Path, entry: str) -> None:
    with pytest.raises(ValueError, match=r"no file|has no parameter"):
        journey(tree(tmp_path, CROOKED), entry)
