"""Random dialogues through every chat template that TRL ships and that is not refused: what is said, called and
answered stands in the prompts, and no special token is made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from cm2_agent.models.chat_template import REASONING, history_hash, parse_completion, template_messages
from cm2_agent.models.control_words import control_words_of
from cm2_agent.models.generation import Generation, Request
from cm2_agent.models.local import LocalChatModel
from cm2_agent.models.reasoning_text import opening_tag
from cm2_agent.models.template_probe import TOOL, completion_of, in_blocks
from tests.fuzzing import examples
from tests.models.scripted_network import ScriptedNetwork
from tests.models.shipped_templates import NAMES, STOPS, shipped
from tests.models.test_template_probe import REFUSED

ACCEPTED = [name for name in NAMES if name.removesuffix("_training") not in REFUSED]
NAME = TOOL["function"]["name"]
TOOLS = [TOOL]
EXAMPLES = 4
WORD = "QZ{}QZ"
"""Letters that stand for a control word: what a template makes of text that holds none."""

Talk = list[tuple[str, Any]]
"""(user | tools | words, what is said): tools are [(arguments, answer), …] of one assistant's message."""


@lru_cache(maxsize=len(ACCEPTED))
def model_of(name: str) -> LocalChatModel:
    tokenizer = shipped(name)
    network: Any = ScriptedNetwork(tokenizer, [])
    known = tokenizer.get_vocab()
    stops = [known[stop] for stop in STOPS if stop in known and (stop != "<|end|>" or not name.startswith("gptoss"))]
    network.generation_config = SimpleNamespace(eos_token_id=stops)
    return LocalChatModel(model=network, tokenizer=tokenizer, model_name=name, model_version="scripted")


@lru_cache(maxsize=len(ACCEPTED))
def words_of(name: str) -> list[str]:
    special, marks = control_words_of(shipped(name))
    return sorted(special | marks)


def texts(name: str) -> st.SearchStrategy[str]:
    """What people and tools write: any text, white space at its ends, control words and their halves."""
    words = words_of(name)
    pieces = st.text(max_size=6) | st.sampled_from(words) | st.sampled_from([w[:-1] for w in words])
    return st.lists(pieces | st.sampled_from(["", " ", "\n", '"', "\\", "{", "é", "北京", "🙂"]), max_size=4).map(
        "".join
    )


def plain_texts() -> st.SearchStrategy[str]:
    letters = st.characters(codec="utf-8", categories=("L", "N", "Zs", "P", "S"), exclude_characters="<>◁▷｜▁")
    return st.text(letters, max_size=8)


def arguments() -> st.SearchStrategy[dict[str, Any]]:
    optional = {
        "count": st.integers(-(10**6), 10**6),
        "flag": st.booleans(),
        "items": st.lists(st.integers(0, 99), max_size=3),
        "place": st.fixed_dictionaries({"city": plain_texts()}),
    }
    return st.fixed_dictionaries({"text": plain_texts()}, optional=optional)


def talks(name: str) -> st.SearchStrategy[Talk]:
    said = texts(name)
    several = 3 if model_of(name).template.several_calls else 1
    calls = st.lists(st.tuples(arguments(), said), min_size=1, max_size=several)
    turn = st.tuples(said, st.lists(calls, max_size=2), plain_texts())
    return st.lists(turn, min_size=1, max_size=2).map(
        lambda turns: [
            one
            for asked, called, words in turns
            for one in [("user", asked), *(("tools", calls) for calls in called), ("words", words)]
        ]
    )


def call(values: Mapping[str, Any], number: int) -> Any:
    return {"name": NAME, "args": dict(values), "id": f"call{number:05d}", "type": "tool_call"}


def messages_of(talk: Talk, system: str | None) -> list[BaseMessage]:
    history: list[BaseMessage] = [] if system is None else [SystemMessage(system)]
    for number, (kind, said) in enumerate(talk):
        if kind == "user":
            history.append(HumanMessage(said))
        elif kind == "words":
            history.append(AIMessage(said))
        else:
            calls = [call(values, 10 * number + place) for place, (values, _) in enumerate(said)]
            history.append(AIMessage("", tool_calls=calls))
            history += [
                ToolMessage(answer, name=NAME, tool_call_id=one["id"])
                for one, (_, answer) in zip(calls, said, strict=True)
            ]
    return history


def replaced(name: str, text: str) -> str:
    for number, word in sorted(enumerate(words_of(name)), key=lambda pair: -len(pair[1])):
        text = text.replace(word, WORD.format(number))
    return text


def without_words(name: str, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    return [message.model_copy(update={"content": replaced(name, str(message.content))}) for message in messages]


def rendered(model: LocalChatModel, messages: Sequence[BaseMessage], *, asks: bool = True) -> str:
    listed = template_messages(messages, model.template)
    listed = in_blocks(listed) if model.template.content_in_blocks else listed
    return str(model.tokenizer.apply_chat_template(listed, tools=TOOLS, tokenize=False, add_generation_prompt=asks))


def control_ids(name: str, ids: Sequence[int]) -> list[int]:
    known = {shipped(name).convert_tokens_to_ids(word) for word in words_of(name)}
    return [id_ for id_ in ids if id_ in known]


@pytest.mark.parametrize("name", ACCEPTED)
@settings(max_examples=examples(EXAMPLES))
@given(data=st.data())
def test_a_prompt_is_what_the_template_writes_and_holds_no_token_made_of_data(name: str, data: Any) -> None:
    model = model_of(name)
    system = data.draw(st.none() | texts(name)) if model.template.system_shown else None
    history = messages_of(data.draw(talks(name)), system)
    ids = model.prompt_ids(history, TOOLS)
    clean = without_words(name, history)
    wanted = rendered(model, clean)
    for number, word in enumerate(words_of(name)):
        wanted = wanted.replace(WORD.format(number), word)
    assert model.tokenizer.decode(ids) == wanted
    assert control_ids(name, ids) == control_ids(name, model.prompt_ids(clean, TOOLS))
    for message in history:
        if isinstance(message, HumanMessage | ToolMessage):
            said = str(message.content)
            forms = (said, json.dumps(said, ensure_ascii=False)[1:-1])
            assert any(form.strip() in wanted for form in forms), said


@pytest.mark.parametrize("name", ACCEPTED)
@settings(max_examples=examples(EXAMPLES))
@given(data=st.data())
def test_calls_words_and_thinking_are_read_as_they_are_written(name: str, data: Any) -> None:
    model = model_of(name)
    several = 3 if model.template.several_calls else 1
    values = data.draw(st.lists(arguments(), min_size=1, max_size=several))
    asked: list[BaseMessage] = [HumanMessage("Where is it?")]
    thought = data.draw(st.sampled_from(["", "Should I look?"]))
    reasoning = {REASONING: thought} if thought else {}
    turn = AIMessage("", tool_calls=[call(one, place) for place, one in enumerate(values)], additional_kwargs=reasoning)
    for wrote in (turn, AIMessage("It was shipped.", additional_kwargs=reasoning)):
        text, _, prompt = written(model, asked, wrote)
        message = parse_completion(text, "", prompt, model.template.calls, TOOLS)
        assert [one["args"] for one in message.tool_calls] == [one["args"] for one in wrote.tool_calls]
        assert message.invalid_tool_calls == []
        assert message.content == wrote.content
        assert message.additional_kwargs.get(REASONING, "") == (thought if thought in text else "")


def written(model: LocalChatModel, history: Sequence[BaseMessage], message: AIMessage) -> tuple[str, int, str]:
    """What the template writes for the message, the stop token that ends it, and the prompt before it."""
    prompt, whole = rendered(model, history), rendered(model, [*history, message], asks=False)
    words = rendered(model, [*history, AIMessage("CM2WORDS")], asks=False)
    text, before = completion_of(prompt, whole, words.partition("CM2WORDS")[0])
    stops = {model.tokenizer.decode([id_]): id_ for id_ in model._dialogue.stop_ids}
    place, stop = min(((text.index(one), one) for one in stops if one in text), default=(len(text), ""))
    if not stop:  # the template begins the next message and ends none
        stop = "<|observation|>" if message.tool_calls else "<|user|>"
    text = text[:place].rstrip("\n")
    tag = opening_tag(prompt)
    if tag and tag.replace("<", "</") not in text:
        text = f"{tag.replace('<', '</')}\n\n{text}"
    return text, stops[stop], prompt if tag else before


@pytest.mark.parametrize("name", ACCEPTED)
@settings(max_examples=examples(EXAMPLES))
@given(data=st.data())
def test_a_dialogue_that_was_sampled_goes_on_from_its_own_tokens(name: str, data: Any) -> None:
    model = model_of(name)
    talk = data.draw(talks(name))
    history: list[BaseMessage] = []
    own: list[int] = []
    for message in messages_of([*talk, ("user", "And?")], None):
        history.append(sampled(model, history, message, own) if isinstance(message, AIMessage) else message)
    ids = model.prompt_ids(history, TOOLS)
    assert ids[: len(own)] == own


def sampled(model: LocalChatModel, history: Sequence[BaseMessage], message: AIMessage, own: list[int]) -> AIMessage:
    """The message as the model would sample it after this history; its tokens are added to `own`."""
    prompt = model.prompt_ids(history, TOOLS)
    assert prompt[: len(own)] == own
    text, stop, _ = written(model, history, message)
    ids = [*model.tokenizer.encode(text, add_special_tokens=False), stop]
    request = Request(prompt_ids=prompt, sampling=model._sampling({}), stop_ids=model._dialogue.stop_ids, seed=(0,))
    drawn = Generation(completion_ids=ids, logprobs=[0.0] * len(ids), stopped=True)
    result = model._result(request, drawn, history_hash(history, TOOLS), None, TOOLS)
    own[:] = [*prompt, *ids]
    read = result.generations[0].message
    assert isinstance(read, AIMessage)
    return read
