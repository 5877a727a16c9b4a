"""Traces with their scores in memory, as a report counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from cm2_agent.types.json_values import JSON
from cm2_agent.types.run_attributes import CUT
from cm2_agent.types.score import Score
from cm2_agent.types.scored_facts import BlockFact, ScoredFacts, VerdictFact
from cm2_agent.types.trace import Trace


class ScoredPairs:
    """What `SQLStore.scored_rows` gives of a store that holds these."""

    def __init__(self, pairs: Iterable[tuple[Trace, Score]]) -> None:
        self._pairs = list(pairs)
        self.reward = self._pairs[0][1].reward_version if self._pairs else ""

    def __iter__(self) -> Iterator[ScoredFacts]:
        for trace, score in self._pairs:
            yield ScoredFacts(
                trace=trace.id,
                task=trace.task_id,
                policy=trace.policy,
                started=min((run.started for run in trace.runs if run.started), default=0),
                checklist=score.checklist,
                reward=score.reward,
                null_reason=score.null_reason,
                lower=score.lower,
                upper=score.upper,
                usage=score.usage,
                blocks=[
                    BlockFact(turn.turn, turn.reached, turn.steps, [VerdictFact.of(one) for one in turn.verdicts])
                    for turn in score.turns
                ],
            )

    def call_usage(self) -> Iterator[tuple[Mapping[str, JSON], int]]:
        return ((call.usage, 1) for trace, _ in self._pairs for call in trace.calls)

    def cuts(self) -> Mapping[str | None, Counter[str]]:
        found: dict[str | None, Counter[str]] = {}
        for trace, _ in self._pairs:
            if trace.runs and (cut := trace.runs[-1].attributes.get(CUT)) is not None:
                found.setdefault(trace.policy, Counter())[str(cut)] += 1
        return found

    def pairs(self, ids: Sequence[str]) -> list[tuple[Trace, Score]]:
        known = {trace.id: (trace, score) for trace, score in self._pairs}
        return [known[id] for id in ids]
