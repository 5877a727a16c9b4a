"""Retractions: what takes back the sentence before it, or announces that what follows is not so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

_ENDS = (
    r"(?=\s*(?:[.,;:!)\]…。！]|$|[-–—]"
    r"|(?:but|though|however|yet|and|at\s+all|anymore|either|sorry|i\s+(?:am|['’]m)\s+afraid)(?!\w)))"
)
_IT = (
    r"(?:that(?:\s+(?:date|time|amount|number|answer|statement|information))?|this|it|which|these|those|the\s+above"
    r"|the\s+(?:previous|last)\s+(?:sentence|statement|message|answer)|(?:all|everything|most"
    r"|none)\s+(?:of\s+)?(?:the\s+above|that|this)"
    r"|(?:what|everything|all)\s+(?:that\s+)?(?:i\s+(?:just\s+|have\s+|['’]ve\s+)*(?:said|wrote|written"
    r"|told\s+you)|above))"
)
_IS = r"(?:['’]s|\s+(?:is|was|are|were|may\s+be|might\s+be|could\s+be|must\s+be))"
_NOT = r"(?:n['’]?t|\s+not|\s+never)"
_SURE = (
    r"(?:true|correct|right|accurate|the\s+case|certain|confirmed|so|reliable|final|official|valid|real|sure"
    r"|your\s+\w+)"
)
_WRONG = (
    r"(?:wrong|false|untrue|incorrect|inaccurate|mistaken|outdated|unconfirmed|uncertain|fictional|fake|nonsense"
    r"|invented|made[\s-]up|guesswork|(?:a|an|my|our)\s+(?:mistake|error|typo|lie|joke|guess|fabrication|placeholder)"
    r"|not|(?:for\s+)?another\s+\w+|a\s+different\s+\w+|the\s+wrong\s+\w+|someone\s+else['’]s\s+\w+)"
)
_LITTLE = (
    r"(?:\s+(?:actually|really|quite|just|only|necessarily|yet|all|totally|completely|simply|entirely|probably"
    r"|sadly))*"
)
_SAYS_SO = r"(?:confirm|verify|say|tell|be\s+sure(?:\s+of)?|vouch\s+for)"
_SAID = rf"""
      (?:oh|no|nope|sorry|wait|well|actually|hmm+|oops|apologies|unfortunately|in\s+fact|my\s+mistake
      |correction|but|and
        |however|although|[\s,.:!…–—-]{{1,20}}+){{0,24}}
    (?:
      {_IT}(?:{_IS}{_NOT}|{_IS}{_LITTLE}{_NOT}|\s+(?:isn|wasn|aren|weren)['’]?t){_LITTLE}\s+{_SURE}{_ENDS}
    | {_IT}{_IS}{_LITTLE}\s+{_WRONG}{_ENDS}
    | none\s+of\s+(?:that|this|it)\s+(?:is|was)\s+(?:true|correct|right|real|so)(?!\w)
    | (?:no|nope|not\s+(?:really|quite|true|correct|right|so)|wrong|false|incorrect|actually,?\s+no
      |(?:i\s+(?:am|was)\s+|i['’]m\s+)?(?:just\s+|only\s+)?(?:kidding|joking|guessing)|(?:scratch
      |strike)\s+(?:that|this)
      |never\s*mind(?:\s+that)?|(?:please\s+)?(?:forget|ignore|disregard)\s+(?:that|this|it
      |(?:all\s+)?(?:of\s+)?(?:that|this)
      |the\s+above|everything\s+above|what\s+i\s+(?:just\s+)?said|my\s+last\s+\w+)|my\s+mistake|i\s+(?:take
      |took)\s+(?:that|it)\s+back
      |i\s+(?:just\s+)?(?:lied|guessed|misread(?:\s+(?:that|it))?|misspoke)|i\s+was\s+(?:wrong|mistaken|lying)
      |i\s+(?:do\s+not|don['’]?t)\s+(?:actually\s+|really\s+)?know)(?=\s*(?:[.!…]|$))
    | i\s+(?:just\s+|only\s+)?(?:made\s+(?:that|this|it|all\s+(?:of\s+)?(?:that|this))\s+up|invented\s+(?:that
      |this|it))(?!\w)
    | (?:i\s+am|i['’]m)\s+not\s+(?:sure|certain)(?:\s+(?:about|of)\s+(?:that|this|it))?(?=\s*(?:[.!…]|$|though
      |however))
    | i\s+(?:can(?:not|['’]?t)|could\s?n['’]?t|could\s+not)\s+(?:actually\s+)?{_SAYS_SO}\s+(?:that|this
      |it)(?=\s*(?:[.!…]|$|though|however))
    | (?:please\s+)?(?:do\s+not|don['’]?t|never)\s+(?:rely\s+on|trust|believe|count\s+on
      |quote\s+me\s+on)\s+(?:that|this|it|the\s+above
      |me\s+on\s+(?:that|this))(?!\w)
    | (?:das|dies|es)\s+(?:ist|war|stimmt)\s+(?:(?:aber|leider|jedoch|so|gar)\s+)*(?:nicht(?:\s+(?:richtig|wahr
      |korrekt|der\s+fall|sicher|bestätigt))?
      |falsch|unwahr|gelogen|erfunden|geraten|ein\s+(?:irrtum|fehler|scherz|witz)|eine\s+lüge){_ENDS}
    | (?:nein|doch\s+nicht|stimmt\s+nicht|falsch|vergessen\s+sie\s+das)(?=\s*(?:[.!…]|$))
    | (?:ce|cela|ça|c['’])\s*(?:n['’]est\s+pas\s+(?:vrai|exact|correct|juste|le\s+cas|sûr)|est\s+(?:faux
      |inexact|une\s+erreur)){_ENDS}
    | (?:eso|esto)\s+(?:no\s+es\s+(?:cierto|correcto|verdad|así|seguro)|es\s+(?:falso|mentira|un\s+error
      |incorrecto)){_ENDS}
    | (?:questo|ciò|quello)?\s*(?:non\s+è\s+(?:vero|corretto|esatto|così)|è\s+(?:falso|sbagliato|un\s+errore)){_ENDS}
    | (?:isso|isto)\s+(?:não\s+é\s+(?:verdade|correto|certo)|é\s+(?:falso|mentira|um\s+erro|incorreto)){_ENDS}
    | dat\s+(?:is\s+(?:niet\s+(?:waar|juist|correct|zeker)|onjuist|onwaar|fout|een\s+fout)|klopt\s+niet){_ENDS}
    | это\s+(?:не\s+так|неверно|неправда|ложь|ошибка){_ENDS}
    | (?:这|那)?(?:不对|是错的|不是真的|并非如此)
    | (?:それは)?(?:間違い|誤り
      |嘘|違い)(?:です|ます)
    )
"""
_TAKES_BACK = re.compile(_SAID, re.IGNORECASE | re.VERBOSE)
_CLAUSE = re.compile(
    r"[,;:]\s+|\s[-–—]{1,2}\s|—|\(|(?<!\w)(?:but|and|although|though|except|aber|mais|pero)\s+", re.IGNORECASE
)
"""Where a clause begins in a sentence that may take back the one before it."""
_BELOW = (
    r"(?:the\s+following|what\s+follows|the\s+next\s+\w+|(?:everything|all|anything)\s+(?:below"
    r"|that\s+follows|i\s+say\s+next))"
)
_AHEAD = re.compile(
    rf"{_BELOW}(?:\s+\w+)?(?:\s+(?:is|are|was)(?:n['’]?t|\s+not)\s+(?:true|correct|right|real|so)|\s+(?:is|are"
    rf"|was)\s+(?:all\s+|just\s+|only\s+)?"
    rf"(?:wrong|false|untrue|incorrect|invented|made[\s-]up|fiction\w*|fake|(?:a|an)\s+(?:lie|joke|guess"
    rf"|example|mistake)))(?!\w)"
    rf"|(?:ignore|disregard|do\s+not\s+believe|don['’]?t\s+believe)\s+{_BELOW}",
    re.IGNORECASE,
)
_STRUCK = re.compile(
    r"""~~(?=\S).{1,2000}?(?<=\S)~~ | <(?P<tag>del|s|strike)>.{0,2000}?</(?P=tag)> | <!--.{0,2000}?-->
    | <(?P<of>[a-z]{1,9})\s[^<>]{0,200}?(?:\bhidden\b|display\s*:\s*none)[^<>]{0,200}>.{0,2000}?</(?P=of)>
    | ^[ \t]*\[[^\]\n]{1,20}\]:\ (?:\#|<>)\ [^\n]{0,2000} | ^[ \t]*(?:[-*][ \t]+)?[❌✗✘🚫⛔][^\n✅✔]{0,2000}""",
    re.IGNORECASE | re.DOTALL | re.MULTILINE | re.VERBOSE,
)
"""Struck out, or not shown."""
_PLEASANTRY = re.compile(
    r"\W*(?:please|thank|thanks|have\s+a|enjoy|sorry|i\s+hope|we\s+hope|is\s+there|let\s+me\s+know|great|bitte"
    r"|danke)(?!\w)",
    re.IGNORECASE,
)
_FEW = 4
_LIKELY = (
    "kidding|joking|guess|made|scratch|strike|mind|forget|ignore|disregard|invented|lied|misread|misspoke"
    "|mistake|error|typo"
    "|lie|joke|fake|fiction|nonsense|outdated|another|different|someone|inaccurate|back|placeholder|vergessen"
    "|erfunden|geraten"
    "|irrtum|fehler|scherz|witz|lüge|faux|inexact|erreur|falso|mentira|incorrecto|sbagliato|errore|erro|onjuist"
    "|onwaar|fout"
    "|falsch|unwahr|gelogen|incorrect|example|uncertain|fabrication"
)


@cache
def _may() -> Any:
    """A pattern of RE2 that finds something in every text that could take something back without a negation."""
    import re2

    marks = r"~~|<(?:del|s|strike|!--)|hidden|display|\]: (?:#|<>)|[❌✗✘🚫⛔]"
    return re2.compile(rf"(?i)(?:^|[^A-Za-z])(?:{_LIKELY})|{marks}|неверно|неправда|ложь|ошибка|错|間違|誤|嘘|違")


def may_retract(text: str) -> bool:
    """Whether any word of the text could take something back without denying it. It is found at a glance."""
    return _may().search(text) is not None


def retracted(text: str, sentences: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of a text is taken back: the sentence before "That's not correct.", what stands before such a clause, and
    all that follows "The following is false". In between there may be pleasantries.

    >>> text = "It arrives on May 20. Please be at home. That's not correct."
    >>> [text[start:end] for start, end in retracted(text, [(0, 22), (22, 41), (41, 60)])]
    ['It arrives on May 20. Please be at home. ']
    """
    found = [one.span() for one in _STRUCK.finditer(text)]
    said = 0  # where the last sentence began that says anything
    for place, (start, end) in enumerate(sentences):
        lead = start
        while lead < end and not text[lead].isalnum():
            lead += 1
        if place and _TAKES_BACK.match(text, lead, end):
            found.append((said, start))
        elif not _is_filler(text[start:end]):
            said = start
        for clause in _CLAUSE.finditer(text, lead, end):
            if _TAKES_BACK.match(text, clause.end(), end):
                found.append((start, clause.start()))
        ahead = _AHEAD.search(text, start, end)
        if ahead is not None:
            found.append((ahead.end(), len(text)))
    return _merged(found)


def _is_filler(sentence: str) -> bool:
    """Whether a sentence is a pleasantry, or too short to be what is taken back."""
    short = _PLEASANTRY.match(sentence) is not None or len(sentence.split(maxsplit=_FEW)) < _FEW
    return short and not any(map(str.isdigit, sentence))


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans in order, without overlaps."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


__all__ = ["may_retract", "retracted"]
