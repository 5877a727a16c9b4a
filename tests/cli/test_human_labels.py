"""`cm2 import labels`, `cm2 eval --against human` and the gate of `cm2 train`: a judge is as good as people say."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.cli.app import app
from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from cm2_agent.types.run_attributes import TASK_ID
from cm2_agent.types.score import NullCause, Score, TurnScore, Verdict
from tests.cli_runner import CliRunner


def cm2(*arguments: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result.stdout, result.stderr


def as_json(*arguments: str, code: int = 0) -> dict[str, Any]:
    (line,) = cm2(*arguments, "--json", code=code)[0].splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def judgements(folder: Path) -> Path:
    """DevAI's judgements where `CM2_TEST_DATA` names them, else our own, made up with about the same agreement (κ
    0.78)."""
    given = os.environ.get("CM2_TEST_DATA")
    if given:
        return Path(given) / "devai" / "judgments.jsonl"
    tables = {(False, False): 53, (True, True): 36, (False, True): 6, (True, False): 5}
    rows = [answers for answers, count in tables.items() for _ in range(count)]
    lines = [
        {
            "agent": "A",
            "task": f"task_{number % 10}",
            "id": number // 10,
            "criteria": "Is it done?",
            "dependence": [],
            "category": "x",
            "human": human,
            "judge": judge,
        }
        for number, (human, judge) in enumerate(rows)
    ]
    path = folder / "judgements.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/cm2.db"


def test_the_recorded_judge_agrees_with_people_as_published(tmp_path: Path, store: str) -> None:
    path = judgements(tmp_path)
    total = len(path.read_text().splitlines())
    command = ("import", "labels", str(path), "--store", store)
    assert as_json(*command) == {
        "imported": 2 * total,
        "changed": 0,
        "skipped": 0,
        "duplicates": 0,
        "without_trace": 2 * total,
    }
    assert as_json(*command)["duplicates"] == 2 * total
    found = as_json("eval", "--against", "human", "--store", store)
    assert (found["judge"], found["n"], found["raters"]) == ("judge", total, 1)
    assert found["kappa"] == pytest.approx(0.78, abs=0.03)
    assert found["ci"]["kappa"][0] < found["kappa"] < found["ci"]["kappa"][1]
    assert found["alpha"] == pytest.approx(found["kappa"], abs=0.01)
    assert sum(item["n"] for item in found["items"].values()) == total
    out, err = cm2("eval", "--against", "human", "--rater", "judge", "--min-kappa", "0.9", "--store", store, code=1)
    assert "kappa        0.7" in out
    assert "expected at least 0.9" in err
    cm2("eval", "--against", "human", "--min-kappa", "0.7", "--store", store)


@pytest.mark.skipif("CM2_TEST_DATA" not in os.environ, reason="CM2_TEST_DATA is not set")
def test_kappa_of_devai_is_what_its_lines_give_by_hand(tmp_path: Path, store: str) -> None:
    """561 lines: both yes 205, people alone 26, the judge alone 33, neither 297. Agreement p = 502/561; by chance e =
    (231 · 238 + 330 · 323)/561²; κ = (p − e)/(1 − e) = 0.7839."""
    path = judgements(tmp_path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    counts = Counter((line["human"], line["judge"]) for line in lines)
    assert counts == {(True, True): 205, (True, False): 26, (False, True): 33, (False, False): 297}
    assert as_json("import", "labels", str(path), "--store", store)["imported"] == 2 * 561
    found = as_json("eval", "--against", "human", "--store", store)
    p, e = 502 / 561, (231 * 238 + 330 * 323) / 561**2
    assert (found["n"], found["nulls"], found["unjudged"]) == (561, 0, 0)
    assert found["agreement"] == pytest.approx(p)
    assert found["kappa"] == pytest.approx((p - e) / (1 - e))
    assert round(found["kappa"], 4) == 0.7839
    assert (found["tpr"], found["tnr"]) == (pytest.approx(205 / 231), pytest.approx(297 / 330))


def test_lines_of_which_a_rater_could_not_tell_are_read(tmp_path: Path, store: str) -> None:
    """A null of people's is no label, one of the judge's a NULL; both are stored, and every other line counts."""
    path = tmp_path / "judgements.jsonl"
    answers = [(True, True), (False, False), (None, True), (True, None), (None, None), (False, True)]
    shared = {"agent": "A", "criteria": None, "dependence": None, "category": "x"}
    lines = [
        {**shared, "task": f"t{number}", "id": 0, "human": human, "judge": judge}
        for number, (human, judge) in enumerate(answers)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert as_json("import", "labels", str(path), "--store", store)["imported"] == 12
    found = as_json("eval", "--against", "human", "--store", store)
    assert (found["n"], found["nulls"]) == (3, 1)
    assert found["agreement"] == pytest.approx(2 / 3)
    with SQLStore(store) as opened:
        assert sum(label.value is None for label in opened.labels()) == 4


def scored(url: str, version: str, values: list[bool | None]) -> None:
    """A group of rollouts of one task, each with one verdict on the item `told` in turn 0."""
    with SQLStore(url) as opened:
        for number, value in enumerate(values):
            opened.save_run(
                Run(
                    id=f"r{number}",
                    messages=(Message.of("user", "hi"),),
                    attributes={TASK_ID: "t1", "cm2.rollout": number},
                )
            )
            cause: NullCause | None = "content" if value is None else None
            verdict = Verdict(item="told", value=value, weight=1.0, step=1 if value else None, paid=value, cause=cause)
            reward = None if value is None else float(value)
            turn = TurnScore(turn=0, reached=True, steps=1, reward=reward, verdicts=(verdict,))
            opened.save_score(Score(trace_id=f"r{number}", reward_version=version, reward=reward, turns=(turn,)))


def labelled(folder: Path, **raters: list[bool | None]) -> Path:
    path = folder / "labels.jsonl"
    lines = [
        {"trace": f"r{number}", "item": "told", "turn": 0, "rater": rater, "value": value}
        for rater, values in raters.items()
        for number, value in enumerate(values)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_reward_version_is_measured_and_its_drift_told(tmp_path: Path, store: str) -> None:
    scored(store, "judge@1", [True, True, False, True, None, False])
    scored(store, "judge@2", [True, False, False, False, True, False])
    people = labelled(
        tmp_path, ann=[True, True, False, False, True, None], bob=[True, False, False, False, True, True], cy=[True] * 6
    )
    assert as_json("import", "labels", str(people), "--store", store)["without_trace"] == 0
    found = as_json("eval", "--against", "human", "--store", store)
    assert (found["judge"], found["n"], found["nulls"], found["raters"]) == ("judge@2", 6, 0, 3)
    assert found["agreement"] == pytest.approx(4 / 6)  # the consensus: true true false false true true
    assert found["alpha_people"] is not None
    assert found["ci"]["kappa"] is None  # one task carries no interval
    old = as_json("eval", "--against", "human", "--reward", "judge@1", "--store", store)
    assert (old["n"], old["nulls"]) == (5, 1)
    drift = as_json("eval", "--against", "human", "--versus", "judge@1", "--store", store)["drift"]
    assert (drift["old"], drift["n"], drift["to_true"], drift["to_false"]) == ("judge@1", 5, 0, 2)
    assert (
        "turned true and 2 false of 5" in cm2("eval", "--against", "human", "--versus", "judge@1", "--store", store)[0]
    )
    ann = as_json("eval", "--against", "human", "--rater", "ann", "--store", store)
    assert (ann["judge"], ann["raters"]) == ("ann", 2)
    assert ann["n"] + ann["nulls"] == 3  # bob and cy agree thrice


def test_a_judge_that_people_contradict_trains_nothing(tmp_path: Path, store: str) -> None:
    scored(store, "judge@1", [True, True, False, False])
    command = ("train", "--rows-only", "--min-kappa", "0.6", "--store", store)
    assert "cm2 import labels FILE" in cm2(*command, code=2)[1]
    cm2("import", "labels", str(labelled(tmp_path, ann=[False, True, True, False])), "--store", store)
    _, err = cm2(*command, code=2)
    assert "kappa is 0.000, expected at least 0.6" in err
    assert "nothing was trained" in err
    cm2("import", "labels", str(labelled(tmp_path, ann=[True, True, False, False])), "--store", store)
    assert as_json(*command)["groups"] == 1


def test_wrong_questions_are_told_what_to_type(tmp_path: Path, store: str) -> None:
    scored(store, "judge@1", [True, False])
    assert "cm2 import labels FILE" in cm2("eval", "--against", "human", "--store", store, code=2)[1]
    cm2("import", "labels", str(labelled(tmp_path, ann=[True, False])), "--store", store)
    assert (
        "expected one of: judge@1" in cm2("eval", "--against", "human", "--reward", "nope", "--store", store, code=2)[1]
    )
    assert (
        "no labels of people besides 'ann'"
        in cm2("eval", "--against", "human", "--rater", "ann", "--store", store, code=2)[1]
    )
    assert "its raters: ann" in cm2("eval", "--against", "human", "--rater", "eve", "--store", store, code=2)[1]
    both = ("eval", "--against", "human", "--rater", "ann", "--reward", "judge@1", "--store", store)
    assert "both given" in cm2(*both, code=2)[1]
    assert "--against human" in cm2("eval", "--against", "success", "--min-kappa", "0.5", "--store", store, code=2)[1]
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"trace": "t"}\n')
    assert (
        "none of its 1 records is of format labels" in cm2("import", "labels", str(broken), "--store", store, code=2)[1]
    )


def test_verdicts_that_no_label_meets_point_to_recorded_judges(tmp_path: Path, store: str) -> None:
    scored(store, "judge@1", [True, False])
    path = tmp_path / "elsewhere.jsonl"
    lines = [{"trace": "x", "item": "i", "rater": rater, "value": True} for rater in ("ann", "judge:a", "judge:b")]
    path.write_text("\n".join(map(json.dumps, lines)))
    cm2("import", "labels", str(path), "--store", store)
    _, err = cm2("eval", "--against", "human", "--store", store, code=2)
    assert "for --rater: judge:a, judge:b" in err
