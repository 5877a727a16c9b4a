"""What is imitated of stored dialogues: which are chosen, the rows they become, by ids or by words, and the account.

Groups, single scored rollouts and traces without a score are read one after another, and only their rows stay.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from cm2_agent.errors import TrainError
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.json_values import JSON
from cm2_agent.types.null_rates import NullTally
from cm2_agent.types.run import ModelCall
from cm2_agent.types.score import Score
from cm2_agent.types.trace import Step, Trace

from .best_turns import best_turns, turns_alone
from .dataset import RolloutRows, RowReport
from .prompt_text import LOST, lost_words
from .retokenize import rows_by_words
from .rows import TOO_LONG, Row, recorded_steps, rows_of, untrainable_reason
from .shown_words import shown_words
from .template_steps import TemplateRefused, TemplateSteps

Select = Literal["all", "best", "best-turn"] | float
Dialogues: TypeAlias = Iterable[Group | Rollout | Trace]
"""What can be imitated: groups, scored rollouts that are in no group, and traces without a score."""

FAILED = "the dialogue failed"
NOT_BEST = "not the best of its group"
NOT_BEST_TURN = "no turn of it the best of its group"
NOTHING_EARNED = "the best of its group earned nothing"
BELOW = "below the score asked for"
NOTHING_WRITTEN = "no step in a turn that is the best of its group"
NO_REWARD = "no reward"
NOTHING_SAID = "no assistant step"
ASKED_FOR = "retokenise=True"
OTHER_TOKENIZER = "token ids of another tokenizer"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How many rows came from recorded ids and from words, and of the rollouts by words how many for which reason."""

    ids: int = 0
    words: int = 0
    because: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, JSON]:
        return {"ids": self.ids, "words": self.words, "words_because": dict(sorted(self.because.items()))}


class RowMaker:
    """The rows of a dialogue: by the recorded ids where they are what the model at hand would read and write, else by
    the words through its chat template.

    Args:
        tokenizer: the model's.
        vocabulary: how many token ids the model knows.
        stops: its stop tokens besides the tokenizer's.
        words: by words always.
        agent: the steps of this agent alone.
        max_length: dialogues with a longer row are left out.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        vocabulary: int,
        stops: Iterable[int] = (),
        words: bool = False,
        agent: str | None = None,
        max_length: int | None = None,
    ) -> None:
        self.tokenizer, self.vocabulary, self.stops = tokenizer, vocabulary, tuple(stops)
        self.words, self.agent, self.max_length = words, agent, max_length
        self.because: Counter[str] = Counter()
        self._steps: TemplateSteps | None = None

    @property
    def steps(self) -> TemplateSteps:
        """The chat template; a tokenizer needs none where every dialogue has its ids."""
        if self._steps is None:
            self._steps = TemplateSteps(self.tokenizer, self.stops)
        return self._steps

    @property
    def ends(self) -> frozenset[int]:
        """The ids of the tokens that ended a step by words."""
        return frozenset() if self._steps is None else frozenset(self._steps.used)

    def __call__(self, trace: Trace) -> list[Row] | str:
        """The rows, or the reason why there are none. Raises TrainError where the tokenizer knows more tokens than the
        model."""
        rows = self.by_ids(trace)
        reason = rows if isinstance(rows, str) else None
        if reason is not None:
            if not trace.steps or (self.agent is not None and all(step.agent != self.agent for step in trace.steps)):
                return reason
            rows = self.by_words(trace)
        if isinstance(rows, str):
            return rows
        if self.max_length is not None and any(len(row.ids) > self.max_length for row in rows):
            return TOO_LONG
        if reason is not None:
            self.because[reason] += 1
        return rows

    def by_words(self, trace: Trace) -> list[Row] | str:
        """The rows by the words, or the reason why there are none."""
        try:
            rows = rows_by_words(trace, self.steps, agent=self.agent)
        except TemplateRefused as refused:
            return refused.reason
        self.require_known(rows)
        return rows or NOTHING_SAID

    def by_ids(self, trace: Trace) -> list[Row] | str:
        """The rows by the recorded ids, or the reason why these are not what is to be imitated."""
        reason = untrainable_reason(trace, imitation=True, agent=self.agent)
        if reason is not None:
            return reason
        if self.words:
            return ASKED_FOR
        steps = recorded_steps(trace, self.agent)
        doubt = next((doubt for _, call in steps if (doubt := _doubt(call)) is not None), None)
        if doubt is not None:
            return doubt
        if not all(self._reads(step, call) for step, call in steps):
            return OTHER_TOKENIZER
        rows = rows_of(trace, imitation=True, agent=self.agent)
        read = RolloutRows(trace_id=trace.id, rows=tuple(rows), shown=shown_words(trace, rows))
        return rows if lost_words(read, self.tokenizer) is None else LOST

    def _reads(self, step: Step, call: ModelCall) -> bool:
        """Whether the recorded ids, read by this tokenizer, are the words that were recorded beside them."""
        written = list(call.completion_ids or ())
        if max(written) >= self.vocabulary or int(np.asarray(call.prompt_ids).max()) >= self.vocabulary:
            return False
        read = "".join(str(self.tokenizer.decode(written)).split())
        said = ["".join(step.message.text.split()), *(call.name for call in step.message.tool_calls)]
        return all(words in read for words in said)

    def require_known(self, rows: Iterable[Row]) -> None:
        """Raises TrainError where a row by words holds an id that the model does not know."""
        largest = max((int(np.asarray(row.ids).max()) for row in rows), default=0)
        if largest >= self.vocabulary:
            raise TrainError(
                f"the tokenizer gives token id {largest}, the model knows {self.vocabulary}: it is another model's;"
                " give the model's own tokenizer"
            )


def _doubt(call: ModelCall) -> str | None:
    """Why the recorded ids of a call may not be what its model wrote."""
    if call.error is not None:
        return "failed call"
    if call.sampling.get("untrainable"):
        return str(call.sampling["untrainable"])
    read, wrote = call.usage.get("input_tokens"), call.usage.get("output_tokens")
    if read not in (None, len(call.prompt_ids or ())) or wrote not in (None, len(call.completion_ids or ())):
        return "token ids disagree with usage"
    return None


class Imitation:
    """Chooses dialogues and collects their rows: `rows`, and `report`, the account of what was left out."""

    def __init__(self, select: Select, make: RowMaker) -> None:
        self.select, self.make = select, make
        self.rows: list[Row] = []
        self.rollouts = self.turns = 0
        self._left_out: Counter[str] = Counter()
        self._groups = self._informative = self._dialogues = 0
        self._versions: set[str] = set()
        self._bounds: list[tuple[float, float]] = []
        self._nulls = NullTally()

    def read(self, given: Dialogues) -> None:
        """Take what is chosen of the dialogues. Raises TrainError where none was given, or their scores cannot be
        compared, or there is no score to choose by.
        """
        for one in given:
            if isinstance(one, Group):
                self._groups += 1
                rewards = {rollout.score.lower for rollout in one.rollouts}
                self._informative += len(rewards - {None}) > 1
                if self.select == "best-turn":
                    self._add_turns(one)
                    continue
                for rollout in one.rollouts:
                    self._add(rollout.trace, rollout.score, self._reason(rollout, one))
            elif isinstance(one, Rollout):
                self._add(one.trace, one.score, self._reason(one, None))
            elif isinstance(one, Trace):
                self._add(one, None, self._reason(one, None))
            else:
                raise TrainError(
                    f"a {type(one).__name__} was given; expected groups (store.groups(…)), rollouts, or traces"
                    " (store.traces())"
                )
            self._require_one_reward()
        if not self._dialogues:
            raise TrainError(
                "no group was given, nor a trace; expected what the store's groups(…) or traces(…) give. Check what it"
                " was asked for: project, task, policy and reward version must be those of stored traces. A group is"
                " several rollouts of one task: scored dialogues that are in none are chosen by a number, select=0.8."
            )

    @property
    def report(self) -> dict[str, JSON]:
        trained = sum(row.trained for row in self.rows)
        by_words = sum(row.retokenised for row in self.rows)
        count = len(self._bounds)
        found = RowReport(
            groups=self._groups,
            informative_groups=self._informative,
            rows=len(self.rows),
            trained_tokens=trained,
            masked_tokens=sum(len(row.ids) for row in self.rows) - trained,
            lower=math.fsum(lower for lower, _ in self._bounds) / count if count else None,
            upper=math.fsum(upper for _, upper in self._bounds) / count if count else None,
            left_out=dict(self._left_out),
            retokenised_rows=by_words,
            nulls=self._nulls.policies,
        )
        origin = Origin(ids=len(self.rows) - by_words, words=by_words, because=dict(self.make.because))
        chosen = {"turns": self.turns} if self.select == "best-turn" else {}
        return {
            **found.to_json(),
            "rows_from": origin.to_json(),
            "select": self.select,
            "rollouts": self.rollouts,
            **chosen,
        }

    def require_rows(self) -> None:
        """Raises TrainError where nothing is left, with the reasons."""
        if self.rows:
            return
        reasons = ", ".join(f"{count} × {reason}" for reason, count in sorted(self._left_out.items()))
        of = f"{self._groups} groups" if self._groups else f"{self._dialogues} dialogues"
        raise TrainError(
            f"nothing is left to imitate of {of}: {reasons}. Ask for less with select, or score the traces first."
        )

    def _add_turns(self, group: Group) -> None:
        """Take the best turns of a group."""
        chosen = best_turns(group.rollouts)
        for rollout, turns in zip(group.rollouts, chosen, strict=True):
            reason = self._reason(rollout, group)
            if reason is None and not turns:
                reason = NOT_BEST_TURN if any(chosen) else NOTHING_EARNED
            self._add(rollout.trace, rollout.score, reason, turns)

    def _add(self, trace: Trace, score: Score | None, reason: str | None, turns: frozenset[int] | None = None) -> None:
        self._dialogues += 1
        if score is not None:
            self._versions.add(score.reward_version)
            self._nulls.add(trace, score)
            if (bounds := score.bounds) is not None:
                self._bounds.append((bounds.lower, bounds.upper))
        rows = reason or self.make(trace)
        if turns is not None and not isinstance(rows, str):
            rows = turns_alone(rows, turns) or NOTHING_WRITTEN
        if isinstance(rows, str):
            self._left_out[rows] += 1
        else:
            self.rollouts += 1
            self.turns += len({span.turn for row in rows for span in row.spans})
            self.rows.extend(rows)

    def _reason(self, one: Rollout | Trace, group: Group | None) -> str | None:
        """Why the dialogue is not chosen, None where it is."""
        trace = one if isinstance(one, Trace) else one.trace
        if trace.failure is not None:
            return FAILED
        if self.select == "all":
            return None
        by_group = self.select in ("best", "best-turn")
        if isinstance(one, Trace) or (by_group and group is None):
            wanted = "groups of scored rollouts (store.groups(…))" if by_group else "scored rollouts"
            raise TrainError(
                f"select={self.select!r} chooses by scores, and trace {trace.id!r} came"
                f" {'without one' if isinstance(one, Trace) else 'without a group'}; expected {wanted}. Give these, or"
                f" {'SFT all traces' if isinstance(one, Trace) else 'choose by a number, select=0.8 say'}"
            )
        reward = one.score.lower
        if reward is None:
            return NO_REWARD
        if self.select == "best-turn":
            return None
        if self.select != "best":
            return None if reward >= float(self.select) else BELOW
        assert group is not None
        best = max(other.score.lower for other in group.rollouts if other.score.lower is not None)
        if best <= 0:
            return NOTHING_EARNED
        return None if reward == best else NOT_BEST

    def _require_one_reward(self) -> None:
        if self.select != "all" and len(self._versions) > 1:
            versions = sorted(self._versions)
            raise TrainError(
                f"the groups mix {len(versions)} reward versions: {', '.join(versions[:4])}. Rewards of different"
                " versions cannot be compared: score all of them with one (cm2 score --again), or name the version to"
                " train on."
            )
