"""Hedges: words that make what stands beside them a guess, a bound, or a thing of the past."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from cm2_agent.types.negation import Negation

Kind: TypeAlias = Literal["date", "time", "number", "id", "text"]

_ARRIVES = (
    "be|arrive|come|ship|cost|reach|take|get|leave|land|total|amount|deliver|turn|make|still|also|then|only|well|even"
    "|already|have"
)
_GUESS = re.compile(
    rf"""(?<!\w)(?:
      maybe|perhaps|possibly|probably|likely|presumably|supposedly|allegedly|hopefully|conceivably|apparently
    | (?:it|that)(?:\s+is|['’]s)\s+(?:quite\s+|well\s+|just\s+)?(?:possible|conceivable|plausible)
    | chances\s+are|a\s+(?:\w+\s+)?chance|(?:rumou?r|word)\s+has\s+it
    | i\s+(?:think|guess|believe|suppose|assume|suspect|hope|imagine|reckon|would\s+(?:say|guess)) | my\s+guess
    | i['’]d\s+(?:say|guess)
    | (?<!\bi\s)(?<!\bwe\s)(?<!\byou\s)(?<!\d\s)(?:might|could|may)\s+(?:{_ARRIVES})
    | as\s+(?:early|soon)\s+as | at\s+(?:the\s+)?(?:very\s+)?(?:earliest|best) | earliest\s+on
    | with\s+(?:some\s+|a\s+bit\s+of\s+)?luck
    | (?:let(?:['’]s|\s+us)|(?:we|you)\s+(?:can|could|may))\s+(?:just\s+)?(?:assume|suppose|pretend|imagine|say)
    | vielleicht|womöglich|eventuell|möglicherweise|wahrscheinlich|vermutlich|hoffentlich|angeblich|frühestens
    | bestenfalls
    | könnten?|dürften? | ich\s+(?:glaube|denke|vermute|hoffe|nehme\s+an)
    | peut[- ]être|probablement|possiblement|pourrait|au\s+plus\s+tôt|j['’]espère|je\s+(?:pense|crois|suppose)
    | quizás?|tal\s+vez|acaso|probablemente|posiblemente|a\s+lo\s+mejor|podría|como\s+(?:muy\s+)?pronto|creo\s+que|ojalá
    | forse|magari|probabilmente|potrebbe|al\s+più\s+presto|credo\s+che
    | talvez|provavelmente|poderia|misschien|waarschijnlijk|mogelijk|op\s+zijn\s+vroegst
    )(?!\w)""",
    re.IGNORECASE | re.VERBOSE,
)
"""In the clause before a value: it is a guess, or no more than a bound."""
_DOUBT = re.compile(
    r"""(?<!\w)(?:
      (?:not|\w+n['’]t|never|nicht)\s+(?:\w+\s+){0,2}(?:sure|certain|confirmed|sicher)\W+(?:but|though|however|aber)
    | if\s+i(?:['’]m|\s+am)?\s+(?:not\s+mistaken|right|correct|remember|recall|see)
    )(?!\w)""",
    re.IGNORECASE | re.VERBOSE,
)
"""In the sentence before a value, whatever clauses it has."""
_GUESS_BEHIND = re.compile(
    r"""[\s,(–—-]{0,3}(?:
      (?:maybe|perhaps|possibly|probably|presumably|hopefully|i\s+(?:think|guess|believe|suppose|assume|hope)
        |vielleicht|eventuell|wahrscheinlich|glaube\s+ich|peut[- ]être|je\s+(?:pense|crois)|quizás?|tal\s+vez|creo|forse
        |credo|talvez|misschien)(?=\s*(?:[.,;:!?)\n]|$))
    | or\s+so|or\s+thereabouts|ish|at\s+first|onwards?|give\s+or\s+take|plus\s+or\s+minus
    | unless\s+(?:it|this|that|there|something|anything|things?)
    | at\s+(?:the\s+)?(?:very\s+)?(?:earliest|soonest|best)
    | (?:is|was)\s+(?:only\s+|just\s+)?(?:a\s+guess|possible|conceivable|a\s+possibility)
    | if\s+(?:all|everything|nothing)|with\s+(?:some\s+)?luck|or\s+(?:later|earlier|sooner|after|before|more|less)
    | frühestens|au\s+plus\s+tôt|como\s+(?:muy\s+)?pronto
    )(?!\w)""",
    re.IGNORECASE | re.VERBOSE,
)
_THE = r"(?:(?:on|the|at|am|dem|den|der|le|el|il|del|de|la)\s+){0,2}(?:\w{3,10}(?:day|tag),?\s+)?[$€£]?"
_ROUGH = re.compile(
    rf"(?<!\w)(?:(?:around|about|near|roughly|approximately|approx\.?|circa|ca\.?|towards|nearly|almost|etwa|ungefähr|gegen|rund"
    rf"|environ|vers|hacia|alrededor\s+de|aproximadamente|verso|ongeveer)\s+|[~≈]\s?){_THE}$",
    re.IGNORECASE,
)
_BOUND = re.compile(
    rf"(?<!\w)(?:(?:more|less|fewer|higher|lower)\s+than|at\s+(?:least|most)|up\s+to|over|under|above|below|upwards\s+of"
    rf"|(?:a\s+)?(?:minimum|maximum)\s+of|mindestens|höchstens|bis\s+zu|über|unter|au\s+(?:moins|plus)|jusqu['’]à|al\s+menos|hasta)\s+{_THE}$"
    r"|(?:[≥≤]\s?|[<>]=\s?|(?<![\w\"'/-])[<>])[$€£]?$",
    re.IGNORECASE,
)
"""Before an amount: another one is meant."""
_OPEN = re.compile(
    r"\s?[$€£]?\+(?![\w+])|(?:\s?[$€£]|\s(?:eur|usd|gbp|chf|euros?|dollars?|pounds?))?"
    r"\s+(?:and|or)\s+(?:up|above|over|upwards?|beyond)(?!\w)",
    re.IGNORECASE,
)
"""Behind an amount: it is the least."""
_SPREAD = re.compile(r"\s?(?:±|\+/-|\+-)")
"""Behind a date or amount: one within bounds is meant."""
_BEFORE = re.compile(
    rf"(?<!\w)(?<!\bor\s)(?:before|prior\s+to|ahead\s+of|vor|avant|antes\s+del?|prima\s+del?)\s+{_THE}$",
    re.IGNORECASE,
)
_MEANT = re.compile(
    r"""(?<!\w)(?:
      (?:was|were)\s+(?:\w+ly\s+)?(?:supposed|meant|going|about|to\s+have)\s+to | (?:was|were)\s+to(?=\s+\w)
    | (?:should|would|could|might|ought\s+to)\s+have\s+(?:been|come|gone|left|reached|\w+ed)
    | had\s+(?:been\s+)?(?:expected|scheduled|planned|hoped|promised|due)
    | used\s+to
    | sollte(?:n)?\s+(?:eigentlich|ursprünglich) | hätten? | devait | debía | tenía\s+que | doveva | deveria | zou
    )(?!\w)""",
    re.IGNORECASE | re.VERBOSE,
)
"""In the clause before a date: it was meant to be, and is not."""
_OLD = re.compile(
    r"""(?<!\w)(?:
      originally|initially|previously|formerly|at\s+first
    | (?:old|previous|former|original|initial|outdated|superseded|prior|earlier|first|wrong)\s+(?:\w+\s+){0,2}?
      (?:dates?|days?|times?|estimates?|eta|plans?|schedules?|appointments?|slots?|delivery|arrival|booking|value|figure)
    | ursprünglich\w*|anfangs|zunächst|(?:alte|frühere|vorherige|bisherige)[rsnm]?
    | initialement|(?:l['’])?ancienne?|auparavant
    | originalmente|inicialmente|antigu[oa]|anteriormente|inizialmente|in\s+origine
    | (?:moved|postponed|changed|rescheduled|pushed|delayed|shifted|verschoben)\s+(?:\w+\s+){0,3}?(?:from|vom)
    )(?!\w)""",
    re.IGNORECASE | re.VERBOSE,
)
"""In the clause before a date: it is one of before."""
_PLANNED = re.compile(
    r"(?<!\w)(?:was|were)\s+(?:\w+ly\s+)?(?:scheduled|expected|due|planned|estimated|promised|set|booked)(?!\w)",
    re.IGNORECASE,
)
_TURNED = re.compile(
    r"(?<!\w)(?:but|however|though|although|yet|instead|delayed|postponed|moved|changed|rescheduled|cancell?ed|no\s+longer"
    r"|is\s+now|now\s+(?:on|for|due|it)|a\s+delay)(?!\w)",
    re.IGNORECASE,
)
"""After a date that was planned: that it is another one now."""
_OUTDATED = re.compile(
    r"""\s*[(\[](?:the\s+)?(?:old|previous|former|original|originally|initial|initially|outdated|superseded|before|cancell?ed)(?!\w)
    | \s+(?:
      (?:was|is|were|are)\s+(?:only\s+|just\s+)?(?:the\s+|an?\s+|my\s+|our\s+)?
      (?:old|previous|former|original|initial|outdated|obsolete|superseded|earlier|wrong|mistake|error|guess)
    | (?:(?:has|have|had)\s+(?:now\s+)?been|was|is|got)\s+(?:since\s+)?
      (?:moved|postponed|changed|cancell?ed|replaced|superseded|pushed|delayed|rescheduled|revised|withdrawn|dropped|corrected)
    )(?!\w)""",
    re.IGNORECASE | re.VERBOSE,
)
_FROM = re.compile(rf"(?<!\w)(?:from|ab|à\s+partir\s+d[eu]|desde|dal)\s+{_THE}$", re.IGNORECASE)
_ON = re.compile(r"\s+(?:on|an|onwards?)(?=\s*(?:[.,;!)]|$))", re.IGNORECASE)
"""From a date on: that one is the first of several."""
_NOT_YET = re.compile(
    r"""(?<!\w)(?:
      (?:will|shall|should|would|could|can|must|to|it['’]ll|they['’]ll)\s+(?:(?:soon|then|now|also|only|not)\s+)?
      (?:be|have|have\s+been|get)(?:\s+\w+ly|\s+soon)?
    | (?:once|until|till|when(?:ever)?|as\s+soon\s+as|after|before|sobald|nachdem|bevor)\s+
      (?:(?:it|this|that|they|the\s+\w+|your\s+\w+|es|sie)\s+)?(?:(?:is|are|was|has|have|been|gets?)\s+){0,2}
    )\s*[*"'“]*$""",
    re.IGNORECASE | re.VERBOSE,
)
"""Before a word: it is to become so, or when it has, and is not."""
_LOOK_BACK = 60


def is_hedged(says: Negation, start: int, end: int, kind: Kind, since: int = 0) -> bool:
    """Whether the value that stands from `start` to `end` is no more than a guess, a bound or a rough figure, or is one
    of before; what stands before `since` speaks of another date.

    >>> text = "It arrives on 2026-05-20 at the earliest."
    >>> is_hedged(Negation(text), 14, 24, "date"), is_hedged(Negation("It is due on 2026-05-20."), 13, 23, "date")
    (True, False)
    """
    text = says.text
    first, last = says.clause(start), says.sentence(start)[1]
    if _GUESS.search(text, first, start) or _GUESS_BEHIND.match(text, end, last):
        return True
    if _DOUBT.search(text, says.sentence(start)[0], start):
        return True
    near = max(0, start - _LOOK_BACK)
    if kind in ("date", "time", "number") and (
        _ROUGH.search(text, near, start) or _OUTDATED.match(text, end) or _SPREAD.match(text, end)
    ):
        return True
    if kind == "number":
        return _BOUND.search(text, near, start) is not None or _OPEN.match(text, end) is not None
    if kind == "text" and " " not in text[start:end].strip():
        return _NOT_YET.search(text, near, start) is not None
    if kind not in ("date", "time"):
        return False
    first = max(first, since)
    if _BEFORE.search(text, near, start) or _MEANT.search(text, first, start) or _OLD.search(text, first, start):
        return True
    if _FROM.search(text, near, start) and _ON.match(text, end):
        return True
    if _PLANNED.search(text, first, start) is None:
        return False
    further = says.sentence(min(last, len(text) - 1))[1]
    return _TURNED.search(text, end, further) is not None


__all__ = ["Kind", "is_hedged"]
