"""What rows leave out since revision 0014 reads back as it was: results, answers, prompts, tools and packed texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.errors import StoreError
from cm2_agent.store import SQLStore, upgrade
from cm2_agent.store.codec import narrowed, pack_ids, pack_text, unpack_ids, unpack_text
from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.messages import Message, ToolCall, ToolCallResponse, ToolSpec
from cm2_agent.types.run import ModelCall, Run, ToolRun
from cm2_agent.types.trace import Trace
from tests.fuzzing import examples
from tests.store.test_migrations import store_rows

LONG = "The parcel was left behind the rose bush, where nobody has found it since last week."
TOOLS = (ToolSpec(name="look", description=LONG), ToolSpec(name="send"))
RESULTS: tuple[JSON, ...] = (
    "found",
    "1",
    1,
    1.0,
    True,
    None,
    [],
    {"b": 1, "a": 2},
    {"a": 2, "b": 1},
    LONG,
    "b64:",
    "\0",
)


@pytest.fixture(scope="module")
def store() -> Iterator[SQLStore]:
    with SQLStore("sqlite://") as opened:
        yield opened


@st.composite
def loops(draw: st.DrawFn) -> Run:
    """An agent's loop that may go wrong in every place that a row leaves out."""
    ids = st.sampled_from(["c1", "c2", None])
    messages: list[Message] = [Message.of("system", LONG), Message.of("user", draw(st.sampled_from(["", "Hi", LONG])))]
    calls: list[ModelCall] = []
    tools: list[ToolRun] = []
    for number in range(draw(st.integers(1, 4))):
        identity = draw(ids)
        answer = Message.of("assistant", draw(st.sampled_from(["", LONG])), [ToolCall(id=identity, name="look")])
        told = [answer, replace(answer, parts=()), None]
        asked = [tuple(messages), tuple(messages[1:]), tuple(messages[-1:]), (*messages, answer)]
        calls.append(
            ModelCall(
                span_id=str(number),
                input=draw(st.sampled_from(asked)),
                output=draw(st.sampled_from(told)),
                tools=draw(st.sampled_from([TOOLS, TOOLS[:1], ()])),
                message=draw(st.sampled_from([len(messages), len(messages) - 1, None])),
            )
        )
        response = draw(st.sampled_from(RESULTS))
        part = ToolCallResponse(id=draw(ids), response=response)
        messages += [answer, Message(role=draw(st.sampled_from(["tool", "user"])), parts=(part,))]
        result = draw(st.sampled_from([response, *RESULTS]))
        tools.append(ToolRun(span_id=f"t{number}", name="look", call_id=draw(ids), result=result))
    return Run(id="r", messages=tuple(messages), calls=tuple(calls), tools=tuple(tools))


@settings(max_examples=examples(60))
@given(run=loops(), later=loops())
def test_any_loop_comes_back_as_it_was(store: SQLStore, run: Run, later: Run) -> None:
    store.erase(everything=True)
    both = [replace(run, thread="t"), replace(later, id="r2", thread="t", started=1)]
    store.save_run(both[0])
    store.save_run(both[1])
    found = store.trace("t")
    assert found is not None
    assert list(found.runs) == both
    assert [canonical_json(one.to_json()) for one in found.runs] == [canonical_json(one.to_json()) for one in both]
    assert store.save_runs(both) == 0


def test_an_ordinary_loop_leaves_out_all_that_it_can(store_url: str) -> None:
    words = (Message.of("system", LONG), Message.of("user", LONG + " Where?"))
    ask = Message.of("assistant", calls=[ToolCall(id="c", name="look", arguments={"key": LONG})])
    answer = Message(role="tool", parts=(ToolCallResponse(id="c", response=LONG),))
    reply = Message.of("assistant", "There.")
    run = Run(
        id="r",
        messages=(*words, ask, answer, reply),
        calls=(
            ModelCall(span_id="1", input=words, output=ask, tools=TOOLS, message=2),
            ModelCall(span_id="2", input=(*words, ask, answer), output=reply, tools=TOOLS, message=4),
        ),
        tools=(ToolRun(span_id="3", name="look", call_id="c", result=LONG),),
    )
    with SQLStore(store_url) as store:
        store.save_run(run)
        assert store.trace("r") == Trace(id="r", runs=(run,))
        with store.database.reading() as connection:
            calls = connection.execute(
                sa.text("SELECT input, output, toolset FROM model_calls ORDER BY position")
            ).all()
            result = connection.scalar(sa.text("SELECT result FROM tool_runs"))
            packed = connection.scalar(
                sa.text("SELECT count(*) FROM contents WHERE body IS NULL AND packed IS NOT NULL")
            )
        rows = [tuple(None if value is None else bytes(value) for value in row) for row in calls]
        assert [row[:2] for row in rows] == [(b"\2", None), (b"\1", None)]
        assert (len(rows[0][2] or b""), rows[1][2], result, packed) == (32, b"", None, 6)
        assert store.count_tools() == {"look": {"asked": 1, "ran": 1}}


def test_a_call_without_an_answer_has_none_after_the_upgrade(store_url: str) -> None:
    store_rows(store_url, "0013")
    engine = sa.create_engine(store_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE model_calls SET output = NULL WHERE message IS NOT NULL"))
    engine.dispose()
    upgrade(store_url)
    with SQLStore(store_url) as store:
        found = [call for trace in store.traces() for call in trace.calls if call.message is not None]
    assert found
    assert [call.output for call in found] == [None] * len(found)


@settings(max_examples=examples(60))
@given(ids=st.lists(st.integers(0, 300) | st.integers(0, 70_000) | st.integers(0, 1 << 25)))
def test_ids_take_fewer_bytes_where_they_fit(ids: list[int]) -> None:
    plain = pack_ids(ids)
    assert plain is not None
    small = narrowed(plain)
    assert small is not None
    assert list(unpack_ids(small)) == list(unpack_ids(plain)) == ids
    assert len(small) <= max(len(plain), len(ids) * (2 if max(ids, default=0) < 1 << 16 else 3) + 2)


@settings(max_examples=examples(60))
@given(text=st.text() | st.text("ab ", min_size=90, max_size=400))
def test_a_packed_text_is_the_text(text: str) -> None:
    packed = pack_text(text)
    assert packed is None or (unpack_text(packed) == text and len(packed) < len(text.encode()))


@pytest.mark.parametrize("broken", [b"", b"\2abc", b"\1", b"\1\xff\xff"])
def test_bytes_that_are_no_packed_text(broken: bytes) -> None:
    with pytest.raises(StoreError, match="restore the database"):
        unpack_text(broken)
