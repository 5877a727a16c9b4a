"""Secrets in a text, known by their form or by the word before them: API keys, tokens, PEM blocks, passwords.

`mask_secrets` is for what is logged or stored about a failure: a provider's error may quote the key it was given. The
redactor's rules for secrets (`redaction/`) use the same finders. All take time linear in the text."""

from __future__ import annotations

import base64
import re
from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import Any

from cm2_agent.types.check_specs import compile_pattern
from cm2_agent.types.escapes import before
from cm2_agent.types.text import shorten

Span = tuple[int, int]

KEY_PREFIXES: tuple[str, ...] = (
    *("sk-", "sk_live_", "sk_test_", "rk_live_", "rk_test_", "pk_live_", "whsec_"),
    *("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "glrt-"),
    *("AKIA", "ASIA", "AIza", "ya29.", "dop_v1_", "nvapi-", "gsk_", "xai-", "pplx-", "tvly-", "lsv2_"),
    *("xoxa-", "xoxb-", "xoxe-", "xoxo-", "xoxp-", "xoxr-", "xoxs-", "xapp-", "SG.", "shpat_", "shpss_"),
    *("hf_", "npm_", "pypi-AgE", "dckr_pat_", "lin_api_", "figd_", "hvs."),
)
"""How API keys begin whose issuers mark them."""
_ANY_PREFIX = "|".join(map(re.escape, KEY_PREFIXES))
_TOKEN = re.compile(r"[A-Za-z0-9_\-.~+/]{16,}={0,2}")
_BEARER = re.compile(
    r"(?i:(authorization[\"'\\]{0,2}[ ]?[:=][ ]?[\"'\\]{0,2})?\bbearer)[ ]{1,3}([A-Za-z0-9_\-.~+/]{8,}={0,2})"
)
_BASIC = re.compile(r"(?i:\bbasic)[ ]{1,3}([A-Za-z0-9+/]{8,}={0,2})")
_JWT = r"eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{4,}(?:\.[A-Za-z0-9_\-]*)+"
_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{1,60}-----")
_END = re.compile(r"-----END [A-Z0-9 ]{1,60}-----")
_PEM_BODY = re.compile(r"(?:[A-Za-z0-9+/=:,.\s]|-(?!-)|\\[nr])*")
_LONGEST_PEM = 50_000
_URL = r"[A-Za-z][A-Za-z0-9+.\-]{0,30}://([^\s/?#\"'<>\\:@]{0,200}:([^\s/?#\"'<>\\]{1,400}))@"

_NAMES = (
    r"(?:password|passwd|passphrase|passcode|secret|secret[_\- ]?key|api[_\- ]?key|access[_\- ]?key(?:[_\- ]?id)?|"
    r"account[_\- ]?key|private[_\- ]?key|signing[_\- ]?key|encryption[_\- ]?key|"
    r"(?:access|auth|refresh|id|session|security|bearer|bot|csrf|xsrf)[_\- ]?token)"
)
"""The words before a secret, whatever stands before them: `DB_PASSWORD`, `x-api-key`."""
_ALONE = r"(?:pwd|pass|token)"
"""Words of other things too, such as `next_page_token`: they count where nothing stands before them."""
_SIGN = r"[\\\"'\]]{0,4}[ \t]{0,3}(=>|:=|==?|:|[ \t]is[ \t:])[ \t]{0,3}"
_BARE = r"[^\s\"'\\,;&<>(){}\[\]|`]"
_CREDENTIAL = (
    rf"(?i)(?:(?:^|[^A-Za-z0-9_.\-])({_ALONE})|{_NAMES}){_SIGN}"
    rf"(?:\\?\"([^\"\\\n]{{1,400}})|\\?'([^'\\\n]{{1,400}})|((?:[^\s\"'\\,;&<>(){{}}\[\]|`$*%]|%[0-9a-f]{{2}}){_BARE}{{0,400}}))"
)
_NO_VALUE = re.compile(
    r"(?i)(?:null|none|nil|undefined|true|false|string|str|text|bytes|required|optional|missing|invalid|empty|unknown|"
    r"redacted|hidden|masked|password|your[-_ ].*|x{3,}|\.{3}|…|[*•$%{<\[].*)"
)
_NAME = re.compile(rf"(?i)(?:(?:.*[^a-z])?{_NAMES}|{_ALONE})")


@cache
def _compiled(pattern: str) -> Any:
    return compile_pattern(pattern)


def find_keys(text: str) -> Iterator[Span]:
    """API keys with a well-known prefix, and what follows `Bearer`. Tokens are maximal runs of their characters: no way
    to go back."""
    if _compiled(_ANY_PREFIX).search(text) is not None:
        for found in _TOKEN.finditer(text):
            start, end = found.span()
            end -= len(text[start:end]) - len(text[start:end].rstrip("./"))  # the end of the sentence
            for at in _token_starts(text, start, end):
                stop = _token_end(text, at, end)
                if is_key(text[at:stop]):
                    yield at, stop
                    break
    if "earer" in text or "EARER" in text:
        for found in _BEARER.finditer(text):
            start, end = found.span(2)
            end -= len(found[2]) - len(found[2].rstrip("./"))
            if _compiled(_JWT).fullmatch(text[start:end]) is None and (
                found[1] is not None or any(char.isdigit() for char in text[start:end])
            ):
                yield start, end
    if "asic " in text or "ASIC " in text:
        yield from (found.span(1) for found in _BASIC.finditer(text) if _is_basic(found[1]))


def _is_basic(token: str) -> bool:
    """Whether a token is the credentials of HTTP's basic scheme: a user and a password in base64 (RFC 7617)."""
    try:
        return ":" in base64.b64decode(token, validate=True).decode()
    except ValueError:
        return False


def _token_starts(text: str, start: int, end: int) -> Iterator[int]:
    """Where within a run a token may begin: at its front (after an escape that ends there), and after what is part of
    no key."""
    yield start
    yield from (at for at in (start + 1, start + 5) if at < end and before(text, at) == "")
    yield from (at for at in range(start + 1, end) if text[at - 1] in "./+~")


def _token_end(text: str, start: int, end: int) -> int:
    dotted = text.startswith(("SG.", "ya29.", "hvs."), start)
    stop = start
    while stop < end and (text[stop].isalnum() or text[stop] in "_-" or (dotted and text[stop] == ".")):
        stop += 1
    return stop


def is_key(token: str) -> bool:
    """Whether the token has a well-known prefix and, after it, what a key has."""
    prefix = next((prefix for prefix in KEY_PREFIXES if token.startswith(prefix)), None)
    if prefix is None:
        return False
    rest = token[len(prefix) :]
    if prefix in ("AKIA", "ASIA"):
        return len(rest) == 16 and rest.isalnum() and rest.upper() == rest
    mixed = any(char.isdigit() for char in rest)
    return len(rest) >= 16 and (mixed or (len(rest) >= 20 and not {"-", "_"} & set(rest)))


def find_jwts(text: str) -> Iterator[Span]:
    """JSON Web Tokens (RFC 7519), signed or encrypted."""
    if "eyJ" in text:
        for found in _compiled(_JWT).finditer(text):
            yield found.start(), found.start() + len(found[0].rstrip("."))


def find_pem(text: str) -> Iterator[Span]:
    """PEM blocks (RFC 7468), line breaks written out or not; one that was cut off ends with its last character of
    base64."""
    if "-----BEGIN " not in text:
        return
    begins = [found.span() for found in _BEGIN.finditer(text)]
    ends = deque(found.span() for found in _END.finditer(text))
    at = 0
    for number, (start, body) in enumerate(begins):
        if start < at:
            continue
        while ends and ends[0][0] < body:
            ends.popleft()
        farthest = min(start + _LONGEST_PEM, begins[number + 1][0] if number + 1 < len(begins) else len(text))
        if ends and ends[0][0] < farthest:
            at = ends[0][1]
        else:
            cut = _PEM_BODY.match(text, body, farthest)
            at = body if cut is None else cut.end()
        yield start, at


def find_credentials(text: str) -> Iterator[Span]:
    """The user and password of a URL, and the value after a word such as `password=` or `api_key:`."""
    if "://" in text:
        for found in _compiled(_URL).finditer(text):
            if _NO_VALUE.fullmatch(found[2]) is None:
                yield found.span(1)
    for found in _compiled(_CREDENTIAL).finditer(text):
        group = next(number for number in (3, 4, 5) if found.start(number) >= 0)
        start, end = found.span(group)
        if group == 5:
            if text[end : end + 1] in ("(", "["):  # password=getpass(), key=os.environ["KEY"]
                continue
            end -= len(found[5]) - len(found[5].rstrip(".!?:"))
        value = text[start:end]
        if not value or _NO_VALUE.fullmatch(value) is not None:
            continue
        alone = found[1] is not None
        if alone and found[1].lower() == "pwd" and value[0] in "/~":  # the working directory
            continue
        strong = found[2].startswith(("=", ":=")) or (group != 5 and ":" in found[2])
        if (strong and not alone) or _looks_random(value):
            yield start, end


def _looks_random(value: str) -> bool:
    """Whether a value is no word: letters with digits or signs, or a long run of letters."""
    letters, digits = any(char.isalpha() for char in value), any(char.isdigit() for char in value)
    if " " in value or len(value) < 4:
        return False
    return (letters and digits) or bool(set("!@#$%^&*+=?~") & set(value)) or (len(value) >= 20 and value.isalnum())


def credential_name(name: str) -> bool:
    """Whether a JSON key says that its value is a secret.

    >>> [credential_name(name) for name in ("password", "dbPassword", "X-API-Key", "max_tokens", "next_page_token")]
    [True, True, True, False, False]
    """
    return _NAME.fullmatch(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name[:200])) is not None


def credential_value(text: str) -> bool:
    """Whether a text under such a key is a secret of no form of its own."""
    if not text.strip() or len(text) > 4096 or _NO_VALUE.fullmatch(text) is not None:
        return False
    return not any(span == (0, len(text)) for find in (find_keys, find_jwts, find_pem) for span in find(text))


def find_secrets(text: str) -> list[Span]:
    """All of them, from the left; none overlap."""
    finders = (find_keys, find_jwts, find_pem, find_credentials)
    spans = sorted((start, -end) for find in finders for start, end in find(text))
    found: list[Span] = []
    for start, minus in spans:
        if not found or start >= found[-1][1]:
            found.append((start, -minus))
    return found


_LOOKED_AT = 4000
"""Characters of an exception's text that are looked at."""
# Looser than the finders: in an error a word too many that is masked does no harm.
_LOOSE = (
    (
        re.compile(r"\b(sk|pk|rk|gh[pousr]|github_pat|glpat|hf|xox[abeoprs]|AKIA|AIza)([-_]?)[A-Za-z0-9_*.-]{8,}"),
        r"\1\2***",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"), r"\1 ***"),
    (
        re.compile(r"(?i)\b(api[-_ ]?key|token|secret|password|passwd|authorization)(\"?\s*[=:]\s*\"?)[^\s,;\"'&]+"),
        r"\1\2***",
    ),
    (
        re.compile(r"(?i)\b((?:api|access|secret)[-_ ]?key(?: \w{1,20}){0,2}(?:[:=] ?['\"]?| ?['\"]))[^\s,;\"']{4,}"),
        r"\1***",
    ),
    (re.compile(r"://[^/\s:@]{0,200}:[^/\s@]{1,200}@"), "://***@"),
)


def mask_secrets(text: str) -> str:
    """The text with `***` for every secret.

    >>> mask_secrets("401 for key sk-abcdef0123456789abcd; tried postgresql://ada:pw@db/x, password=hunter2")
    '401 for key sk-***; tried postgresql://***@db/x, password=***'
    """
    parts: list[str] = []
    at = 0
    for start, end in find_secrets(text):
        prefix = next((prefix for prefix in KEY_PREFIXES if text.startswith(prefix, start)), "")
        parts += (text[at:start], prefix, "***")
        at = end
    masked = "".join((*parts, text[at:]))
    for pattern, replacement in _LOOSE:
        masked = pattern.sub(replacement, masked)
    return masked


def error_text(error: BaseException, longest: int = 200) -> str:
    """An exception's text in at most `longest` characters, masked before it is cut; where it has none, its type.

    >>> error_text(ValueError("no route; api_key=abcdef0123456"))
    'no route; api_key=***'
    """
    text = mask_secrets(str(error)[:_LOOKED_AT])
    return shorten(text, longest) if text else type(error).__name__


__all__ = [
    "KEY_PREFIXES",
    "credential_name",
    "credential_value",
    "error_text",
    "find_credentials",
    "find_jwts",
    "find_keys",
    "find_pem",
    "find_secrets",
    "is_key",
    "mask_secrets",
]
