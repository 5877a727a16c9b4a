"""What is taken back by another sentence, struck out, or announced as untrue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.types.negation import Negation

TAKES_BACK = (
    "That's not correct.",
    "That is wrong.",
    "No, wait, that is another order.",
    "Actually, no.",
    "Just kidding.",
    "Sorry, that was a mistake.",
    "I made that up.",
    "I am not sure about that.",
    "Don't rely on this.",
    "Not really.",
    "This is only a guess.",
    "But that is not confirmed.",
    "Scratch that.",
    "Correction: I do not know.",
    "All of the above is made up.",
    "None of this is true.",
    "What I just said was a lie.",
    "Please ignore the above.",
    "I cannot verify that.",
    "Das stimmt nicht.",
    "Das ist falsch.",
    "Ce n'est pas vrai.",
    "Eso no es correcto.",
    "Questo non è vero.",
    "Isso é mentira.",
    "Dat klopt niet.",
    "Это неправда.",
    "这是错的。",
)
GOES_ON = (
    "That's not a problem, is it?",
    "It has not left yet.",
    "You do not need to do anything.",
    "I'm sorry that this is not earlier.",
    "That is not what you hoped for, I know.",
    "Your address is wrong, however; please correct it.",
    "That is later than we promised, sorry.",
    "This is not a guess.",
    "If that is not right for you, tell me.",
    "This cannot be changed.",
    "Is that not correct?",
    "That is not far away.",
    "No, there is no fee.",
    "Never mind the fee.",
    "Please ignore the old e-mail.",
    "I do not know the hour.",
    "I'm not sure about the hour.",
    "Sorry for the mistake.",
    "We cannot guarantee that.",
)
BETWEEN = ("", "Please be at home.", "Great news!", "Have a nice day!")
STATEMENT = "Your parcel arrives on 2026-05-20."
DATE = "2026-05-20"


def denied(text: str) -> bool:
    at = text.index(DATE)
    return Negation(text).denies(at, at + len(DATE))


@pytest.mark.parametrize("sentence", TAKES_BACK)
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("gap", [" ", "\n\n"])
def test_a_sentence_takes_back_the_one_before(sentence: str, between: str, gap: str) -> None:
    assert denied(gap.join(filter(None, ["Hello.", STATEMENT, between, sentence, "Bye."])))


@pytest.mark.parametrize("sentence", TAKES_BACK)
def test_and_nothing_that_comes_after_it(sentence: str) -> None:
    assert not denied(f"It comes tomorrow. {sentence} {STATEMENT}")


@pytest.mark.parametrize("sentence", GOES_ON)
@pytest.mark.parametrize("between", BETWEEN)
def test_a_sentence_about_something_else_takes_nothing_back(sentence: str, between: str) -> None:
    assert not denied(" ".join(filter(None, [STATEMENT, between, sentence])))


@pytest.mark.parametrize(
    "text",
    [
        "It arrives on 2026-05-20, which is wrong.",
        "It arrives on 2026-05-20; that is wrong.",
        "It arrives on 2026-05-20 – no, that's not right.",
        "It arrives on 2026-05-20, but that's a guess.",
        "What follows is made up. It arrives on 2026-05-20.",
        "Please ignore the next sentence. It arrives on 2026-05-20.",
        "It arrives on ~~2026-05-20~~.",
        "It arrives on <del>the 2026-05-20</del>.",
        "Hello <!-- 2026-05-20 --> there",
        'Hello <span style="display: none">2026-05-20</span> there',
        "Hello <p hidden>2026-05-20</p> there",
        "Hello\n[//]: # (2026-05-20)\nthere",
        "These days:\n- ❌ 2026-05-20\n- ✅ 2026-05-21",
    ],
)
def test_clauses_announcements_and_marks(text: str) -> None:
    assert denied(text)


@given(st.lists(st.sampled_from([*TAKES_BACK, *GOES_ON, STATEMENT, "~~", "<del>", "\n"]), max_size=12))
def test_what_is_said_again_after_it_was_taken_back_is_said(parts: list[str]) -> None:
    text = " ".join([*parts, "~~ </del> So:\n\n", STATEMENT.upper().lower().replace("your", "Your")])
    at = text.rindex(DATE)
    assert not Negation(text).denies(at, at + len(DATE))


@pytest.mark.parametrize("filler", [", ", "and ", "but, ", " - ", "no, wait, ", "~~"])
def test_a_reply_that_repeats_itself_is_read_at_once(filler: str) -> None:
    """As a policy in training writes it; each clause was looked through to the text's end, which took hours."""
    assert not denied(f"{STATEMENT} It is wrong to say {filler * 10_000}")
