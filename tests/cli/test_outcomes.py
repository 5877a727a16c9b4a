"""`cm2 eval --against OUTCOME` and `cm2 report --labels`: a reward measured by what is known from elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cm2_agent.cli.app import app
from cm2_agent.store import SQLStore
from cm2_agent.types.messages import Message
from cm2_agent.types.run import ModelCall, Run
from cm2_agent.types.run_attributes import TASK_ID
from cm2_agent.types.score import Score, TurnScore, Verdict
from cm2_agent.types.trace import Trace
from tests.cli_runner import CliRunner

COOKBOOK = Path(__file__).parents[2] / "cookbook"
AIRLINE = (str(COOKBOOK / "airline.yaml"), "--checks", str(COOKBOOK / "airline_checks.py"))


def cm2(*arguments: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result.stdout, result.stderr


def as_json(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cm2(*arguments, "--json")[0])
    return found


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/cm2.db"


def save(url: str, rows: Sequence[tuple[str, str, bool, bool, float | None]]) -> None:
    """A trace a row: its task, its policy, the verdicts on `light` (weight 1/4) and `heavy`, its outcome."""
    with SQLStore(url) as opened:
        for number, (task, policy, light, heavy, outcome) in enumerate(rows):
            said = (Message.of("user", "hi"), Message.of("assistant", "Hello."))
            call = ModelCall(span_id=f"c{number}", output=said[1], message=1, model=policy)
            outcomes: dict[str, float | None] = {} if outcome is None else {"official": outcome}
            run = Run(id=f"r{number}", messages=said, calls=(call,), attributes={TASK_ID: task})
            opened.save_trace(Trace(id=run.id, runs=(run,), outcomes=outcomes))
            verdicts = tuple(
                Verdict(item=item, value=value, weight=weight, step=1 if value else None, paid=value)
                for item, value, weight in (("light", light, 0.25), ("heavy", heavy, 0.75))
            )
            reward = 0.25 * light + 0.75 * heavy
            turn = TurnScore(turn=0, reached=True, steps=1, reward=reward, verdicts=verdicts)
            opened.save_score(Score(trace_id=f"r{number}", reward_version="v@1", reward=reward, turns=(turn,)))


OUTCOMES = [
    ("a", "p", True, True, 1.0),
    ("a", "p", False, False, 1.0),
    ("b", "p", True, True, 0.0),
    ("b", "p", False, True, 0.0),
    ("c", "p", True, True, 1.0),
    ("c", "p", True, False, 0.0),
]


def test_a_reward_is_measured_as_a_prediction(store: str) -> None:
    save(store, OUTCOMES)
    found = as_json("eval", "--against", "official", "--store", store)
    whole = found["whole"]
    assert (found["n"], found["successes"], found["success_at"]) == (6, 3, 1.0)
    assert {name: whole[name] for name in ("tp", "fp", "fn", "tn", "threshold")} == {
        "tp": 2,
        "fp": 1,
        "fn": 1,
        "tn": 2,
        "threshold": 1.0,
    }
    assert (whole["accuracy"], whole["mcc"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert found["best"]["threshold"] == 1.0
    assert [(one["trace"], one["item"], one["items"]) for one in found["differ"]] == [
        ("r1", "heavy", ["heavy", "light"]),
        ("r2", None, []),
    ]
    assert found["baselines"]["constant"]["best"]["mcc"] == 0.0
    assert found["baselines"]["constant"]["auc"] == 0.5
    assert set(found["baselines"]) == {"constant", "fewest_writes", "shortest", "no_tool_error"}
    difference = found["baselines"]["shortest"]["reward_is_above_by"]["auc"]
    assert difference["value"] == pytest.approx(found["auc"] - 0.5)
    words, _ = cm2("eval", "--against", "official", "--store", store)
    for line in ("success     2 predicted, 1 not", "kendall", "outcome 0: every item is paid", "outcome 1: heavy"):
        assert line in words


def test_a_reward_that_is_null_is_counted(store: str) -> None:
    save(store, OUTCOMES)
    with SQLStore(store) as opened:
        opened.save_score(Score(trace_id="r5", reward_version="v@1", reward=None, null_reason="verdicts"))
    found = as_json("eval", "--against", "official", "--store", store)
    assert (found["n"], found["nulls"]) == (5, 1)
    assert "pending or without a reward: 1" in cm2("eval", "--against", "official", "--store", store)[0]


def test_what_training_pays_is_measured_and_the_stored_reward_is_named_beside_it(store: str) -> None:
    """`heavy` of the second trace is NULL by the agent's doing: the stored reward leaves it out and is 1."""
    save(store, [("a", "p", True, True, 1.0), ("b", "p", True, False, 0.0), ("c", "p", False, False, 0.0)])
    assert as_json("eval", "--against", "official", "--store", store)["stored_reward"] is None
    with SQLStore(store) as opened:
        known = opened.score("r1", "v@1")
        assert known is not None
        light, heavy = known.turns[0].verdicts
        null = replace(heavy, value=None, paid=None, cause="content", reason="judge failed")
        turn = replace(known.turns[0], verdicts=(light, null), reward=1.0)
        opened.save_score(Score(trace_id="r1", reward_version="v@1", reward=1.0, turns=(turn,)))
    found = as_json("eval", "--against", "official", "--store", store)
    assert (found["measured"], found["nulls"], found["auc"], found["whole"]["fp"]) == ("lower", 0, 1.0, 0)
    stored = found["stored_reward"]
    assert (stored["n"], stored["differ"], stored["auc"], stored["whole"]["fp"]) == (3, 1, 0.75, 1)
    words = cm2("eval", "--against", "official", "--store", store)[0]
    assert "lower, what training pays" in words
    assert "the stored reward, which differs on 1 of 3 dialogues that have one" in words
    lines: list[dict[str, Any]] = [
        {"trace": "r1", "item": "light", "turn": 0, "rater": "ann", "value": True},
        {"trace": "r1", "item": "heavy", "turn": 0, "rater": "ann", "value": True},
    ]
    path = Path(store.removeprefix("sqlite:///")).parent / "labels.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    cm2("import", "labels", str(path), "--store", store)
    (one,) = as_json("report", "--labels", "--store", store)["corrected"]
    assert (one["mean"]["people"], one["mean"]["judged"]) == (1.0, 0.25)


def test_what_counts_as_success_can_be_said(store: str) -> None:
    save(store, [(task, policy, light, heavy, 4 * (outcome or 0)) for task, policy, light, heavy, outcome in OUTCOMES])
    assert as_json("eval", "--against", "official", "--success-at", "5", "--store", store)["successes"] == 0
    found = as_json("eval", "--against", "official", "--success-at", "4", "--store", store)
    assert (found["successes"], found["whole"]["tp"]) == (3, 2)


def labelled(folder: Path, lines: list[dict[str, Any]]) -> str:
    path = folder / "labels.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def test_people_may_judge_whole_dialogues(tmp_path: Path, store: str) -> None:
    save(store, OUTCOMES)
    answers: dict[str, list[bool | None]] = {
        "r0": [True, True],
        "r1": [True, False],
        "r2": [False, None],
        "r3": [None, None],
        "r5": [False, False],
    }
    lines = [
        {"trace": trace, "rater": rater, "value": value}
        for trace, values in answers.items()
        for rater, value in zip(("ann", "bob"), values, strict=True)
    ]
    cm2("import", "labels", labelled(tmp_path, lines), "--store", store)
    found = as_json("eval", "--against", "human_outcome", "--store", store)
    assert (found["n"], found["successes"]) == (3, 1)  # r1 is a tie, nobody could tell of r3
    assert "no labels of people" in cm2("eval", "--against", "human", "--store", store, code=2)[1]
    assert "human_outcome, official" in cm2("eval", "--against", "nothing", "--store", store, code=2)[1]
    _, err = cm2(
        "import",
        "labels",
        labelled(tmp_path, [{"trace": "r0", "rater": "ann", "value": True, "turn": 0}]),
        "--store",
        store,
        code=2,
    )
    assert "name the item" in err


def test_the_mean_reward_is_corrected_by_the_labels_of_its_own_policy(tmp_path: Path, store: str) -> None:
    """Policy p: people disagree on `heavy` of every labelled trace that the judge paid in full. Policy q is labelled in
    part only, policy z not at all."""
    rows = [(f"t{number}", "p", True, number % 2 == 0, None) for number in range(80)]
    save(store, [*rows, ("u0", "q", True, True, None), ("u1", "z", True, True, None)])
    lines: list[dict[str, Any]] = [
        {"trace": f"r{number}", "item": item, "turn": 0, "rater": "ann", "value": item == "light" or (number % 4 == 2)}
        for number in range(40)
        for item in ("light", "heavy")
    ]
    lines += [{"trace": "r80", "item": "light", "rater": "ann", "value": False}]
    lines += [{"trace": "r80", "item": "heavy", "rater": "ann", "value": None}]
    cm2("import", "labels", labelled(tmp_path, lines), "--store", store)
    corrected = {one["policy"]: one for one in as_json("report", "--labels", "--store", store)["corrected"]}
    mean = corrected["p"]["mean"]
    assert (mean["n"], mean["unlabelled"], mean["tasks"], mean["few"]) == (40, 40, 40, False)
    assert (mean["people"], mean["judged"], mean["judged_unlabelled"]) == (0.4375, 0.625, 0.625)
    assert mean["estimate"] == pytest.approx(0.4375)  # f̄ is the same on both sides
    assert 0 < mean["weight"] < 1
    assert mean["interval"][0] < 0.4375 < mean["interval"][1] < 0.625
    assert corrected["q"] == {"policy": "q", "mean": None, "partly": 1}
    assert corrected["z"] == {"policy": "z", "mean": None, "partly": 0}
    words, _ = cm2("report", "--labels", "--html", str(tmp_path / "report.html"), "--store", store)
    assert "policy p: corrected by people 0.438  [" in words
    assert "policy q: no trace of it is labelled; 1 labelled in part" in words
    assert "corrected by people's labels <b>0.438</b>" in (tmp_path / "report.html").read_text()
    assert as_json("report", "--store", store)["corrected"] == []


def test_few_labels_are_marked_and_none_refused(tmp_path: Path, store: str) -> None:
    save(store, OUTCOMES)
    assert "cm2 import labels FILE" in cm2("report", "--labels", "--store", store, code=2)[1]
    lines = [{"trace": "r0", "item": item, "rater": "ann", "value": True} for item in ("light", "heavy")]
    cm2("import", "labels", labelled(tmp_path, lines), "--store", store)
    (one,) = as_json("report", "--labels", "--store", store)["corrected"]
    assert (one["mean"]["few"], one["mean"]["interval"]) == (True, None)
    assert "too few to trust the interval" in cm2("report", "--labels", "--store", store)[0]


def shown(value: float, interval: Sequence[float]) -> str:
    return f"{value:.2f} ({interval[0]:.2f}-{interval[1]:.2f})"


@pytest.mark.slow
@pytest.mark.skipif("CM2_TEST_DATA" not in os.environ, reason="CM2_TEST_DATA is not set")
def test_the_figures_of_the_airline_checklist(tmp_path: Path) -> None:
    """Those of docs/how-to/import.md: on the tasks that the checklist was written on, and on the others."""
    path = Path(os.environ["CM2_TEST_DATA"]) / "tau-bench" / "gpt-4o-airline-dev.json"
    records = json.loads(path.read_text())
    tasks = sorted({record["task_id"] for record in records})
    figures = {}
    for name, chosen in (("first", tasks[:12]), ("others", tasks[12:])):
        part, store = tmp_path / f"{name}.json", f"sqlite:///{tmp_path}/{name}.db"
        part.write_text(json.dumps([record for record in records if record["task_id"] in chosen]))
        cm2("import", "tau-bench", str(part), "--store", store)
        cm2("score", *AIRLINE, "--store", store)
        figures[name] = as_json(
            "eval", "--against", "official_reward", "--reads", "transfer_to_human_agents", "--store", store
        )
    first, others = figures["first"], figures["others"]
    assert (first["n"], first["pairs"], others["n"], others["pairs"]) == (48, 9, 52, 22)
    assert {name: others["whole"][name] for name in ("tp", "fp", "fn", "tn")} == {"tp": 20, "fp": 5, "fn": 14, "tn": 13}
    assert shown(others["whole"]["mcc"], others["whole"]["ci"]["mcc"]) == "0.30 (-0.08-0.60)"
    writes = others["baselines"]["fewest_writes"]
    rows = {
        "auc_within": ("0.84 (0.69-0.97)", "0.41 (0.12-0.72)", "0.43 (0.17-0.68)"),
        "auc": ("0.67 (0.47-0.86)", "0.75 (0.53-0.93)", "-0.08 (-0.35-0.22)"),
        "kendall": ("0.27 (-0.05-0.55)", "0.42 (0.06-0.77)", "-0.15 (-0.65-0.34)"),
    }
    for name, row in rows.items():
        above = writes["reward_is_above_by"][name]
        beside = (shown(one[name], one["ci"][name]) for one in (others, writes))
        assert (*beside, shown(above["value"], above["ci"])) == row
    above = writes["reward_is_above_by"]["mcc"]
    beside = (shown(one["held_out"]["mcc"], one["held_out"]["ci"]["mcc"]) for one in (others, writes))
    row = ("0.11 (-0.16-0.39)", "0.29 (-0.08-0.67)", "-0.17 (-0.53-0.16)")
    assert (*beside, shown(above["value"], above["ci"])) == row
    assert (round(first["auc"], 2), round(first["auc_within"], 2), round(first["whole"]["mcc"], 2)) == (0.91, 1.0, 0.86)
