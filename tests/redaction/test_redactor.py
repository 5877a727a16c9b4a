"""Personal data is found, replaced alike everywhere, and nothing else is touched."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import unquote

import jsonschema
import pytest

from cm2_agent.datasets import CARD, EMAIL, IBAN, JWT, KEY, PEM, PHONE, SHIPPED, SSN, Redactor, Rule, key_from
from cm2_agent.errors import TaskError
from cm2_agent.redaction.pii_numbers import is_card, luhn
from tests.redaction.personal import (
    CARDS,
    EMAILS,
    IBANS,
    JWTS,
    KEYS,
    ORDINARY,
    PEMS,
    PHONES,
    SECRET,
    SECRETS,
    SPELLED,
    SSNS,
    redactor,
)


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (rule.name, value)
        for rule, values in (
            (EMAIL, EMAILS),
            (PHONE, PHONES),
            (CARD, CARDS),
            (KEY, KEYS),
            (JWT, JWTS),
            (PEM, PEMS),
            (IBAN, IBANS),
            (SSN, SSNS),
        )
        for value in values
    ],
)
@pytest.mark.parametrize("around", ["{}", "It is {}.", "({})", '"{}"', "a: {}, b", "<{}>", "{}\nnext", "tell {}!"])
def test_what_is_personal_is_found(rule: str, value: str, around: str) -> None:
    mine = redactor()
    before, _, after = around.partition("{}")
    got = mine.redact(around.format(value))
    assert got.startswith(before)
    assert got.endswith(after)
    inner = got[len(before) : len(got) - len(after)]
    assert mine.counts == {rule: 1}, got
    assert value not in got
    assert Redactor((next(one for one in SHIPPED if one.name == rule),)).redact(inner) == inner, (
        "it is a placeholder as a whole"
    )


@pytest.mark.parametrize("text", ORDINARY)
def test_what_is_not_personal_is_left_alone(text: str) -> None:
    mine = redactor()
    assert mine.redact(text) == text
    assert mine.redact(f"It is {text}, as you said.") == f"It is {text}, as you said."
    assert not mine.counts


@pytest.mark.parametrize(("text", "secret"), SECRETS)
@pytest.mark.parametrize("around", ["{}", "I set {} there", "({})", "x\n{}\ny"])
def test_a_secret_is_known_by_what_stands_before_it(text: str, secret: str, around: str) -> None:
    text = around.format(text)
    before, _, after = text.partition(secret)
    got = redactor().redact(text)
    assert got.startswith(before)
    assert got.endswith(after)
    assert secret not in got
    assert "REDACTED" in got
    assert redactor().redact(got) == got


@pytest.mark.parametrize(("spelled", "plain"), SPELLED)
@pytest.mark.parametrize("around", ["{}", "It is {}.", "({})", "a: {}, b", "tell {}!"])
def test_another_spelling_is_the_same_value(spelled: str, plain: str, around: str) -> None:
    mine = redactor()
    before, _, after = around.partition("{}")
    got = mine.redact(around.format(spelled))
    assert got.startswith(before)
    assert got.endswith(after)
    inner = got[len(before) : len(got) - len(after)]
    assert unquote(inner) == mine.redact(plain)
    assert mine.redact(got) == got


def test_json_keys_tell_of_secrets_and_numbers() -> None:
    mine = redactor()
    got = mine.redact_json(
        {
            "password": "correct horse",
            "clientSecret": "abc",
            "api_key": KEYS[0],
            "ssn": 123456789,
            "customer_ssn": "123 45 6789",
            "next_page_token": "CAUQAA2",
            "max_tokens": 512,
            "schema": {"password": {"type": "string"}},
            "required": ["password"],
        }
    )
    assert got["api_key"] == mine.redact(KEYS[0]), "one value, one placeholder, wherever it stands"
    assert got["password"].startswith("REDACTED")
    assert got["clientSecret"].startswith("REDACTED")
    assert str(got["ssn"]) == got["customer_ssn"].replace("-", "") == mine.redact("123-45-6789").replace("-", "")
    assert got["next_page_token"] == "CAUQAA2"
    assert (got["max_tokens"], got["required"]) == (512, ["password"])
    assert got["schema"] == {"password": {"type": "string"}}
    assert mine.redact_json(got) == got
    assert mine.redact("password=abc") == f"password={got['clientSecret']}"


def test_a_pem_block_that_was_cut_off_is_found() -> None:
    got = redactor().redact("-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA1c7+9z5Pad\nMIIEpAIBAA (cut here)")
    assert got.endswith("(cut here)")
    assert "MIIE" not in got


def test_a_bearer_token_is_a_key() -> None:
    got = redactor().redact("Authorization: Bearer abc123def456ghi789jkl012mno, sent")
    assert got.startswith("Authorization: Bearer REDACTED")
    assert got.endswith(", sent")
    assert "abc123" not in got


@pytest.mark.parametrize(
    "spellings",
    [
        ("ada@x.org", "Ada@X.org", "ADA@x.ORG"),
        ("+1 415 555 2671", "(415) 555-2671", "415.555.2671", "+14155552671", "1-415-555-2671"),
        ("4111111111111111", "4111 1111 1111 1111", "4111-1111-1111-1111"),
    ],
)
def test_one_value_has_one_placeholder(spellings: tuple[str, ...]) -> None:
    mine = redactor()
    assert len({mine.redact(one) for one in spellings}) == 1
    assert list(mine.distinct.values()) == [1]
    assert {mine.redact(f"I am {one}, yes")[5:-5] for one in spellings} == {mine.redact(spellings[0])}


def test_two_values_have_two_placeholders() -> None:
    mine = redactor()
    numbers = [f"+1 415 555 {number:04}" for number in range(3000)]
    assert len({mine.redact(number) for number in numbers}) == 3000
    narrow = Redactor(
        [Rule("pin", "[0-9]{4}", make=lambda value, draw: "pin" + draw("ab", 2), made="pin[ab]{2}")], key=SECRET
    )
    assert len({narrow.redact(pin) for pin in ("1111", "2222", "3333", "4444")}) == 4, "drawn again until it is free"
    with pytest.raises(TaskError, match="made the same placeholder"):
        narrow.redact("5555")


def test_the_same_key_gives_the_same_placeholders_and_no_key_gives_new_ones() -> None:
    text = "ada@x.org, 415-555-2671, 4111111111111111"
    assert Redactor(key=b"one").redact(text) == Redactor(key=b"one").redact(text)
    others = (Redactor(key=b"one"), Redactor(key=b"two"), Redactor(), Redactor())
    assert len({other.redact(text) for other in others}) == 4
    assert key_from(["a", "b"]) != key_from(["ab"])


def test_placeholders_keep_the_form() -> None:
    mine = redactor()
    schema = {
        "type": "object",
        "properties": {
            "email": {"type": "string", "pattern": r"^[^@\s]+@[^@\s]+\.[a-z]{2,}$"},
            "phone": {"type": "string", "pattern": r"^\+[1-9][0-9]{7,14}$"},
            "card": {"type": "string", "pattern": "^[0-9]{16}$"},
            "number": {"type": "integer"},
            "token": {"type": "string", "pattern": "^ghp_[A-Za-z0-9]{36}$"},
        },
    }
    value = {
        "email": "ada@x.org",
        "phone": "+14155552671",
        "card": "4111111111111111",
        "number": 4111111111111111,
        "token": KEYS[2],
    }
    got = mine.redact_json(value)
    jsonschema.validate(got, schema)
    assert luhn(got["card"])
    assert not is_card(got["card"]), "nobody's card"
    assert got["number"] == int(got["card"])
    assert mine.redact("AKIAIOSFODNN7EXAMPLE").startswith("AKIA")
    assert len(mine.redact("AKIAIOSFODNN7EXAMPLE")) == 20


def test_json_is_redacted_wherever_it_holds_something() -> None:
    mine = redactor()
    mail, phone = mine.redact("ada@x.org"), mine.redact("415-555-2671")
    value = {
        "ada@x.org": [1, {"phone": "4155552671"}],
        "card": 4111111111111111,
        "n": 7,
        "x": 4111111111111111.0,
        "t": "to ada@x.org",
        "no": None,
    }
    got = mine.redact_json(value)
    card = int(mine.redact("4111111111111111"))
    assert got == {mail: [1, {"phone": phone}], "card": card, "n": 7, "x": card, "t": f"to {mail}", "no": None}
    assert mine.redact_json({"Ada@x.org": 1, "ada@x.org": 2}) == {mail: 1, f"{mail} (2)": 2}
    assert mine.redact_json({"contact": {"phone_number": 4155552671, "order_id": 4155552671}}) == {
        "contact": {"phone_number": int(phone[1:]), "order_id": 4155552671}
    }


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "\\nada@x.org\\tb", "b" : [1.0, 4111111111111111], "phone": "4155552671"}',
        '"quoted \\"ada@x.org\\""',
        '[{"inner": "{\\"mail\\": \\"\\\\nada@x.org\\"}"}]',
        '{"\\u0061da@x.org": "\\u00e9 ada@x.org"}',
    ],
)
def test_json_in_text_stays_json(text: str) -> None:
    mine = redactor()
    got = mine.redact(text)
    assert json.loads(got) == mine.redact_json(json.loads(text))
    assert "ada@x.org" not in json.dumps(json.loads(got))
    assert mine.redact(got) == got
    assert mine.redact('{"a":  1.50,\n "b": "x"}') == '{"a":  1.50,\n "b": "x"}', (
        "what is not replaced is spelled as before"
    )


def test_an_escape_is_not_cut_in_two_where_the_json_is_broken() -> None:
    mine = redactor()
    got = mine.redact('{"a": "x\\nada@x.org\\u000aada@x.org", "b": "sk')
    assert got == '{"a": "x\\n' + mine.redact("ada@x.org") + "\\u000a" + mine.redact("ada@x.org") + '", "b": "sk'


def test_own_rules() -> None:
    names = Rule("name", find=lambda text: [(at, at + 3)] if (at := text.find("Ada")) >= 0 else [])
    mine = redactor(names, Rule("badge", r"B-[0-9]{5}"), *SHIPPED)
    got = mine.redact("Ada has B-12345 and B-12345, as Ada@x.org says")
    assert mine.redact(got) == got
    assert mine.counts == {"name": 1, "badge": 2, "email": 1}
    assert "Ada" not in got
    address = redactor(*SHIPPED, Rule("address", r"Street: [^\n]*")).redact("Street: 5, c/o ada@x.org\nok")
    assert address.startswith("[address "), "the longer find holds the shorter one"
    assert address.endswith("]\nok")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "Bad name", "pattern": "x"}, "lower-case"),
        ({"name": "x"}, "neither"),
        ({"name": "x", "pattern": "a", "find": lambda text: []}, "both"),
        ({"name": "x", "pattern": "(?=a)"}, "not RE2"),
        ({"name": "x", "pattern": "a*"}, "matches nothing"),
        ({"name": "x", "pattern": "a", "made": "b"}, "one of make and made"),
    ],
)
def test_a_rule_that_cannot_be_one_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Rule(**arguments)


def test_a_name_belongs_to_one_rule() -> None:
    with pytest.raises(TaskError, match="named twice: email"):
        Redactor([EMAIL, EMAIL])


def test_no_value_is_kept_or_shown() -> None:
    mine = redactor()
    mine.redact("ada@x.org 4111111111111111")
    assert "ada" not in repr(mine)
    assert not any("ada" in str(value) or "4111" in str(value) for value in vars(mine).values())


def test_what_was_seen_without_finds_is_known_and_what_was_replaced_is_counted_again() -> None:
    mine = redactor()
    for _ in range(3):
        assert mine.redact("Where is order 7?") == "Where is order 7?"
        assert mine.redact("ada@x.org") == mine.redact("ada@x.org")
        assert mine.redact_json({"phone": "4155552671", "id": "4155552671"})["id"] == "4155552671"
    assert mine.counts == {"email": 6, "phone": 3}


def test_a_redactor_survives_a_fork_while_another_thread_uses_it() -> None:
    mine = redactor()
    with mine._lock:  # as another thread would hold it
        child = os.fork()
        if child == 0:
            os._exit(0 if "ada" not in mine.redact("ada@x.org") else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert "ada" not in mine.redact("ada@x.org")
