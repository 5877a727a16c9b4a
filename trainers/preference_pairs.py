"""Pairs for DPO: turns that a run-time guard let through beside those it rejected, and rollouts of a group with
different rewards.

A pair is `{"prompt": […], "chosen": […], "rejected": […]}` in the conversational format of TRL's preference data sets,
messages as chat templates read them; where the model was offered tools, `tools` holds them as JSON. A turn with tool
calls is there as a whole, the tools' answers too. `DPO` trains on the same pairs by token ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeAlias

from cm2_agent.errors import TrainError
from cm2_agent.types.group import Group, Rollout
from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.messages import Message, ToolSpec
from cm2_agent.types.run_attributes import GUARD, GUARD_OUTCOME
from cm2_agent.types.trace import Trace

from .retokenize import tools_of
from .template_steps import template_messages, template_tools

Pair: TypeAlias = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Two turns after the same messages, the better and the worse one. For rollouts of a group, `rollouts` are the two
    and `step` the number of the first step of the turn in both; `margin` is the difference of their rewards."""

    prompt: Sequence[Message]
    chosen: Sequence[Message]
    rejected: Sequence[Message]
    tools: Sequence[ToolSpec] = ()
    rollouts: tuple[Rollout, Rollout] | None = None
    step: int = 0
    margin: float | None = None

    def to_pair(self) -> Pair:
        """The pair in TRL's conversational format."""
        pair: Pair = {
            name: _chat(messages)
            for name, messages in (("prompt", self.prompt), ("chosen", self.chosen), ("rejected", self.rejected))
        }
        if self.tools:
            pair["tools"] = json.dumps(template_tools(self.tools), ensure_ascii=False)
        return pair


def dpo_pairs(traces: Iterable[Trace]) -> Iterator[Pair]:
    """A preference pair for every attempt that a guard rejected where another was let through.

    `prompt` is the dialogue up to the turn, `chosen` the accepted turn, `rejected` the attempt, each a list of
    messages for TRL's DPOTrainer. A blocked turn gives no pair; nor does an attempt (of a best of n) that broke
    nothing and was worth as much, or one with the same words.

    >>> from langchain_core.language_models import FakeListChatModel
    >>> from cm2_agent import Checklist, Item, SQLStore, flush, guard, watch
    >>> from cm2_agent.graphs import agent
    >>> from cm2_agent.trainers import dpo_pairs
    >>> no_promise = Item("no_promise", check={"reply_matches": "refund"}, kind="avoid", required_for_next_turn=True)
    >>> support = Checklist(no_promise, name="support")
    >>> model = FakeListChatModel(responses=["You get a refund!", "It was shipped."])
    >>> graph = watch(guard(agent(model, []), support, on_violation="retry"), support, store="sqlite:///guard.db")
    >>> _ = graph.invoke({"messages": [("user", "Where is order 7?")]}, {"configurable": {"thread_id": "t1"}})
    >>> flush()
    True
    >>> for pair in dpo_pairs(SQLStore("sqlite:///guard.db").traces()):
    ...     print(pair["chosen"][-1]["content"], "|", pair["rejected"][-1]["content"])
    It was shipped. | You get a refund!
    """
    for trace in traces:
        for preference in guard_preferences(trace):
            yield preference.to_pair()


def guard_preferences(trace: Trace) -> Iterator[Preference]:
    """`dpo_pairs` of one trace, before they are chat messages."""
    before: list[Message] = []
    for run in trace.runs:
        opening = list(takewhile(lambda message: message.role != "assistant", run.messages))
        chosen = run.messages[len(opening) :]
        if run.attributes.get(GUARD_OUTCOME) == "accepted" and chosen:
            for attempt in run.attributes.get(GUARD) or ():
                rejected = [Message.from_json(message) for message in attempt["messages"]]
                worse = attempt["failed"] or attempt["worth"] < 0
                if worse and rejected and _content(rejected) != _content(chosen):
                    yield Preference(
                        prompt=[*before, *opening], chosen=chosen, rejected=rejected, tools=tools_of(trace)
                    )
        before.extend(run.messages)


def pairs_of(group: Group, *, margin: float, most: int | None = None) -> list[Pair]:
    """Preference pairs of a group's rollouts whose rewards differ, widest difference first.

    The prompt is what both dialogues begin with, up to the last user message that they share; `chosen` and `rejected`
    are the turns that follow. Both are worth `Score.lower`: what the policy kept from being judged is unpaid. Rollouts
    whose reward is pending give no pair, nor do two that begin differently or are the same.

    Args:
        group: Rollouts of one task under one reward version, `store.groups()` say.
        margin: The least difference of the two rewards, above 0.
        most: How many pairs at most; None: all.

    Raises:
        TrainError: A margin that is not above 0, or a group that mixes reward versions.

    >>> from cm2_agent import Group, Message, Rollout, Run, Score, Trace
    >>> from cm2_agent.trainers import pairs_of
    >>> def rollout(name, reply, reward):
    ...     run = Run(id=name, messages=[Message.of("user", "Where is order 7?"), Message.of("assistant", reply)])
    ...     return Rollout(trace=Trace.of(run), score=Score(trace_id=name, reward_version="v1", reward=reward))
    >>> rollouts = (rollout("a", "It was shipped.", 1.0), rollout("b", "No idea.", 0.0))
    >>> (pair,) = pairs_of(Group(key={"task": "where"}, rollouts=rollouts), margin=0.5)
    >>> pair["chosen"], pair["rejected"]
    ([{'role': 'assistant', 'content': 'It was shipped.'}], [{'role': 'assistant', 'content': 'No idea.'}])
    """
    return [preference.to_pair() for preference in group_preferences(group, margin=margin, most=most)]


def group_preferences(group: Group, *, margin: float, most: int | None = None) -> list[Preference]:
    """`pairs_of`, before they are chat messages. Raises TrainError as it does."""
    if not margin > 0:
        raise TrainError(f"margin is {margin}; expected a difference of rewards above 0: equal rollouts prefer nothing")
    versions = sorted({rollout.score.reward_version for rollout in group.rollouts})
    if len(versions) > 1:
        raise TrainError(
            f"group {group.task_id!r} mixes the reward versions {', '.join(versions)}; score all its traces under one"
            " of them"
        )
    scored = [(rollout.score.lower, rollout) for rollout in group.rollouts if rollout.score.lower is not None]
    different = sorted(
        (
            (better - worse, first, second)
            for better, first in scored
            for worse, second in scored
            if better - worse >= margin - 1e-12
        ),
        key=lambda found: -found[0],
    )
    found = [one for apart, first, second in different for one in _forked(first, second, apart)]
    return found if most is None else found[:most]


def _forked(better: Rollout, worse: Rollout, margin: float) -> Iterator[Preference]:
    """The turn in which the dialogues part, where they begin alike."""
    own, other = list(better.trace.messages), list(worse.trace.messages)
    same = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(own, other, strict=False)))
    start = max((at + 1 for at in range(same) if own[at].role == "user"), default=0)
    chosen, rejected = _turn(own[start:]), _turn(other[start:])
    if start and chosen and rejected and chosen != rejected:
        yield Preference(
            prompt=own[:start],
            chosen=chosen,
            rejected=rejected,
            tools=tools_of(better.trace),
            rollouts=(better, worse),
            step=sum(message.role == "assistant" for message in own[:start]),
            margin=margin,
        )


def _turn(messages: Sequence[Message]) -> list[Message]:
    return list(takewhile(lambda message: message.role != "user", messages))


def _content(messages: Sequence[Message]) -> str:
    """What the messages hold, whatever ids the calls have."""
    plain = [
        [
            message.role,
            message.text,
            [[one.name, one.arguments] for one in message.tool_calls],
            [one.response for one in message.responses],
        ]
        for message in messages
    ]
    return canonical_json(plain)


def _chat(messages: Iterable[Message]) -> list[dict[str, JSON]]:
    return [entry for message in messages for entry in template_messages(message)]


__all__ = ["Pair", "Preference", "dpo_pairs", "group_preferences", "guard_preferences", "pairs_of"]
