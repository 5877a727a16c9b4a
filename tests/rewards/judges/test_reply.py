"""Replies as judges write them: what leaves no doubt is read as what it says, and what does is no reply."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm2_agent.llm.failures import MalformedReply
from cm2_agent.llm.relaxed_json import relaxed_json
from cm2_agent.rewards.judges.reply import ItemAnswer, read
from tests.fuzzing import examples
from tests.judge_server import answer, reply

YES = answer("date", step=2, part="tool.content", quote="It comes on May 3, doesn't it?")
NO = answer("polite", "no")
BOTH = reply(YES, NO)
ONE = reply(YES)
QUOTE = YES["evidence"]
ASKED = ("date", "polite")


def expected(*answers: dict[str, Any]) -> dict[str, ItemAnswer]:
    return {one["id"]: ItemAnswer.model_validate(one) for one in answers}


def with_evidence(**changed: Any) -> str:
    return json.dumps(reply({**YES, "evidence": {**QUOTE, **changed}}, NO))


def with_verdict(word: Any) -> str:
    return json.dumps(reply({**YES, "verdict": word}, NO))


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in YES.items() if key != name}


WHOLE = json.dumps(BOTH)
READ: dict[str, str] = {
    "the schema": WHOLE,
    "indented": json.dumps(BOTH, indent=2),
    "trailing commas": WHOLE.replace("}]}", "},],}"),
    "a trailing comma in the quote": WHOLE.replace('it?"}', 'it?",}'),
    "Python's": str(BOTH),
    "curly quotes": WHOLE.replace("n't", "n’t")
    .replace(' "', " “")
    .replace('":', "”:")
    .replace('",', "”,")
    .replace('"}', "”}")
    .replace('{"', "{“")
    .replace("’", "'"),
    "bare keys": WHOLE.replace('"id"', "id").replace('"verdict"', "verdict"),
    "bare words": WHOLE.replace('"yes"', "yes").replace('"no"', "no").replace("null", "None"),
    "a list": json.dumps([YES, NO]),
    "one after another": f"{json.dumps(YES)}\n{json.dumps(NO)}",
    "two replies": f"{json.dumps(reply(YES))} and {json.dumps(reply(NO))}",
    "by id": json.dumps({"date": without("id"), "polite": {"verdict": "no"}}),
    "by id within items": json.dumps({"items": {"date": without("id"), "polite": "no"}}),
    "wrapped": json.dumps({"result": BOTH}),
    "wrapped twice": json.dumps({"response": {"answers": [YES, NO]}}),
    "a call of a function": json.dumps({"name": "verdicts", "arguments": BOTH}),
    "a call with a text": json.dumps({"name": "verdicts", "arguments": WHOLE}),
    "other capitals": WHOLE.replace('"id"', '"Id"').replace('"verdict"', '"Verdict"'),
    "the id in marks": WHOLE.replace('"date"', '"`Date`"'),
    "an analysis of nothing": json.dumps(reply({**YES, "analysis": None}, NO)).replace("As the test wants it.", ""),
    "step 2": with_evidence(step="Step 2"),
    "#2": with_evidence(step="#2"),
    "2.0": with_evidence(step=2.0),
    "another part's name": with_evidence(part="Tool Content"),
    "the end of a part's name": with_evidence(part="content"),
    "a no with an empty quote": json.dumps(reply(YES, {**NO, "evidence": {"step": None, "part": None, "quote": ""}})),
    "a no with a word for evidence": json.dumps(reply(YES, {**NO, "evidence": "none"})),
    "null as a text": json.dumps(reply(YES, {**NO, "evidence": "null"})),
    **{
        f"{word!r} for yes": with_verdict(word)
        for word in ("Yes", "YES.", " yes ", "**yes**", "`Yes`", True, "true", "ja", "Sí", "oui", "是")
    },
}


@pytest.mark.parametrize("kind", READ)
def test_what_leaves_no_doubt_is_read(kind: str) -> None:
    found = read(READ[kind], ASKED)
    assert {name: (one.verdict, one.evidence) for name, one in found.items()} == {
        name: (one.verdict, one.evidence) for name, one in expected(YES, NO).items()
    }


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(YES),
        json.dumps(without("id")),
        json.dumps({"items": without("id")}),
        json.dumps([without("id")]),
        json.dumps({"answer": without("id")}),
    ],
)
def test_where_one_item_was_asked_the_answer_is_its_own(text: str) -> None:
    assert read(text, ["date"]).keys() == {"date"}
    assert read(text, ["date"])["date"].verdict == "yes"


@pytest.mark.parametrize(
    ("word", "verdict"),
    [("can't tell", "cannot_tell"), ("Cannot tell.", "cannot_tell"), ("unclear", "cannot_tell"), ("Nein", "no")],
)
def test_other_words_for_the_other_verdicts(word: str, verdict: str) -> None:
    assert read(json.dumps(reply({**NO, "verdict": word})), ASKED)["polite"].verdict == verdict


DOUBTFUL: dict[str, str] = {
    "no JSON": "All items are satisfied.",
    "nothing": "",
    "half a one": WHOLE[:-9],
    "half a one within": f'{{"answer": {WHOLE}, "and',
    "an answer without its id": json.dumps(reply(without("id"), NO)),
    "a list without ids": json.dumps([without("id"), {"verdict": "no"}]),
    "another item": json.dumps(reply(YES, answer("other", "no"))),
    "twice": json.dumps(reply(YES, answer("date", "no"))),
    "twice the same within one": json.dumps(reply(YES, YES)),
    "two replies that differ": f"{json.dumps(reply(YES))} or rather {json.dumps(reply(answer('date', 'no')))}",
    "a key twice": WHOLE.replace('"verdict": "yes"', '"verdict": "no", "verdict": "yes"'),
    "a key in two spellings": WHOLE.replace('"verdict": "yes"', '"Verdict": "no", "verdict": "yes"'),
    "a key in two spellings, the other way": WHOLE.replace('"verdict": "yes"', '"verdict": "yes", " VERDICT": "no"'),
    "an id in two spellings": WHOLE.replace('"id": "date"', '"ID": "polite", "id": "date"'),
    "a quote in a quote": "{'items': [{'id': 'date', 'analysis': 'it's fine', 'evidence': None, 'verdict': 'no'}]}",
    "maybe": with_verdict("maybe"),
    "yes and no": with_verdict("yes/no"),
    "a number": with_verdict(1),
    "a list of verdicts": with_verdict(["yes"]),
    "half a step": with_evidence(step=1.5),
    "two steps": with_evidence(step="1-2"),
    "a draft in thinking": f"<think>{WHOLE}</think>I would rather not say.",
    "not a number": WHOLE.replace('"step": 2', '"step": NaN'),
    "the schema itself": json.dumps({"type": "object", "properties": {"items": {"type": "array"}}}),
}


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_what_leaves_a_doubt_is_no_reply(kind: str) -> None:
    with pytest.raises(MalformedReply):
        read(DOUBTFUL[kind], ASKED)


def disguises() -> st.SearchStrategy[Callable[[str], str]]:
    return st.sampled_from(
        [
            lambda text: f"```json\n{text}\n```",
            lambda text: f"~~~\n{text}\n~~~",
            lambda text: f"<think>Hm, {{perhaps}} not</think>\n{text}",
            lambda text: f"Hm, perhaps not.\n</think>{text}",
            lambda text: f"\ufeff{text}",
            lambda text: f"Sure! Here it is:\n{text}\nI hope this helps.",
            lambda text: f"  {text}\n\n",
            lambda text: text,
        ]
    )


def answered(id: str, verdict: str, step: int, part: str, quote: str) -> dict[str, Any]:
    return answer(id, "yes", step, part, quote) if verdict == "yes" else answer(id, verdict)


ANSWERS = st.builds(
    answered,
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["yes", "no", "cannot_tell"]),
    st.integers(1, 99),
    st.sampled_from(["assistant.reply", "tool.content", "assistant.tool_calls"]),
    st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=20),
)
REPLIES = st.lists(ANSWERS, min_size=1, max_size=3, unique_by=lambda one: one["id"])


@settings(max_examples=examples(150))
@given(REPLIES, st.lists(disguises(), max_size=3), st.booleans())
def test_a_disguise_changes_nothing(
    answers: list[dict[str, Any]], layers: list[Callable[[str], str]], pythons: bool
) -> None:
    text = str(reply(*answers))
    if not pythons or re.search(r"\\[xuU]", text):  # Python's escapes are not JSON's
        text = json.dumps(reply(*answers))
    for layer in layers:
        text = layer(text)
    assert read(text, ["a", "b", "c"]) == expected(*answers)


@settings(max_examples=examples(200))
@given(st.text("{}[],:\"'“”\\ abn0-.\n", max_size=60))
def test_relaxed_json_reads_or_refuses(text: str) -> None:
    try:
        value, end = relaxed_json("{" + text, 0)
    except (ValueError, RecursionError):
        return
    assert isinstance(value, dict)
    assert 2 <= end <= len(text) + 1


def test_a_long_broken_text_takes_no_longer_than_its_length() -> None:
    for part in ('{"a": [', "['", '{"a": "b", ', "“", "{'a' : 'b' 'c' "):
        with pytest.raises(MalformedReply):
            read(part * 20_000, ASKED)


@pytest.mark.parametrize("again", ['"verdict":"no"', r'"v\u0065rdict":"no"', '"VERDICT":"no"'])
def test_an_answer_with_two_verdicts_is_none(again: str) -> None:
    text = '{"items":[{"id":"a","analysis":"","evidence":null,"verdict":"yes",%s}]}'
    assert read(text.replace(",%s", ""), ["a"])["a"].verdict == "yes"
    with pytest.raises(MalformedReply):
        read(text % again, ["a"])
