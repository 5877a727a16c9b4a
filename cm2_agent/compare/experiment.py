"""An experiment: which arms are compared from which start, on which seeds, at which cost; and its cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cm2_agent.errors import TrainError
from cm2_agent.types.json_values import content_hash

from .arms import ARMS, ARMS_OF_TURNS, arm_json, arm_of


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training from start to end: what a file of results is of."""

    stage: str
    """"tune" or "test"."""
    arm: str
    learning_rate: float
    cold_start: int
    """The seed of the policy that it begins with."""
    sampling: int
    """The seed of its tasks, its dialogues and its training."""

    def __post_init__(self) -> None:
        """Raises TrainError on what names no cell: it is a file's name, and comes from manifests too."""
        seeds = (self.cold_start, self.sampling)
        known = self.stage in ("tune", "test") and self.arm in ARMS and isinstance(self.learning_rate, int | float)
        if not known or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
            raise TrainError(
                f"{self}: expected the stage tune or test, a known arm, a learning rate, and seeds of 0 or more"
            )

    @property
    def key(self) -> str:
        """The name of its file."""
        return f"{self.stage}-{self.arm}-{self.learning_rate:g}-{self.cold_start}-{self.sampling}"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is compared, in numbers; the same numbers make the same cells.

    Args:
        turns: of every task.
        start: the name of the cold start.
        arms: names of ARMS, at least one.
        rounds: of collecting and training.
        tasks: a round.
        group: rollouts of a task.
        steps: optimizer steps a round.
        passes: the tokens that go forward and backward a round, in passes over what the first round read and wrote.
        evaluated: held-out tasks, one dialogue each, sampled at temperature 1.
        tuning: seeds of cold start and sampling on which learning rates are chosen, never used again.
        cold_starts: seeds of the policies.
        samplings: seeds of the collections from each of them.
        learning_rates: how many of an arm's grid are tried, spread over it.
        cold_start_steps: of each part of a cold start; None: the desk's own numbers.

    Raises:
        TrainError: a number that cannot be meant, an unknown arm, or a tuning seed that is a test seed too.
    """

    turns: int = 3
    start: str = "partial"
    arms: tuple[str, ...] = tuple(ARMS)
    rounds: int = 5
    tasks: int = 16
    group: int = 12
    steps: int = 12
    passes: float = 2.0
    evaluated: int = 96
    tuning: tuple[int, ...] = (901, 902)
    cold_starts: tuple[int, ...] = (0, 1, 2, 3, 4)
    samplings: tuple[int, ...] = (0, 1)
    learning_rates: int = 4
    cold_start_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("turns", "rounds", "tasks", "group", "steps", "evaluated", "learning_rates"):
            if getattr(self, name) < 1:
                raise TrainError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if not self.passes > 0 or self.group < 2:
            raise TrainError(f"passes {self.passes}, group {self.group}; expected more than 0, and at least 2")
        if not self.arms or not self.tuning or not self.cold_starts or not self.samplings:
            raise TrainError("an experiment needs at least one arm, tuning seed, cold start and sampling seed")
        if reused := set(self.tuning) & set(self.cold_starts):
            raise TrainError(
                f"the seeds {sorted(reused)} are both tuned on and tested on; expected tuning seeds of their own"
            )
        for name in self.arms:
            try:
                arm_of(name)
            except ValueError as error:
                raise TrainError(str(error)) from None

    @classmethod
    def of_turns(cls, turns: int, **settings: Any) -> Experiment:
        """The experiment with the default arms of a number of turns (`ARMS_OF_TURNS`; of another number, of the next
        lower one)."""
        known = max((one for one in ARMS_OF_TURNS if one <= turns), default=min(ARMS_OF_TURNS))
        return cls(**{"turns": turns, "arms": tuple(ARMS_OF_TURNS[known]), **settings})

    def grid(self, arm: str) -> list[float]:
        """The learning rates that are tried for an arm."""
        grid = arm_of(arm).grid
        count = min(self.learning_rates, len(grid))
        return [grid[(2 * place + 1) * len(grid) // (2 * count)] for place in range(count)]

    def tuning_cells(self) -> Iterator[Cell]:
        for arm in self.arms:
            for rate in self.grid(arm):
                for seed in self.tuning:
                    yield Cell(stage="tune", arm=arm, learning_rate=rate, cold_start=seed, sampling=seed)

    def test_cells(self, rates: Mapping[str, float]) -> Iterator[Cell]:
        """The cells of the test, each arm at its chosen learning rate; pair by pair, so that a comparison that is cut
        short has whole pairs."""
        for seed in self.cold_starts:
            for sampling in self.samplings:
                for arm in self.arms:
                    yield Cell(stage="test", arm=arm, learning_rate=rates[arm], cold_start=seed, sampling=sampling)

    def to_json(self) -> dict[str, Any]:
        found = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {**found, "arms": {name: arm_json(arm_of(name)) for name in self.arms}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Experiment:
        """Raises TrainError where the arms were declared otherwise than they are now."""
        for name, declared in data["arms"].items():
            if arm_json(arm_of(name)) != declared:
                raise TrainError(
                    f"the arm {name!r} was another one then ({declared}) than it is now ({arm_json(arm_of(name))});"
                    " check out the commit of the manifest"
                )
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**{**plain, "arms": tuple(data["arms"])})

    @property
    def hash(self) -> str:
        return content_hash(self.to_json())
