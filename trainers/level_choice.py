"""Level `auto`: which level of credit a round gets, at which λ, and why, in words for its report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cm2_agent.types.group import Group

from .previous_round import PreviousRound


@dataclass(frozen=True, kw_only=True)
class LevelChoice:
    """`lam` has no meaning at `trajectory`; `lambda_from` says where it came from."""

    level: Literal["trajectory", "lambda"]
    lam: float = 1.0
    lambda_from: str | None = None
    why: str | None = None


@dataclass
class RoundFacts:
    """What of a round decides: the largest L, whether a gate may have ended a dialogue, and whether every reward is of
    the turns of a checklist."""

    turns: int = 0
    gate: bool = False
    by_turns: bool = True

    def add(self, group: Group) -> None:
        scores = [rollout.score for rollout in group.rollouts]
        self.turns = max([self.turns, *(score.length for score in scores)])
        unreached = any(not turn.reached for score in scores for turn in score.turns)
        self.gate = self.gate or unreached or group.key.get("gate") is not None
        self.by_turns = self.by_turns and all(score.turns and not score.components for score in scores)


def given_lambda(lam: float | None, before: PreviousRound | None) -> LevelChoice:
    """Level lambda at the λ that was given, else that of the round before, else 1."""
    if lam is not None:
        return LevelChoice(level="lambda", lam=float(lam), lambda_from="given")
    if before is not None and before.lam is not None:
        return LevelChoice(level="lambda", lam=before.lam, lambda_from="the round before")
    return LevelChoice(level="lambda", lambda_from="default")


def choose_level(facts: RoundFacts, before: PreviousRound | None) -> LevelChoice:
    """By gate, turns, and ρ² of the round before: with one counted turn there is nothing to share out; with more, λ̂
    where it is known, and without it λ = 1, which no gate and no habit of the policy biases."""
    if not facts.by_turns:
        return LevelChoice(level="trajectory", why="the reward is more than a checklist's turns")
    if facts.turns <= 1:
        return LevelChoice(level="trajectory", why="one counted turn: there is nothing to share out")
    gate = "a gate that ends dialogues" if facts.gate else "no gate"
    base = f"{facts.turns} counted turns, {gate}"
    found = given_lambda(None, before)
    if before is None or before.lam is None:
        why = f"{base}, no round before that tells ρ²: λ = 1 is unbiased"
    else:
        why = f"{base}, ρ² = {before.rho2:.3g} in the round before: λ = {before.lam:.3g}"
    return LevelChoice(level="lambda", lam=found.lam, lambda_from=found.lambda_from, why=why)


__all__ = ["LevelChoice", "RoundFacts", "choose_level", "given_lambda"]
