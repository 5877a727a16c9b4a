"""A trace at which the judge fails is scored again in the same pass; what follows the trace is the trace's, and
anything else stays pending."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph

from cm2_agent import Checklist, Item, LLMJudge, SQLStore, Task, run, score_traces
from cm2_agent.errors import BudgetExhausted
from cm2_agent.rewards import openai_judge_model
from cm2_agent.rewards.judges.panel import Panel
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.runner.judge_retries import RetryingScorer
from cm2_agent.types.checklist_item import Item as ChecklistItem
from cm2_agent.types.score import Score, Verdict
from cm2_agent.types.trace import Trace
from tests.cli.test_app_loop import as_json, cm2
from tests.judge_server import FREE, Asked, Fault, JudgeServer, answer, honest, reply
from tests.rewards.talk import say, trace, turn

POLITE = Checklist(Item("replied", check={"replied": True}), Item("polite", "Is the reply polite?"), name="polite")
POISON = "poison"


def dialogue(name: str, *, poison: bool = False, turns: int = 1) -> Trace:
    words = f"It comes on May 3, thank you for asking {name}. {POISON if poison else ''}"
    return trace(*(turn(f"Where is order {number}?", say(words)) for number in range(turns)), id=name)


def dialogues(number: int, poisoned: Sequence[int] = ()) -> list[Trace]:
    return [dialogue(f"t{place}", poison=place in poisoned) for place in range(number)]


class Judge:
    """Says yes, and raises where `fails` says so of the trace; counts its calls."""

    def __init__(self, fails: Callable[[Trace], bool]) -> None:
        self.fails, self.asked = fails, Counter[str]()

    async def __call__(self, trace: Trace, turn: int | None, items: Sequence[ChecklistItem]) -> Sequence[Verdict]:
        self.asked[trace.id] += 1
        if self.fails(trace):
            raise TimeoutError("no answer")
        return [Verdict(item=item.id, value=True, weight=0) for item in items]


def poisoned(found: Trace) -> bool:
    return POISON in found.messages[-1].text


async def scored(traces: Sequence[Trace], judge: Any, **options: Any) -> dict[str, Score]:
    found: dict[str, Score] = {}
    async for one, score in score_traces(traces, POLITE, judge=judge, **options):
        assert one.id not in found, "each trace comes once"
        found[one.id] = score
    assert found.keys() == {one.id for one in traces}
    return found


def polite(score: Score) -> Verdict:
    return {verdict.item: verdict for verdict in score.verdicts}["polite"]


@pytest.mark.parametrize("concurrency", [1, 8, 64])
@pytest.mark.parametrize("place", [0, 20, 39])
async def test_a_failure_that_follows_the_trace_is_its_own(place: int, concurrency: int) -> None:
    judge = Judge(poisoned)
    found = await scored(dialogues(40, [place]), judge, concurrency=concurrency)
    verdict = polite(found[f"t{place}"])
    assert (verdict.value, verdict.reason, verdict.cause) == (None, "judge failed", "content")
    assert "in all 3 attempts, and in 0 of" in (verdict.explanation or "")
    assert (found[f"t{place}"].lower, found[f"t{place}"].upper) == (0.5, 1.0)
    assert judge.asked[f"t{place}"] == 3
    assert sum(judge.asked.values()) <= 39 + 3 + 3, "each window is seen to by one call at most"
    assert all(polite(score).value is True for name, score in found.items() if name != f"t{place}")


@pytest.mark.parametrize("number", [1, 2, 20])
async def test_where_there_are_too_few_others_it_stays_pending(number: int) -> None:
    judge = Judge(poisoned)
    found = await scored(dialogues(number, [0]), judge, concurrency=1)
    assert polite(found["t0"]).cause == "infrastructure"
    assert found["t0"].pending
    assert judge.asked["t0"] <= 3
    assert sum(judge.asked.values()) - judge.asked["t0"] == number - 1, "no call was made to see whether it answers"


async def test_a_judge_that_fails_at_random_makes_nobody_pay() -> None:
    drawn = random.Random(5)
    found = await scored(dialogues(60), Judge(lambda _: drawn.random() < 0.3), concurrency=8)
    causes = Counter(polite(score).cause for score in found.values())
    assert causes["content"] == 0
    assert 0 < causes["infrastructure"] < 12, "most are judged the second or the third time"


async def test_a_judge_that_is_away_for_a_while_makes_nobody_pay() -> None:
    """From some call on, nothing is answered: the failures before the end of the pass follow no trace."""
    calls = 0

    def away(_: Trace) -> bool:
        nonlocal calls
        calls += 1
        return calls > 95

    judge = Judge(away)
    found = await scored(dialogues(99), judge, concurrency=4)
    assert Counter(polite(score).cause for score in found.values()) == {None: 95, "infrastructure": 4}


async def test_a_judge_that_comes_back_judges() -> None:
    failing = iter([True] * 3)
    found = await scored(dialogues(40), Judge(lambda _: next(failing, False)), concurrency=4)
    assert all(polite(score).value is True for score in found.values())


async def test_what_was_answered_is_not_asked_again() -> None:
    """Of a long trace the turn alone is asked again at which the judge failed."""
    asked: list[tuple[str, int | None]] = []

    async def judge(trace: Trace, turn: int | None, items: Sequence[ChecklistItem]) -> Sequence[Verdict]:
        asked.append((trace.id, turn))
        if trace.id == "long" and turn == 1:
            raise TimeoutError("no answer")
        return [Verdict(item=item.id, value=True, weight=0) for item in items]

    found = await scored([*dialogues(40), dialogue("long", turns=3)], judge, concurrency=4)
    assert Counter(asked)["long", 0] == Counter(asked)["long", 2] == 1
    assert Counter(asked)["long", 1] == 3
    assert [verdict.cause for verdict in found["long"].verdicts if verdict.item == "polite"] == [None, "content", None]


async def test_a_budget_that_ends_leaves_what_is_pending_pending() -> None:
    class Limited(Judge):
        async def __call__(self, trace: Trace, turn: int | None, items: Sequence[ChecklistItem]) -> Sequence[Verdict]:
            if sum(self.asked.values()) >= 42:
                raise BudgetExhausted("spent")
            return await super().__call__(trace, turn, items)

    found: dict[str, Score] = {}

    async def score() -> None:
        async for one, score in score_traces(dialogues(40, [39]), POLITE, judge=Limited(poisoned), concurrency=4):
            found[one.id] = score

    with pytest.raises(BudgetExhausted):
        await score()
    assert len(found) == 40
    assert found["t39"].pending


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'cm2.db'}"


def breaking(asked: Asked) -> Mapping[str, Any] | Fault:
    """A reply that cannot be read where the reply that is judged has the poison."""
    if any(POISON in content for content in (content for _, content in asked.parts(asked.last))):
        return Fault(text="I would rather talk about " + POISON)
    return honest(asked)


KINDS: dict[str, Callable[[LLMJudge], Any]] = {
    "a judge": lambda judge: judge,
    "a panel": lambda judge: Panel(judge, Judge(lambda _: False), judge),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_over_http_with_the_stores_cache(url: str, kind: str) -> None:
    with SQLStore(url) as store, JudgeServer(breaking) as server:
        for one in dialogues(40, [7]):
            store.save_runs(one.runs)
        judge = LLMJudge(openai_judge_model(server.base_url, "stub"), price=FREE, retries=1, backoff=0)
        asked = KINDS[kind](judge)
        found = {one.id: score async for one, score in score_traces(store.traces(), POLITE, judge=asked, store=store)}
        stored = {score.trace_id: score for score in store.scores()}
        assert polite(stored["t7"]).cause == polite(found["t7"]).cause == "content"
        assert stored["t7"].usage["calls"] >= 3 * 2, "what the attempts took is summed up"
        calls = server.calls
        again = {one.id: score async for one, score in score_traces(store.traces(), POLITE, judge=asked, store=store)}
        assert polite(again["t0"]).value is True
        assert server.calls < calls + 10, "what was judged is known; what failed is asked anew"
        await judge.aclose()


def test_the_command_says_that_the_judge_could_not_tell(url: str, tmp_path: Path) -> None:
    path = tmp_path / "polite.yaml"
    path.write_text('name: polite\nitems:\n  - {id: polite, question: "Is the reply polite?"}\n', encoding="utf-8")
    with SQLStore(url) as store:
        for one in dialogues(3):
            store.save_runs(one.runs)
    with JudgeServer(lambda asked: reply(answer("polite", "cannot_tell"))) as server:
        options = ("--judge", "stub", "--judge-base-url", server.base_url, "--price", "0,0", "--store", url)
        for _ in range(2):
            _, err = cm2("score", str(path), *options)
            assert "3 verdicts are NULL, since the judge could not tell" in err


def test_the_command_says_what_follows_the_trace(url: str, tmp_path: Path) -> None:
    path = tmp_path / "polite.yaml"
    path.write_text('name: polite\nitems:\n  - {id: polite, question: "Is the reply polite?"}\n', encoding="utf-8")
    with SQLStore(url) as store:
        for one in dialogues(40, [3]):
            store.save_runs(one.runs)
    with JudgeServer(breaking) as server:
        options = ("--judge", "stub", "--judge-base-url", server.base_url, "--price", "0,0", "--store", url)
        _, err = cm2("score", str(path), *options)
        assert "1 verdicts are NULL for the trace's sake" in err
        with SQLStore(url) as store:
            (verdict,) = [score.verdicts[0] for score in store.scores() if score.trace_id == "t3"]
        assert (verdict.cause, verdict.reason) == ("content", "judge failed")
        calls = server.calls
        as_json("score", str(path), *options)
        assert server.calls == calls, "it is decided"


def rollouts(traces: Sequence[Trace], scorer: RetryingScorer) -> Any:
    async def results() -> Any:
        for one in traces:
            yield one, await scorer(one, Task(id=one.id, turns=("Where?",)))

    return results()


@pytest.mark.parametrize("in_order", [False, True])
async def test_rollouts_are_scored_again_when_the_run_is_over(in_order: bool) -> None:
    scorer = RetryingScorer(ChecklistScorer(POLITE, judge=Judge(poisoned)))
    saved: list[str] = []

    async def save(batch: list[tuple[Trace, Score]]) -> None:
        saved.extend(one.id for one, _ in batch)

    traces = dialogues(40, [5])
    found = [
        (one.id, score)
        async for one, score in scorer.settled(rollouts(traces, scorer), save, at_a_time=4, in_order=in_order)
    ]
    assert saved == ["t5"]
    names = [name for name, _ in found]
    assert sorted(names) == sorted(one.id for one in traces)
    assert names == [one.id for one in traces] if in_order else names[-1] == "t5"
    score = dict(found)["t5"]
    assert score is not None
    assert polite(score).cause == "content"


def answering(state: MessagesState) -> dict[str, Any]:
    asked = state["messages"][-1].text
    return {"messages": [AIMessage(content=f"Thank you for asking. {asked}")]}


async def test_a_run_ends_with_the_scores_that_its_judge_owed(url: str) -> None:
    graph = StateGraph(MessagesState).add_node("answer", answering).add_edge(START, "answer").compile()
    tasks = [Task(id=f"k{place}", turns=(POISON if place == 4 else "Where is it?",)) for place in range(40)]
    judge, received = Judge(poisoned), list[tuple[str, str | None]]()

    def sink(trace: Trace, score: Score | None) -> None:
        assert score is not None
        received.append((trace.id, polite(score).cause))

    with SQLStore(url) as store:
        ran = run(graph, tasks, checklist=POLITE, judge=judge, store=store, name="r", sinks=[sink], concurrency=8)
        found = {trace.id: score async for trace, score in ran if score is not None}
        stored = {score.trace_id: score for score in store.scores()}
    assert len(found) == len(stored) == 40
    name = "r/k4@1/0"
    assert polite(found[name]).cause == polite(stored[name]).cause == "content"
    assert [cause for one, cause in received if one == name] == ["infrastructure", "content"]
    assert len(received) == 41
    assert judge.asked[name] == 3
