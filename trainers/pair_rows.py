"""Pairs as token ids: the two turns of a preference as rows, by recorded ids where both have them, else by the words.

Only the model's own tokens of the turn count; the prompt, tools' answers and what was said before are read alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from cm2_agent.errors import TrainError
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.json_values import JSON
from cm2_agent.types.trace import Trace

from .imitation import Origin, RowMaker
from .preference_pairs import Preference, group_preferences, guard_preferences
from .retokenize import turn_by_words
from .rows import TOO_LONG, Row
from .template_steps import TemplateRefused

SEVERAL_ROWS = "the turn is in several rows"
NOTHING_TO_COMPARE = "a side without a token of the model's"
SAME_TOKENS = "the same tokens on both sides"
NO_PREFERENCE = "no two rollouts of the group with a pair"
NO_ATTEMPT = "no attempt that a guard rejected"
GUARDED = "turns of a guard"

Preferred: TypeAlias = Iterable[Group | Trace]
"""Where pairs come from: groups of scored rollouts, and traces with attempts that a guard rejected."""


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """The chosen and the rejected turn, each as a row that ends with the turn; spans are the turn's alone."""

    chosen: Row
    rejected: Row

    @property
    def sides(self) -> tuple[Row, Row]:
        return self.chosen, self.rejected


class PairRows:
    """Collects the pairs of groups and traces: `pairs`, and `report`, the account of what was left out.

    Args:
        make: makes rows of traces.
        margin: the least difference of two rewards.
        most: pairs a group, widest difference first; None: all.
        max_length: pairs with a longer side are left out.
    """

    def __init__(self, make: RowMaker, *, margin: float, most: int | None, max_length: int | None = None) -> None:
        self.make, self.margin, self.most, self.max_length = make, margin, most, max_length
        self.pairs: list[PairRow] = []
        self._left_out: Counter[str] = Counter()
        self._because: Counter[str] = Counter()
        self._words = self._given = self._groups = 0
        self._margins: list[float] = []
        self._versions: set[str] = set()

    def read(self, given: Preferred) -> None:
        """Take the pairs. Raises TrainError where nothing was given, or rewards cannot be compared."""
        for one in given:
            self._given += 1
            if isinstance(one, Group):
                self._groups += 1
                self._versions |= {rollout.score.reward_version for rollout in one.rollouts}
                self._require_one_reward()
                self._add(group_preferences(one, margin=self.margin), NO_PREFERENCE)
            elif isinstance(one, Trace):
                self._add(list(guard_preferences(one)), NO_ATTEMPT, trace_id=one.id)
            else:
                raise TrainError(
                    f"a {type(one).__name__} was given; expected groups (store.groups(…)), or traces of a guarded graph"
                    " (store.traces())"
                )
        if not self._given:
            raise TrainError(
                "no group was given, nor a trace; expected what the store's groups(…) or traces(…) give. Check what it"
                " was asked for: project, task, policy and reward version must be those of stored traces. A group is"
                " several rollouts of one task (cm2 run --group 8), and a pair needs two of them. What a guard rejected"
                " gives pairs without groups: store.traces(), or cm2 train --algorithm dpo --set pairs=guard."
            )

    def require_pairs(self) -> None:
        """Raises TrainError where there is no pair, with the reasons."""
        if not self.pairs:
            reasons = ", ".join(f"{count} × {reason}" for reason, count in sorted(self._left_out.items()))
            traces = self._given - self._groups
            of = " and ".join(
                f"{count} {kind}" for count, kind in ((self._groups, "groups"), (traces, "traces")) if count
            )
            advice = []
            if self._groups:
                advice.append(
                    "Pairs of a group are turns after the same messages whose rewards differ by"
                    f" {self.margin} or more (margin=): take a smaller margin, score the traces, or sample more"
                    " rollouts a task."
                )
            if traces:
                advice.append(
                    "Pairs of a trace are attempts that a guard rejected beside the turn that it let through"
                    " (guard(graph, checklist, on_violation='retry')): give traces of a guarded graph, or groups of"
                    " scored rollouts (cm2 train without pairs=guard)."
                )
            raise TrainError(f"no pair was found in {of}: {reasons}. {' '.join(advice)}")

    @property
    def rows(self) -> list[Row]:
        """The sides of all pairs, the chosen one first."""
        return [row for pair in self.pairs for row in pair.sides]

    @property
    def report(self) -> dict[str, JSON]:
        sides = self.rows
        trained = sum(row.trained for row in sides)
        origin = Origin(ids=len(self.pairs) - self._words, words=self._words, because=dict(self._because))
        return {
            "groups": self._groups,
            "pairs": len(self.pairs),
            "trained_tokens": trained,
            "masked_tokens": sum(len(row.ids) for row in sides) - trained,
            "mean_margin": sum(self._margins) / len(self._margins) if self._margins else None,
            "left_out": dict(sorted(self._left_out.items())),
            "pairs_from": origin.to_json(),
        }

    def _add(self, preferences: Sequence[Preference], none: str, trace_id: str = "") -> None:
        if not preferences:
            self._left_out[none] += 1
        known = _Known(self.make)
        added = 0
        for preference in preferences:
            if self.most is not None and preference.rollouts is not None and added >= self.most:
                break
            pair = self._of_group(preference, known) if preference.rollouts else self._of_guard(preference, trace_id)
            if isinstance(pair, str):
                self._left_out[pair] += 1
                continue
            self.pairs.append(pair)
            added += 1
            if preference.margin is not None:
                self._margins.append(preference.margin)

    def _of_group(self, preference: Preference, known: _Known) -> PairRow | str:
        assert preference.rollouts is not None
        recorded = [known.by_ids(rollout) for rollout in preference.rollouts]
        reason = next((reason for reason in recorded if isinstance(reason, str)), None)
        sides = []
        for rollout, turn in zip(preference.rollouts, (preference.chosen, preference.rejected), strict=True):
            rows = known.by_ids(rollout) if reason is None else known.by_words(rollout)
            last = preference.step + sum(message.role == "assistant" for message in turn)
            steps = [step for step in rollout.trace.steps if preference.step <= step.number < last]
            side = rows if isinstance(rows, str) else _side(rows, {(step.turn, step.index) for step in steps})
            if isinstance(side, str):
                return side
            sides.append(side)
        return self._pair(sides[0], sides[1], reason)

    def _of_guard(self, preference: Preference, trace_id: str) -> PairRow | str:
        sides = []
        for turn in (preference.chosen, preference.rejected):
            try:
                rows = turn_by_words(preference.prompt, turn, preference.tools, self.make.steps, trace_id=trace_id)
            except TemplateRefused as refused:
                return refused.reason
            self.make.require_known(rows)
            side = _side(rows, {(span.turn, span.step) for row in rows for span in row.spans})
            if isinstance(side, str):
                return side
            sides.append(side)
        return self._pair(sides[0], sides[1], GUARDED)

    def _pair(self, chosen: Row, rejected: Row, reason: str | None) -> PairRow | str:
        if chosen.ids == rejected.ids:
            return SAME_TOKENS
        if self.max_length is not None and max(len(chosen.ids), len(rejected.ids)) > self.max_length:
            return TOO_LONG
        if reason is not None:
            self._words += 1
            self._because[reason] += 1
        return PairRow(chosen=chosen, rejected=rejected)

    def _require_one_reward(self) -> None:
        if len(self._versions) > 1:
            raise TrainError(
                f"the groups mix {len(self._versions)} reward versions: {', '.join(sorted(self._versions)[:4])}."
                " Rewards of different versions cannot be compared: name the one to train on"
            )


class _Known:
    """The rows of a group's rollouts: each rollout has a part in several pairs."""

    def __init__(self, make: RowMaker) -> None:
        self._make = make
        self._rows: dict[tuple[int, bool], list[Row] | str] = {}

    def by_ids(self, rollout: Rollout) -> list[Row] | str:
        return self._known(rollout, by_words=False)

    def by_words(self, rollout: Rollout) -> list[Row] | str:
        return self._known(rollout, by_words=True)

    def _known(self, rollout: Rollout, *, by_words: bool) -> list[Row] | str:
        key = (id(rollout), by_words)
        if key not in self._rows:
            make = self._make.by_words if by_words else self._make.by_ids
            self._rows[key] = make(rollout.trace)
        return self._rows[key]


def _side(rows: Sequence[Row], places: set[tuple[int, int]]) -> Row | str:
    """The row of the steps at these places (turn, step), up to its last token of theirs; the spans are theirs alone."""
    found = [row for row in rows if any((span.turn, span.step) in places for span in row.spans)]
    if len(found) != 1:
        return SEVERAL_ROWS if found else NOTHING_TO_COMPARE
    spans = tuple(span for span in found[0].spans if (span.turn, span.step) in places)
    return replace(found[0], ids=found[0].ids[: spans[-1].stop], spans=spans)
