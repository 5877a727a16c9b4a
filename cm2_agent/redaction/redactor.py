"""The redactor replaces personal data consistently, in text and in JSON.

One Redactor gives one value one placeholder, however it is spelled and wherever it stands, and two values two. The
placeholders follow from an HMAC of the value: with the same `key` every process makes the same ones, so that a redactor
at capture, one a worker, and one that compiles tasks later agree; without a key each Redactor draws its own, and
nothing can be looked up again. Give whole texts: a value that is cut between two pieces of a stream is seen in neither.
Nothing here logs, and no value is kept: only digests are."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import weakref
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Any

from cm2_agent.errors import TaskError
from cm2_agent.redaction.pii_rules import SHIPPED
from cm2_agent.redaction.rule import Rule
from cm2_agent.redaction.spellings import as_encoded, plain_text
from cm2_agent.types.check_specs import compile_pattern
from cm2_agent.types.escapes import unescaped
from cm2_agent.types.json_values import JSON

# In JSON, where each character has but one way to match
_TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?', re.DOTALL)
_COLON = re.compile(r"[ \t\r\n]*:")
_SURROGATES = re.compile("[\ud800-\udfff]")
_TRIES = 1000
_IDS = b"cm2.ids"
"""The key for ids of a redactor that has none: ids must join across processes."""
_REMEMBERED = 50_000
"""Texts without finds that are known."""


class Redactor:
    """Replaces what its rules find, one value always by one placeholder. Threads may share it.

    `counts` is how often each rule replaced something, `distinct` how many different values it met.

    Args:
        rules: what is personal (by default secrets, e-mail addresses, bank accounts, cards, social security and phone
            numbers); of several finds at one place the longest counts. Each is found in other spellings too: full-width
            and other Unicode forms, with invisible characters within, percent-encoded.
        key: a secret that makes the placeholders the same in every process that has it; without one each Redactor
            draws its own.

    Raises:
        TaskError: two rules share a name.

    >>> from cm2_agent import Redactor
    >>> redactor = Redactor(key=b"a secret of yours")
    >>> redactor.redact("Write to Ada@x.org") == redactor.redact("Write to ada@x.org")
    True
    """

    def __init__(self, rules: Sequence[Rule] = SHIPPED, *, key: bytes | None = None) -> None:
        self.rules = tuple(rules)
        names = [rule.name for rule in self.rules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise TaskError(f"rules named twice: {', '.join(twice)}; each rule needs a name of its own")
        self.counts: Counter[str] = Counter()
        self.distinct: Counter[str] = Counter()
        self._key = secrets.token_bytes(32) if key is None else key
        self._of_ids = Redactor(self.rules, key=_IDS) if key is None else self
        self._seed = hashlib.sha256(self._key).digest()
        self._clean: OrderedDict[bytes, None] = OrderedDict()
        self._known: dict[bytes, str] = {}
        self._taken: set[str] = set()
        self._lock = Lock()
        _all.add(self)
        self._made = [compile_pattern(rule.placeholders) for rule in self.rules]
        self._any_made = (
            compile_pattern("|".join(f"(?:{rule.placeholders})" for rule in self.rules)) if self.rules else None
        )

    def __repr__(self) -> str:
        return f"Redactor({', '.join(rule.name for rule in self.rules)})"

    # Text

    def redact(self, text: str) -> str:
        """The text with every find replaced; where it is JSON, its strings and numbers are, and it stays the JSON that
        it was."""
        return self._string(text, "")

    def redact_id(self, text: str) -> str:
        """The id of a thread, a user or a session with every find replaced: by what joins it with what is stored
        already, in every process. Without a key that is alike in all stores, so whoever suspects an id can test it.

        >>> Redactor().redact_id("ada@x.org") == Redactor().redact_id("ada@x.org"), Redactor().redact_id("thread-7")
        (True, 'thread-7')
        """
        return self._of_ids.redact(text)

    def _string(self, text: str, under: str) -> str:
        if not text or not self.rules:
            return text
        # A dialogue is redacted again with every run that goes on with it: texts without finds are known by digest.
        digest = hashlib.blake2b(f"{under}\0{text}".encode("utf-8", "surrogatepass"), key=self._seed, digest_size=16)
        known = digest.digest()
        if known in self._clean:
            return text
        new = self._replaced(text, under)
        if new == text:
            with self._lock:
                self._clean[known] = None
                while len(self._clean) > _REMEMBERED:
                    self._clean.popitem(last=False)
        return new

    def _replaced(self, text: str, under: str) -> str:
        for rule in self.rules if under else ():
            if rule.key is not None and rule.whole is not None and rule.key(under):
                plain = plain_text(text)
                value = text if plain is None else plain.text
                if rule.whole(value) and not (self._any_made is not None and self._any_made.fullmatch(value)):
                    return self._placeholder(rule, value)
        while not _is_json(text):
            new = self._pass(text)
            if new == text:
                return text
            text = new  # what a longer find hid may show once that is gone; each pass leaves less
        return self._json_text(text)

    def _pass(self, text: str) -> str:
        out: list[str] = []
        at = 0
        for start, end, placeholder in self.finds(text):
            out += (text[at:start], placeholder)
            at = end
        return "".join((*out, text[at:]))

    def finds(self, text: str) -> list[tuple[int, int, str]]:
        """What one look at a text finds: start, end and what to put there, from the left; none overlap."""
        seen = text if text.isascii() else _SURROGATES.sub("\ufffd", text)
        finds = [(start, -end, order, seen[start:end]) for start, end, order in self._spans(seen)]
        plain = plain_text(seen)
        if plain is not None:
            for start, end, order in self._spans(plain.text):
                begin, stop = plain.span(start, end)
                finds.append((begin, -stop, order, plain.text[start:end]))
        found: list[tuple[int, int, str]] = []
        at = 0
        for start, minus, order, value in sorted(finds):  # from the left, the longest first
            if start >= at:
                placeholder = self._placeholder(self.rules[order], value, order)
                found.append((start, -minus, as_encoded(placeholder, seen[start:-minus])))
                at = -minus
        return found

    def _spans(self, text: str) -> list[tuple[int, int, int]]:
        """Start, end and the rule's number of every find that touches no placeholder."""
        finds = [
            (unescaped(text, start, end), end, order)
            for order, rule in enumerate(self.rules)
            for start, end in rule.spans(text)
        ]
        if not finds or self._any_made is None:
            return []
        barred = [(hit.start(), hit.end()) for hit in self._any_made.finditer(text)]
        found: list[tuple[int, int, int]] = []
        bar = 0
        for start, end, order in sorted(finds):
            while bar < len(barred) and barred[bar][1] <= start:
                bar += 1
            if start < end and not (bar < len(barred) and barred[bar][0] < end):
                found.append((start, end, order))
        return found

    def _json_text(self, text: str) -> str:
        """The text of a JSON value: what is not replaced stays as it is spelled."""
        out: list[str] = []
        at, under = 0, ""
        for found in _TOKENS.finditer(text):
            token = found.group()
            if token[0] != '"':
                new = self._number_text(token, under)
            else:
                value = json.loads(token)
                is_key = _COLON.match(text, found.end()) is not None
                redacted = self._string(value, "" if is_key else under)
                under = value if is_key else under
                new = token if redacted == value else json.dumps(redacted, ensure_ascii=token.isascii())
            if new != token:
                out += (text[at : found.start()], new)
                at = found.end()
        return "".join((*out, text[at:])) if out else text

    # JSON values

    def redact_json(self, value: JSON) -> JSON:
        """A copy of a JSON value with its strings, the keys of its objects and the numbers that are whole values
        redacted. However deep it is nested; tuples come back as lists."""
        root: list[Any] = [value]
        waiting: list[tuple[Any, Any, str]] = [(root, 0, "")]
        while waiting:
            holder, place, under = waiting.pop()
            inner = holder[place]
            if isinstance(inner, str):
                holder[place] = self._string(inner, under)
            elif isinstance(inner, bool) or inner is None:
                continue
            elif isinstance(inner, int | float):
                holder[place] = self._number(inner, under)
            elif isinstance(inner, Mapping):
                new: dict[Any, Any] = {}
                for key, item in inner.items():
                    name = self._fresh(new, self._string(key, "")) if isinstance(key, str) else key
                    new[name] = item
                    waiting.append((new, name, key if isinstance(key, str) else ""))
                holder[place] = new
            elif isinstance(inner, list | tuple):
                items = list(inner)
                holder[place] = items
                waiting += [(items, index, under) for index in range(len(items))]
        return root[0]

    def _fresh(self, taken: Mapping[Any, Any], key: str) -> str:
        """The key, or where another spelling of the same value made it before, one beside it: no entry is lost."""
        number = 2
        name = key
        while name in taken:
            name = f"{key} ({number})"
            number += 1
        return name

    def _number(self, value: float, under: str) -> float:
        if isinstance(value, float) and (not value.is_integer() or abs(value) >= 2**63):
            return value
        digits = str(int(value))
        for order, rule in enumerate(self.rules):
            if (
                not rule.number
                or rule.whole is None
                or not rule.whole(digits)
                or (rule.key is not None and not rule.key(under))
            ):
                continue
            if any(self._made[order].fullmatch(form) for form in (digits, f"+{digits}")):
                return value
            return int(re.sub("[^0-9]", "", self._placeholder(rule, digits, order)))
        return value

    def _number_text(self, token: str, under: str) -> str:
        if len(token) > 40 or not any(rule.number for rule in self.rules):
            return token
        value = json.loads(token)
        new = self._number(value, under)
        return token if new == value else str(new)

    # Placeholders

    def _placeholder(self, rule: Rule, value: str, order: int | None = None) -> str:
        """The placeholder of a value; a placeholder in another spelling is itself."""
        normal = rule.normal(value)
        made = self._made[self.rules.index(rule) if order is None else order]
        if made.fullmatch(normal) is not None:
            return normal
        digest = self._digest(rule.name, normal, "value")
        with self._lock:
            self.counts[rule.name] += 1
            if digest not in self._known:
                self.distinct[rule.name] += 1
                self._known[digest] = self._new(rule, value, normal)
            return self._known[digest]

    def _new(self, rule: Rule, value: str, normal: str) -> str:
        for attempt in range(_TRIES):  # two values may draw the same characters: the later one draws again
            placeholder = rule.placeholder(value, _Stream(self._digest(rule.name, normal, str(attempt))))
            if placeholder not in self._taken:
                self._taken.add(placeholder)
                return placeholder
        raise TaskError(
            f"rule {rule.name!r} made the same placeholder {_TRIES} times; its make must use what draw gives it"
        )

    def _digest(self, *parts: str) -> bytes:
        message = "\0".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "surrogatepass")
        return hmac.new(self._key, message, hashlib.sha256).digest()


_all: weakref.WeakSet[Redactor] = weakref.WeakSet()


def _in_child() -> None:
    """A lock that another thread held when the process forked would never be released in the child."""
    for redactor in _all:
        redactor._lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class _Stream:
    """Characters out of a digest: the same digest, the same characters."""

    def __init__(self, digest: bytes) -> None:
        self._digest, self._drawn = digest, 0

    def __call__(self, alphabet: str, length: int) -> str:
        chars: list[str] = []
        while len(chars) < length:
            block = hashlib.sha256(self._digest + self._drawn.to_bytes(4, "big")).digest()
            self._drawn += 1
            number = int.from_bytes(block, "big")  # 256 bits for at most 32 draws of 5: its unevenness is negligible
            for _ in range(min(32, length - len(chars))):
                number, rest = divmod(number, len(alphabet))
                chars.append(alphabet[rest])
        return "".join(chars)


def check_redactor(given: object) -> None:
    """Raises TypeError for what is no Redactor, such as a function of a text: it would not see JSON and keys."""
    if not isinstance(given, Redactor):
        raise TypeError(
            f"redact is a {type(given).__name__}; expected a Redactor, whose rules may be your own functions:"
            " Redactor([*SHIPPED, Rule('name', find=…)], key=…)"
        )


def key_from(parts: Iterable[str]) -> bytes:
    """A redactor's key made from texts that whoever reads the placeholders does not have. A random secret kept by its
    owner is better."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest())
    return hashed.digest()


def _is_json(text: str) -> bool:
    """Whether the text is a JSON object, list or string."""
    if text.lstrip()[:1] not in ("{", "[", '"'):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


__all__ = ["Redactor", "check_redactor", "key_from"]
