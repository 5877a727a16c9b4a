"""Small worlds in which every dialogue, and so every expectation, can be enumerated: three turns, each right or wrong,
with or without a gate, a policy that copies its turn before, and a choice whose second half shows a turn late."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.messages import Message
from cm2_agent.types.run import Run
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Trace
from tests.trainers.dialogues import call
from tests.trainers.turns import score, turn

Vector: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
State: TypeAlias = tuple[int, int | None]
"""A turn, and what was chosen in the one before where the policy looks at it."""
TURNS = 3
RIGHT = {None: 0.55, 0: 0.3, 1: 0.8}
"""The chance of a right turn: of one that looks at none, after a wrong turn, after a right one."""
BOTH = (0.2, 0.3, 0.15, 0.35)
"""The chances of (x, y) = 00, 01, 10, 11, chosen in turn 0 of a tree with `hidden`."""


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """One path: its chance, its choices (state, action) by turn, what each turn earned (R_t/L, the closing block's in
    the last) and its score. `shown` is what the verdicts say of each turn."""

    chance: float
    choices: tuple[tuple[State, int], ...]
    rewards: tuple[float, ...]
    shown: tuple[int, ...]
    score: Score

    @property
    def returns(self) -> tuple[float, ...]:
        return tuple(math.fsum(self.rewards[at:]) for at in range(len(self.rewards)))

    def before(self, at: int) -> tuple[int, ...]:
        """What was chosen before a turn: all that there is to know."""
        return tuple(action for _, action in self.choices[:at])


@dataclass(frozen=True, kw_only=True)
class Tree:
    """`gate`: a wrong turn is the last. `copying`: a turn is right more often after a right one. `hidden`: turn 0
    chooses x, which it is paid, and y, which turn 1 is. `block`: a closing block pays where the last turn that happened
    was chosen right."""

    gate: bool = False
    copying: bool = False
    hidden: bool = False
    block: bool = False

    @property
    def name(self) -> str:
        parts = [name for name in ("gate", "copying", "hidden", "block") if getattr(self, name)]
        return "+".join(parts) or "plain"

    @property
    def length(self) -> int:
        return TURNS + self.block

    @cached_property
    def states(self) -> dict[State, Vector]:
        """The chances of the choices in each state."""
        first = np.array(BOTH) if self.hidden else np.array([1 - RIGHT[None], RIGHT[None]])
        found: dict[State, Vector] = {(0, None): first}
        for at in range(1, TURNS):
            for last in (0, 1) if self.copying else (None,):
                found[at, last] = np.array([1 - RIGHT[last], RIGHT[last]])
        return found

    @cached_property
    def dialogues(self) -> tuple[Dialogue, ...]:
        paths = itertools.product(range(len(self.states[0, None])), *[(0, 1)] * (TURNS - 1))
        made = {one.choices: one for one in map(self._dialogue, paths)}  # those that the gate cut are one
        return tuple(made.values())

    def _dialogue(self, path: Sequence[int]) -> Dialogue:
        choices: list[tuple[State, int]] = []
        earned: list[int] = []
        chosen, chance = None, 1.0
        for at, action in enumerate(path):
            state = (at, chosen if self.copying and at else None)
            chance *= float(self.states[state][action])
            choices.append((state, action))
            x = action // 2 if self.hidden and not at else action
            earned.append(path[0] % 2 if self.hidden and at == 1 else x)
            chosen = x
            if self.gate and not earned[-1]:
                break
        turns = [turn(at, 1, 1 if one else None) for at, one in enumerate(earned)]
        turns += [turn(at, 0, None) for at in range(len(earned), TURNS)]
        if self.block:
            turns.append(turn(None, len(earned), len(earned) if chosen else None))
        rewards = [one / self.length for one in earned]
        rewards[-1] += bool(self.block and chosen) / self.length
        return Dialogue(
            chance=chance,
            choices=tuple(choices),
            rewards=tuple(rewards),
            shown=tuple(earned),
            score=score(*turns, id="".join(map(str, path[: len(earned)]))),
        )

    # -- expectations

    @cached_property
    def _slots(self) -> dict[State, slice]:
        ends = np.cumsum([0, *(len(chances) for chances in self.states.values())]).tolist()
        return {state: slice(ends[at], ends[at + 1]) for at, state in enumerate(self.states)}

    @property
    def size(self) -> int:
        """Parameters of the policy: a logit a choice."""
        return sum(len(chances) for chances in self.states.values())

    def slope(self, choice: tuple[State, int]) -> Vector:
        """∇ log π of a choice, by logit: one-hot less the chances."""
        state, action = choice
        found = np.zeros(self.size)
        found[self._slots[state]] = -self.states[state]
        found[self._slots[state].start + action] += 1
        return found

    def slopes(self, dialogue: Dialogue) -> Vector:
        """(T, P) of each turn."""
        return np.array([self.slope(choice) for choice in dialogue.choices])

    def gradient(self, worth: Callable[[Dialogue], float] = lambda one: float(one.score.reward or 0.0)) -> Vector:
        """∇ E[worth]."""
        return np.sum([one.chance * worth(one) * self.slopes(one).sum(axis=0) for one in self.dialogues], axis=0)

    def expected_update(self, credit: Callable[[tuple[Dialogue, ...]], Sequence[Sequence[float]]], size: int) -> Vector:
        """E[(1/G) Σ_i Σ_t A_it ∇ log π_it] over every group of so many rollouts; `credit` gives A_it."""
        total = np.zeros(self.size)
        for group in itertools.product(self.dialogues, repeat=size):
            chance = math.prod(one.chance for one in group)
            for one, values in zip(group, credit(group), strict=True):
                total += chance / size * np.asarray(values) @ self.slopes(one)
        return total

    def trace_variance(self, credit: Callable[[Dialogue], Sequence[float]]) -> float:
        """E‖g‖² − ‖E g‖² of one rollout's update g = Σ_t A_t ∇ log π_t; of a group of G its Gth part."""
        updates = np.array([np.asarray(credit(one)) @ self.slopes(one) for one in self.dialogues])
        chances = np.array([one.chance for one in self.dialogues])
        mean = chances @ updates
        return float(chances @ (updates**2).sum(axis=1) - mean @ mean)

    def values(self, known: Callable[[Dialogue, int], Any]) -> dict[tuple[int, Any], float]:
        """E[return from turn t on | t, what is known before it], by (t, known)."""
        total: dict[tuple[int, Any], float] = {}
        chance: dict[tuple[int, Any], float] = {}
        for one in self.dialogues:
            for at, value in enumerate(one.returns):
                key = (at, known(one, at))
                total[key] = total.get(key, 0.0) + one.chance * value
                chance[key] = chance.get(key, 0.0) + one.chance
        return {key: total[key] / chance[key] for key in total}

    # -- samples

    def sampled(self, groups: int, size: int, seed: int, tokenizer: Any = None) -> list[Group]:
        """Scored rollouts with token ids, a step a turn: the tokenizer's, or two tokens each."""
        rng = np.random.default_rng(seed)
        chances = np.array([one.chance for one in self.dialogues])
        made = []
        for number in range(groups):
            drawn = rng.choice(len(chances), size=size, p=chances / chances.sum())
            rollouts = (
                self.rollout(self.dialogues[at], f"g{number}-{place}", tokenizer) for place, at in enumerate(drawn)
            )
            made.append(Group(key={"task": f"task-{number}", "policy": "v1", "reward": "v1"}, rollouts=tuple(rollouts)))
        return made

    def rollout(self, dialogue: Dialogue, name: str, tokenizer: Any = None) -> Rollout:
        """The dialogue as it is stored, under a name of its own."""
        runs: list[Run] = []
        prompt: list[int] = []
        for at, (_, action) in enumerate(dialogue.choices):
            answer = ("wrong", "right", "right, early", "right, both")[action]
            prompt = [*prompt, *(tokenizer.encode("And now?") if tokenizer else [1])]
            completion = tokenizer.encode(answer) if tokenizer else [10 + action, 20]
            said = (Message.of("user", "And now?"), Message.of("assistant", answer))
            runs.append(Run(id=f"{name}-{at}", thread=name, messages=said, calls=(call(prompt, completion, 1),)))
            prompt = [*prompt, *completion]
        worth = replace(dialogue.score, trace_id=name)
        return Rollout(trace=Trace(id=name, runs=tuple(runs)), score=worth)


KNOWN: Mapping[str, Callable[[Dialogue, int], Any]] = {
    "exact": lambda one, at: one.before(at),
    "verdicts": lambda one, at: one.shown[:at],
    "turn": lambda one, at: None,
}
"""What V̂ may be a function of: everything, the verdicts before the turn, the turn alone."""
TREES = tuple(
    Tree(gate=gate, copying=copying, hidden=hidden)
    for gate, copying, hidden in itertools.product((False, True), repeat=3)
)
