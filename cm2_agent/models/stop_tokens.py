"""At which tokens a model's message ends: those that its configuration and its tokenizer name, and where a chat
template ends messages with none of them, as on base checkpoints, the template's own."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cm2_agent.models.control_words import control_words_of
from cm2_agent.models.template_probe import after_a_call, in_blocks

__all__ = ["StopTokens", "configured_stops", "eos_ids", "stop_tokens"]

_WORDS = "CM2WORDS"
_USER: Mapping[str, Any] = {"role": "user", "content": "CM2ASKED"}
_ASSISTANT: Mapping[str, Any] = {"role": "assistant", "content": _WORDS}
_ANSWER: Mapping[str, Any] = {
    "role": "tool",
    "name": "probe",
    "tool_call_id": "a1B2c3D4e",
    "content": "CM2ASKED",
}


@dataclass(frozen=True, kw_only=True)
class StopTokens:
    """The ids at which sampling stops, and what the template writes after an assistant's words.

    `added` are those of `ids` that the template alone names. `problem` says that no stop token ends a message, so that
    an answer runs on to its limit of tokens; None where one does."""

    ids: frozenset[int]
    ending: str
    added: tuple[str, ...] = ()
    problem: str | None = None

    def warn(self, name: str) -> None:
        """Log a warning where there is a problem."""
        if self.problem is not None:
            logging.getLogger("cm2_agent").warning(
                "%s: %s. Its answers run on to max_tokens. Add the end of a message to generation_config.eos_token_id,"
                " or take an instruction-tuned model",
                name,
                self.problem,
            )


def eos_ids(eos_token_id: Any) -> tuple[int, ...]:
    """The `eos_token_id` of a configuration or a tokenizer, which may be one, several or None, as ids in order."""
    listed = eos_token_id if isinstance(eos_token_id, list | tuple) else [eos_token_id]
    return tuple(int(one) for one in listed if one is not None)


def configured_stops(model: Any) -> tuple[int, ...]:
    """The stop tokens in a model's generation config, in order."""
    return eos_ids(getattr(getattr(model, "generation_config", None), "eos_token_id", None))


def stop_tokens(model: Any, tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None) -> StopTokens:
    """The stop tokens of a model with its tokenizer. Nothing is raised, whatever the template does.

    >>> from types import SimpleNamespace
    >>> from cm2_agent.models import byte_tokenizer
    >>> stop_tokens(SimpleNamespace(), byte_tokenizer()).ids
    frozenset({258})
    """
    ids = frozenset([*configured_stops(model), *eos_ids(tokenizer.eos_token_id)])
    render = _Endings(tokenizer, template_kwargs or {})
    last, followed = render(), render(_USER)
    ending = last if last.strip() else followed
    names = [str(tokenizer.decode([id_])) for id_ in sorted(ids)]
    ends = any(name and (name in last or name in followed) for name in names)
    # A template without an end of its own begins the next message: whose it is, the model decides.
    begun = [last] if last.strip() else [] if ends else [followed, render(_ANSWER)]
    found = [word for text in begun if (word := render.first_word(text, special=ends)) is not None]
    called = after_a_call(tokenizer, template_kwargs)
    if called and not any(name and name in called for name in names):
        found += [word for word in [render.last_word(called)] if word is not None]
    words = {word: id_ for word in found if (id_ := render.id_of(word)) not in ids}
    if ends or words:
        return StopTokens(ids=ids | set(words.values()), ending=followed or last, added=tuple(words))
    if not ids:
        return StopTokens(ids=ids, ending=ending, problem="there is no stop token: a message ends at max_tokens alone")
    problem = (
        f"no stop token ends a message: the template writes {ending[:60]!r} after one, and the stop tokens are"
        f" {', '.join(names)}"
    )
    return StopTokens(ids=ids, ending=ending, problem=problem)


class _Endings:
    """What a template writes after an assistant's words, and the first control word in it."""

    def __init__(self, tokenizer: Any, kwargs: Mapping[str, Any]) -> None:
        self.tokenizer, self.kwargs = tokenizer, kwargs
        special, marks = control_words_of(tokenizer)
        self.special, self.words = _pattern(special), _pattern(special | marks)

    def __call__(self, following: Mapping[str, Any] | None = None) -> str:
        """Up to the words of the message that follows, or the end; "" where the template refuses it."""
        messages = [dict(_USER), dict(_ASSISTANT), *([] if following is None else [dict(following)])]
        shown = (self._rendered(messages), self._rendered(in_blocks(messages)))
        text = next((text for text in shown if _WORDS in text), "")
        return text.partition(_WORDS)[2].partition(str(_USER["content"]))[0]

    def _rendered(self, messages: list[dict[str, Any]]) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False, **self.kwargs)
            )
        except Exception:  # jinja's own errors and what a template raises share no base
            return ""

    def first_word(self, text: str, *, special: bool) -> str | None:
        """The first control word in the text; with `special`, the first special token."""
        pattern = self.special if special else self.words
        found = None if pattern is None else pattern.search(text)
        return None if found is None else found[0]

    def last_word(self, text: str) -> str | None:
        """The special token with which the text ends."""
        found = [] if self.special is None else self.special.findall(text)
        return found[-1] if found and text.rstrip().endswith(found[-1]) else None

    def id_of(self, word: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(word))


def _pattern(words: Iterable[str]) -> re.Pattern[str] | None:
    listed = sorted(words, key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, listed))) if listed else None
