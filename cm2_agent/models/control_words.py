"""Text that holds the control words of a model, encoded as the text it is: no special token is made from data.

What users, tools and prompts say may hold `<|im_end|>` or `[INST]`. Each such word is hidden from the chat template
behind a private character, and put back where only the template's own words can become special tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cm2_agent.errors import ModelError

__all__ = ["ControlWords", "Rendered", "control_words_of", "unescaped"]

_MARKUP = re.compile(r"[<\[◁｜|].*[>\]▷｜|]\Z", re.DOTALL)
_FIRST, _LAST = 0xF0000, 0xFFFFD  # private use: one character stands for one word
_LEADS = range(0x100000, 0x10FFFE)  # private use too: the first that a text lacks begins the names of the template's
_KEEP = frozenset({"role", "type"})


@dataclass(frozen=True)
class Rendered:
    """A rendered prompt in which a private character stands for each control word that came from data."""

    text: str
    hidden: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The prompt as it reads."""
        text = self.text
        for character, word in self.hidden.items():
            text = text.replace(character, word)
        return text

    def part(self, text: str) -> Rendered:
        """A part of the text, with what stands for what."""
        return Rendered(text, self.hidden)


def unescaped(text: str, hidden: Mapping[str, str]) -> str:
    """A rendered text in which a template wrote the private characters as escapes, of ASCII JSON or of Python."""
    for character in hidden:
        for escape in (json.dumps(character)[1:-1], repr(character)[1:-1]):
            text = text.replace(escape, character)
    return text


def control_words_of(tokenizer: Any) -> tuple[frozenset[str], frozenset[str]]:
    """A tokenizer's control words: its special tokens, and its other added tokens that look like marks, such as
    `<tool_call>`. Words that were added to shorten sequences are neither."""
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    special = {str(token) for token in added.values() if getattr(token, "special", False)}
    special |= {str(word) for word in getattr(tokenizer, "all_special_tokens", ())}
    special = {word for word in special if word.strip()}
    marks = {str(token) for token in added.values() if _MARKUP.match(str(token))} - special
    return frozenset(special), frozenset(marks)


class ControlWords:
    """Hides and encodes the control words of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special, self.marks = control_words_of(tokenizer)
        self._all = _pattern(self.special | self.marks)
        self._special = _pattern(self.special)
        self._plain: tuple[str, Any, dict[int, int]] | None = None

    def hide(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None, dict[str, str]]:
        """The messages and tools for the chat template, and the word for each character that stands for one.

        Marks such as `<think>` in an assistant's own message stay: it wrote them, and templates look for them."""
        if self._all is None:
            return [dict(message) for message in messages], None if tools is None else [dict(t) for t in tools], {}
        used = _Characters()
        shown, offered = self._shown(used, messages, tools)
        if used.words:
            start = _free(json.dumps([messages, tools], ensure_ascii=False, default=str), len(used.words))
            if start != used.start:
                used = _Characters(start)
                shown, offered = self._shown(used, messages, tools)
        return shown, offered, {character: word for word, character in used.words.items()}

    def _shown(
        self, used: _Characters, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        # the tools first: more messages then change no character that stands for a word
        offered = None if tools is None else [used.of(dict(tool), self._all) for tool in tools]
        shown = [
            used.of(dict(message), self._special if message.get("role") == "assistant" else self._all)
            for message in messages
        ]
        return shown, offered

    def encode(self, rendered: Rendered, after: int | None = None) -> list[int]:
        """The token ids of a rendered text; what stands for a word of the data becomes the word's text.

        `after` is the id of the special token that the text follows, so that no space is put between, as a
        SentencePiece tokenizer puts one before a text.

        Raises ModelError where the tokenizer cannot write such a word but as a special token.
        """
        text = rendered.text
        stop = None if after is None else self.tokenizer.convert_ids_to_tokens(after)
        anchor = stop if stop in self.special else ""
        if not any(character in text for character in rendered.hidden):
            ids = list(self.tokenizer.encode(anchor + text, add_special_tokens=False))
        else:
            ids = self._encode_hidden(anchor + text, rendered)
        if anchor:
            if ids[:1] == [after]:
                return ids[1:]
            return self.encode(rendered)
        return ids

    def _encode_hidden(self, text: str, rendered: Rendered) -> list[int]:
        core = getattr(self.tokenizer, "backend_tokenizer", None)
        if core is None or not hasattr(core, "to_str"):
            raise ModelError(
                f"the text holds {next(iter(rendered.hidden.values()))!r}, a control word of the model, and this"
                " tokenizer writes it as a special token alone; expected a fast tokenizer (tokenizer.json)"
            )
        whole = str(rendered.part(text))
        state = self._plain  # of one moment: another thread may make its own
        if state is None or state[0] in whole:
            lead = next(chr(code) for code in _LEADS if chr(code) not in whole)
            state = self._plain = (lead, *self._without_words(core, lead))
        lead, plain, ids_of = state
        names = self._names(lead)
        assert self._all is not None
        text = self._all.sub(lambda found: names[found[0]], text)
        text = str(rendered.part(text))
        plain_ids: list[int] = plain.encode(text, add_special_tokens=False).ids
        ids = [ids_of.get(one, one) for one in plain_ids]
        wanted = sum(text.count(name) for name in names.values())
        known = {self.tokenizer.convert_tokens_to_ids(word) for word in names}
        if sum(one in known for one in ids) != wanted:
            raise ModelError(
                f"the text holds {next(iter(rendered.hidden.values()))!r}, a control word of the model, and this"
                " tokenizer writes it as a special token alone"
            )
        return ids

    def _names(self, lead: str) -> dict[str, str]:
        return {word: f"{lead}{i}{lead}" for i, word in enumerate(sorted(self.special | self.marks))}

    def _without_words(self, core: Any, lead: str) -> tuple[Any, dict[int, int]]:
        """The tokenizer with other names for its control words, and which ids mean which."""
        from tokenizers import Tokenizer

        names = self._names(lead)
        written = json.loads(core.to_str())
        written.update(truncation=None, padding=None, post_processor=None)
        for token in written["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        plain = Tokenizer.from_str(json.dumps(written))
        ids_of: dict[int, int] = {}
        for id_, token in core.get_added_tokens_decoder().items():
            content: str = token.content
            here = plain.token_to_id(names.get(content, content))
            if here is not None:
                ids_of[here] = id_
        return plain, ids_of


class _Characters:
    """One private character for each word that was found."""

    def __init__(self, start: int = _FIRST) -> None:
        self.start = start
        self.words: dict[str, str] = {}

    def of(self, value: Any, pattern: re.Pattern[str] | None) -> Any:
        """The value with every word of it replaced, in keys too."""
        if pattern is None:
            return value
        if isinstance(value, str):
            return pattern.sub(self._replace, value)
        if isinstance(value, Mapping):
            return {
                self.of(key, pattern): held if key in _KEEP and isinstance(held, str) else self.of(held, pattern)
                for key, held in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.of(one, pattern) for one in value]
        return value

    def _replace(self, found: re.Match[str]) -> str:
        word = found[0]
        if word not in self.words:
            self.words[word] = chr(self.start + len(self.words))
        return self.words[word]


def _free(data: str, count: int) -> int:
    """The first of `count` private characters that the data does not hold."""
    for start in range(_FIRST, _LAST - count, count):
        if not any(chr(start + i) in data for i in range(count)):
            return start
    raise ModelError("the text holds every private character of Unicode; its control words cannot be encoded")


def _pattern(words: frozenset[str]) -> re.Pattern[str] | None:
    if not words:
        return None
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word))))
