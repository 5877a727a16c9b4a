"""That breaking the judge never pays, from the judge's answers through the scorer to the advantage of every token."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.trainers.advantage import advantages
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item, SoftDependency
from cm2_agent.types.score import Score, Verdict
from cm2_agent.types.trace import Trace
from tests.rewards.talk import call, say, trace, turn

STEPS = 3
RULES = Checklist(
    Item("looks", "Does it look?", weight=2),
    Item("asks", "Does it ask?"),
    Item("tells", "Does it tell?", depends_on=["looks"], weight=3),
    Item("guesses", "Is it right?", depends_on=[SoftDependency(item="asks", soft=0.6)]),
    Item("either", any_of=["asks", "tells"], weight=2),
    Item("thanks", "Does it thank?", depends_on=["either"]),
    name="rules",
)
JUDGED = [item.id for item in RULES if item.question is not None]
Answers = Mapping[str, "int | str | None"]
"""Of each question the step from which it is answered yes, None for no, "?" where the judge abstains."""
answers = st.fixed_dictionaries({name: st.none() | st.just("?") | st.integers(1, STEPS) for name in JUDGED})


EARLY: Answers = {"looks": 1, "asks": 1, "tells": 3, "guesses": None, "thanks": None}
"""`either` is satisfied in step 1 by `asks`; where that is NULL, in step 3 by `tells`."""


def scored(given: Answers, name: str) -> Score:
    async def judge(trace: Trace, turn: int | None, items: Any) -> list[Verdict]:
        made = []
        for item in items:
            answer = given[item.id]
            yes: Any = {"value": True, "step": answer, "paid": True} if isinstance(answer, int) else {"value": False}
            null: Any = {"value": None, "cause": "content"}
            made.append(Verdict(item=item.id, weight=0, **(null if answer == "?" else yes)))
        return made

    talk = trace(turn("Where?", *[call("look")] * (STEPS - 1), say("There.")), id=name)
    return asyncio.run(ChecklistScorer(RULES, judge=judge)(talk))


@pytest.mark.parametrize("level", ["trajectory", "turn", "step", "return_to_go", "evidence"])
@example(group=[EARLY, dict.fromkeys(JUDGED)], broken={"asks"})
@given(group=st.lists(answers, min_size=2, max_size=4), broken=st.sets(st.sampled_from(JUDGED), min_size=1))
def test_abstentions_pay_no_token(level: Any, group: list[Answers], broken: set[str]) -> None:
    others = [scored(one, str(number)) for number, one in enumerate(group[1:])]
    honest = scored(group[0], "own")
    steered = scored({**group[0], **dict.fromkeys(broken, "?")}, "own")
    assert steered.lower is not None
    assert honest.lower is not None
    assert steered.lower <= honest.lower + 1e-9
    was, now = (advantages([one, *others], level=level).rollouts[0] for one in (honest, steered))
    for step in range(STEPS):
        assert now(0, step) <= was(0, step) + 1e-9, step
