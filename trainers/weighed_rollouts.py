"""From stored groups to the weighed rollouts of an off-policy estimate: which rollouts can be weighed, what their turns
earned, V̂ before each, and how much likelier a new policy makes each turn."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cm2_agent.errors import TrainError
from cm2_agent.types.group import Group, Rollout

from .dataset import Drop, RolloutDataset, by_level
from .episodes import Episode, others_means
from .off_policy_values import WeighedRollout
from .rows import TEXT_ONLY, Credit, Floats, Row, recorded_steps
from .values import cross_fitted_values

CUT_OFF = "sampled with top_p, top_k or min_p"
"""What was cut off tells nothing of a policy that may write it."""
OUTSIDE = "the policy was asked outside of the dialogue, too"
"""An answer that became no step (a summary, another attempt) had its share in what happened, and stands in no row."""
OTHER_TEMPERATURE = "sampled at another temperature"


@dataclass(frozen=True, kw_only=True)
class Noted:
    """A rollout whose reward is known: its task, and its turns where the reward is made of theirs."""

    task: str
    reward: float
    episode: Episode | None


class NotedRollouts:
    """Notes of groups on their way to rows, and of no trace or score: the rollouts by number of the group and trace."""

    def __init__(self) -> None:
        self._noted: dict[tuple[int, str], Noted] = {}
        self._others: list[float] = []

    def passing(self, groups: Iterable[Group]) -> Iterator[Group]:
        """The groups as they come, noted."""
        for number, group in enumerate(groups):
            rewards = [one.score.lower for one in group.rollouts]
            for one, reward in zip(group.rollouts, rewards, strict=True):
                if reward is None:
                    continue
                if None in rewards:
                    self._others.append(reward)
                    continue
                self._noted[number, one.trace.id] = Noted(
                    task=group.task_id, reward=reward, episode=_episode(one, reward)
                )
            yield group

    def weighed(self, dataset: RolloutDataset, logprobs: Mapping[int, Floats]) -> tuple[list[WeighedRollout], bool]:
        """The rollouts of a dataset of these groups, with log π of their rows by the `id` of the row; and whether their
        rewards are those of their turns.

        V̂ is that of level `lambda`, over all noted rollouts; the groups of a task are one. Where a reward is not made
        of turns, each dialogue counts as one turn, and V̂ is the mean of the task's other rollouts.
        """
        by_task: dict[str, list[tuple[int, str]]] = {}
        for key, one in self._noted.items():
            by_task.setdefault(one.task, []).append(key)
        by_turn = all(one.episode is not None for one in self._noted.values())
        values = self._values(list(by_task.values()), by_turn)
        found = []
        for number, group in enumerate(dataset.groups):
            for rollout in group.rollouts:
                key = number, rollout.trace_id
                one, ratios = self._noted[key], _log_ratios(rollout.rows, logprobs)
                if by_turn and one.episode is not None:
                    rewards = one.episode.rewards_T
                    logs = np.array([ratios.pop(turn, 0.0) for turn in one.episode.turns])
                    if ratios:
                        raise TrainError(f"trace {key[1]!r}: turns {sorted(ratios)} were written and never scored")
                else:
                    rewards, logs = np.array([one.reward]), np.array([math.fsum(ratios.values())])
                found.append(WeighedRollout(task=one.task, rewards_T=rewards, values_T=values[key], log_ratios_T=logs))
        return found, by_turn

    def mean_besides(self, dataset: RolloutDataset) -> float | None:
        """The mean reward of the rollouts that are not in the dataset, as far as theirs is known; None without any."""
        used = {(number, one.trace_id) for number, group in enumerate(dataset.groups) for one in group.rollouts}
        rewards = [one.reward for key, one in self._noted.items() if key not in used] + self._others
        return math.fsum(rewards) / len(rewards) if rewards else None

    def _values(self, tasks: Sequence[Sequence[tuple[int, str]]], by_turn: bool) -> dict[tuple[int, str], Floats]:
        if by_turn:
            episodes = [[one for key in keys if (one := self._noted[key].episode) is not None] for keys in tasks]
            found = cross_fitted_values(episodes)
        else:
            found = [
                others_means([(0,)] * len(keys), [np.array([self._noted[key].reward]) for key in keys])
                for keys in tasks
            ]
        pairs = (zip(keys, own, strict=True) for keys, own in zip(tasks, found, strict=True))
        return dict(itertools.chain.from_iterable(pairs))


def known_rewards(group: Group) -> list[Credit | str]:
    """Of each rollout why its reward is not known, or the credit 1 of every token, which stands for none: a group with
    a pending rollout is left out whole, as in training."""
    return [one if isinstance(one, str) else _one for one in by_level("trajectory", "none")(group)]


def not_whole(agent: str | None) -> Drop:
    """Leaves out rollouts whose rows do not hold all that the policy (of one agent, where it is named) drew, or not all
    that it could have drawn: answers off the dialogue's main line, truncated sampling."""

    def drop(group: Group, rollout: Rollout, rows: Sequence[Row]) -> str | None:
        if not all(row.exact for row in rows):
            return CUT_OFF
        wrote = {id(call) for _, call in recorded_steps(rollout.trace, agent)}
        own = {row.policy for row in rows}
        outside = (
            call.error is None and call.model_version in own and agent in (None, call.agent)
            for call in rollout.trace.calls
            if id(call) not in wrote
        )
        return OUTSIDE if any(outside) else None

    return drop


def not_at(temperature: float | None) -> Drop:
    """Leaves out rollouts sampled at another temperature than this; None: none."""

    def drop(group: Group, rollout: Rollout, rows: Sequence[Row]) -> str | None:
        return OTHER_TEMPERATURE if temperature is not None and rows[0].temperature != temperature else None

    return drop


def require_one_policy(dataset: RolloutDataset) -> None:
    """Raises TrainError where nothing can be weighed, and on rollouts of several policies or temperatures: there is no
    one old policy to compare with."""
    left = [group for group in dataset.groups if group.rollouts]
    if not left:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in Counter(dataset.left_out).most_common())
        texts = TEXT_ONLY in dataset.left_out
        raise TrainError(
            f"no rollout of {len(dataset.groups)} groups can be weighed: {reasons or 'there is none'}. Expected scored"
            " rollouts with token ids and the sampler's own logprobs, sampled without top_p, top_k and min_p"
            + (": of LocalChatModel, or an endpoint that returns them (cm2 run --token-ids)" if texts else "")
        )
    policies = sorted({str(group.key.get("policy")) for group in left})
    if len(policies) > 1:
        raise TrainError(
            f"the rollouts are of {len(policies)} policies: {', '.join(policies[:4])}. Expected those of one, to"
            " compare the new one with; type: cm2 policy evaluate … --policy VERSION (store.stream_groups(policy=…))"
        )
    temperatures = sorted({row.temperature for group in left for row in group.rows if row.temperature is not None})
    if len(temperatures) > 1:
        raise TrainError(
            f"the rollouts were sampled at temperatures {', '.join(map(str, temperatures))}. Expected one, at which the"
            " new policy is evaluated; type: cm2 policy evaluate … --temperature T (temperature=…)"
        )


def _one(turn: int, step: int) -> float:
    return 1.0


def _episode(rollout: Rollout, reward: float) -> Episode | None:
    """The rollout's turns, None where they are not what its reward is made of."""
    if not rollout.score.turns or rollout.score.components:
        return None
    episode = Episode.of(rollout.score, rollout.trace)
    return episode if episode.turns and math.isclose(episode.rewards_T.sum(), reward, abs_tol=1e-9) else None


def _log_ratios(rows: Sequence[Row], logprobs: Mapping[int, Floats]) -> dict[int, float]:
    """log π − log μ by turn."""
    found: dict[int, float] = {}
    for row in rows:
        ends = np.cumsum([len(span) for span in row.spans])[:-1]
        for span, part in zip(row.spans, np.split(logprobs[id(row)] - row.mu, ends), strict=True):
            found[span.turn] = found.get(span.turn, 0.0) + float(part.sum())
    return found


__all__ = ["NotedRollouts", "known_rewards", "not_at", "not_whole", "require_one_policy"]
