"""What a text denies, asks and supposes."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cm2_agent.types.negation import Negation

DATE = "2026-05-20"
DENIED = [
    "It does not arrive on D.",
    "I cannot confirm that it arrives on D.",
    "I can't tell you a date such as D.",
    "D is not when it arrives.",
    "It is false that it arrives on D",
    "It won’t arrive on D",
    "It wont arrive on D",
    "There is no record that it arrives on D.",
    "Nobody spoke of D.",
    "I have no idea whether it is D.",
    "It's unlikely that it arrives on D.",
    "I cannot confirm that, as you say, it arrives on D.",
    "These dates are impossible:\n- 2026-05-19\n- D",
    "I am unable to say that it arrives\non D.",
    "We failed to deliver on D.",
    "I don't know that it arrives on D, sorry.",
    "Not D!",
    "I would rather not name D",
    "It arrives on D is wrong",
    "D would be incorrect.",
    "Instead of D it comes later",
    "Sorry, I could not find your order and cannot say whether it arrives on D.",
    "Es kommt nicht am D an.",
    "Elle n'arrive pas le D.",
    "Elle n'est plus prévue le D.",
    "No llega el D.",
    "It does not ship to Boston, MA on D.",
    "Hij komt niet op D aan.",
    "它不会在D到达。",
]
STATED = [
    "It arrives on D.",
    "No worries, it arrives on D.",
    "No, it arrives on D.",
    "It has not shipped yet, but it arrives on D.",
    "It hasn't left yet; it arrives on D",
    "Don't worry: it arrives on D.",
    "It has not left yet and it arrives on D.",
    "It arrives on D, not earlier.",
    "It arrives on D and I cannot change that.",
    "It arrives on D at no extra cost.",
    "I did not find a delay. It arrives on D.",
    "It will not arrive until D.",
    "Order no. 7 arrives on D.",
    "It arrives no later than D.",
    "It does not arrive tomorrow but on D.",
    "Not only is it shipped, it arrives on D.",
    "Good news:\n- it arrives on D\n- no extra fees",
    "Your ticket is non-refundable and arrives D",
    "I am not able to cancel it, but D is the arrival date.",
    "It arrives on D if nothing changes.",
    "Note: the note on D is notable.",
    "Keine Sorge, es kommt am D an.",
    "It ships to Lincoln, NE on D.",
]


def denied(text: str) -> bool:
    at = text.index(DATE)
    return Negation(text).denies(at, at + len(DATE))


@pytest.mark.parametrize("text", DENIED)
def test_what_is_denied(text: str) -> None:
    assert denied(
        text.replace("D", DATE, 1) if "D" in text[:1] else text.replace(" D", f" {DATE}").replace("在D", f"在{DATE}")
    )


@pytest.mark.parametrize("text", STATED)
def test_what_is_stated_beside_a_negation_of_something_else(text: str) -> None:
    assert not denied(text.replace(" D", f" {DATE}").replace(f" {DATE}on't", " Don't"))


@given(st.sampled_from(DENIED), st.sampled_from(["Hello! ", "Let me see.\n\n", "It is shipped. ", ""]), st.booleans())
def test_other_sentences_change_nothing(text: str, before: str, after: bool) -> None:
    text = (
        text.replace("D", DATE, 1)
        if text.startswith("D ")
        else text.replace(" D", f" {DATE}").replace("在D", f"在{DATE}")
    )
    end = " Anything else?" if text.endswith((".", "!")) and after else ""
    assert denied(before + text + end)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        (f"Does it arrive on {DATE}?", True),
        (f"Your order arrives on {DATE}, is there anything else?", False),
        (f"Is {DATE} fine, or later?", True),
        (f"It arrives on {DATE}. Anything else?", False),
        (f"Shall I cancel the order that arrives on {DATE}?", True),
        (f"You want {DATE}?", True),
    ],
)
def test_what_is_asked(text: str, asked: bool) -> None:
    at = text.index(DATE)
    assert Negation(text).asks(at, at + len(DATE)) is asked


@pytest.mark.parametrize(
    ("text", "supposed"),
    [
        (f"If it arrives on {DATE}, call us.", True),
        (f"If you are home, it arrives on {DATE}.", False),
        (f"I would need a date such as {DATE}", True),
        (f"It arrives on {DATE} if nothing changes.", False),
    ],
)
def test_what_is_supposed(text: str, supposed: bool) -> None:
    assert Negation(text).supposes(text.index(DATE)) is supposed


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("It costs 1,234.50 EUR. Fine.", 2),
        ("Es kommt am 20. Mai 2026 an. Gut.", 2),
        ("Order no. 7, e.g. by mail.", 1),
        ("One line\nthat goes on. And another", 2),
        ("好的。它到了。", 2),
        ("Does it come on Jul. 12, 2011?", 1),
        ("Sie kommt nicht am 20. Jänner 2026.", 1),
        ("Il n'arrive pas avant le 3. février.", 1),
        ("Wir haben 20. Markus kommt.", 2),
        ("It comes in Sept. 2 of them are late.", 1),
        ("It comes in May. Then two more.", 2),
        ("", 1),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert len(Negation(text).sentences) == count


@given(st.text(st.sampled_from("not, a.\n-:?D無 but"), max_size=60), st.integers(0, 59), st.integers(0, 10))
def test_sentences_tile_the_text_and_every_place_can_be_asked(text: str, start: int, length: int) -> None:
    one = Negation(text)
    assert "".join(text[a:b] for a, b in one.sentences) == text
    end = min(len(text), start + length)
    assert one.denies(min(start, end), end) in (True, False)
    assert one.asks(min(start, end), end) in (True, False)


_WORDS = [
    *("not", "no", "can't", "isnt", "kein", "keine", "pas", "ne va plus", "n'est plus", "не", "不", "failed to"),
    *("instead of", "now", "know", "non-stop", "no-one", "NOT", "não", "niño", "plus", "-", " ", "\n", "."),
]


@given(st.lists(st.sampled_from(_WORDS) | st.text(max_size=3), max_size=6).map("".join))
@example("not\U00031350")  # a letter that this Python does not know yet
@example("x\ud800 not")  # a lone surrogate, which RE2 cannot read
def test_what_denies_nothing_at_a_glance_holds_no_word_that_could(text: str) -> None:
    if Negation(text).denies_nothing:
        assert not Negation(text)._cues.starts
