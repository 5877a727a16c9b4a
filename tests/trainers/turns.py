"""Turns and scores from items' flips, as the tests of advantages write them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cm2_agent.types.score import Score, TurnScore, Verdict


def turn(
    number: int | None, steps: int, *flips: int | str | None, weights: Sequence[float] = (), deps: Any = ()
) -> TurnScore:
    """A counted turn from its items' flips; "?" is a NULL by the policy's doing, "!" another, steps 0 a turn that was
    not reached."""
    ws = list(weights) or [1 / len(flips)] * len(flips)
    parents = list(deps) or [()] * len(flips)
    verdicts = []
    for at, flip in enumerate(flips):
        if isinstance(flip, str):
            cause: Any = "content" if flip == "?" else "infrastructure"
            verdicts.append(
                Verdict(item=f"C{at}", value=None, weight=ws[at], cause=cause, depends_on=tuple(parents[at]))
            )
            continue
        paid = flip is not None and all(isinstance(up := flips[parent], int) and up < flip for parent in parents[at])
        verdicts.append(
            Verdict(
                item=f"C{at}",
                value=flip is not None,
                weight=ws[at],
                step=flip,
                paid=paid,
                depends_on=tuple(parents[at]),
            )
        )
    whole = all(verdict.paid is not None for verdict in verdicts)
    reward = math.fsum(verdict.weight for verdict in verdicts if verdict.paid) if whole else None
    return TurnScore(turn=number, reached=steps > 0, steps=steps, reward=reward, verdicts=tuple(verdicts))


def score(*turns: TurnScore, id: str = "t", **keys: Any) -> Score:
    rewards = [one.reward for one in turns]
    whole = (
        None if None in rewards else math.fsum(reward for reward in rewards if reward is not None) / max(1, len(turns))
    )
    return Score(**{"trace_id": id, "reward_version": "v1", "reward": whole, "turns": turns, **keys})
