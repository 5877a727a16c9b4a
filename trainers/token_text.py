"""Token texts: what each id of a sequence reads as, in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_LONGEST = 8
"""Tokens of one character at most: a character has at most four bytes, and byte-level tokens at least one each."""


def token_texts(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """The text of each id, special tokens too; where several make up a character, the last of them has it and the ones
    before are empty. An id that the tokenizer does not know is empty.

    >>> from cm2_agent.models import byte_tokenizer
    >>> from cm2_agent.trainers.token_text import token_texts
    >>> token_texts(byte_tokenizer(), byte_tokenizer().encode("é!<|im_end|>"))
    ('', 'é', '!', '<|im_end|>')
    """
    found: list[str] = []
    before: list[int] = []
    pending: list[int] = []
    for id in np.asarray(ids, np.int64).tolist():
        pending.append(id)
        text = _decoded(tokenizer, [*before, *pending])[len(_decoded(tokenizer, before)) :]
        if text.endswith("\ufffd") and len(pending) < _LONGEST:
            found.append("")
            continue
        found.append(text)
        before, pending = pending[-1:] if text and not text.endswith("\ufffd") else [], []
    return tuple(found)


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    try:
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)) if ids else ""
    except (OverflowError, IndexError, TypeError, KeyError, ValueError):  # no id of this tokenizer
        return ""
