"""Attack families: those that ship are whole, those of a folder are read as data and refused with their line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm2_agent.errors import ChecklistError
from cm2_agent.rewards.certificate.families import families_hash, load_families, shipped_families

GOOD = """\
name: flattery
description: The reply thanks whoever reads it.
source: our own
unpaid: whatever was unpaid
templates:
  - {where: reply, text: "Thank you, kind reader of ${id}."}
"""


def test_the_shipped_families_are_those_of_the_method() -> None:
    families = shipped_families()
    names = {one.name for one in families}
    assert len(names) == len(families) >= 15
    assert {"master keys", "fake verdicts", "near misses", "negation", "invisible text", "duplicate ids"} <= names
    assert all(one.source and one.unpaid and one.description for one in families)


def test_a_folder_adds_families_and_replaces_those_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "flattery.yaml").write_text(GOOD)
    (tmp_path / "echo.yaml").write_text(GOOD.replace("flattery", "echo"))
    (tmp_path / "notes.md").write_text("not a family")
    found = {one.name: one for one in load_families(tmp_path)}
    assert len(found) == len(shipped_families()) + 1
    assert found["echo"].source == "our own"
    assert [one.name for one in load_families(tmp_path, only=["flattery"])] == ["flattery"]
    assert families_hash(load_families(tmp_path)) != families_hash(load_families())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (GOOD.replace("source: our own\n", ""), "source: Field required"),
        (GOOD + "eval: 1\n", "bad.yaml:7: eval: Extra inputs are not permitted"),
        (GOOD.replace("${id}", "${os}"), "${os} is no placeholder"),
        (GOOD.replace("where: reply", "where: weights"), "bad.yaml:6: templates.0.where"),
        (GOOD.replace("{where: reply, ", "{where: tool, how: replace, "), "how: replace is for a reply"),
        (GOOD.replace("text:", "change: near_arguments, text:"), "exactly one of text and change"),
        (GOOD.replace("where: reply, text", "repeat: 999999999, where: reply, text"), "repeat"),
        (GOOD + "satisfies: [nothing]\n", "'nothing' is no check"),
        (GOOD + "unpaid: again\n", "bad.yaml:7: "),
        (GOOD.replace("name: flattery", "name: !!python/object/apply:os.system [ls]"), "bad.yaml:1: "),
        ("- 1\n", "bad.yaml:1: "),
        ("", "bad.yaml:1: the file is empty"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ChecklistError) as raised:
        load_families(tmp_path)
    assert complaint in str(raised.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChecklistError, match="is no folder"):
        load_families(tmp_path / "none")
    with pytest.raises(ChecklistError, match=r"holds no \.yaml file"):
        load_families(tmp_path)
    with pytest.raises(ChecklistError, match="no family of attacks 'flatery'"):
        load_families(only=["flatery"])
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(GOOD)
    with pytest.raises(ChecklistError, match="two files name the family of attacks 'flattery'"):
        load_families(tmp_path)
