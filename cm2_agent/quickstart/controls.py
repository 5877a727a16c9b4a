"""The controls: what else could have made the gain. Each gets one pass over round 1's store, from the cold start,
beside the real pass.

- `real`: GRPO on the checklist's rewards, as round 1 does it.
- `shuffled`: the same with the verdicts permuted among the rollouts of each group: whatever it gains is not due to the
  rewards.
- `outcome`: the same on the app's success alone, without criteria.
- `best_of_group`: supervised fine-tuning on the best rollouts of each group (rejection sampling).
- `all`: supervised fine-tuning on every rollout.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm2_agent.datasets.control_rewards import outcome_alone, shuffled_scores

if TYPE_CHECKING:
    from cm2_agent.quickstart.pipeline import Quickstart


def run_controls(quickstart: Quickstart, before: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate each control; returns for each its held-out success, greedy success and reward, and the gain
    in success."""
    from cm2_agent.quickstart.pipeline import grpo_settings
    from cm2_agent.trainers.grpo import GRPO
    from cm2_agent.trainers.sft import SFT

    groups, settings = quickstart.groups(1), quickstart.config.rounds
    # As many optimizer steps over as many rows as the real pass has; GRPO's learning rate does for imitation too.
    imitation: dict[str, Any] = {
        "steps": settings.steps,
        "rows_per_step": settings.batch,
        "learning_rate": settings.learning_rate(1),
        "warmup_steps": settings.warmup,
    }
    seed = quickstart.seed * 1000 + 1
    grpo = {"seed": seed, **grpo_settings(settings, 1)}
    table: dict[str, Any] = {}
    passes: dict[str, Any] = {
        "shuffled": lambda out: GRPO(quickstart.policy(0), out, **grpo).train(shuffled_scores(groups, quickstart.seed)),
        "outcome": lambda out: GRPO(quickstart.policy(0), out, **grpo).train(outcome_alone(groups)),
        "best_of_group": lambda out: SFT(quickstart.policy(0), out, select="best", seed=seed, **imitation).train(
            groups
        ),
        "all": lambda out: SFT(quickstart.policy(0), out, select="all", seed=seed, **imitation).train(groups),
    }
    for number, (name, train) in enumerate({"real": None, **passes}.items()):
        quickstart.progress("controls", number, len(passes) + 1)
        path: Path = quickstart.policy(1)
        if train is not None:
            path = quickstart.out / f"control-{name}"
            if not path.exists():
                train(path)
        measured = quickstart.evaluate(path, f"control {name}")
        table[name] = {
            "success": measured["success"],
            "success_ci": measured["success_ci"],
            "greedy": measured["greedy"],
            "reward": measured["reward"],
            "gain": measured["success"] - before["success"],
        }
    quickstart.progress("controls", len(passes) + 1, len(passes) + 1)
    return table
