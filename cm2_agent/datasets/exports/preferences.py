"""Rollouts of a task whose rewards differ, as pairs in TRL's conversational preference format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import dropwhile

from cm2_agent.datasets.exports.chat_messages import Entry, Losses, chat_messages, flat
from cm2_agent.datasets.exports.records import tools_text
from cm2_agent.trainers.preference_pairs import Preference, group_preferences
from cm2_agent.types.dialogue_content import system_prompt
from cm2_agent.types.group import Group
from cm2_agent.types.messages import Message


@dataclass(kw_only=True)
class PreferencePairs:
    """Pairs of groups, one group at a time, and what came of them.

    Args:
        margin: the least difference of the two rewards, above 0.
        most: how many pairs of a group at most; None: all.
        among: the ids of the traces that may be in a pair; None: all.
    """

    margin: float
    most: int | None = None
    among: frozenset[str] | None = None
    groups: int = 0
    without_pair: int = 0
    losses: Losses = field(default_factory=Losses)

    def of(self, groups: Iterable[Group]) -> Iterator[Entry]:
        """`prompt`, `chosen` and `rejected` of each pair, with `tools` where the agent had some: the turn in which the
        two dialogues part, after what they share. The turn is worth the whole dialogue's reward."""
        for group in groups:
            if self.among is not None:
                group = replace(group, rollouts=tuple(one for one in group.rollouts if one.trace.id in self.among))
            if not group.rollouts:
                continue
            self.groups += 1
            pairs = group_preferences(group, margin=self.margin, most=self.most)
            self.without_pair += not pairs
            for pair in pairs:
                yield self._pair(pair)

    def _pair(self, pair: Preference) -> Entry:
        assert pair.rollouts is not None
        trace = pair.rollouts[0].trace
        for one, turn in zip(pair.rollouts, (pair.chosen, pair.rejected), strict=True):
            self.losses["dialogues that go on after the turn"] += len(one.trace.messages) > len(pair.prompt) + len(turn)
        system = system_prompt(pair.prompt, trace.calls)
        shown = list(dropwhile(lambda message: message.role == "system", pair.prompt))
        prompt = [*([Message.of("system", system)] if system else []), *shown]
        chosen, rejected = (self._entries([*prompt, *turn]) for turn in (pair.chosen, pair.rejected))
        return {
            "prompt": flat(chosen[: len(prompt)]),
            "chosen": flat(chosen[len(prompt) :]),
            "rejected": flat(rejected[len(prompt) :]),
            **tools_text(trace),
        }

    def _entries(self, messages: Sequence[Message]) -> list[list[Entry]]:
        return chat_messages(messages, self.losses, arguments_as_text=False)


__all__ = ["PreferencePairs"]
