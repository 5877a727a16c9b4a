"""Whether a reply states a value: in a usual spelling, not denied, asked, supposed or hedged, and beside no other of
its kind."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import TypeAlias

from cm2_agent.types.dialogue_words import as_text, stands_in
from cm2_agent.types.json_values import JSON
from cm2_agent.types.negation import Negation
from cm2_agent.types.spellings import Spelled, spelled
from cm2_agent.types.tokens import CODE_WORDS, fold, is_boundary, tells
from cm2_agent.types.trace import Trace

from .hedges import Kind, is_hedged
from .speakers import is_anothers

Span: TypeAlias = tuple[int, int]
_LONGEST_NAMED = 60
_LEFT_OF_DATE = re.compile(
    r"(?:t|z|utc|gmt|at|um|on|[+\-]\d{2}(?::?\d{2})?|[a-z]{3,9}day|mo|di|mi|do|fr|sa|so|mon|tue|wed|thu|fri|sat|sun|[\s,.()]+)*"
)
_LEFT_OF_TIME = re.compile(r"[\s.]*(?:uhr|h|utc|gmt|z)?[\s.]*")
_LEFT_OF_NUMBER = re.compile(
    r"[\s$€£¥₹₽₩₺%.+]*(?:[kmb]|mio|mrd|mn|bn|millions?|billions?|tsd|thousand)?\.?[\s$€£¥₹₽₩₺%‰.]*"
    r"(?:[a-z]{3}|dollars?|euros?|pounds?|per\s?cent|prozent)?[\s$€£¥₹₽₩₺%‰.]*"
)
_OR = re.compile(
    r"\s*,?\s*(?:(?:or|oder|ou|o|ó|u|of)(?![^\W_])|或|或者|または|/|\|)\s*(?:perhaps|maybe|possibly|even|rather|on|the|by|am|le|el|il|op)?"
    r"\s*(?:the\s+)?"
)
_OR_BEFORE = re.compile(
    r"(?:[^\W_]|[€$£])\s*,?\s*(\bor|\boder|\bou|/|或|または)\s*(?:(?:on|by|at|the|am|den|le)\s+)*[$€£]?$"
)
_NO_ALTERNATIVE = re.compile(r"(?:so|later|earlier|sooner|before|after|less|more|call|contact|let|you|we|i)(?![^\W_])")
_LISTED = re.compile(
    r"(?:\s|[,;/&|–—-]|(?<![^\W_])(?:or|and|to|through|until|till|oder|und|bis|ou|et|o|y|e|of|en|à|a|on|the|am|maybe|perhaps"
    r"|possibly|probably|then|also|either|even)(?![^\W_]))*"
)
_WEEKDAY = re.compile(r"(?<!\w)\w{3,10}(?:day|tag),?\s*$")
_FILLERS = frozenset(
    {"maybe", "perhaps", "possibly", "probably", "likely", "then", "also", "either", "even", "around", "about"}
)
_OR_FURTHER = re.compile(r"(?:\s*,\s*\w+){1,8}\s*,?\s+(?:or|oder|ou)(?!\w)")
_OTHER_THAN = re.compile(
    r"(?<!\w)(?:except|excluding|besides|other\s+than|(?:any\w*|every\w*|all|nothing)(?:\s+\w+)?\s+but|au(?:ß|ss)er|sauf|excepto"
    r"|salvo|tranne)\s+(?:(?:for|on|the|am|dem|den|le|el|il)\s+)*$"
)
_OFF_BY = re.compile(
    r"(?<!\w)(?:(?<!not\s)(?<!no\s)(?:later|earlier|sooner)\s+than|(?<!\bon\sor\s)after|nach|après|después"
    r"|(?:days?|weeks?|months?|tage?n?|wochen?|monate?n?)\s+(?:from|of|past|before|vor|ab))\s+(?:(?:on|the|dem|den|le|del?|el)\s+)*"
    r"(?:\w{3,10}(?:day|tag|woch),?\s+)?$"
)
"""Before a date: another one is meant."""
_NOT_IT = re.compile(
    r"\W{0,3}(?:\s?(?:is|was|ist|war)(?:n['’]t|\s+not|\s+nicht|\s+kein\w*)\s+(?:it|the|your|yours|an?|right|correct|valid|die|der|das"
    r"|ihre?|richtig|korrekt|gültig)(?!\w)|\s?(?:is|was|ist|war)\s+(?:wrong|false|incorrect|invalid|unknown|falsch)(?!\w)"
    r"|\s?(?:does\s+not|doesn['’]t)\s+exist|\s?(?:no|not|nein|wrong|false|falsch)[.!,)]|\s?existiert\s+nicht)"
)
"""Behind an id: it is the id that is denied, not what is said of what it names."""
_EMPHASIS = re.compile(r"(?<![^\W_])_{1,3}(?=[^\W_])|(?<=[^\W_])_{1,3}(?![^\W_])")
_COMMA_GAP = re.compile(r"\s*,\s*(?:(?:on|by|at|the|am|den|le|el)\s+)*[$€£]?")
_OR_GAP = re.compile(r"\s*[€$£]?\s*,?\s*(?:or|oder|ou|o)\s+(?:(?:on|by|at|the|am|den|le|el|even)\s+)*[$€£]?")
_MOST_LISTED = 16
_BESIDE = re.compile(r"(?:,|&|(?<!\w)(?:and|und|et|y|e|en))\s*$")
_DIGIT = re.compile(r"\d")
_RANGE = re.compile(r"\d+\s?-\s?\d+\s[^\W\d_]{3,}")
_UNITS = """
second minute min hour hr day week month year night mile km kg item piece point star cent cents ct pence
sekunde sekunden minuten stunde stunden tag tage monat monate woche wochen jahr jahre jour jours mois heure heures
día días mes meses hora horas giorni mesi
"""
_OTHER_UNITS = frozenset(_UNITS.split())
"""Beside a number, small and without a plural's s: it is no amount and no share."""
_LIST_OF_WORDS = re.compile(
    r"(?:^|[:.!?\n(])[ \t]*(?:[-*•][ \t]*)?(?P<all>\w+(?:\s*[,;|·]\s*\w+){2,}(?:\s*,?\s*(?:and|und|et|y|e)\s+\w+)?)"
    r"[ \t]*(?=[.!?\n)]|$)"
    r"|(?<!\w)(?:possible|valid|allowed|known)\s+(?:values|states|statuses)\b[^.\n]*"
)
"""Words one after the other that may all stand there: which of them is meant is left open."""
_ID = re.compile(r"[^\W_]+(?:[-_/.#][^\W_]+)*")


@dataclass(frozen=True)
class _Value:
    """A value that is to be stated: what it means, or how it is written."""

    kind: Kind
    text: str
    means: frozenset[object] = frozenset()
    unit: str | None = None
    time: tuple[int, int] | None = None

    @classmethod
    def of(cls, value: JSON) -> _Value | None:
        """None for what nobody can state: a truth value, null, a text that tells nothing."""
        if value is None or isinstance(value, bool):
            return None
        text = " ".join(fold(as_text(value)).split())
        if isinstance(value, int | float):
            return cls("number", text, frozenset([Decimal(str(value)).normalize()]))
        if not isinstance(value, str) or not text:
            return None
        found = spelled(text) if len(text) <= _LONGEST_NAMED else []
        rest = "".join(text[a:b] for a, b in _gaps(found, len(text)))
        dates, times, numbers = ([one for one in found if one.kind == kind] for kind in ("date", "time", "number"))
        if len(dates) == 1 and len(dates[0].means) == 1 and not numbers and _LEFT_OF_DATE.fullmatch(rest):
            at = next((one for one in times[:1] if one.means != {(0, 0)}), None)
            return cls("date", text, dates[0].means, time=next(iter(at.means), None) if at else None)  # type: ignore[arg-type]  # a time of two numbers
        if len(times) == len(found) == 1 and _LEFT_OF_TIME.fullmatch(rest):
            return cls("time", text, times[0].means)
        bare = text.isdecimal() and (len(text) > 4 or (text[0] == "0" and len(text) > 1))
        if len(numbers) == len(found) == 1 and not bare and _LEFT_OF_NUMBER.fullmatch(rest):
            return cls("number", text, numbers[0].means, numbers[0].unit)
        if any(char.isdigit() for char in text) and len(text.split()) <= 3 and not dates:
            return cls("id", text)
        return cls("text", text) if tells(text) else None


class Known:
    """What user, tools and system prompt said before a step of a dialogue."""

    def __init__(self, trace: Trace, step: int) -> None:
        self._trace, self._step = trace, step
        self._turn = trace.steps[step].turn

    def has(self, value: str, means: frozenset[object] = frozenset()) -> bool:
        """Whether a value stands there, as it is or as a date or number of one of these meanings."""
        words = self._trace.words
        if words.names(value, means, turn=self._turn, step=self._step):
            return True
        return bool(self._trace.system) and stands_in(value, self._trace.system)


class ReplyText:
    """A reply, read for the values that it states."""

    def __init__(self, text: str) -> None:
        self.text = _EMPHASIS.sub(lambda mark: " " * len(mark.group()), fold(text))

    @cached_property
    def _negation(self) -> Negation:
        return Negation(self.text)

    @cached_property
    def _spelled(self) -> list[Spelled]:
        return spelled(self.text)

    @cached_property
    def _lists_of_words(self) -> list[Span]:
        return [found.span() for found in _LIST_OF_WORDS.finditer(self.text)]

    @cached_property
    def _spans(self) -> dict[str, list[Span]]:
        """Where dates, times and numbers stand, by kind."""
        spans: dict[str, list[Span]] = {}
        for one in self._spelled:
            spans.setdefault(one.kind, []).append((one.start, one.end))
        return spans

    def mentions(self, value: JSON) -> bool:
        """Whether the value stands in the reply, whatever is said of it."""
        wanted = _Value.of(value)
        return wanted is not None and any(True for _ in self._places(wanted))

    def states(self, value: JSON, known: Known, beside: Sequence[JSON] = ()) -> bool:
        """Whether the reply states the value. `beside` are values that it is to state as well.

        Another date, amount or id of the same kind must be one of these, or known. Where the value stands beside an
        alternative ("the 20th or the 21st") it is not stated."""
        wanted = _Value.of(value)
        if wanted is None:
            return False
        places = [
            place
            for place in self._places(wanted)
            if self._meant(place, wanted.kind) and not self._is_alternative(place, wanted.kind)
        ]
        if not places:
            return False
        others = [one for one in map(_Value.of, beside) if one is not None]
        return not any(self._hedges(other, known, others) for other in self._others(wanted, places))

    def _places(self, wanted: _Value) -> Iterator[Span]:
        if wanted.kind in ("date", "time", "number"):
            yield from ((one.start, one.end) for one in self._spelled if _is(one, wanted))
            return
        if wanted.kind == "id":
            runs = re.findall(r"[^\W_]+|[\W_]+", wanted.text)
            between = r"[\s\-_/.#:]{0,2}"
            if _RANGE.fullmatch(wanted.text):
                between = r"(?:[\s\-_/.#:–]{0,3}|\s(?:to|bis|à|a|until)\s)"
            pattern = "".join(
                between.join(map(re.escape, run)) if run[0].isalnum() else f"(?:{re.escape(run)}|{between})"
                for run in runs
                if run[0].isalnum() or run not in (runs[0], runs[-1])
            )
        else:
            pattern = r"(?<![^\W\d_]-)" + r"[\s_*~`-]+".join(map(re.escape, _words(wanted.text)))
        for found in re.finditer(pattern, self.text) if pattern else ():
            if is_boundary(self.text, found.start()) and is_boundary(self.text, found.end()):
                yield found.span()

    def _meant(self, place: Span, kind: Kind) -> bool:
        start, end = place
        says = self._negation
        if kind == "id" and _NOT_IT.match(self.text, end) is None:
            denied = says.denies(start, end, behind=False)
        else:
            denied = says.denies(start, end)
        near = max(0, start - 60)
        other = _OTHER_THAN.search(self.text, near, start) or (
            kind == "date" and _OFF_BY.search(self.text, near, start)
        )
        return not (
            denied
            or other
            or says.asks(start, end)
            or says.supposes(start)
            or is_hedged(says, start, end, kind, self._since(place, kind))
            or is_anothers(says, start, end, kind)
        )

    def _since(self, place: Span, kind: Kind) -> int:
        """Where the date or time ends that comes before the place and is not listed with it; 0 where there is none."""
        alike = self._spans.get(kind, []) if kind in ("date", "time") else []
        at = bisect_right(alike, place) - 2
        if at < 0 or _LISTED.fullmatch(_WEEKDAY.sub("", self.text[alike[at][1] : place[0]][:40])):
            return 0
        return alike[at][1]

    def _is_alternative(self, place: Span, kind: str) -> bool:
        """Whether an "or" (or a slash, where none belongs to the value) ties the place to something else that could
        stand there."""
        start, end = place
        if (kind == "text" and _OR_FURTHER.match(self.text, end)) or self._is_listed_with_or(place, kind):
            return True
        if kind == "text" and any(first <= start and end <= last for first, last in self._lists_of_words):
            return True
        after = _OR.match(self.text, end)
        if after is not None and self._ties(after.group(), self.text[after.end() : after.end() + 1], kind):
            return _NO_ALTERNATIVE.match(self.text, after.end()) is None
        before = _OR_BEFORE.search(self.text, max(0, start - 30), start)
        return before is not None and self._ties(before.group(1), "1", kind)

    def _is_listed_with_or(self, place: Span, kind: str) -> bool:
        """Whether the place is one of several that commas and an "or" list: "May 20, May 21 or May 22"."""
        alike = self._spans.get(kind, [])
        at = bisect_right(alike, place) - 1
        if at < 0 or alike[at] != place:
            return False
        for further in range(at, min(at + _MOST_LISTED, len(alike) - 1)):
            gap = self.text[alike[further][1] : alike[further + 1][0]][:40]
            if _OR_GAP.fullmatch(gap):
                return True
            if not _COMMA_GAP.fullmatch(gap):
                break
        return False

    @staticmethod
    def _ties(mark: str, then: str, kind: str) -> bool:
        slash = "/" in mark or "|" in mark
        return then[:1].isalnum() and not (slash and (kind == "id" or (kind == "number" and not then[:1].isdigit())))

    def _others(self, wanted: _Value, places: list[Span]) -> Iterator[tuple[Span, str, frozenset[object]]]:
        """The dates, amounts or ids of the value's kind that the reply gives beside it."""
        if wanted.kind == "date":
            for one in self._spelled:
                if one.kind == "date" and not (one.means & wanted.means or _is(one, wanted)):
                    yield (one.start, one.end), self.text[one.start : one.end], one.means
                if one.kind == "time" and wanted.time is not None and wanted.time not in one.means:
                    yield (one.start, one.end), self.text[one.start : one.end], one.means
        elif wanted.kind == "time":
            for one in self._spelled:
                if one.kind == "time" and not one.means & wanted.means:
                    yield (one.start, one.end), self.text[one.start : one.end], one.means
        elif wanted.kind == "number":
            numbers = [one for one in self._spelled if one.kind == "number"]
            spans = set(places)
            stated = [one for one in numbers if (one.start, one.end) in spans]
            units = {one.unit for one in stated}
            words = frozenset().union(*(one.words for one in stated)) - _FILLERS
            shapes = {self._digits(one) for one in stated}
            tied = self._tied(numbers, spans)
            for one in numbers:
                if one.unit is not None or None not in units:
                    alike = one.unit in units
                else:
                    own = one.words - _FILLERS
                    alike = bool(own & words) or ((not own or not words) and self._digits(one) in shapes)
                counted = None not in units and self._counts_things(one, words)
                if not _is(one, wanted) and (alike or ((one.start, one.end) in tied and not counted)):
                    yield (one.start, one.end), self.text[one.start : one.end], one.means
        elif wanted.kind == "id":
            shape, starts = _shape(wanted.text), [start for start, _ in places]
            dates = {(one.start, one.end) for one in self._spelled if one.kind != "number"}
            for found in _ID.finditer(self.text):
                at = bisect_right(starts, found.start()) - 1
                inside = at >= 0 and found.start() < places[at][1]
                alike = _shape(found.group()) == shape or self._is_listed_id(found.span(), shape, places)
                if not inside and alike and found.span() not in dates:
                    yield found.span(), found.group(), frozenset()

    def _is_listed_id(self, one: Span, shape: str, places: list[Span]) -> bool:
        """Whether it is an id of the same letters that is listed with one of the places: "B1, B2, B12"."""
        own = _shape(self.text[one[0] : one[1]])
        if not own or own.rstrip("9") != shape.rstrip("9") or not own.rstrip("9"):
            return False
        at = bisect_right(places, one)
        near = places[max(0, at - 1) : at + 1]
        gaps = [self.text[min(one[1], place[1]) : max(one[0], place[0])][:_MOST_LISTED] for place in near]
        return any(gap.strip() and _LISTED.fullmatch(gap) for gap in gaps)

    def _counts_things(self, one: Spelled, words: frozenset[str]) -> bool:
        """Whether a number is one of other things, said beside an amount: "30 EUR and 2 items"."""
        others = one.words - words - _FILLERS - CODE_WORDS
        return (
            one.unit is None
            and bool(others)
            and _BESIDE.search(self.text, max(0, one.start - 8), one.start) is not None
        )

    def _digits(self, one: Spelled) -> str:
        return _DIGIT.sub("9", self.text[one.start : one.end])

    def _tied(self, numbers: list[Spelled], stated: set[Span]) -> set[Span]:
        """The numbers of enumerations in which the value is one: "30, 40 or 50 EUR"."""
        tied: set[Span] = set()
        chain: list[Span] = []
        for before, one in zip([None, *numbers], numbers, strict=False):
            if before is not None and not _LISTED.fullmatch(self._between(before, one)):
                tied.update(chain if not stated.isdisjoint(chain) else ())
                chain = []
            chain.append((one.start, one.end))
        return tied | set(chain if not stated.isdisjoint(chain) else ())

    def _between(self, left: Spelled, right: Spelled) -> str:
        gap = self.text[left.end : right.start] if right.start - left.end <= 40 else "?"
        gap = re.sub(r"^\s?(?:[€$£%]|eur|usd|gbp|chf|euros?|dollars?)(?![^\W_])", "", gap)
        return re.sub(r"(?:[€$£]|(?<![^\W_])(?:eur|usd|gbp|chf))\s?$", "", gap)

    def _hedges(self, other: tuple[Span, str, frozenset[object]], known: Known, others: list[_Value]) -> bool:
        place, text, means = other
        if self._negation.denies(*place):
            return False
        if any(means & one.means or (one.kind == "id" and _compact(one.text) == _compact(text)) for one in others):
            return False
        return not known.has(text, means)


def _is(one: Spelled, wanted: _Value) -> bool:
    """Whether what is spelled is the value, and can be nothing else."""
    if one.kind != wanted.kind:
        return False
    if wanted.kind == "number":
        units = {one.unit, wanted.unit} - {None}
        if len(units - {"%"}) > 1 or (wanted.unit is not None and (len(units) > 1 or one.words & _OTHER_UNITS)):
            return False
        return bool(one.means & wanted.means)
    if wanted.kind == "time":
        return one.means == wanted.means
    return all(_same_day(mean, own) for mean in one.means for own in wanted.means)


def _same_day(one: object, other: object) -> bool:
    """Whether two dates agree, where one may lack its year."""
    if not isinstance(one, tuple) or not isinstance(other, tuple) or one[1:] != other[1:]:
        return False
    return one[0] is None or other[0] is None or bool(one[0] == other[0])


def _words(text: str) -> list[str]:
    """The words of a text; codes of states ("out_for_delivery") are words too."""
    return re.split(r"[\s_-]+", text.strip(" _-")) if re.search(r"[^\W_]", text) else text.split()


def _compact(text: str) -> str:
    return "".join(char for char in fold(text) if char.isalnum())


def _shape(text: str) -> str:
    shape = "".join("9" if char.isdigit() else "a" for char in _compact(text))
    return shape if "9" in shape else ""


def _gaps(found: list[Spelled], length: int) -> Iterator[Span]:
    at = 0
    for one in found:
        yield at, one.start
        at = one.end
    yield at, length


__all__ = ["Known", "ReplyText"]
