"""A check function that raises is asked again in the same pass; where it raises for the trace's sake it is unpaid."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence

import pytest

from cm2_agent import Checklist, Item, Task, View, score_traces
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.runner.judge_retries import RetryingScorer
from cm2_agent.types.score import Score, Verdict
from cm2_agent.types.trace import Trace
from tests.rewards.talk import say, trace, turn
from tests.runner.test_judge_retries import Judge


def dialogue(name: str, *replies: str) -> Trace:
    return trace(*(turn("How much is it?", say(reply)) for reply in replies), id=name)


def dialogues(number: int, broken: Sequence[int] = ()) -> list[Trace]:
    return [dialogue(f"t{place}", "unknown" if place in broken else f"{place}.5") for place in range(number)]


def small(view: View) -> bool:
    """Raises where the reply is no number, which the agent can bring about."""
    return float(view.reply or "0") < 1000


def checklist(check: Callable[[View], bool]) -> Checklist:
    return Checklist(
        Item("small", check=check, weight=4),
        Item("polite", "Is the reply polite?"),
        name="prices",
    )


async def scored(traces: Sequence[Trace], check: Callable[[View], bool], judge: Judge, concurrency: int = 4) -> Scores:
    found: Scores = {}
    async for one, score in score_traces(traces, checklist(check), judge=judge, concurrency=concurrency):
        assert one.id not in found, "each trace comes once"
        found[one.id] = score
    assert found.keys() == {one.id for one in traces}
    return found


Scores = dict[str, Score]


def of(score: Score, item: str = "small") -> Verdict:
    return {verdict.item: verdict for verdict in score.verdicts}[item]


@pytest.mark.parametrize("concurrency", [1, 8, 64])
@pytest.mark.parametrize("place", [0, 20, 39])
async def test_a_check_that_raises_on_one_trace_alone_is_its_doing(place: int, concurrency: int) -> None:
    judge = Judge(lambda _: False)
    found = await scored(dialogues(40, [place]), small, judge, concurrency)
    broken = found[f"t{place}"]
    assert (of(broken).value, of(broken).reason, of(broken).cause) == (None, "check failed", "content")
    assert "the check failed in all 3 attempts, and in 0 of" in (of(broken).explanation or "")
    assert (broken.lower, broken.upper, broken.pending) == (0.2, 1.0, False)
    assert set(judge.asked.values()) == {1}, "what the judge said is known, and it is not asked to try a check"
    assert all(score.lower == 1 for name, score in found.items() if name != f"t{place}")


@pytest.mark.parametrize(("number", "broken"), [(20, 1), (40, 20), (40, 40)])
async def test_with_few_others_or_many_failures_it_stays_pending(number: int, broken: int) -> None:
    found = await scored(dialogues(number, range(broken)), small, Judge(lambda _: False))
    causes = Counter(of(score).cause for score in found.values())
    assert (causes["infrastructure"], causes[None], causes["content"]) == (broken, number - broken, 0)
    assert all(score.pending for score in found.values() if of(score).cause is not None)


async def test_a_check_that_fails_for_a_while_answers_later() -> None:
    failing = iter([True] * 3)

    def flaky(view: View) -> bool:
        if next(failing, False):
            raise OSError("the file is not there yet")
        return True

    found = await scored(dialogues(40), flaky, Judge(lambda _: False))
    assert all(of(score).value is True for score in found.values())


async def test_a_check_that_raises_hides_no_failure_of_the_judge() -> None:
    """Both have a rate of their own: a check that raises everywhere keeps no trace from being asked again."""
    judge = Judge(lambda one: one.id == "t3")

    def broken(view: View) -> bool:
        raise KeyError("a table that nobody made")

    found = await scored(dialogues(40), broken, judge)
    assert of(found["t3"], "polite").cause == "content"
    assert {of(score).cause for score in found.values()} == {"infrastructure"}
    assert judge.asked["t3"] == 3


async def test_a_lone_trace_stays_pending() -> None:
    score = ChecklistScorer(checklist(small)).score_sync(dialogue("t", "unknown"))
    assert (of(score).cause, score.pending, score.lower) == ("infrastructure", True, None)


async def test_rollouts_are_asked_again_too() -> None:
    scorer = RetryingScorer(ChecklistScorer(checklist(small), judge=Judge(lambda _: False)))
    saved: list[Score] = []

    async def save(batch: list[tuple[Trace, Score]]) -> None:
        saved.extend(score for _, score in batch)

    async def results() -> AsyncGenerator[tuple[Trace, Score], None]:
        for one in dialogues(40, [7]):
            yield one, await scorer(one, Task(id=one.id, turns=("How much is it?",)))

    found = {one.id: score async for one, score in scorer.settled(results(), save, at_a_time=4, in_order=False)}
    assert len(found) == 40
    assert [(score.trace_id, of(score).cause) for score in saved] == [("t7", "content")]
