"""Several judges as one: what votes come to, and when the strong judge is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.errors import BudgetExhausted, JudgeError
from cm2_agent.llm.limits import RateLimits
from cm2_agent.llm.prices import Price
from cm2_agent.llm.usage import metered
from cm2_agent.rewards.judges.cache import MemoryCache, attach_cache
from cm2_agent.rewards.judges.llm_judge import LLMJudge
from cm2_agent.rewards.judges.panel import Cascade, Panel, majority, split
from cm2_agent.rewards.scoring.scorer import ChecklistScorer
from cm2_agent.types.checklist import Checklist
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.protocols import Judge
from cm2_agent.types.score import NullCause, Verdict
from cm2_agent.types.trace import Trace
from tests.judge_server import Asked, answer, function_model, honest, reply
from tests.rewards.talk import call, say, trace, turn

ONE = trace(turn("Where?", call("get_order", "May 3, 2026"), say("It arrives on May 3, 2026.")))
ITEMS = [Item("a", "A?"), Item("b", "B?")]


def vote(value: bool | None, step: int | None = None, cause: NullCause | None = None) -> Verdict:
    cause = cause or ("content" if value is None else None)
    return Verdict(item="a", value=value, weight=0, step=step or (1 if value else None), cause=cause)


class Fixed:
    """A judge that gives the same verdicts whatever it is asked, and counts how often."""

    def __init__(self, version: str = "fixed", **values: bool | None) -> None:
        self.version, self.values = version, values
        self.asked: list[list[str]] = []

    async def __call__(self, trace: Trace, turn: int | None, items: Sequence[Item]) -> Sequence[Verdict]:
        self.asked.append([item.id for item in items])
        return [
            Verdict(
                item=item.id,
                value=self.values[item.id],
                weight=0,
                step=1 if self.values[item.id] else None,
                cause="content" if self.values[item.id] is None else None,
                explanation=self.version,
            )
            for item in items
        ]


@pytest.mark.parametrize(
    ("votes", "value"),
    [
        ("y", True),
        ("n", False),
        ("0", None),
        ("yy", True),
        ("yn", None),
        ("y0", True),
        ("n0", False),
        ("00", None),
        ("yyn", True),
        ("ynn", False),
        ("yn0", None),
        ("y00", None),
        ("n00", None),
        ("000", None),
        ("yy0", True),
        ("yynn", None),
        ("yyn0", True),
    ],
)
def test_what_votes_come_to(votes: str, value: bool | None) -> None:
    got = majority([vote({"y": True, "n": False, "0": None}[one]) for one in votes])
    assert got.value is value
    assert (got.cause is None) == (value is not None)
    assert got.evidence[-1]["votes"] == {"yes": votes.count("y"), "no": votes.count("n"), "null": votes.count("0")}


def test_a_tie_is_the_contents_doing_and_lost_votes_are_not() -> None:
    assert (majority([vote(True), vote(False)]).reason, majority([vote(True), vote(False)]).cause) == ("tie", "content")
    lost = majority([vote(True), vote(None, cause="content"), vote(None, cause="infrastructure")])
    assert (lost.value, lost.cause) == (None, "infrastructure")
    assert majority([vote(None), vote(None)]).cause == "content"


votes = st.lists(
    st.one_of(st.just(vote(None)), st.just(vote(False)), st.integers(1, 5).map(lambda step: vote(True, step))),
    min_size=1,
    max_size=7,
)


@given(votes, st.randoms())
def test_the_order_of_votes_does_not_matter(given_: list[Verdict], random: Any) -> None:
    shuffled = list(given_)
    random.shuffle(shuffled)
    one, other = majority(given_), majority(shuffled)
    assert (one.value, one.step) == (other.value, other.step)


@given(votes)
def test_the_matrix_is_decided_cell_by_cell(given_: list[Verdict]) -> None:
    got = majority(given_)
    cast = [one for one in given_ if one.value is not None]
    if got.value is None:
        return
    for row in range(1, 6):
        true = sum(bool(one.step is not None and one.step <= row) for one in cast)
        assert (got.step is not None and got.step <= row) == (2 * true > len(cast))


async def test_a_panel_votes_item_by_item_and_a_judge_that_fails_casts_no_vote() -> None:
    async def dead(trace: Trace, turn: int | None, items: Sequence[Item]) -> Sequence[Verdict]:
        raise JudgeError("no line")

    async def mixed(trace: Trace, turn: int | None, items: Sequence[Item]) -> Sequence[Verdict]:
        return [vote(True), Verdict(item="c", value=False, weight=0)]

    async def doubled(trace: Trace, turn: int | None, items: Sequence[Item]) -> Sequence[Verdict]:
        return [vote(True), vote(False)]

    judges: list[Judge] = [Fixed(a=True, b=False), Fixed(a=True, b=True), Fixed(a=False, b=False)]
    got = await Panel(*judges)(ONE, 0, ITEMS)
    assert [(one.item, one.value) for one in got] == [("a", True), ("b", False)]
    assert all(map(split, got))
    broken: Judge
    for broken in (dead, mixed, doubled):
        got = await Panel(Fixed(a=True, b=False), Fixed(a=True, b=True), broken)(ONE, 0, ITEMS)
        assert [(one.value, one.cause) for one in got] == [(True, None), (None, "content")]
        got = await Panel(broken, broken, Fixed(a=True, b=True))(ONE, 0, ITEMS)
        assert [(one.value, one.cause) for one in got] == [(None, "infrastructure")] * 2


async def test_a_panel_is_stopped_by_a_budget() -> None:
    spent = LLMJudge(function_model(), limits=RateLimits(budget_calls=0))
    with pytest.raises(BudgetExhausted):
        await Panel(Fixed(a=True, b=True), spent)(ONE, 0, ITEMS)
    with pytest.raises(BudgetExhausted):
        await Cascade(Fixed(a=None, b=None), spent)(ONE, 0, ITEMS)
    with pytest.raises(JudgeError, match="two or more"):
        Panel(Fixed())


@pytest.mark.parametrize(
    ("cheap", "asked"),
    [({"a": True, "b": False}, []), ({"a": None, "b": False}, [["a"]]), ({"a": None, "b": None}, [["a", "b"]])],
)
async def test_a_cascade_asks_the_strong_judge_where_the_cheap_one_abstains(
    cheap: dict[str, bool | None], asked: list[list[str]]
) -> None:
    strong = Fixed("strong", a=False, b=True)
    cascade = Cascade(Fixed("cheap", **cheap), strong)
    with metered() as usage:
        got = await cascade(ONE, 0, ITEMS)
    assert strong.asked == asked
    expected = [cheap[item.id] if cheap[item.id] is not None else strong.values[item.id] for item in ITEMS]
    assert [one.value for one in got] == expected
    count = sum(map(len, asked))
    assert usage.escalated == cascade.usage.escalated == count
    assert cascade.escalation.share == count / 2


async def test_a_cascade_asks_the_strong_judge_where_votes_differ() -> None:
    strong = Fixed("strong", a=False, b=True)
    cheap = Panel(Fixed(a=True, b=False), Fixed(a=True, b=True), Fixed(a=True, b=False))
    got = await Cascade(cheap, strong)(ONE, 0, ITEMS)
    assert strong.asked == [["b"]]
    assert [one.value for one in got] == [True, True]


async def test_what_the_strong_judge_cannot_tell_is_null() -> None:
    got = await Cascade(Fixed(a=None, b=True), Fixed(a=None, b=None))(ONE, 0, ITEMS)
    assert [one.value for one in got] == [None, True]


async def test_the_share_escalated_and_the_saving_are_reported() -> None:
    def unsure(asked: Asked) -> dict[str, Any]:
        told = honest(asked)["items"]
        return reply(
            *(answer(item["id"], "cannot_tell") if asked.last == 2 and item["id"] == "b" else item for item in told)
        )

    cheap = LLMJudge(function_model(unsure, name="cheap"), price=Price(input=1, output=1))
    strong = LLMJudge(function_model(name="strong"), price=Price(input=10, output=10))
    cascade = Cascade(cheap, strong)
    assert (cascade.escalation.share, cascade.escalation.saving) == (None, None)
    four = trace(*(turn(f"Question {number}", say("This is a reply of some length.")) for number in range(4)))
    score = await ChecklistScorer(Checklist(*ITEMS), judge=cascade)(four)
    assert score.reward == 1.0
    told = cascade.escalation
    assert (told.items, told.escalated, told.scopes, told.strong_scopes) == (8, 1, 4, 1)
    assert told.share == 1 / 8
    assert told.usd is not None
    assert told.usd_strong_alone == pytest.approx(4 * (strong.spent_usd or 0))
    assert told.saving == pytest.approx(1 - told.usd / (4 * (strong.spent_usd or 1)))
    assert told.saving is not None
    assert 0.5 < told.saving < 0.8
    assert told.to_json()["share"] == 1 / 8
    assert cascade.version == f"cascade({cheap.version}>{strong.version})"


def test_each_judge_behind_a_cascade_is_given_the_cache_unless_it_has_one() -> None:
    own, shared = MemoryCache(), MemoryCache()
    cheap, strong = LLMJudge("test"), LLMJudge("test", cache=own)
    attach_cache(Cascade(cheap, strong), shared)
    assert cheap.cache is shared
    assert strong.cache is own
