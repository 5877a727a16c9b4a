"""Two calls have one key exactly where they are the same call: structurally equal JSON, absent defaults filled in."""

from __future__ import annotations

import json
import sys
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from cm2_agent.graphs.tools.specs import spec_of
from cm2_agent.types.call_key import call_key
from cm2_agent.types.messages import ToolSpec
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest
from tests.strategies import jsons, objects


def key(arguments: Any, schema: Any = None) -> str:
    return call_key("f", arguments, {} if schema is None else schema)


def same(one: Any, other: Any) -> bool:
    """Structural equality of JSON, written down a second time: numbers by value, everything else by kind and value."""
    if isinstance(one, bool) or isinstance(other, bool) or one is None or other is None:
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def respelled(value: Any, draw: st.DataObject) -> Any:
    """The same JSON in other words: keys in another order, whole numbers as floats where nothing is lost."""
    if isinstance(value, dict):
        names = draw.draw(st.permutations(list(value)))
        return {name: respelled(value[name], draw) for name in names}
    if isinstance(value, list):
        return [respelled(item, draw) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**53 and draw.draw(st.booleans()):
        return -0.0 if value == 0 else float(value)
    if isinstance(value, float) and value.is_integer() and draw.draw(st.booleans()):
        return int(value)
    return value


# A few values that are often nearly equal, so that both answers are tried.
near = st.recursive(
    st.sampled_from(
        [None, True, False, 0, 1, -0.0, 1.0, 0.5, "1", "", "true", "null", 2**53, 2**53 + 1, 1e300, int(1e300), 10**300]
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b", "1"]), inner, max_size=2),
    max_leaves=4,
)


@given(near, near)
@example(2**53, float(2**53))
@example(2**53 + 1, float(2**53))
@example([[]], [{}])
@example({"a": 1}, [["a", 1]])
def test_keys_agree_exactly_where_values_are_equal(one: Any, other: Any) -> None:
    assert (key({"x": one}) == key({"x": other})) == same(one, other)


@given(objects() | st.dictionaries(st.text(max_size=3), jsons(12), max_size=4), st.data())
def test_spelling_does_not_matter(arguments: dict[str, Any], data: st.DataObject) -> None:
    assert key(respelled(arguments, data)) == key(arguments)


@given(st.text(max_size=3), st.text(max_size=3), objects(), objects())
def test_the_name_is_part_of_the_key(one: str, other: str, mine: dict[str, Any], yours: dict[str, Any]) -> None:
    assert (call_key(one, mine, {}) == call_key(other, yours, {})) == (one == other and key(mine) == key(yours))


def test_numbers_as_json_spells_them() -> None:
    spelled = [key(json.loads(f'{{"n": {number}}}')) for number in ("100", "100.0", "1e2", "1.0E+2")]
    assert len(set(spelled)) == 1
    assert key({"n": 0.1}) == key(json.loads('{"n": 1e-1}')) != key({"n": 0.10000000000000002})
    assert key({"n": 10**5000}) != key({"n": 10**5000 + 1})


@given(st.lists(near, min_size=30, max_size=40), st.integers(0, 29), near)
def test_long_values_differ_by_any_part(values: list[Any], place: int, other: Any) -> None:
    changed = [*values[:place], other, *values[place + 1 :]]
    assert (key({"x": {"y": values}}) == key({"x": {"y": changed}})) == same(values[place], other)


class Mode(Enum):
    FAST = "fast"
    SLOW = "slow"


class Address(BaseModel):
    street: str
    country: str = "NL"
    floor: int | None = None


class Card(BaseModel):
    kind: Literal["card"] = "card"
    number: str
    hold: bool = False


class Voucher(BaseModel):
    kind: Literal["voucher"] = "voucher"
    number: str
    hold: bool = True


class Person(BaseModel):
    name: str
    address: Address | None = None
    friends: list[Person] = []
    best: Person | None = None


class Order(BaseModel):
    order_id: int
    payment: Card | Voucher
    billing: Annotated[Card | Voucher, Field(discriminator="kind")] | None = None
    address: Address | None = None
    previous: Address = Address(street="Dam 1")
    stops: list[Address] = []
    by_name: dict[str, Address] = {}
    size: tuple[int, Address] = (1, Address(street="x"))
    mode: Mode = Mode.FAST
    mixed: list[Card] | list[Voucher] = []
    limits: dict[str, int] = {"day": 3}
    person: Person | None = None
    note: str | None = None


@tool
def place_order(order: Order, express: bool = False, tip: float = 0.0) -> str:
    """Place an order."""
    return f"{order.order_id} {express} {tip}"


SCHEMA = spec_of(place_order).parameters

addresses = st.builds(
    Address, street=st.sampled_from("ab"), country=st.sampled_from(["NL", "BE"]), floor=st.sampled_from([None, 1])
)
cards = st.builds(Card, number=st.sampled_from("12"), hold=st.booleans())
vouchers = st.builds(Voucher, number=st.sampled_from("12"), hold=st.booleans())
leafs = st.builds(Person, name=st.sampled_from("pq"), address=st.none() | addresses)
persons = st.builds(Person, name=st.sampled_from("pq"), friends=st.lists(leafs, max_size=2), best=st.none() | leafs)
orders = st.builds(
    Order,
    order_id=st.integers(0, 1),
    payment=cards | vouchers,
    billing=st.none() | cards | vouchers,
    address=st.none() | addresses,
    previous=st.just(Address(street="Dam 1")) | addresses,
    stops=st.lists(addresses, max_size=2),
    by_name=st.dictionaries(st.sampled_from("xy"), addresses, max_size=1),
    size=st.tuples(st.integers(0, 1), addresses),
    mode=st.sampled_from(Mode),
    mixed=st.lists(cards, max_size=2) | st.lists(vouchers, max_size=2),
    limits=st.sampled_from([{"day": 3}, {"day": 4}, {}]),
    person=st.none() | persons,
    note=st.sampled_from([None, "", "n"]),
)


def without_some(spelled: Any, brief: Any, draw: st.DataObject) -> Any:
    """Between all defaults spelled out and none: each key that the brief form lacks is kept or left out."""
    if isinstance(spelled, dict) and isinstance(brief, dict):
        return {
            name: without_some(value, brief.get(name), draw)
            for name, value in spelled.items()
            if name in brief or draw.draw(st.booleans())
        }
    if isinstance(spelled, list) and isinstance(brief, list):
        return [without_some(one, other, draw) for one, other in zip(spelled, brief, strict=True)]
    return spelled


@given(orders, orders, st.data())
def test_defaults_that_pydantic_fills_in_do_not_matter(one: Order, other: Order, data: st.DataObject) -> None:
    full, brief = one.model_dump(mode="json"), one.model_dump(mode="json", exclude_defaults=True)
    for union in ("payment", "billing"):  # without its kind a payment is read as a card: another call
        if full[union] is not None:
            brief[union]["kind"] = full[union]["kind"]
    if one.mixed and isinstance(one.mixed[0], Voucher):
        brief["mixed"] = [{**item, "kind": "voucher"} for item in brief["mixed"]]
    some = without_some(full, brief, data)
    keys = {key({"order": form}, SCHEMA) for form in (full, brief, some)} | {
        key({"order": full, "tip": 0, "express": False}, SCHEMA)
    }
    assert len(keys) == 1
    assert (key({"order": other.model_dump(mode="json")}, SCHEMA) in keys) == (one == other)


def test_a_nullable_default_and_null() -> None:
    optional = {"properties": {"note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}}}
    nullable = {"properties": {"note": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}
    assert key({}, optional) == key({"note": None}, optional) != key({"note": ""}, optional)
    assert key({}, nullable) != key({"note": None}, nullable)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"properties": {"n": {"default": 3}}}}},
        {
            "properties": {"a": {"allOf": [{"$ref": "#/definitions/A"}]}},
            "definitions": {"A": {"properties": {"n": {"default": 3}}}},
        },
        {"properties": {"a": {"$ref": "#/$defs/B~1~0%20"}}, "$defs": {"B/~ ": {"properties": {"n": {"default": 3}}}}},
        {"additionalProperties": {"properties": {"n": {"default": 3}}}},
        {"properties": {"a": {"oneOf": [{"type": "null"}, {"type": "object", "properties": {"n": {"default": 3}}}]}}},
        {
            "properties": {"a": {"properties": {"n": {"$ref": "#/$defs/N"}}}},
            "$defs": {"N": {"type": "integer", "default": 3}},
        },
    ],
)
def test_where_a_default_may_stand(schema: dict[str, Any]) -> None:
    assert key({"a": {}}, schema) == key({"a": {"n": 3.0}}, schema) != key({"a": {"n": 4}}, schema)
    assert key({"a": {"n": 3}}) != key({"a": {}})


def test_tuples_and_their_rest() -> None:
    rest = {"properties": {"m": {"default": 2}}}
    schema = {"properties": {"t": {"prefixItems": [{}, {"properties": {"n": {"default": 1}}}], "items": rest}}}
    assert key({"t": [{}, {"n": 1}, {"m": 2}]}, schema) == key({"t": [{}, {}, {}]}, schema)
    assert key({"t": [{"n": 1}, {}, {}]}, schema) != key({"t": [{}, {}, {}]}, schema)
    assert key({"t": (1, 2)}) == key({"t": [1, 2]})


def test_a_default_of_another_alternative_does_not_count() -> None:
    assert key({"order": {"order_id": 1, "payment": {"number": "1", "kind": "card"}}}, SCHEMA) != key(
        {"order": {"order_id": 1, "payment": {"number": "1", "kind": "voucher"}}}, SCHEMA
    )


KEYWORDS = (
    "a",
    "$ref",
    "$defs",
    "properties",
    "default",
    "anyOf",
    "oneOf",
    "allOf",
    "items",
    "prefixItems",
    "required",
    "type",
    "const",
    "enum",
    "additionalProperties",
)


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no")


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=2)
    | st.sampled_from([Decimal("NaN"), {1, 2}, object, Mode.FAST, "#", "#/properties/a", "#/$defs/A"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYWORDS) | st.integers(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(anything, anything)
def test_nothing_raises(arguments: Any, schema: Any) -> None:
    assert key(arguments, schema) == key(arguments, schema)


def test_hostile_depth_and_cycles() -> None:
    assert key({"x": Odd()}) == key({"x": Odd()}) != key({"x": "Odd"})
    deep: Any = 1
    other: Any = 2
    for _ in range(20 * sys.getrecursionlimit()):
        deep, other = [{"a": deep}], [{"a": other}]
    assert key({"x": deep}) == key({"x": deep}) != key({"x": other})
    round_: list[Any] = []
    round_.append(round_)
    assert key({"x": round_}) == key({"x": round_})
    laughs: list[Any] = ["ha"]
    for _ in range(60):  # 2**60 leaves, were they walked one by one
        laughs = [laughs, laughs]
    assert len(key({"x": laughs})) < 200


def test_schemas_that_go_round() -> None:
    selfish = {
        "properties": {
            "child": {"$ref": "#", "default": {}},
            "other": {"anyOf": [{"$ref": "#"}, {"$ref": "#/properties/other"}]},
        }
    }
    assert (
        key({}, selfish) == key({"child": {"child": {"child": {}}}}, selfish) != key({"child": {"child": 1}}, selfish)
    )
    assert key({"other": {"child": {}}}, selfish) == key({"other": {}}, selfish)
    ring = {
        "properties": {"a": {"$ref": "#/$defs/A"}},
        "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}},
    }
    assert key({"a": {"n": 1}}, ring) == key({"a": {"n": 1.0}}, ring)
    wide = {"$defs": {"W": {"anyOf": [{"$ref": "#/$defs/W"}] * 300}}, "properties": {"a": {"$ref": "#/$defs/W"}}}
    assert key({"a": {}}, wide) == key({"a": {}}, wide)


def test_keys_are_short_ascii() -> None:
    told = key({"name": "é" * 500, "list": list(range(500)), "\ud800": "\udfff"})
    assert told.isascii()
    assert len(told) < 200


def test_a_journal_counts_by_key() -> None:
    spec = ToolSpec(name="find", parameters={"properties": {"limit": {"default": 5}}})
    log = CallLog()
    log.add(ToolRequest(tool=spec, arguments={"q": "a", "limit": 5}), ToolAnswer(content="x"))
    assert log.count(ToolRequest(tool=spec, arguments={"q": "a"}).key) == 1
    assert log.count(ToolRequest(tool=spec, arguments={"q": "b"}).key) == 0
