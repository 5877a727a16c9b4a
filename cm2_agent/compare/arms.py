"""Arms: the ways of training that are compared, declared as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

GRPO_GRID = (2e-4, 4e-4, 8e-4, 1.6e-3)
SFT_GRID = (2e-4, 4e-4, 8e-4, 1.6e-3)
DPO_GRID = (2e-5, 5e-5, 1e-4, 2e-4)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of training.

    Args:
        method: what is minimised.
        level: of GRPO: where credit is given.
        lam: of GRPO at level "lambda".
        select: of SFT: what is imitated.
        reward: "checklist"; "outcome", the app's own success alone; or "shuffled", the advantages permuted among the
            rollouts of each group, so that whatever is gained is not due to the rewards.
        positive: of GRPO: advantages below 0 count as 0, so that nothing is unlearned.
        restarts: trains the start anew on the rollouts of all rounds so far, instead of the last policy on the last
            round's.
        margin: of DPO: the least difference of a pair's rewards.
        grid: the learning rates that are tried on the tuning seeds.
    """

    method: Literal["grpo", "sft", "dpo"]
    level: str = "trajectory"
    lam: float | None = None
    select: str = "best"
    reward: Literal["checklist", "outcome", "shuffled"] = "checklist"
    positive: bool = False
    restarts: bool = False
    margin: float = 0.1
    grid: tuple[float, ...] = GRPO_GRID

    @property
    def family(self) -> str:
        """Arms of a family are rivals for the best of it: "sft" or "grpo" on the checklist's rewards, else "other"."""
        plain = self.reward == "checklist" and not self.positive
        return self.method if plain and self.method in ("sft", "grpo") else "other"


ARMS: Mapping[str, Arm] = {
    "sft-trajectory": Arm(method="sft", grid=SFT_GRID),  # rejection sampling, continued from round to round
    "sft-turn": Arm(method="sft", select="best-turn", grid=SFT_GRID),
    "sft-restart": Arm(method="sft", restarts=True, grid=SFT_GRID),
    "grpo-trajectory": Arm(method="grpo"),
    "grpo-turn": Arm(method="grpo", level="turn"),
    "grpo-step": Arm(method="grpo", level="step"),
    "grpo-return_to_go": Arm(method="grpo", level="return_to_go"),
    "grpo-evidence": Arm(method="grpo", level="evidence"),
    "grpo-lambda": Arm(method="grpo", level="lambda", lam=0.9),
    "grpo-positive": Arm(method="grpo", level="turn", positive=True),
    "dpo": Arm(method="dpo", grid=DPO_GRID),
    "outcome": Arm(method="grpo", reward="outcome"),
    "shuffled": Arm(method="grpo", level="turn", reward="shuffled"),
}
"""Every arm by its name."""

ARMS_OF_TURNS: Mapping[int, Sequence[str]] = {
    3: tuple(ARMS),
    6: ("sft-trajectory", "sft-turn", "grpo-trajectory", "grpo-turn", "grpo-lambda"),
    10: ("sft-turn", "grpo-turn", "grpo-lambda"),
}
"""Which arms a comparison has by default: fewer where a cell costs more."""


def arm_of(name: str) -> Arm:
    """The arm of a name. Raises ValueError for another."""
    if name not in ARMS:
        raise ValueError(f"no arm {name!r}; there are {', '.join(ARMS)}")
    return ARMS[name]


def arm_json(arm: Arm) -> dict[str, Any]:
    """The arm as it stands in a manifest."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(arm).items()}
