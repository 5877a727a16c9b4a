"""The outside stands: what users rely on is as it was recorded, but for what is listed as added or renamed."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from tests.public_surface import Record, Snapshot, load, problems, snapshot, with_added

ROOT = Path(__file__).resolve().parent.parent
FIXED = (
    *("Message.from_json", "Message.text", "Trace.of", "Trace.turns", "Trace.messages", "Trace.calls", "Turn.user"),
    *("Run(id)", "Run(messages)", "Verdict.item", "Verdict.value"),
    *("SQLStore.score(trace_id)", "SQLStore.trace(trace_id)", "SQLStore.traces", "SQLStore.groups"),
    *("ChecklistScorer(checklist)", "ChecklistScorer(judge)", "ChecklistScorer.__call__(trace)", "agent", "TrainError"),
    *("LocalChatModel.load(path)", "LocalChatModel(max_tokens)", "LocalChatModel.model_version"),
    *("run(checklist)", "run(group)", "run(store)", "run(lockstep)", "run(allow_real)"),
    *("GRPO(model)", "GRPO(out)", "GRPO(steps)", "GRPO(learning_rate)", "GRPO(policy_version)"),
    *("cm2 import: imported", "cm2 score: scored", "cm2 eval: auc", "cm2 eval: auc_within"),
)
"""What may not even be renamed."""


@pytest.fixture(scope="module")
def now() -> Snapshot:
    found: Snapshot = json.loads(json.dumps(snapshot()))
    return found


@pytest.fixture
def small() -> Record:
    """A record of one entry of each kind."""
    return {
        "frozen": {
            "faces": {"cm2_agent: Old": "public"},
            "names": {"Old": "class", "Old.go": "function", "Old.go(far)": "positional 0", "run": "function"},
            "commands": {"cm2 label": {"hidden": False}},
            "rows": {"traces": {"rows": 3}},
        },
        "added": {},
        "renamed": {},
    }


def test_the_outside_is_as_recorded(now: Snapshot) -> None:
    wrong = problems(load(), now)
    assert not wrong, "\n" + "\n".join(wrong)


def test_what_is_fixed_stands_unrenamed(now: Snapshot) -> None:
    record = load()
    for entry in FIXED:
        section = "json" if entry.startswith("cm2 ") else "names"
        assert entry in record["frozen"][section], entry
        assert entry in now[section], entry
        assert entry not in record["renamed"], entry
        assert entry.split("(")[0].split(".")[0] not in record["renamed"], entry
    assert "cm2_agent.graphs: agent" in now["faces"]
    for file in ("constraints.txt", "cookbook/airline.yaml", "cookbook/airline_checks.py"):
        assert (ROOT / file).is_file(), file


def test_every_renamed_python_name_stands_in_the_changelog() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    for old, new in load()["renamed"].items():
        names = [one.split(": ")[-1].split("(")[-1].rstrip(")") for one in (old, new)]
        assert any(all(name in line for name in names) for line in lines), f"CHANGELOG.md has no line {old} → {new}"


def test_every_removed_python_name_stands_in_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    removed = text.split("### Removed", 1)[1].split("\n## ", 1)[0]
    for name, instead in load()["removed"].items():
        assert f"`{name}`" in removed, f"CHANGELOG.md does not list the removal of {name}"
        assert instead


def test_what_is_gone_changed_or_new_is_named(small: Record) -> None:
    present: Snapshot = copy.deepcopy(small["frozen"])
    assert problems(small, present) == []
    del present["names"]["run"]
    present["rows"]["traces"]["rows"] = 4
    present["names"]["fresh"] = "function"
    new, gone, changed = problems(small, present)  # by section, then by entry
    assert "names: 'fresh' is new" in new
    assert "names: 'run' is gone (it was 'function')" in gone
    assert changed == "rows: 'traces' is {'rows': 4}; expected {'rows': 3}"


def test_an_addition_passes_once_listed_and_a_loss_never_does(small: Record) -> None:
    present: Snapshot = copy.deepcopy(small["frozen"])
    present["names"] |= {"fresh": "function", "fresh(all)": "positional 0", "run(more)": "keyword = 3"}
    listed = with_added(small, present)
    assert sorted(listed["added"]["names"]) == ["fresh", "fresh(all)", "run(more)"]
    assert listed["frozen"] == small["frozen"]
    assert problems(listed, present) == []
    del present["rows"]["traces"]
    (lost,) = problems(with_added(small, present), present)
    assert "rows: 'traces' is gone" in lost


def test_a_parameter_added_without_a_default_is_refused(small: Record) -> None:
    present: Snapshot = copy.deepcopy(small["frozen"])
    present["names"]["run(more)"] = "keyword"
    (wrong,) = problems(with_added(small, present), present)
    assert "'run(more)' was added without a default" in wrong


def test_a_renamed_class_takes_its_members_with_it(small: Record) -> None:
    present: Snapshot = copy.deepcopy(small["frozen"])
    present["faces"] = {"cm2_agent: New": "public"}
    present["names"] = {key.replace("Old", "New"): value for key, value in present["names"].items()}
    assert len(problems(small, present)) == 8  # four entries gone, four new
    small["renamed"] = {"Old": "New"}
    assert problems(small, present) == []
    del present["names"]["New.go(far)"]
    (lost,) = problems(small, present)
    assert "names: 'New.go(far)' is gone" in lost


def test_a_removed_name_goes_with_its_members_and_must_have_been_public(small: Record) -> None:
    present: Snapshot = copy.deepcopy(small["frozen"])
    present["faces"] = {}
    present["names"] = {"run": "function"}
    small["removed"] = {"Old": "run"}
    assert problems(small, present) == []
    present["names"]["Old.go"] = "function"
    (back,) = problems(small, present)
    assert "names: 'Old.go' is new" in back
    del present["names"]["Old.go"]
    del present["names"]["run"]
    (lost,) = problems(small, present)
    assert "names: 'run' is gone" in lost
    small["removed"]["traces"] = "nothing"
    assert "removed: 'traces' was never public" in problems(small, present)[0]


def test_one_entry_may_be_renamed_alone_but_nothing_that_is_stored(small: Record) -> None:
    present: Snapshot = copy.deepcopy(small["frozen"])
    present["commands"] = {"cm2 write": {"hidden": True}}
    small["renamed"] = {"cm2 label": "cm2 write"}
    assert problems(small, present) == []
    small["renamed"]["traces"] = "dialogues"
    (wrong,) = problems(small, present)
    assert "renamed: 'traces' was never public" in wrong
