"""Who is said to say a value, and of what: the user, hearsay, a look-up to come, a condition, or the date of today."""

from __future__ import annotations

import re

from cm2_agent.types.negation import Negation

from .hedges import Kind

_AND = r"(?:(?:and|but|so|yes|ok|okay|since|because|as|well|und|aber|et|mais|y|pero)\W{1,20}+){0,12}"
_OPENS = (
    rf"^[\W_]*{_AND}(?:(?:i\s+(?:can\s+)?(?:see|know|understand|note[d]?|hear[d]?|read|remember|recall)|(?:in"
    rf"|from)\s+your\s+\w+)"
    r"\s*,?\s*(?:that\s+)?|earlier\s*,?\s*|before\s*,?\s*)?"
)
_REPORTS = (
    r"(?:said|say|says|told|wrote|write|writes|mentioned|mention|mentions|claimed|claim|claims|thought|think"
    r"|believe[d]?|stated?"
    r"|assumed?|guessed|suggested|reported|heard)"
)
_WISHES = (
    r"(?:ask(?:ed)?|want(?:ed)?|wish(?:ed)?|request(?:ed)?|hoped?|would\s+(?:like|prefer|love|want)"
    r"|['’]d\s+(?:like|prefer|love)"
    r"|preferr?(?:ed)?|expect(?:ed)?|proposed?)"
)
_OFTEN = r"(?:\s+(?:have|had|also|just|already|only|once|originally|do|did|are|were))*"
_YOU_SAID = re.compile(
    rf"""{_OPENS}(?:
      (?<!\bas\s)you{_OFTEN}\s+(?:{_REPORTS}|asking|hoping|saying|thinking|expecting)(?!\w)
    | according\s+to\s+you(?!r) | in\s+your\s+(?:opinion|view|words) | your\s+(?:message|e-?mail|request|note
      |question|claim)\s+(?:{_REPORTS}|was|is)
    | (?:some(?:one|body)?|people|others|(?:a|another|my|one)\s+(?:friend|colleague|customer|user|neighbou?r
      |bird|stranger)
      |the\s+(?:user|customer|caller)|some\s+(?:people|customers|users))(?:\s+(?:have|has|had|also
      |once))*\s+{_REPORTS}(?!\w)
    | (?:du|sie|ihr)\s+(?:(?:haben|hast|habt)\s+)?(?:sagten?|sagtest|sagen|meinten?|meintest|schrieben
      |behaupten|glauben|gesagt)(?!\w)
    | vous\s+(?:avez\s+)?(?:dit|écrit|dites|pensez|affirmez)(?!\w) | (?:usted\s+)?(?:dijo|ha\s+dicho|dijiste
      |has\s+dicho)(?!\w)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""From the clause's beginning: another than the agent says it."""
_YOU_WISH = re.compile(
    rf"""{_OPENS}(?:
      (?<!\bas\s)you{_OFTEN}(?:\s+)?{_WISHES}(?!\w)
    | (?:du|sie|ihr)\s+(?:möchten|möchtest|wollten|wolltest|wollen|willst|wünschen|hätten\s+gern)(?!\w)
    | vous\s+(?:voulez|vouliez|souhaitez|aimeriez|voudriez)(?!\w) | (?:usted\s+)?(?:quiere|quería|desea|querías
      |quieres)(?!\w)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""From the clause's beginning: the user wishes it so."""
_LOOKS_UP = re.compile(
    rf"""{_OPENS}(?:(?:please\s+)?(?:wait|hold\s+on|one\s+moment)\s+while\s+)?
    (?:let\s+me|allow\s+me\s+to|i(?:['’]ll|\s+(?:will|shall|would|am\s+going\s+to|need\s+to|have\s+to|must
      |should|am))?|we\s+(?:will|need\s+to))\s+
    (?:\w+\s+)?(?:check(?:ing)?|verify(?:ing)?|look(?:ing)?\s+(?:up|into|at|for)|find(?:ing)?\s+out
      |investigat(?:e|ing)|ask(?:ing)?|search(?:ing)?)(?!\w)
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""From the clause's beginning: it is still to be found out."""
_POSSIBLE = (
    r"(?:if|in\s+case|provided(?:\s+that)?|providing|as\s+long\s+as|assuming|unless|wenn|falls|sofern|si|se|als)"
)
_POLITE = (
    r"(?:you\s+(?:have\s+(?:(?:any|more|further|other|additional|a|some)\s+)?(?:question|concern|doubt|problem"
    r"|trouble)s?|need|want|would|['’]d|wish|prefer|like|are\s+(?:asking|wondering|interested)|mean|check|look"
    r"|go|open|may|do\s+not\s+mind"
    r"|don['’]t\s+mind|see|ask|remember|recall|(?:[a-z]+\s+){0,2}questions?)|i\s+(?:may|can|look|see|check"
    r"|understand|remember)|possible|so|that\s+helps"
    r"|it\s+helps|(?:there['’]s|there\s+is)\s+anything|not(?:\s*,)|helpful|useful|necessary|needed"
    r"|sie\s+(?:noch\s+)?(?:fragen|möchten|wollen|brauchen)"
    r"|vous\s+(?:avez|voulez|souhaitez))"
)
_IF = re.compile(
    rf"(?<!\w)(?<!\bas\s)(?<!\beven\s){_POSSIBLE}(?!\w)\s+(?!{_POLITE}(?!\w))(?P<who>\w+(?:['’]\w+)?)", re.IGNORECASE
)
_YOU = frozenset({"you", "sie", "du", "vous", "usted", "je", "u", "we", "i"})
_FACTS = re.compile(
    r"\s+(?:are|were|had|have|bought|paid|flew|own|owned|hold|held|qualif\w+|meet|met|booked|purchased|joined"
    r"|live|lived|was|is)(?!\w)",
    re.IGNORECASE,
)
"""After "if you": a fact, where a deed would make the rest an offer: "if you cancel today, you get 30 EUR"."""
_ONLY_IF = re.compile(
    rf"(?:\s+(?!(?:and|so|but|or|then|und)\b)\w+){{0,3}}\s*,?\s*(?:but\s+)?(?:only\s+(?:if|when|with|for|under)"
    rf"|if|unless|provided"
    rf"|as\s+long\s+as|on\s+condition|subject\s+to|depending\s+on|nur\s+wenn|wenn|falls"
    rf"|sofern)(?!\w)(?!\s+{_POLITE}(?!\w))",
    re.IGNORECASE,
)
"""Behind a state: it is one on a condition."""
_THE = r"(?:(?:on|the|der|den|le|el|il|\w{3,10}(?:day|tag|woch),?)\s+){0,2}[*\"'“]*"
_TODAY = re.compile(
    rf"""(?<!\w)(?:
      (?:today|heute|hoy|oggi|hoje|vandaag|idag)(?:['’]s|\s+(?:is|ist|es|è|é|er)|\s*[:=]|(?:['’]s
      |\s+the)\s+date(?:\s+is|\s*:)?)
    | (?:current|present|today['’]s|heutige[rs]?|aktuelle[rs]?)\s+(?:date|day|datum|tag)(?:\s+(?:is|ist
      |being))?\s*[:=]?
    | (?:nous\s+sommes|on\s+est|estamos(?:\s+a)?|oggi\s+è|es\s+heute\s+ist) | as\s+of | (?:dated|stand\s*:?
      |date\s+of\s+(?:this\s+)?(?:message|reply)\s*:?)
    )\s*{_THE}$""",
    re.IGNORECASE | re.VERBOSE,
)
_IT_IS = re.compile(
    rf"(?:^|[.!?,;]\s*|(?<!\w)(?:and|that|since)\s+)(?:it|es|c)(?:['’](?:s|est)|\s+(?:is"
    rf"|ist))\s+{_THE}$",
    re.IGNORECASE,
)
_NOW = re.compile(r"[*\"'”]*\s*,?\s*(?:today|heute|aujourd['’]hui|hoy|oggi|right\s+now)(?!\w)", re.IGNORECASE)
"""Before a date, and behind it: the date of today, which anybody may know."""
_RIGHT = re.compile(
    r"[^.!?\n]{0,20}?[,;–—-]?\s*(?:(?:and|which)\s+)*(?:(?:that|this|which|it)\s*)?(?:['’]s|is)\s+(?:right"
    r"|correct|true|confirmed|so|indeed)(?!\w)",
    re.IGNORECASE,
)
"""Behind what the user says: so says the agent."""
_BREAKS = re.compile(r":\s|,\s+which\s|\s[-–—]{1,2}\s|—|\(")
_LOOK_BACK = 60
_ALMOST = re.compile(
    r"(?<!\w)(?:almost|nearly|partial?ly|partly|half|practically|virtually|about\s+to\s+be|soon\s+to\s+be"
    r"|(?:may|might|could)\s+(?:\w+\s+)?be"
    r"|fast|beinahe|teilweise|presque|casi|quasi)[\s-]+$",
    re.IGNORECASE,
)
"""Before a state: it is not that one."""
_PEOPLE = (
    r"(?:passenger|customer|member|travell?er|guest|client|user|holder|buyer|subscriber|student|person"
    r"|patient|kunde|kunden|passagiere?)"
)
_ANYBODY = re.compile(
    rf"^[\W_]*(?:(?:and|but|so|also|in\s+general|generally|usually|normally)\W+)*(?:those|anyone|anybody"
    rf"|everyone|everybody|whoever|people|only"
    rf"|(?:(?:an?|any|each|every|all|most|some|many"
    rf"|other)\s+)?(?:\w+\s+){{0,2}}?(?<!your\s)(?<!the\s)(?<!our\s)(?<!as\sa\s){_PEOPLE}s?)(?!\w)",
    re.IGNORECASE,
)
"""From the clause's beginning: a rule for all, as a policy has it, and not this user's case."""
_SAYS_COMMA = re.compile(r"\s*,\s*(?!and|but|so|und|aber)")


def is_anothers(says: Negation, start: int, end: int, kind: Kind) -> bool:
    """Whether the value that stands from `start` to `end` is what the user said or wishes, what somebody is said to
    have said, what is still to be looked up, what holds on a condition, or the date of today.

    >>> text = "You said it arrives on 2026-05-20."
    >>> is_anothers(Negation(text), 23, 33, "date"), is_anothers(Negation("It is due on 2026-05-20."), 13, 23, "date")
    (True, False)
    """
    text, first = says.text, says.clause(start)
    near = max(0, start - _LOOK_BACK)
    if kind == "date" and (
        _TODAY.search(text, near, start) or (_IT_IS.search(text, near, start) and _NOW.match(text, end))
    ):
        return True
    if kind == "id":
        return False
    for found in _BREAKS.finditer(text, first, start):
        first = found.end()
    clause = text[first:start]
    begins, ends = says.sentence(start)
    said = _YOU_SAID.match(clause) or _says_then(text[begins:start])
    if said or (kind != "text" and _YOU_WISH.match(clause)):
        return _RIGHT.match(text, end) is None
    if _LOOKS_UP.match(clause):
        return True
    if kind == "text" and (
        _ALMOST.search(text, near, start) or _ONLY_IF.match(text, end, ends) or _ANYBODY.match(clause)
    ):
        return True
    for found in _BREAKS.finditer(text, begins, start):
        begins = found.end()
    for found in _IF.finditer(text, begins, start):
        offered = found["who"].casefold() in _YOU and _FACTS.match(text, found.end("who")) is None
        if kind == "text" or not offered:
            return True
    return False


def _says_then(sentence: str) -> bool:
    """Whether a sentence begins with "You said, …"."""
    said = _YOU_SAID.match(sentence)
    return said is not None and _SAYS_COMMA.match(sentence, said.end()) is not None


__all__ = ["is_anothers"]
