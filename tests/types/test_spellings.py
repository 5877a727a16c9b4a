"""Dates and amounts as people write them."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.types.spellings import spelled

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
DE = [
    "Januar",
    "Februar",
    "März",
    "April",
    "Mai",
    "Juni",
    "Juli",
    "August",
    "September",
    "Oktober",
    "November",
    "Dezember",
]
FR = [
    "janvier",
    "février",
    "mars",
    "avril",
    "mai",
    "juin",
    "juillet",
    "août",
    "septembre",
    "octobre",
    "novembre",
    "décembre",
]
ES = [
    "enero",
    "febrero",
    "marzo",
    "abril",
    "mayo",
    "junio",
    "julio",
    "agosto",
    "septiembre",
    "octubre",
    "noviembre",
    "diciembre",
]
ENDINGS = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}
dates = st.dates(date(1990, 1, 1), date(2049, 12, 31))


def spellings(day: date) -> list[str]:
    """The usual ways to write a date, in full."""
    name, end = MONTHS[day.month - 1], ENDINGS.get(day.day, "th")
    return [
        day.isoformat(),
        f"{day:%Y/%m/%d}",
        f"{day.isoformat()}T14:30:00Z",
        f"{day.day} {name} {day.year}",
        f"{day.day} {name[:3]} {day.year}",
        f"{name} {day.day}, {day.year}",
        f"{name[:3]}. {day.day}, {day.year}",
        f"{name} {day.day}{end}, {day.year}",
        f"{day.day}{end} of {name} {day.year}",
        f"{day:%A}, {name} {day.day}, {day.year}",
        f"{day:%d.%m.%Y}",
        f"{day.day}.{day.month}.{day.year}",
        f"{day.day}. {DE[day.month - 1]} {day.year}",
        f"{day.day} {FR[day.month - 1]} {day.year}",
        f"{day.day} de {ES[day.month - 1]} de {day.year}",
        f"{day.year}年{day.month}月{day.day}日",
    ]


@given(
    dates, st.data(), st.sampled_from(["It arrives on {}.", "{}", "({})", "on {}, or so", "{}: shipped", "is **{}**"])
)
def test_a_date_is_read_in_every_usual_spelling(day: date, data: st.DataObject, frame: str) -> None:
    text = frame.format(data.draw(st.sampled_from(spellings(day))))
    found = [one for one in spelled(text) if one.kind == "date"]
    assert [one.means for one in found] == [{(day.year, day.month, day.day)}]


@given(dates)
def test_slashes_are_read_where_they_leave_no_doubt(day: date) -> None:
    for text, other in ((f"{day:%m/%d/%Y}", f"{day:%d/%m/%Y}"), (f"{day:%d/%m/%Y}", f"{day:%m/%d/%Y}")):
        [found] = spelled(text)
        assert (day.year, day.month, day.day) in found.means
        assert (len(found.means) == 1) is (day.day > 12 or day.day == day.month)
        assert found.means == spelled(other)[0].means


@given(dates)
def test_a_year_may_be_left_out(day: date) -> None:
    for text in (f"{MONTHS[day.month - 1]} {day.day}", f"the {day.day}. {DE[day.month - 1]}"):
        assert [one.means for one in spelled(f"It arrives on {text} at noon")] == [{(None, day.month, day.day)}]


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("May 20 or 21", [20, 21]),
        ("May 20, 21 or 22", [20, 21, 22]),
        ("20 or 21 May", [20, 21]),
        ("20-22 May", [20, 22]),
        ("May 20 and 21.", [20, 21]),
        ("May 20 and 2 items", [20]),
        ("May 20, 2 items", [20]),
        ("on May 20 at 14:30", [20]),
        ("order 3 may be late", []),
    ],
)
def test_days_beside_a_month(text: str, days: list[int]) -> None:
    found = [one for one in spelled(text) if one.kind == "date"]
    assert [one.means for one in found] == [{(None, 5, day)} for day in days]


def amounts(value: Decimal) -> list[str]:
    english = f"{value:,.2f}"
    german = english.translate(str.maketrans(",.", ".,"))
    return [
        *(f"${english}", f"{english} USD", f"USD {english}", f"{english} dollars", f"${value:.2f}"),
        *(f"{german} EUR", f"{german} €", f"€{german}", f"{english.replace(',', chr(0x202F))} €", f"{value:.2f}€"),
        *(f"{english.replace(',', chr(39))} CHF", f"EUR {german}"),
    ]


@given(st.decimals(Decimal("0.01"), Decimal("9999999"), places=2), st.data())
def test_an_amount_is_read_in_every_usual_spelling(value: Decimal, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(amounts(value)))
    [found] = spelled(f"It costs {text}.")
    assert value in found.means
    assert found.unit in ("usd", "eur", "chf")
    assert len(found.means) == 1


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1.234", ["1.234", "1234"]),
        ("1,234,567", ["1234567"]),
        ("0.125", ["0.125"]),
        ("-5 degrees", ["-5"]),
        ("7-9 days", ["7", "9"]),
        ("15%", ["0.15", "15"]),
        ("A-7 and B12", []),
        ("v1.2.3", []),
    ],
)
def test_numbers(text: str, values: list[str]) -> None:
    found = {str(value) for one in spelled(text) if one.kind == "number" for value in one.means}
    assert found == set(values)


@given(st.text(st.sampled_from("0123456789.,-/: $€MayOr\n'"), max_size=60))
def test_what_is_found_stands_in_order_and_apart(text: str) -> None:
    found: Any = spelled(text)
    ends = [0, *(one.end for one in found)]
    assert all(end <= one.start < one.end <= len(text) for end, one in zip(ends, found, strict=False))


def test_another_date_is_never_read() -> None:
    day = date(2026, 5, 20)
    other = {(one.year, one.month, one.day) for one in (day + timedelta(days=n) for n in (1, -1, 10))}
    assert not {mean for text in spellings(day) for one in spelled(text) for mean in one.means} & other
