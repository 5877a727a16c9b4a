"""What a quote is widened to, and what of that it must not leave out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.rewards.judges import sentences
from cm2_agent.rewards.judges.context import Context, context_of
from cm2_agent.rewards.judges.evidence import PartText, places
from cm2_agent.rewards.judges.json_places import JSONPlaces
from tests import strategies

ORDERS = json.dumps(
    {
        "orders": [
            {
                "id": "W1",
                "status": "pending",
                "refundable": False,
                "note": f"{'It was long. ' * 60}It never came. Bye.",
            },
            {"id": "W2", "status": "delivered", "not_covered": {"what": "the screen of the phone"}, "x y": None},
        ],
        "seats": [12, 13],
    },
    separators=(",", ":"),
)


def context(quote: str, part: str) -> Context:
    return context_of(next(places(quote, PartText(raw=part))))


@pytest.mark.parametrize(
    ("quote", "part", "snippet"),
    [
        ("arrives on May 3", "Hi. Order No. 7 arrives on May 3, 2026. Bye.", "Order No. 7 arrives on May 3, 2026."),
        ("see Dr. Who about it", "Hello. Please see Dr. Who about it. Thanks.", "Please see Dr. Who about it."),
        ("cancelled your order", "Hi.\n\n- I have\ncancelled your order\n- Bye", "- I have\ncancelled your order"),
        ("it costs 3.5 euros. It", "So: it costs 3.5 euros. It is here! Yes.", "So: it costs 3.5 euros. It is here!"),
        ("5月3日送达您的家", "好的。您的订单将于5月3日送达您的家。再见。", "您的订单将于5月3日送达您的家。"),
        ("is nice today … comes soon", "It is nice today. Hm. Ann comes soon.", "It is nice today. … Ann comes soon."),
        ('"status":"pending"', ORDERS, 'orders[0].status: "pending"'),
        ('"id": "W1", "status": "pending"', ORDERS, 'orders[0]: "id":"W1","status":"pending"'),
        ("the screen of the phone", ORDERS, 'orders[1].not_covered.what: "the screen of the phone"'),
        ("It never came.", ORDERS, "orders[0].note: It never came."),
        ('"x y":null}],"seats"', ORDERS, None),
        ('"order_id":7', 'get_order {"order_id":7,"x":1}', "get_order.order_id: 7"),
        ('get_order {"order_id":7}', 'get_order {"order_id":7}', 'get_order {"order_id":7}'),
    ],
)  # fmt: skip
def test_a_quote_is_widened_to_its_sentence_or_to_its_key_and_value(quote: str, part: str, snippet: str | None) -> None:
    found = context(quote, part).snippet
    assert found == snippet if snippet is not None else found in part


@pytest.mark.parametrize(
    ("quote", "part", "missing"),
    [
        ("I have cancelled it today", "It is not so that I have cancelled it today.", "negation"),
        ("I have cancelled it today", "That is not true. I have cancelled it today.", "negation"),
        ("I have cancelled it today", "Nobody did. I have cancelled it today.", "negation"),
        ("your order is cancelled", "Unless you object, your order is cancelled.", "condition"),
        ("your order is cancelled", "Your order is cancelled if you pay.", "condition"),
        ("the order is cancelled", "Bob said that the order is cancelled.", "reported"),
        ("Your refund is approved", "According to the user: Your refund is approved.", "reported"),
        ("We will refund you", "We will refund you, won't we? We won't.", "negation"),
        ("Ihre Bestellung storniert", "Wir haben Ihre Bestellung storniert, falls Sie zahlen.", "condition"),
        ("Ihre Bestellung storniert", "Er behauptet: Wir haben Ihre Bestellung storniert.", "reported"),
        ("votre commande est annulée", "Si vous payez, votre commande est annulée.", "condition"),
        ("votre commande annulée", "Il dit avoir votre commande annulée.", "reported"),
        ("su pedido fue cancelado", "No es cierto. Hoy su pedido fue cancelado.", "negation"),
        ("su pedido fue cancelado", "Según él, su pedido fue cancelado.", "reported"),
        ("ваш заказ отменён", "Если вы заплатите, ваш заказ отменён.", "condition"),
        ("您的订单将于5月3日送达", "如果付款，您的订单将于5月3日送达。", "condition"),
        ("Your refund … approved by us", "Your refund is not yet approved by us.", "negation"),
        ("The refund was approved", "The refund was approved in theory, pending review.", "condition"),
        ("Your order is refunded", "That is a lie. Your order is refunded.", "negation"),
        ("refunded the order", "\u274c refunded the order", "negation"),
        ("refunded the order", "- [ ] refunded the order", "negation"),
        ("the gate is B12", "~~Today the gate is B12~~, the gate is C4", "negation"),
        ('"refundable":', ORDERS, "negation"),
        ("the screen of the phone", ORDERS, "negation"),
        # nothing is left out
        ("It is not so that I have cancelled it", "It is not so that I have cancelled it.", None),
        ("That is not true. I have cancelled it", "That is not true. I have cancelled it today.", None),
        ('"refundable":false', ORDERS, None),
        ("your order is cancelled", "Your order is cancelled. No refund is due.", None),
        ("provide your order's number", "Could you please provide your order's number?", None),
        ("Please let me know", "Please let me know if you have any questions.", None),
        ("the flight is at ten", "the flight is at ten", None),
        ("refunded the order", "- [x] refunded the order", None),
        ("refunded the order", "\u2705 refunded the order", None),
    ],
)
def test_what_turns_or_binds_a_quote_is_missed(quote: str, part: str, missing: str | None) -> None:
    assert context(quote, part).missing == missing


@given(
    st.dictionaries(st.text(max_size=5), strategies.jsons(), min_size=1, max_size=4)
    | st.lists(strategies.jsons(), max_size=4)
)
def test_every_key_and_value_of_json_is_placed(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=2), f"tool {json.dumps(value)}"):
        found = JSONPlaces.of(text)
        assert found is not None
        whole = json.loads(text.removeprefix("tool "))  # two surrogates in a row are read as one character
        assert json.loads(text[found.entries[-1].value :]) == whole
        for entry in found.entries:
            assert 0 <= entry.start <= entry.value < entry.end <= len(text)
            json.loads(text[entry.value : entry.end])
            around = found.around(entry.value, entry.end)
            assert around.start <= entry.value
            assert entry.end <= around.end
        assert sum(entry.is_leaf for entry in found.entries) == leaves(whole)


def leaves(value: object) -> int:
    if isinstance(value, dict):
        return sum(map(leaves, value.values()))
    return sum(map(leaves, value)) if isinstance(value, list) else 1


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "plain text", "{'a': 1}", "name", "7", '"text"'])
def test_what_is_no_json_has_no_places(text: str) -> None:
    assert JSONPlaces.of(text) is None


def test_lines_of_a_program_say_nothing_of_each_other() -> None:
    program = "def load(path):\n    if not path:\n        return None\n    data = read(path)\n    return data\n"
    read = PartText(raw=program, may_be_code=True)
    written = PartText(raw=f"write_file {json.dumps({'content': program})}")
    for text in (read, written):
        found = context_of(next(places("data = read(path)", text)))
        assert found.missing is None
        assert "data = read(path)" in found.snippet
    prose = PartText(raw="That is not so.\nYour order was cancelled.", may_be_code=True)
    assert context_of(next(places("Your order was cancelled.", prose))).missing == "negation"


def test_lines_within_a_string_of_json_are_sentences() -> None:
    part = json.dumps({"note": "Hello.\nNobody did it.\nYour order was cancelled today\nBye"})
    found = context("Your order was cancelled", part)
    assert (found.missing, found.snippet) == ("negation", f"note: {json.dumps(json.loads(part)['note'])}")


CUES = yaml.safe_load((Path(sentences.__file__).parent / "cues.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", sorted(CUES.keys() - {"json"}))
def test_every_cue_is_found_beside_the_quote_that_leaves_it_out(language: str) -> None:
    known = CUES[language]
    for kind in sentences.NAMES:
        for cue in known.get(kind, []):
            part = f"Your order is cancelled, {cue} 7 {cue.upper()}; (today)"
            assert context("Your order is cancelled", part).missing is not None, cue
        for cue in known.get("parts", {}).get(kind, []):
            assert context("Your order is cancelled", f"Your order is cancelled 日{cue}日").missing is not None, cue


def test_sentences_of_a_long_text_are_those_of_its_stretch() -> None:
    stretch = (
        "Dear Ms. Roe. Your order, No. 7, is late!\n\nIt arrives on May 3... \u201cSoon?\u201d So they say\u3002Bye. "
    )
    around = "word " * 2000
    compared = 0
    for start in range(len(stretch) - 1):
        long = sentences.sentence_around(
            f"{around}End. {stretch}{around}", len(around) + 5 + start, len(around) + 6 + start
        )
        short = sentences.sentence_around(f"End. {stretch}{around[:400]}", 5 + start, 6 + start)
        if short.before > 0 and stretch[start] != " ":
            assert long.before - len(around) == short.before
            assert (long.start - len(around), long.end - len(around)) == (short.start, short.end)
            compared += 1
    assert compared > 40
