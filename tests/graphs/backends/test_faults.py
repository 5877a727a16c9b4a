"""Injected faults: the same for the same call of a group, at the rates that were set, and never a lie about what they
changed."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from cm2_agent.errors import ToolError
from cm2_agent.graphs.backends.faults import FAULTS, Faults
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest
from tests.strategies import texts

RATES: dict[str, Any] = {"timeout": 0.1, "error": 0.2, "empty": 0.05, "truncated": 0.3}


def call(number: int = 0, name: str = "f") -> ToolRequest:
    return ToolRequest(tool=ToolSpec(name=name), arguments={"id": number})


def test_rates_are_met() -> None:
    faults = Faults(**RATES, seed=3).for_task("t")
    drawn = Counter(faults.draw(call(number), CallLog()) for number in range(4000))
    for fault, rate in RATES.items():
        assert binomtest(drawn[fault], 4000, rate).pvalue > 1e-6
    assert binomtest(drawn[None], 4000, 0.35).pvalue > 1e-6
    for fault in FAULTS:
        one: dict[str, Any] = {fault: 1.0}
        assert {Faults(**one).draw(call(number), CallLog()) for number in range(200)} == {fault}
    assert {Faults().draw(call(number), CallLog()) for number in range(200)} == {None}


def test_the_same_call_of_a_task_meets_the_same_fault_and_a_retry_draws_anew() -> None:
    faults = Faults(error=0.5, seed=1)
    spelled = ToolSpec(name="f", parameters={"properties": {"full": {"default": False}}})
    one, other = faults.for_task("t"), Faults(error=0.5, seed=1).for_task("t")
    for number in range(50):
        assert one.draw(call(number), CallLog()) == other.draw(call(float(number)), CallLog())  # type: ignore[arg-type]
        mine, yours = (
            ToolRequest(tool=spelled, arguments=given) for given in ({"id": number}, {"id": number, "full": False})
        )
        assert one.draw(mine, CallLog()) == other.draw(yours, CallLog())
    drawn: set[tuple[str | None, ...]] = set()
    for number in range(100):
        log, row = CallLog(), []
        for _ in range(6):
            row.append(one.draw(call(number), log))
            log.add(call(number), ToolAnswer(content="", error=True))
            log.add(call(1000), ToolAnswer(content=""))  # other calls in between change nothing
        drawn.add(tuple(row))
    assert len(drawn) > 40  # of 64; 51 are expected of 100 rows
    differ = [faults.for_task(task).draw(call(1), CallLog()) for task in map(str, range(50))]
    assert set(differ) == {None, "error"}
    seeds = [Faults(error=0.5, seed=seed).draw(call(1), CallLog()) for seed in range(50)]
    assert set(seeds) == {None, "error"}


def test_single_tools_have_rates_of_their_own() -> None:
    faults = Faults(
        timeout=0.5, tools={"calm": {"timeout": 0}, "dead": {"error": 0.5}, "odd": {"timeout": 0, "empty": 1}}
    )
    drawn = {
        name: {faults.draw(call(number, name), CallLog()) for number in range(200)}
        for name in ("f", "calm", "dead", "odd")
    }
    assert drawn == {"f": {None, "timeout"}, "calm": {None}, "dead": {"timeout", "error"}, "odd": {"empty"}}


def test_what_the_agent_is_told() -> None:
    faults = Faults()
    timeout = faults.faulty("timeout", call(name="get_order"), None)
    assert timeout == ToolAnswer(
        content="Tool get_order timed out after 30 s", error=True, backend="simulate", fault="timeout"
    )
    error = faults.faulty("error", call(), None)
    assert str(error.content).startswith("503 Service Unavailable")
    assert (error.error, error.fault) == (True, "error")
    real = ToolAnswer(content="shipped", backend="record")
    assert faults.faulty("empty", call(), real) == ToolAnswer(content="", backend="record", fault="empty")
    failed = ToolAnswer(content="no such order", error=True)
    assert faults.faulty("empty", call(), failed).error
    with pytest.raises(ToolError, match="'slow' of tool 'f' is unknown"):
        faults.faulty("slow", call(), real)
    with pytest.raises(ToolError, match="was given none"):
        faults.faulty("empty", call(), None)


def spoken(content: Any) -> list[str]:
    return (
        [content]
        if isinstance(content, str)
        else [block if isinstance(block, str) else block.get("text", "") for block in content]
    )


text_blocks = st.fixed_dictionaries({"type": st.just("text"), "text": texts(20)})
blocks = st.lists(texts(20) | text_blocks | st.just({"type": "image", "url": "u"}), max_size=4)


@given(texts(60) | blocks, st.booleans())
def test_truncated_is_a_proper_beginning(content: Any, failed: bool) -> None:
    answer = ToolAnswer(content=content, error=failed, backend="simulate")
    cut = Faults(seed=2).faulty("truncated", call(), answer)
    assert cut == Faults(seed=2).faulty("truncated", call(), answer)
    assert (cut.error, cut.backend, cut.fault) == (failed, "simulate", "truncated")
    assert type(cut.content) is type(content)
    assert "".join(spoken(content)).startswith("".join(spoken(cut.content)))
    if len("".join(spoken(content))) > 1:
        assert 0 < len("".join(spoken(cut.content))) < len("".join(spoken(content)))
    if isinstance(content, list):
        kept = len(cut.content)
        assert cut.content[: kept - 1] == content[: max(kept - 1, 0)]
    json.dumps(cut.content)


def test_truncated_at_places_that_the_call_decides() -> None:
    text = "".join(map(str, range(1000)))
    places = {len(Faults().faulty("truncated", call(number), ToolAnswer(content=text)).content) for number in range(50)}
    assert len(places) > 40
    assert Faults().faulty("truncated", call(), ToolAnswer(content=[{"type": "image"}, {"type": "image"}])).content == [
        {"type": "image"}
    ]


def test_from_the_command_line() -> None:
    parsed = Faults.parse(" timeout=0.02, error=0.05,seed=7, my.tool.empty=0.5,")
    assert parsed.version == Faults(timeout=0.02, error=0.05, seed=7, tools={"my.tool": {"empty": 0.5}}).version
    assert Faults.parse("").version == Faults().version


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("timeout", "'timeout' is not known"),
        ("slow=1", "'slow=1' is not known"),
        ("timeout=x", "'x' is no number"),
        ("seed=0.5", "'0.5' is no number"),
        ("timeout=2", "timeout=2.0 is no rate"),
        ("timeout=nan", "timeout=nan is no rate"),
        ("timeout=0.6,error=0.6", "come to more than 1"),
        ("timeout=0.1,timeout=0.2", "named twice"),
        ("=1", "not known"),
        ("f.seed=1", "not known"),
        ("empty=-0.1", "no rate"),
        ("timeout=0.6,f.error=0.6", "faults of tool 'f' come to more than 1"),
    ],
)
def test_what_is_no_rate_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ToolError, match=problem):
        Faults.parse(text)


def test_rates_given_in_python() -> None:
    with pytest.raises(ToolError, match="'slow' is no fault"):
        Faults(tools={"f": {"slow": 1}})
    with pytest.raises(ToolError, match="timeout=True is no rate"):
        Faults(timeout=True)
    with pytest.raises(ToolError, match="seed='1'"):
        Faults(seed="1")  # type: ignore[arg-type]
    assert Faults(timeout=0.1, error=0.2, empty=0.3, truncated=0.4).rates == {
        "timeout": 0.1,
        "error": 0.2,
        "empty": 0.3,
        "truncated": 0.4,
    }


def test_the_version_says_rates_and_seed() -> None:
    faults = Faults(timeout=0.5, seed=4, tools={"f": {"error": 0.5}})
    assert json.loads(faults.version) == {
        "timeout": 0.5,
        "error": 0.0,
        "empty": 0.0,
        "truncated": 0.0,
        "seed": 4,
        "tools": {"f": {"timeout": 0.5, "error": 0.5, "empty": 0.0, "truncated": 0.0}},
    }
    assert faults.for_task("t").version == faults.version
