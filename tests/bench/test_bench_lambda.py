"""The table of credit by λ: what it must show, and that docs/method.md has it as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.bench_lambda import LAMBDAS, measure, table
from tests.trainers.trees import TREES

PAGE = Path(__file__).parents[2] / "docs" / "method.md"


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, dict[str, list[float]]]]:
    return {tree.name: measure(tree) for tree in TREES}


def test_the_page_has_the_table(found: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    assert table(found) in PAGE.read_text(encoding="utf-8")


def test_what_biases_and_what_does_not(found: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    for name, kinds in found.items():
        assert set(kinds["exact"]["bias"]) == {0.0}, name
        assert all(one["bias"][LAMBDAS.index(1.0)] == 0.0 for one in kinds.values()), name
        assert (kinds["raw"]["bias"][0] > 0.3) == (name != "plain"), name
        assert (kinds["verdicts"]["bias"][0] > 0.3) == ("hidden" in name), name
        for one in kinds.values():
            assert one["bias"] == sorted(one["bias"], reverse=True), f"{name}: less with every λ"
