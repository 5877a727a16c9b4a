"""The parts of the loop's benchmark that cost little: where it kills, and how it counts what chance promotes."""

from __future__ import annotations

import random

import pytest

from cm2_agent.loop.promotion import PromotionRule
from tests.bench.bench_loop import KILLS, _is_at, _promotes


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [False, True])
def test_loops_of_one_policy_promote_as_rarely_as_they_may(fresh: bool) -> None:
    """200 loops of 4 rounds whose candidates are the promoted policy itself, rewards as skewed as small desks have."""
    rng = random.Random(8)
    pool = {f"t{n}": [rng.choice([0.0, 0.0, 0.25, rng.random() < n / 60]) * 1.0 for _ in range(16)] for n in range(60)}
    rule = PromotionRule(rounds=4, fresh=fresh)
    promoted = sum(_promotes(rule, pool, rng, 60, 2) for _ in range(200))
    assert promoted <= 0.05 * 200
    better = {name: [min(1.0, value + 0.5) for value in values] for name, values in pool.items()}
    one = {name: values[:2] for name, values in better.items()}
    other = {name: values[2:4] for name, values in pool.items()}
    assert rule.decide(4, one, other).promoted


def test_every_place_to_kill_at_is_told_from_the_others() -> None:
    runs = ("-v0: dialogues", "-candidate-v0.1: dialogues", "-promoted-v0: dialogues", "-v0: steps")
    places = [f"round-{number}{run}" for number in (1, 2) for run in runs]
    places += [f"round {n}: {stage}" for n in (1, 2) for stage in ("run", "score", "train", "evaluate", "promote")]
    assert len(set(KILLS)) == 10
    for wanted, _ in KILLS:
        assert sum(_is_at(place, wanted) for place in places) == 1, wanted
