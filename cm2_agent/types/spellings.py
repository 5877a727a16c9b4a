"""Dates and amounts as people write them: where they stand in a text, and what each may mean."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal, TypeAlias

from cm2_agent.types.number_words import number_words
from cm2_agent.types.tokens import STOP_WORDS

Day: TypeAlias = tuple[int | None, int, int]
"""Year (None: not named), month, day."""

_NAMES = {
    1: "january jan januar jänner janvier enero ene gennaio gen janeiro januari",
    2: "february feb februar février fevrier févr febrero febbraio fevereiro fev februari",
    3: "march mar märz maerz mrz mär mars marzo março marco maart mrt",
    4: "april apr avril avr abril abr aprile",
    5: "may mai mayo maggio mag maio mei",
    6: "june jun juni juin junio giugno giu junho",
    7: "july jul juli juillet juil julio luglio lug julho",
    8: "august aug août aout agosto ago augustus",
    9: "september sep sept septembre septiembre settembre set setembro",
    10: "october oct oktober okt octobre octubre ottobre ott outubro out",
    11: "november nov novembre noviembre novembro",
    12: "december dec dezember dez décembre decembre déc diciembre dic dicembre dezembro",
}
MONTHS = {name: number for number, names in _NAMES.items() for name in names.split()}
"""The names of months in small letters, whole and short, with their numbers."""
_MODAL = r"may\s+(?:be|not|have|take|vary|also|still|need|change|differ|arrive|come|ship|cost|only|well|never|get|go)\b"
_ANY_MONTH = "|".join(sorted(MONTHS, key=len, reverse=True))
_MONTH = rf"(?P<{{}}>(?!{_MODAL})(?:{_ANY_MONTH}))(?!\w)\.?"
_ORDINAL = r"(?:st|nd|rd|th|er|e|º|°|\.)?"
_YEAR = r"(?P<{}>\d{{4}})(?!\d)"
_SEPARATED = re.compile(
    r"(?<![\w.,/:\-])(?P<a>\d{1,4})(?P<mark>[-/.])(?P<b>\d{1,2})(?P=mark)(?P<c>\d{1,4})(?![\d/\-]|\.\d)"
)
_NAMED = re.compile(
    rf"(?<![\w.])(?P<day>\d{{1,2}}){_ORDINAL}[ /-]?\s*(?:of\s+|de\s+|di\s+)?{_MONTH.format('month')}"
    rf"(?:\s*[,/\-]?\s*(?:de\s+|del\s+)?{_YEAR.format('year')})?"
    rf"|(?<!\w){_MONTH.format('first')}[ \-]?\s*(?:the\s+)?(?P<second>\d{{1,2}}){_ORDINAL}(?![\d:]|[.,]\d)"
    rf"(?:\s*,?\s*{_YEAR.format('third')})?"
    r"|(?:(?P<y>\d{4})\s*[年년]\s*)?(?P<m>\d{1,2})\s*[月월]\s*(?P<d>\d{1,2})\s*[日일号號]",
    re.IGNORECASE,
)
_SHORT = re.compile(
    r"(?<![\w.,:/\-])(?:(?P<d>\d{1,2})\.\s(?P<m>\d{1,2})\.\s(?P<y>(?:19|20)\d{2})(?![\d/\-]|\.\d)"
    r"|(?<=\b(?:am|ab)\s)(?P<d1>\d{1,2})\.\s?(?P<m1>\d{1,2})\.(?!\s?\d)"
    r"|(?<=\b(?:dem|den|vom|bis|zum)\s)(?P<d2>\d{1,2})\.\s?(?P<m2>\d{1,2})\.(?!\s?\d)"
    r"|(?<=\b(?:on|by)\s)(?P<a>\d{1,2})/(?P<b>\d{1,2})(?![\w/,\-]|\.\d))",
    re.IGNORECASE,
)
"""Days as German letters write them, without a year or with spaces, and American ones behind "on" or "by"."""
_OR = r"(?:,|or|and|to|through|until|till|oder|und|bis|ou|et|o|y|e|of|en|/|&|-|–|—)"
_MORE = re.compile(
    rf"\s*(?:(?:,\s*)?(?:or|oder|ou|o|of|to|through|bis)\b|[-–—/]"
    rf"|,(?=\s*\d{{1,2}}{_ORDINAL}\s*(?:,|or|and|oder|und|ou|o|of|en)\s*\d)"
    rf"|(?:,\s*)?(?:and|und|et|y|e|en|&)(?=\s*(?:the\s+)?\d{{1,2}}{_ORDINAL}\s*(?:[.,;!?)]|$)))\s*(?:the\s+)?"
    rf"(?P<day>\d{{1,2}}){_ORDINAL}(?![\d:%€$£]|[.,/\-]\d|\s*(?:eur|usd|gbp|{_ANY_MONTH})\b)",
    re.IGNORECASE,
)
_LESS = re.compile(rf"(?<![\w.,:/\-])(?P<day>\d{{1,2}}){_ORDINAL}\s*{_OR}\s*$", re.IGNORECASE)
_TIME = re.compile(
    r"(?:(?<![\w.:])|(?<=\d[Tt]))(\d{1,2}):(\d{2})(?::\d{2}(?:\.\d+)?)?(?!\d)\s*(am\b|pm\b|a\.m\.|p\.m\.)?",
    re.IGNORECASE,
)
_HOUR = re.compile(
    r"(?<![\w.,:/-])(?:(?P<hour>\d{1,2})(?:\.(?P<minute>\d{2}))?\s?(?:(?P<half>am|pm|a\.m\.|p\.m\.)(?!\w)(?!\s+\d)|(?P<uhr>uhr)(?!\w))"
    r"|(?P<h>\d{1,2})\s?h\s?(?P<min>\d{2})(?![\w.,]\d|\w)|(?<=à\s)(?P<at>\d{1,2})\s?h(?!\w))",
    re.IGNORECASE,
)
"""Times without a colon: `3 pm`, `2.30 pm`, `14.30 Uhr`, `15 Uhr`, `14h30`, `à 15 h`."""
_NUMBER = re.compile(
    r"(?:(?<![\w.,'])|(?<=USD)|(?<=EUR)|(?<=GBP)|(?<=CHF)|(?<=usd)|(?<=eur)|(?<=gbp)|(?<=chf))(?<![^\W\d]-)(?P<sign>(?<!\w)[-−])?"
    r"(?P<digits>\d{1,3}(?:[,.'’\u00a0\u2009\u202f]\d{3})+(?:[.,]\d{1,2}(?!\d))?"
    r"|\d{1,3}(?: \d{3})+(?:[.,]\d{2}(?!\d)|(?=\s?(?:[€$£₽]|eur|usd|gbp|chf|euros?|dollars?|kr|zł|kč)(?!\w)))"
    r"|\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d{1,2})?(?!\d)|\d+(?:[.,]\d+)?)"
    r"(?![\w]*[A-Za-z]*\d)(?![.,:]\d)"
)
_SIGNS = {"$": "usd", "€": "eur", "£": "gbp", "¥": "jpy", "₹": "inr", "₽": "rub", "₩": "krw", "₺": "try"}
_ISO = "usd eur gbp jpy inr chf cad aud nzd hkd sgd twd sek nok dkk pln brl mxn cny rub krw try"
_CODES = {
    **{code: code for code in _ISO.split()},
    **dict.fromkeys(("dollar", "dollars", "bucks", "dólares", "dollari"), "usd"),
    "euro": "eur",
    "euros": "eur",
    "pound": "gbp",
    "pounds": "gbp",
    "yen": "jpy",
    "franken": "chf",
    "rupees": "inr",
    **dict.fromkeys(("percent", "prozent", "procent", "pct"), "%"),
    **dict.fromkeys(("pp", "prozentpunkte", "prozentpunkten"), "pp"),
    **dict.fromkeys(("bp", "bps"), "bp"),
    "promille": "‰",
}
_SCALES = {
    **dict.fromkeys(("k", "thousand", "tausend", "tsd"), 1000),
    **dict.fromkeys(
        ("million", "millions", "millionen", "mio", "mn", "mln", "millón", "millones", "milioni", "milhões", "miljoen"),
        10**6,
    ),
    **dict.fromkeys(("billion", "billions", "bn", "milliarde", "milliarden", "mrd"), 10**9),
}
_SHORT_SCALES = {"m": 10**6, "b": 10**9}
"""Joined to a number."""
_SHARES = {"%": 100, "‰": 1000}
_OF_DOLLARS = frozenset({"cad", "aud", "nzd", "hkd", "sgd", "mxn", "twd"})
_DOLLARS = {
    "us": "usd",
    "ca": "cad",
    "c": "cad",
    "a": "aud",
    "au": "aud",
    "nz": "nzd",
    "hk": "hkd",
    "sg": "sgd",
    "s": "sgd",
}
_DOLLARS |= {"r": "brl", "mx": "mxn", "nt": "twd"}
"""Whose dollar (or real, or peso) it is by the letters before the sign."""
_BEFORE = re.compile(
    r"(?:(?<![\w$])(?P<whose>[A-Za-z]{0,2})\$|(?P<sign>[€£¥₹₽₩₺])|(?<![\w])(?P<code>[A-Za-z]{3}))\s?[-−]?$"
)
_AFTER = re.compile(r"[-  \u00a0\u202f]?(?:(?P<sign>[$€£¥₹₽₩₺%‰])|(?P<word>[^\W\d_]+))", re.UNICODE)
_BEHIND = re.compile(r"[-  \u00a0\u202f]?(?:(?P<sign>[$€£¥₹₽₩₺])|(?P<word>[^\W\d_]{3,}))")
"""Behind a scale, or behind an amount of dollars: the currency."""
_POINTS = re.compile(
    r"\s?(?:(?:percentage|%[- ]?)\s?points?|basis\s+points?|puntos\s+porcentuales|points?\s+de\s+pourcentage)(?!\w)",
    re.IGNORECASE,
)
_PER_CENT = re.compile(r"\s(?:per\s+cent|pour\s+cent|por\s+ciento|por\s+cento|per\s+cento)(?!\w)", re.IGNORECASE)
_MINUS = re.compile(r"(?:(?:^|(?<=[\s(:*]))[-−]|(?<!\w)(?:minus|negative|moins|menos|meno)\s)$", re.IGNORECASE)
_WORD_BEFORE = re.compile(r"(?<!\w)(?P<word>[^\W\d_]{2,})[ #:]{1,2}$")


@dataclass(frozen=True)
class Spelled:
    """A date, a time or a number in a text. `means` are its readings: more than one where it can be read in several
    ways, as `05/06/2026`. `unit` is a number's currency or per cent, `words` those beside it."""

    start: int
    end: int
    kind: Literal["date", "time", "number"]
    means: frozenset[object]
    unit: str | None = None
    words: frozenset[str] = frozenset()


def spelled(text: str) -> list[Spelled]:
    """The dates, times and numbers of a text, in order; what is part of a date is no number.

    Dates: ISO, with or without a time; `20 May 2026`, `May 20th, 2026` and their like in six languages, also without a
    year; `20.05.2026` (day first); `5/20/2026` and `20/5/2026`, of which `5/6/2026` has two readings. Numbers:
    `1,234.50`, `1.234,50`, `1 234,50`, `1'234.50`, with a currency before or behind; `1.234` has two readings, as have
    `1.5m` and `1.5M` without a currency; `three`, `minus 5`, `1,5 Mio`. Times: `14:30`, `2:30 pm`, `3 pm`, `14.30 Uhr`.

    >>> [(one.kind, sorted(map(str, one.means)), one.unit) for one in spelled("$1,234.50 until May 20th")]
    [('number', ['1234.5'], 'usd'), ('date', ['(None, 5, 20)'], None)]
    """
    found = sorted(_dates(text), key=lambda one: (one.start, -one.end))
    dates: list[Spelled] = []
    for one in found:
        if not dates or one.start >= dates[-1].end:
            dates.append(one)
    times = [one for one in _times(text) if not _within(one, dates)]
    taken = sorted([*dates, *times], key=lambda one: one.start)
    numbers = [one for one in _numbers(text) if not _within(one, taken)]
    return sorted([*taken, *numbers], key=lambda one: one.start)


def _within(one: Spelled, others: list[Spelled]) -> bool:
    at = bisect_right(others, one.start, key=lambda other: other.start) - 1
    return (at >= 0 and one.start < others[at].end) or (at + 1 < len(others) and others[at + 1].start < one.end)


def _dates(text: str) -> Iterator[Spelled]:
    for found in _SEPARATED.finditer(text):
        days = frozenset(_readings(found["a"], found["b"], found["c"], found["mark"]))
        if days:
            yield Spelled(found.start(), found.end(), "date", days)
    for found in _SHORT.finditer(text):
        pairs = (("d", "m", found["y"]), ("d1", "m1", None), ("d2", "m2", None), ("a", "b", None), ("b", "a", None))
        given = [(found[day], found[month], year) for day, month, year in pairs if found[day]]
        read = (_day(int(year) if year else None, int(month), int(day)) for day, month, year in given)
        short = frozenset(day for day in read if day is not None)
        if short:
            yield Spelled(found.start(), found.end(), "date", short)
    for found in _NAMED.finditer(text):
        if found["m"]:
            year, month, day = found["y"], int(found["m"]), found["d"]
        elif found["month"]:
            year, month, day = found["year"], MONTHS[found["month"].casefold()], found["day"]
        else:
            year, month, day = found["third"], MONTHS[found["first"].casefold()], found["second"]
        when = _day(int(year) if year else None, month, int(day))
        if when is None:
            continue
        yield Spelled(found.start(), found.end(), "date", frozenset([when]))
        yield from _neighbours(text, found.start(), found.end(), when)


def _neighbours(text: str, start: int, end: int, when: Day) -> Iterator[Spelled]:
    """Days beside a date that have no month of their own: "May 20 or 21", "20-22 May"."""
    for _ in range(16):
        more = _MORE.match(text, end)
        day = None if more is None else _day(when[0], when[1], int(more["day"]))
        if more is None or day is None:
            break
        end = more.end()
        yield Spelled(more.start("day"), end, "date", frozenset([day]))
    for _ in range(16):
        less = _LESS.search(text, max(0, start - 24), start)
        day = None if less is None else _day(when[0], when[1], int(less["day"]))
        if less is None or day is None:
            break
        start = less.start()
        yield Spelled(start, less.end("day"), "date", frozenset([day]))


def _readings(a: str, b: str, c: str, mark: str) -> Iterator[Day]:
    if len(a) == 4:
        orders = [(a, b, c)] if len(c) <= 2 else []
    elif len(c) not in (2, 4) or len(a) > 2:
        orders = []
    elif mark == ".":
        orders = [(c, b, a)]
    else:
        orders = [(c, b, a), (c, a, b)]
    for year, month, day in orders:
        when = _day(int(year) if len(year) == 4 else 2000 + int(year), int(month), int(day))
        if when is not None:
            yield when


def _day(year: int | None, month: int, day: int) -> Day | None:
    long = 31 if month in (1, 3, 5, 7, 8, 10, 12) else 29 if month == 2 else 30
    return (year, month, day) if 1 <= month <= 12 and 1 <= day <= long else None


def _times(text: str) -> Iterator[Spelled]:
    for found in _TIME.finditer(text):
        yield from _time(found, found[1], found[2], found[3])
    for found in _HOUR.finditer(text):
        hour = found["hour"] or found["h"] or found["at"]
        yield from _time(found, hour, found["minute"] or found["min"] or "0", found["half"])


def _time(found: re.Match[str], hours: str, minutes: str, half: str | None) -> Iterator[Spelled]:
    hour, minute = int(hours), int(minutes)
    if half and 1 <= hour <= 12:
        hour = hour % 12 + (12 if half[0] in "pP" else 0)
    if hour <= 24 and minute < 60:
        yield Spelled(found.start(), found.end(), "time", frozenset([(hour, minute)]))


def _numbers(text: str) -> Iterator[Spelled]:
    for found in _NUMBER.finditer(text):
        start, end = found.span()
        before = _BEFORE.search(text, max(0, start - 8), start)
        sign = start if before is None else before.start()
        owed = _MINUS.search(text, max(0, sign - 10), sign) is not None and not found["sign"]
        values = frozenset(_values(found["digits"], bool(found["sign"]) or owed))
        if values:
            yield _with_unit(text, start, end, values, before)
    for start, end, value in number_words(text):
        owed = _MINUS.search(text, max(0, start - 10), start) is not None
        yield _with_unit(text, start, end, frozenset([-value if owed else value]), None)


def _with_unit(text: str, start: int, end: int, values: frozenset[Decimal], before: re.Match[str] | None) -> Spelled:
    """A number with what its scale, its currency and the words beside it make of it."""
    after = _AFTER.match(text, end)
    unit = None
    if before is not None:
        letters = before["whose"]
        unit = _CODES.get((before["code"] or "").casefold()) or _SIGNS.get(before["sign"] or "")
        if letters is not None:
            unit = _DOLLARS.get(letters.casefold(), "usd")
    word = (after["word"] or "").casefold() if after is not None else ""
    joined = after is not None and after.start("word") == end
    behind = after
    if word in _SCALES or (joined and word in _SHORT_SCALES):
        scaled = frozenset((value * (_SCALES.get(word) or _SHORT_SCALES[word])).normalize() for value in values)
        behind = _BEHIND.match(text, after.end() + (text[after.end() : after.end() + 1] == ".")) if after else None
        named = unit or (behind is not None and (behind["sign"] or _CODES.get((behind["word"] or "").casefold())))
        values = scaled if word in _SCALES or named else values | scaled  # "1.5m" may be metres
    if _POINTS.match(text, end):
        unit = "pp" if "basis" not in text[end : end + 8].casefold() else "bp"
    elif _PER_CENT.match(text, end):
        unit = "%"
    elif behind is not None:
        own = "%" if behind["sign"] == "%" else "‰" if behind["sign"] == "‰" else None
        own = own or _SIGNS.get(behind["sign"] or "") or _CODES.get((behind["word"] or "").casefold())
        unit = own if unit is None or (unit == "usd" and own in _OF_DOLLARS) else unit
    if unit in _SHARES:
        values |= {(value / _SHARES[unit]).normalize() for value in values}
    beside = _WORD_BEFORE.search(text, max(0, start - 30), start)
    words = [one["word"].casefold().rstrip("s") for one in (beside, after) if one is not None and one["word"]]
    return Spelled(start, end, "number", values, unit, frozenset(words) - STOP_WORDS)


def _values(digits: str, negative: bool) -> Iterator[Decimal]:
    plain = re.sub(r"['’\s]", "", digits)
    marks = [char for char in plain if char in ".,"]
    readings = {plain}
    if len(set(marks)) == 2:
        last = marks[-1]
        readings = {plain.replace("." if last == "," else ",", "").replace(last, ".")}
    elif len(marks) > 1:
        readings = {plain.replace(marks[0], "")}
    elif marks:
        whole, part = plain.split(marks[0])
        readings = {f"{whole}.{part}"}
        if len(part) == 3 and 1 <= len(whole) <= 3 and whole != "0":
            readings.add(whole + part)
    for reading in readings:
        try:
            value = Decimal(reading)
        except InvalidOperation:
            continue
        yield (-value if negative else value).normalize()


__all__ = ["MONTHS", "Day", "Spelled", "spelled"]
