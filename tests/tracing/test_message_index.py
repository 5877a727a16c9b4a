"""Messages are converted once, in a run and across the runs of a thread, and again when they change."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from cm2_agent.dialects.seen_message import SeenMessage, state_hash, total_hash
from cm2_agent.langchain_messages import from_langchain
from cm2_agent.tracing.message_index import MessageIndex, ThreadMessages
from cm2_agent.types.messages import Message


def talk(length: int) -> list[BaseMessage]:
    """New objects of the same conversation, as a checkpointer gives them."""
    kinds: Any = (HumanMessage, AIMessage)
    return [kinds[number % 2](f"message {number}", id=str(number)) for number in range(length)]


def run(threads: ThreadMessages, *states: list[BaseMessage], thread: str = "T") -> list[list[SeenMessage]]:
    index = MessageIndex(threads.of(thread))
    shown = [index.add_snapshot(list(state)) or [] for state in states]
    threads.remember(thread, index)
    return shown


def test_a_history_that_comes_again_is_not_converted_again() -> None:
    threads = ThreadMessages()
    (first,) = run(threads, talk(20))
    (second,) = run(threads, talk(24))
    assert all(left is right for left, right in zip(first, second, strict=False))
    (other,) = run(threads, talk(20), thread="another")
    assert not {id(seen) for seen in other} & {id(seen) for seen in first}


def test_a_message_that_changed_between_runs_is_read_again() -> None:
    threads = ThreadMessages()
    (first,) = run(threads, talk(20))
    changed = talk(20)
    changed[7] = AIMessage("edited", id="7")
    (second,) = run(threads, changed)
    assert second[7].message.text == "edited"
    assert [left is right for left, right in zip(first, second, strict=True)].count(False) == 1
    assert second[7].hash != first[7].hash
    assert second[7].key == first[7].key  # it has the id


def test_objects_that_nodes_change_in_place_are_read_again() -> None:
    index = MessageIndex()
    message = AIMessage("one", id="1", tool_calls=[{"name": "look", "args": {"key": 1}, "id": "a"}])
    blocks = HumanMessage([{"type": "text", "text": "hello"}], id="2")
    (asked, said) = index.add_all([message, blocks])
    assert index.add_all([message, blocks]) == [asked, said]
    message.tool_calls[0]["args"]["key"] = 2
    blocks.content[0]["text"] = "goodbye"  # type: ignore[index]
    again = index.add_all([message, blocks])
    assert [call.arguments for call in asked.message.tool_calls] == [{"key": 1}]
    assert [call.arguments for call in again[0].message.tool_calls] == [{"key": 2}]
    assert (said.message.text, again[1].message.text) == ("hello", "goodbye")


def test_an_id_that_a_reducer_gives_later_is_the_same_messages() -> None:
    index = MessageIndex()
    message = ToolMessage("value", tool_call_id="a")
    seen = index.add(message)
    before = seen.hash
    message.id = "given"
    assert index.add(message) is seen
    assert (seen.id, seen.hash == before) == ("given", False)
    assert index.add(ToolMessage("value", tool_call_id="a", id="given")) is seen


def test_what_is_held_is_bounded() -> None:
    threads = ThreadMessages(messages=50, characters=10_000, longest=1_000)
    for number in range(20):
        run(threads, talk(20), thread=str(number))
    assert [threads.of(str(number)) is not None for number in range(20)] == [False] * 18 + [True] * 2
    (long,) = run(threads, [HumanMessage("x" * 2_000, id="long"), *talk(3)], thread="long")
    held = threads.of("long")
    assert held is not None
    assert set(held.ids) == {"0", "1", "2"}
    (again,) = run(threads, [HumanMessage("x" * 2_000, id="long"), *talk(3)], thread="long")
    assert [left is right for left, right in zip(long, again, strict=True)] == [False, True, True, True]
    for number in range(30):  # what is removed from a state is let go after a while
        run(threads, [HumanMessage(f"only {number}", id=f"only {number}")], thread="long")
    held = threads.of("long")
    assert held is not None
    assert len(held.ids) < 150


def test_very_long_texts_count_by_their_ends() -> None:
    def hashed(text: str, *blocks: Any) -> int:
        return SeenMessage(from_langchain(HumanMessage([{"type": "text", "text": text}, *blocks])), "1").hash

    long = "x" * 1_000_000
    image = {"type": "image", "base64": long, "mime_type": "image/png"}
    assert hashed(long) != hashed(long + "x")
    assert hashed(long) != hashed("y" + long[1:])
    assert hashed(long, image) != hashed(long)
    assert hashed(long, image) != hashed(long, {**image, "base64": long[1:]})
    assert hashed(long, image) == hashed(long, dict(image))


TEXTS = st.text(max_size=5)
MESSAGES = st.one_of(
    st.builds(lambda text, id: HumanMessage(text, id=id), TEXTS, TEXTS),
    st.builds(lambda text, id: AIMessage(text, id=id), TEXTS, TEXTS),
    st.builds(lambda text, id: SystemMessage(text, id=id), TEXTS, TEXTS),
    st.builds(
        lambda args, id: AIMessage("", id=id, tool_calls=[{"name": "f", "args": args, "id": "c"}]),
        st.dictionaries(TEXTS, st.one_of(TEXTS, st.integers(), st.floats(allow_nan=True)), max_size=2),
        TEXTS,
    ),
    st.builds(lambda text, id: ToolMessage(text, id=id, tool_call_id="c"), TEXTS, TEXTS),
)


@given(st.lists(st.lists(MESSAGES, max_size=8), max_size=5))
def test_what_is_held_never_shows_in_what_is_read(states: list[list[BaseMessage]]) -> None:
    """Whatever ids repeat and whatever earlier runs had: each message is what it is."""
    threads = ThreadMessages()
    for state in states:
        copied = [message.model_copy(deep=True) for message in state]
        (seen,) = run(threads, copied)
        assert [entry.message for entry in seen] == [from_langchain(message) for message in state]
        assert [entry.id for entry in seen] == [message.id for message in state]


@given(st.lists(st.tuples(TEXTS, TEXTS), unique=True, max_size=6), st.randoms())
def test_a_states_hash_is_its_ids_and_contents(content: list[tuple[str, str]], random: Any) -> None:
    def state(pairs: list[tuple[str, str]]) -> str:
        return state_hash(total_hash(SeenMessage(Message.of("user", text), id) for id, text in pairs))

    mixed = list(content)
    random.shuffle(mixed)
    assert state(mixed) == state(content)
    assert len(state(content)) == 16
    for number in range(len(content)):
        assert state(content[:number] + content[number + 1 :]) != state(content)
    assert state([]) == "0" * 16
