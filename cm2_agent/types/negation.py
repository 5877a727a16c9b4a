"""What a text denies, asks or supposes: its sentences, and the words that take back what stands beside them."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from functools import cache, cached_property
from typing import Any

from cm2_agent.types.retractions import may_retract, retracted
from cm2_agent.types.spellings import MONTHS

_SHORT_MONTH = re.compile(rf"(?<!\w)(?:{'|'.join(name for name in MONTHS if len(name) <= 4)})$", re.IGNORECASE)
_MONTH_AFTER = re.compile(rf"\s+(?:{'|'.join(MONTHS)})(?!\w)", re.IGNORECASE)
_ABBREVIATION = re.compile(
    r"(?:^|[^\w])(?:e\.g|i\.e|etc|approx|no|nr|nos|vs|cf|mr|mrs|ms|dr|st|z\.b|d\.h|ca|bzw|usw|vgl|p\.ex|art|est|incl|excl|\w)$",
    re.IGNORECASE,
)
_NUMBER_SIGN = re.compile(r"(?<!\w)n(?:o|r|os)$", re.IGNORECASE)
_NUMBER = re.compile(r"\s*[#\d]|\s+[A-Z]{1,3}-?\d")
"""Behind "No.": it is a number's, and no answer."""
_END = re.compile(r"[.!?…]+[\"'”’»)\]*_]*(?=\s|$)|[。！？]+[」』”]*|\n[ \t]*\n\s*|\n")
_LIST = re.compile(r"[ \t]*(?:[-*•–]|\d{1,3}[.)])[ \t]")
_APOSTROPHE = "['’ʼ`´]"

_DENYING = rf"""
      (?:\w+n{_APOSTROPHE}t|(?:do|ca|wo|is|are|did|does|has|have|was|were|could|would|should)nt)
    | (?:not|cannot|never|none|nobody|nothing|nowhere|neither|nor|unable|impossible|hardly|scarcely|barely|unlikely
        |doubt|doubts|doubtful|false|untrue|incorrect|incorrectly|wrong|wrongly|mistaken|unknown|unclear|uncertain
        |unconfirmed|unavailable|lack|lacks|lacked|lacking|deny|denies|denied|refuse|refuses|refused|without|no)
    | (?:fail|fails|failed|failing)\s+to | instead\s+of | rather\s+than | far\s+from | anything\s+but
    | (?:nicht|nichts|kein\w{{0,2}}|nie|niemals|niemand|ohne|weder|unmöglich|kaum|falsch)
    | n(?:e\s+|{_APOSTROPHE})\w+\s+(?:\w+\s+)?(?:plus|guère|point)
    | (?:pas|jamais|aucune?|rien|sans|non)
    | (?:nunca|jamás|ning[uú]n[oa]?|nada|sin|tampoco|imposible|nessun[oa]?|senza|niente|não|nenhuma?|sem|nem|impossível)
    | (?:niet|geen|nooit|zonder|inte|ingen|inga|aldrig|ikke|aldri|nie|değil|yok)
    | (?:не|нет|ни|никогда|без|нельзя|невозможно|неверно)
    | (?:لا|ليس|لم|لن|لیس|לא|אין|नहीं)
    """
_DENYING_SIGNS = "不|没|沒|未|无|無|ない|ません|なかった|않|없|못|아니"
_CUE = re.compile(rf"(?<!\w)(?:{_DENYING})(?!\w|-\w) | {_DENYING_SIGNS}", re.IGNORECASE | re.VERBOSE)
"""Words that take back what stands beside them, in the languages that support desks write most."""


@cache
def _may_deny() -> Any:
    """A pattern of RE2 that finds something in every text in which `_CUE` does, and seldom in others: most texts deny
    nothing, and it says so many times faster than `re`."""
    import re2

    words = "".join(_DENYING.split()).replace(r"\s", r"[\s\pZ\x1c-\x1f\x{85}]").replace(r"\w", r"\S")
    return re2.compile(rf"(?i)(?:^|[^A-Za-z0-9_])(?:{words})(?:[^A-Za-z0-9_]|$)|{_DENYING_SIGNS}")


_HARMLESS = re.compile(
    rf"""(?<!\w)(?:
      (?:no|kein|pas\s+de|sin|sem|geen)\s+(?:problem\w*|worr\w+|problème|soucis?|problemas?|probleem)
    | keine\s+sorge | ohne\s+gewähr | no\s+(?:doubt|later\s+than|need|rush|wonder)
    | (?:no|without|at\s+no)\s+(?:any\s+)?(?:extra|additional|further)?\s*
        (?:costs?|charges?|fees?|delays?|issues?|problems?|action|fail)
    | not\s+(?:only|just|later\s+than) | nicht\s+nur | nothing\s+to\s+worry
    | (?:do\s+not|don{_APOSTROPHE}?t|please\s+don{_APOSTROPHE}t)\s+(?:worry|hesitate|forget|panic)
    | can(?:not|{_APOSTROPHE}t)\s+wait
    | (?:no|nr|nos)\.?\s*(?=\#?\d)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""Turns of phrase that hold such a word and take nothing back."""
_ANSWER = re.compile(r"(?:no|nope|nein|non|não|nee|нет)\s*[,!.:–—]", re.IGNORECASE)
"""A no that answers what the other asked: what follows is said."""
_STRONG = re.compile(
    r";|[ \t][-–—]{1,2}[ \t]|—|(?<!\w)(?:but|however|although|though|whereas"
    r"|sondern|aber|jedoch|mais|pero|sino|però|maar|но|а)(?!\w)|但|而是",
    re.IGNORECASE,
)
_SUBJECT = r"(?:it|they|he|she|we|i|you|your|our|the|this|these|so|order|es|sie|er|ihr|die|der|das|il|elle|el|la|su)"
_WEAK = re.compile(
    rf"[,，、]\s*(?:and\s+|so\s+|und\s+)?(?={_SUBJECT}(?!\w))"
    rf"|(?<!\w)(?:and|und|et|y|e|en)\s+(?=(?:{_SUBJECT}|will|is|was|has|should|arrives?|ships?|costs?"
    rf"|kommt|kostet|trifft|wird|wurde|ist|hat|erreicht|beträgt)(?!\w))"
    r"|[,，、]\s*(?=(?:arriv(?:es|ing|al)|expected|due|scheduled|estimated|eta|ankunft|lieferung|total|price)(?!\w))",
    re.IGNORECASE,
)
_COLON = re.compile(r":\s+(?=(?:it|they|he|she|you|your|es|sie|er|ihre?)(?!\w))", re.IGNORECASE)
_FALSE = re.compile(
    r"(?<!\w)(?:false|untrue|incorrect|wrong|mistaken|falsch|so|case|following|possible|impossible|unmöglich)(?!\w)",
    re.IGNORECASE,
)
"""Before a colon: what it introduces is what was denied."""
_UNSURE = re.compile(
    r"confirm|guarant|promis|certain|sure|true|correct|right|valid|possibl|final|official|really|quite|exact|fix|bestätig"
    r"|garant|sicher|richtig|möglich|verbindlich|gültig",
    re.IGNORECASE,
)
"""In brackets behind a value, such a word makes the negation there the value's."""
_INSTEAD = re.compile(r"(?:instead\s+of|rather\s+than)", re.IGNORECASE)
_BRACKET = 80
"""Characters within which the other bracket is looked for."""
_DOUBTED = re.compile(
    r"(?<!\w)(?:confirm|tell|say|know|sure|certain|verify|guarantee|promise|believe|think|true|correct|idea|evidence"
    r"|record|claim|state|assume|agree|mean|suggest|that|bestätigen|sagen|wissen|sicher|dass|confirmer|dire|que|confirmar"
    r"|decir|saber|che|dat)(?!\w)",
    re.IGNORECASE,
)
"""After one of these a negation reaches over commas: "I cannot confirm that, as you say, …"."""
_BREAK = re.compile(
    r"[,;，、；]|[ \t][-–—]{1,2}[ \t]|—|(?<!\w)(?:and|but|or|so|because|since|although|though|while|whereas|if|unless"
    r"|when|und|aber|weil|wenn|falls|et|mais|y|pero|e|ma|mas|en|maar)(?!\w)",
    re.IGNORECASE,
)
_UNTIL = re.compile(r"(?<!\w)(?:until|till|bis|jusqu\w*|hasta|fino|até|tot)\s+(?:\w+\s+){0,2}$", re.IGNORECASE)
_SUPPOSED = re.compile(
    r"(?<!\w)(?:if|unless|whether|such\s+as|e\.g\.?|for\s+(?:example|instance)|as\s+if|assuming|suppos(?:e|ing)|imagine"
    r"|falls|wenn|ob|zum\s+beispiel|z\.\s?b\.|par\s+exemple|por\s+ejemplo)(?!\w)",
    re.IGNORECASE,
)
_QUESTION = re.compile(
    r"\W*(?:is|are|was|were|do|does|did|has|have|had|can|could|will|would|shall|should|may|might|when|what|which|where|who"
    r"|whose|why|how|wann|was|welche\w?|wo|wer|wie|ist|sind|hat|kann|soll|quand|quel\w*|est-ce|cuándo|qué|cuál|quando|qual\w*"
    r"|che)(?!\w)",
    re.IGNORECASE,
)
_ASKS = re.compile(r"[?？؟][\"'”’»)\]*_]*\s*$")
_COMMA = re.compile(r"[,，;；]|[ \t][-–—]{1,2}[ \t]|—")


class Negation:
    """What a text denies, asks and supposes. The text is read once; a question takes the logarithm of its length.

    A negation reaches over its clause: forward to a "but", a semicolon or a new main clause (to the sentence's end
    after words such as "confirm that"), and back to the clause's beginning. The items of a list are denied by a line
    above them that ends in a colon, and a sentence by one behind it that takes it back (`retractions`).

    >>> text = "It has not left yet, but it arrives on 2026-05-20."
    >>> Negation(text).denies(text.find("2026"), text.find("2026") + 10)
    False
    >>> Negation("I cannot confirm 2026-05-20.").denies(17, 27)
    True
    """

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def sentences(self) -> list[tuple[int, int]]:
        """Where each sentence begins and ends, in characters."""
        return _sentences(self.text)

    @cached_property
    def _starts(self) -> list[int]:
        return [start for start, _ in self.sentences]

    def sentence(self, at: int) -> tuple[int, int]:
        """The sentence in which a character stands."""
        return self.sentences[self._place(at)]

    def clause(self, start: int) -> int:
        """Where the clause begins in which something stands: at a "but", a semicolon, a colon or a new main clause."""
        begins = self.sentence(start)[0]
        for breaks in (self._strong, self._weak, self._colons):
            at = bisect_right(breaks, start)
            begins = max(begins, breaks[at - 1]) if at else begins
        return begins

    def denies(self, start: int, end: int, *, behind: bool = True) -> bool:
        """Whether the text denies what stands from `start` to `end`. A negation within that is its own matter. Without
        `behind`, what follows in the clause denies something else: "order W-712 has not left"."""
        if self.denies_nothing:
            return False
        back = bisect_right(self._retracted, start, key=lambda span: span[0]) - 1
        if back >= 0 and start < self._retracted[back][1]:
            return True
        place = self._place(start)
        first, last = self.sentences[place]
        cues = self._cues
        at = bisect_right(cues.ends, start) - 1
        if at >= 0 and cues.starts[at] >= first and cues.reach[at] > start:
            return not _UNTIL.search(self.text, max(first, start - 40), start)
        after = bisect_left(cues.starts, end) if behind else len(cues.starts)
        while after < len(cues.starts) and _INSTEAD.match(self.text, cues.starts[after]):  # it denies what follows
            after += 1
        if after < len(cues.starts) and cues.starts[after] < last and not self._aside(cues, after, end):
            stop = _BREAK.search(self.text, end, last)
            if stop is None or cues.starts[after] < stop.start():
                return True
        above = self._above[place]
        return above is not None and self._denies_below(above)

    def _aside(self, cues: _Cues, at: int, end: int) -> bool:
        """Whether a negation behind what ends at `end` stands in brackets of its own: "May 20 (no signature needed)",
        unlike "May 20 (not confirmed)"."""
        start, stop = cues.starts[at], cues.ends[at]
        opened = self.text.rfind("(", max(end, start - _BRACKET), start)
        return opened >= 0 and self._closed(opened, start, stop) is not None

    def _closed(self, opened: int, start: int, stop: int) -> int | None:
        """Where the brackets end that were opened before the negation from `start` to `stop`, and hold something that
        it may deny."""
        if ")" in self.text[opened:start]:
            return None
        closed = self.text.find(")", stop, stop + _BRACKET)
        if closed < 0 or _UNSURE.search(self.text, opened, closed):
            return None
        return closed if any(map(str.isalnum, self.text[stop:closed])) else None

    def asks(self, start: int, end: int) -> bool:
        """Whether what stands there is part of a question: its whole sentence where that begins as one, else what comes
        behind its last comma."""
        first, last = self.sentence(start)
        if not _ASKS.search(self.text, max(first, last - 12), last):
            return False
        return _QUESTION.match(self.text, first, last) is not None or _COMMA.search(self.text, end, last) is None

    def supposes(self, start: int) -> bool:
        """Whether a condition or an example is what stands from `start`: "if it came on …", "a date such as …"."""
        first, _ = self.sentence(start)
        at = bisect_right(self._supposed.ends, start) - 1
        return at >= 0 and self._supposed.starts[at] >= first and self._supposed.reach[at] > start

    @cached_property
    def denies_nothing(self) -> bool:
        """Whether no word of the text could deny anything. It is found without reading its sentences."""
        try:
            return _may_deny().search(self.text) is None and not may_retract(self.text)
        except UnicodeEncodeError:  # a lone surrogate, which RE2 cannot read
            return False

    @cached_property
    def _cues(self) -> _Cues:
        harmless = [found.span() for found in _HARMLESS.finditer(self.text)]
        harmless += [
            found.span() for start in self._starts if (found := _ANSWER.match(self.text, _lead(self.text, start)))
        ]
        harmless.sort()
        begins = [start for start, _ in harmless]

        def counts(start: int, end: int) -> bool:
            at = bisect_right(begins, start) - 1
            return at < 0 or harmless[at][1] < end

        return self._reaching([one.span() for one in _CUE.finditer(self.text) if counts(*one.span())])

    @cached_property
    def _retracted(self) -> list[tuple[int, int]]:
        return retracted(self.text, self.sentences)

    @cached_property
    def _supposed(self) -> _Cues:
        return self._reaching([one.span() for one in _SUPPOSED.finditer(self.text)], denying=False)

    def _reaching(self, spans: list[tuple[int, int]], *, denying: bool = True) -> _Cues:
        """The cues with how far each of them, or one before it in its sentence, reaches."""
        reach: list[int] = []
        before = -1
        for start, end in spans:
            place = self._place(start)
            last = self.sentences[place][1]
            strong = _first(self._strong, end, last)
            weak = _first(self._weak, end, strong)
            doubted = _first(self._doubted, start, last) if denying else last
            own = weak if doubted >= weak else strong
            colon = _first(self._colons, end, own)
            if colon < min(own, doubted) and _FALSE.search(self.text, start, colon) is None:
                own = colon
            opened = self.text.rfind("(", max(self.sentences[place][0], start - _BRACKET), start)
            closed = None if opened < 0 else self._closed(opened, start, end)
            own = own if closed is None else min(own, closed)
            reach.append(max(own, reach[-1]) if place == before else own)
            before = place
        return _Cues([start for start, _ in spans], [end for _, end in spans], reach)

    @cached_property
    def _strong(self) -> list[int]:
        return [found.start() for found in _STRONG.finditer(self.text)]

    @cached_property
    def _weak(self) -> list[int]:
        return [found.start() for found in _WEAK.finditer(self.text)]

    @cached_property
    def _colons(self) -> list[int]:
        return [found.start() for found in _COLON.finditer(self.text)]

    @cached_property
    def _doubted(self) -> list[int]:
        return [found.start() for found in _DOUBTED.finditer(self.text)]

    @cached_property
    def _above(self) -> list[int | None]:
        """For each sentence the one that introduces the list it stands in."""
        above: list[int | None] = []
        for place, (start, _) in enumerate(self.sentences):
            listed = _LIST.match(self.text, start) is not None
            if not listed or not place:
                above.append(None)
            elif above[-1] is not None:
                above.append(above[-1])
            else:
                first, last = self.sentences[place - 1]
                above.append(place - 1 if self.text[first:last].rstrip().rstrip("*_").endswith(":") else None)
        return above

    def _denies_below(self, place: int) -> bool:
        first, last = self.sentences[place]
        at = bisect_left(self._cues.starts, last) - 1
        return at >= 0 and self._cues.starts[at] >= first and self._cues.reach[at] >= last

    def _place(self, at: int) -> int:
        return max(0, bisect_right(self._starts, at) - 1)


class _Cues:
    """Words of one kind in the order of the text: where each begins, ends, and how far it or an earlier one of its
    sentence reaches."""

    def __init__(self, starts: list[int], ends: list[int], reach: list[int]) -> None:
        self.starts, self.ends, self.reach = starts, ends, reach


def _first(places: list[int], start: int, default: int) -> int:
    """The first of the places from `start` on, the default where none comes before it."""
    at = bisect_left(places, start)
    return min(places[at], default) if at < len(places) else default


def _sentences(text: str) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    start = 0
    for end in _END.finditer(text):
        if end.start() < start or not _ends(text, start, end):
            continue
        found.append((start, end.end()))
        start = end.end()
    if start < len(text) or not found:
        found.append((start, len(text)))
    return found


def _ends(text: str, start: int, end: re.Match[str]) -> bool:
    mark = end.group()
    if mark == "\n":  # a line that goes on is no end, a list's item is
        return (
            text[start : end.start()].rstrip().endswith(":")
            or _LIST.match(text, end.end()) is not None
            or (_LIST.match(text, _lead(text, start)) is not None)
        )
    if not mark.startswith(".") or mark.startswith(".."):
        return True
    before = text[max(start, end.start() - 12) : end.start()]
    if _ABBREVIATION.search(before) and not before.rstrip().casefold().endswith((" i", "\ni")):
        return _NUMBER_SIGN.search(before) is not None and _NUMBER.match(text, end.end()) is None
    if _SHORT_MONTH.search(before) and re.match(r"\s+\d", text[end.end() : end.end() + 4]):  # "Jul. 12"
        return False
    if re.search(r"(?:^|\D)\d{1,2}$", before):  # "20. Mai 2026", "1. First"
        return _MONTH_AFTER.match(text, end.end()) is None and bool(
            text[start : end.start()].strip().strip("0123456789")
        )
    return True


def _lead(text: str, start: int) -> int:
    """Where the words begin behind white space."""
    while start < len(text) and text[start].isspace():
        start += 1
    return start


__all__ = ["Negation"]
