"""The benchmark of the desks, in small: real and simulated desks rank a few policies alike, and what answered them is
told truthfully."""

from __future__ import annotations

import pytest

from cm2_agent.benchmarks import Desk
from tests.bench.bench_desks import SIMULATED, Cells, chosen, correlations, measure
from tests.benchmarks.tau2.simulators import Shown, credulous, wary

NAMES = ("reference", "drops_50", "recovers_60", "idle")


@pytest.mark.slow
async def test_a_simulated_desk_ranks_policies_as_the_real_one() -> None:
    desk = Desk("retail")
    tasks = chosen(desk, 5)
    found = await measure(desk, tasks, NAMES, draws=50)
    for column in ("official", "checklist", "credulous", "wary", "credulous_unrecorded"):
        reward = {name: found["policies"][name][column] for name in NAMES}
        assert reward["reference"] == 1.0 > reward["drops_50"] > reward["idle"], column
    for column in ("checklist", "credulous", "wary", "credulous_unrecorded"):
        assert found["against_official"][column]["spearman"]["at"] >= 0.6
    assert found["solved_against_official"]["checklist"]["spearman"]["at"] == 1.0
    assert found["checklist_agrees"] == 1.0
    assert found["took"]["real"]["real_share"] == 1.0
    assert "asked" not in found["took"]["real"]
    for name in SIMULATED:
        took = found["took"][name]
        assert "real_share" not in took
        assert took["replay_share"] + took["simulate_share"] == 1.0
        assert took["asked"] > 0
    assert found["took"]["wary_unrecorded"]["simulate_share"] > found["took"]["wary"]["simulate_share"]
    assert (
        found["policies"]["recovers_60"]["credulous"] < found["policies"]["recovers_60"]["official"]
    )  # it is never refused there


def test_correlations_of_what_is_known() -> None:
    real: Cells = {"a": {"1": [1.0], "2": [1.0]}, "b": {"1": [0.0], "2": [1.0]}, "c": {"1": [0.0], "2": [0.0]}}
    same = correlations(real, real, draws=20)
    assert (same["spearman"]["at"], same["kendall"]["at"]) == (1.0, 1.0)
    other = correlations(real, {"a": real["c"], "b": real["b"], "c": real["a"]}, draws=20)
    assert (other["spearman"]["at"], other["kendall"]["at"]) == (-1.0, -1.0)
    flat: Cells = {name: {"1": [0.5], "2": [None]} for name in "abc"}
    assert correlations(real, flat, draws=20) == {
        "spearman": {"at": None, "interval": None},
        "kendall": {"at": None, "interval": None},
    }


def test_simulators_answer_from_what_is_shown() -> None:
    get = {
        "part": "tool",
        "name": "get_order",
        "result_schema": {"type": "object", "properties": {"order_id": {"type": "string"}}},
    }
    seen = {
        "part": "example",
        "tool": "get_order",
        "arguments": {"order_id": "#W7"},
        "result": {"order_id": "#W7", "paid": True},
    }
    shown = Shown(tool=get, answered=[seen], dialogue=["Where is #W8?"], arguments={"order_id": "#W8"}, again=False)
    assert credulous(shown) == wary(shown) == {"result": {"order_id": "#W8", "paid": True}, "error": None}
    unheard = Shown(tool=get, answered=[seen], dialogue=[], arguments={"order_id": "#W8"}, again=False)
    assert credulous(unheard)["error"] is None
    assert wary(unheard) == {"result": None, "error": "Error: Order #W8 not found"}
    made = Shown(tool=get, answered=[], dialogue=["#W8"], arguments={"order_id": "#W8"}, again=False)
    assert wary(made) == {"result": {"order_id": "#W8"}, "error": None}
