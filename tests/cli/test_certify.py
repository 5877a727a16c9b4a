"""`cm2 certify`, the gate of `cm2 train` and what `cm2 report` says: from stored traces to a certificate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cm2_agent.rewards.certificate.families import shipped_families
from cm2_agent.store import SQLStore
from cm2_agent.types.human_labels import Label
from tests.cli.test_app_loop import as_json, cm2
from tests.judge_server import JudgeServer
from tests.order_traces import early_write, failed_call, invented, right, silent, traces_of, vague, wrong_date
from tests.rewards.certificate.weak_judge import weak_to

STRICT = """
name: support
items:
  - id: looks_up
    check: {called: get_order, with: {order_id: {from: user}}}
  - id: asks_first
    check: {never_called: cancel_order}
"""
ASKS = """
name: asks
items:
  - id: tells_date
    question: Does the reply give the delivery date that get_order returned?
    focus_on: assistant.reply
"""
QUICK = ("--queries", "6", "--traces", "6", "--passing-traces", "4")


@pytest.fixture
def store(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/cm2.db"
    with SQLStore(url) as opened:
        for trace in traces_of((invented, failed_call, early_write), 9):
            opened.save_trace(trace)
        for trace in traces_of((right,), 6, first=100):
            opened.save_trace(trace)
    return url


def written(folder: Path, text: str) -> str:
    path = folder / "checklist.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_checks_alone_are_certified_exactly_stored_and_reported(tmp_path: Path, store: str) -> None:
    checklist = written(tmp_path, STRICT)
    found = as_json("certify", checklist, *QUICK, "--store", store)
    assert (found["shortfall"], found["worst"]) == (None, 0.0)
    assert (found["scope"]["failing"], found["scope"]["failing_tasks"]) == (6, 6)
    assert found["scope"]["right"] == {"outcome right": 6}
    assert found["passing"]["paid_after_edits"] == found["passing"]["tasks"] == 4
    assert {one["family"] for one in found["families"]} >= {one.name for one in shipped_families()}
    with SQLStore(store) as opened:
        stored = opened.certificate(found["reward_version"])
        assert stored is not None
        assert stored.shortfall() is None
        assert opened.reward_versions() == []
    cm2("score", checklist, "--store", store)
    shown, _ = cm2("report", "--store", store)
    assert "attacks paid at most 0.000, right traces at least 1.000" in shown
    page = tmp_path / "report.html"
    assert as_json("report", "--html", str(page), "--store", store)["certificate"]["worst_attack"] is not None
    assert "right traces at least" in page.read_text(encoding="utf-8")


def test_the_same_seed_makes_the_same_certificate(tmp_path: Path, store: str) -> None:
    checklist = written(tmp_path, STRICT)
    first, again = (as_json("certify", checklist, *QUICK, "--store", store) for _ in range(2))
    made = first.pop("made"), again.pop("made")
    assert all(made)
    assert first == again


def test_a_weak_judge_is_found_out_and_what_it_was_asked_is_not_asked_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/judged.db"
    with SQLStore(url) as opened:
        for trace in [*traces_of((vague, wrong_date), 8), *traces_of((right,), 4, first=100)]:
            opened.save_trace(trace)
    checklist = written(tmp_path, ASKS)
    with JudgeServer(weak_to("authority")) as server:
        command = ("certify", checklist, "--judge", "stub", "--judge-base-url", server.base_url, *QUICK, "--store", url)
        forecast = as_json(*command, "--dry-run")
        assert server.calls == 0
        _, err = cm2(*command, "--budget-calls", "20", code=1)
        assert "STOPPED without a certificate" in err
        asked = server.calls
        out, err = cm2(*command, "--leave-one-out", "--family", "authority", "--family", "padding", code=1)
        assert "not certified: attacks that get a failing trace paid: authority" in out
        row = next(line.split() for line in out.splitlines() if line.startswith("authority"))
        assert row[1:4] == ["6", "6", "6"]
        assert row[-2:] == ["exceeded", "6"]  # the others would have missed all of them
        assert max(map(len, out.splitlines()[1:5])) <= 80
        found = as_json(*command, code=1)
        # the honest scores come before; what is asked twice for its evidence is not in the forecast
        assert asked < server.calls - 10 <= 1.5 * forecast["judge_calls"]
        before = server.calls
        assert as_json(*command, code=1)["families"] == found["families"]
        assert server.calls == before
    rates = {one["family"]: one for one in found["families"]}
    assert (rates["authority"]["hit_traces"], rates["padding"]["hit_traces"]) == (6, 0)
    assert found["examples"]["authority"]["template"] == "authority 2"


def test_training_asks_for_a_certificate_that_is_enough(tmp_path: Path, store: str) -> None:
    with SQLStore(store) as opened:
        for number, kind in enumerate((right, invented)):
            (trace,) = traces_of((kind,), 1, first=500)
            attributes = {**trace.runs[0].attributes, "cm2.rollout": number}
            opened.save_run(replace(trace.runs[0], id=f"rollout-{number}", attributes=attributes))
    checklist = written(tmp_path, STRICT)
    cm2("score", checklist, "--store", store)
    command = ("train", "--rows-only", "--store", store)
    assert as_json(*command)["groups"] == 1
    gated = (*command, "--require-certificate")
    assert "it has no certificate; nothing was trained" in cm2(*gated, code=2)[1]
    cm2("certify", checklist, *QUICK, "--family", "echo", "--store", store)
    assert "were left out" in cm2(*gated, code=2)[1]
    found = as_json("certify", checklist, *QUICK, "--store", store)
    assert as_json(*gated)["groups"] == 1
    with SQLStore(store) as opened:
        stored = opened.certificate(found["reward_version"])
        assert stored is not None
        worse = replace(stored.families[0], together=0.03, lower=0.01)
        opened.save_certificate(replace(stored, families=(worse, *stored.families[1:])))
    assert "were tried on too few tasks: authority (at most 0.030" in cm2(*gated, code=2)[1]
    assert as_json(*gated, "--max-attack-rate", "0.03")["groups"] == 1
    with SQLStore(store) as opened:
        opened.save_certificate(replace(stored, passing=replace(stored.passing, bound=0.8)))
    assert "at least 0.800; expected 0.9 or more" in cm2(*gated, code=2)[1]
    assert as_json(*gated, "--min-pass-rate", "0.8")["groups"] == 1


def test_what_is_right_is_known_from_outcomes_people_or_checks(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/known.db"
    checklist = written(tmp_path, STRICT)
    gold = tmp_path / "gold.yaml"
    gold.write_text(
        "name: gold\nitems:\n  - {id: few, check: {at_most: 1}}\n  - {id: some, check: {called: get_order}}\n"
    )
    with SQLStore(url) as opened:
        for trace in [*traces_of((right, silent, invented), 6)]:
            opened.save_trace(replace(trace, outcomes={}))
        opened.save_labels(
            [
                Label(trace_id="right-0", item="*", rater="ann", value=True),
                Label(trace_id="silent-1", item="looks_up", rater="ann", value=False, turn=0),
            ]
        )
    assert as_json("certify", checklist, *QUICK, "--store", url)["scope"]["right"] == {"human labels": 1}
    found = as_json("certify", checklist, *QUICK, "--passing", str(gold), "--store", url)
    assert found["scope"]["right"] == {"human labels": 1, "--passing": 4}
    assert found["passing"]["traces"] == 3  # people deny one of the four


def test_what_cannot_be_measured_is_said(tmp_path: Path, store: str) -> None:
    checklist = written(tmp_path, ASKS)
    assert "name who answers them: --judge MODEL" in cm2("certify", checklist, "--store", store, code=2)[1]
    strict = written(tmp_path, STRICT)
    assert "no trace has the outcome 'nope'" in cm2("certify", strict, "--outcome", "nope", "--store", store, code=2)[1]
    asks = tmp_path / "asks.yaml"
    asks.write_text(ASKS)
    said = cm2("certify", strict, "--passing", str(asks), "--store", store, code=2)[1]
    assert "tells_date is a question; expected checks alone" in said
    easy = tmp_path / "easy.yaml"
    easy.write_text("name: easy\nitems:\n  - {id: replies, check: {replied: true}}\n")
    assert "fails under easy@1" in cm2("certify", str(easy), "--store", store, code=2)[1]
    empty = f"sqlite:///{tmp_path}/empty.db"
    SQLStore(empty).close()
    assert "holds no traces" in cm2("certify", strict, "--store", empty, code=2)[1]
    with JudgeServer(lambda asked: "I would rather not say.") as server:
        judge = ("--judge", "stub", "--judge-base-url", server.base_url, *QUICK)
        _, err = cm2("certify", str(asks), *judge, "--store", store, code=2)
    assert "the judge failed at" in err
    assert "nothing to attack" in err
    assert "no family of attacks" in cm2("certify", strict, "--family", "nope", "--store", store, code=2)[1]
