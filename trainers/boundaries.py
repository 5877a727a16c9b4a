"""Boundaries between the model calls of a dialogue: how each prompt goes on from what was read and written before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from .template_steps import is_cut

BoundaryKind: TypeAlias = Literal["CLEAN", "REALIGNED", "FORK", "PARALLEL", "TRUNCATED", "RETOKENISED"]
KINDS: tuple[str, ...] = get_args(BoundaryKind)
SEAM = 4
"""An end of an answer of at most so many tokens that the next prompt writes otherwise is its ending, not its words,
where no tokenizer says what it reads."""

Ids: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class CallTokens:
    """What a recorded model call read and wrote, as far as boundaries need it. `started` and `ended` are nanoseconds, 0
    where they are not known."""

    prompt: Sequence[int]
    completion: Sequence[int]
    agent: str | None = None
    finish_reason: str | None = None
    started: int = 0
    ended: int = 0

    @property
    def held(self) -> Ids:
        """All that stood in the model's context when the call ended."""
        return np.concatenate([np.asarray(self.prompt, np.int64), np.asarray(self.completion, np.int64)])


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """How a call goes on from an earlier one.

    `after` is the number of the call that it was compared with. `shared` tokens begin both; `gone` are those of the
    earlier call (read or written) that the prompt does not hold there.
    """

    kind: BoundaryKind
    why: str
    after: int
    shared: int
    gone: int = 0


def boundary(
    calls: Sequence[CallTokens], number: int, tokenizer: Any = None, *, numbers: Sequence[int] | None = None
) -> Boundary:
    """The boundary before call `number` (at least 1) of a dialogue's calls. `numbers` are their numbers among all calls
    of the trace, where there are others.

    - CLEAN: the prompt begins with all that the call before read and wrote.
    - REALIGNED: so it does, but at the seam the ids are not what the text encoded anew would be: the model's own were
      kept, or the template's ending follows the model's; or the ending alone was replaced.
    - TRUNCATED: the answer before was cut off (by the token limit, an error, a filter), or the prompt left out a part
      of the dialogue, as a window over it does.
    - PARALLEL: the call does not follow from the one before it: it ran beside it, or goes on from an earlier one.
    - RETOKENISED: the prompt reads as what was held, in other ids: the past was encoded anew.
    - FORK: the past was rewritten: earlier thinking dropped, a message edited or summarised.

    The first three extend the row (REALIGNED and TRUNCATED where nothing is gone), the others begin a new one. Without
    a `tokenizer` RETOKENISED cannot be told from FORK, and REALIGNED only by the ending.
    """
    before, call = calls[number - 1], calls[number]
    name = range(len(calls)) if numbers is None else numbers
    last = name[number - 1]
    prompt, held = np.asarray(call.prompt, np.int64), before.held
    shared = shared_prefix(prompt, held)
    if shared == len(held):
        return _extended(before, prompt[shared:], last, shared, tokenizer)
    earlier = _goes_on_from(calls, number)
    if earlier is not None:
        other = calls[earlier].held
        why = f"goes on from call {name[earlier]}, beside call {last}"
        return Boundary(kind="PARALLEL", why=why, after=name[earlier], shared=len(other))
    gone = len(held) - shared
    if call.started and call.started < before.ended:
        why = f"began before call {last} had ended"
        return Boundary(kind="PARALLEL", why=why, after=last, shared=shared, gone=gone)
    if call.agent != before.agent and shared < len(before.prompt):
        why = f"agent {call.agent or 'unnamed'} reads a prompt of its own beside {before.agent or 'unnamed'}'s"
        return Boundary(kind="PARALLEL", why=why, after=last, shared=shared, gone=gone)
    written = len(before.prompt)
    if shared >= written and _is_ending(held[shared:], tokenizer):
        why = f"the ending of the answer ({_tokens(gone)}) was replaced"
        return Boundary(kind="REALIGNED", why=why, after=last, shared=shared, gone=gone)
    if tokenizer is not None and _reads_alike(tokenizer, prompt, held, shared):
        why = f"the same text in other ids from place {shared} on"
        return Boundary(kind="RETOKENISED", why=why, after=last, shared=shared, gone=gone)
    left_out = _left_out(prompt, held, shared)
    if left_out is not None and not _in_an_answer(calls[:number], shared, shared + left_out):
        why = f"{_tokens(left_out)} of the past were left out from place {shared} on"
        return Boundary(kind="TRUNCATED", why=why, after=last, shared=shared, gone=left_out)
    place = "its answer" if shared >= written else "what it had read"
    why = f"the past was rewritten from place {shared} on, in {place}: {_tokens(gone)} are gone"
    return Boundary(kind="FORK", why=why, after=last, shared=shared, gone=gone)


def shared_prefix(left: Ids, right: Ids) -> int:
    """How many leading ids two sequences share.

    >>> import numpy as np
    >>> shared_prefix(np.array([1, 2, 3]), np.array([1, 2, 4, 5]))
    2
    """
    size = min(len(left), len(right))
    differ = left[:size] != right[:size]
    return int(differ.argmax()) if differ.any() else size


def _extended(before: CallTokens, added: Ids, last: int, shared: int, tokenizer: Any) -> Boundary:
    kind: BoundaryKind = "CLEAN"
    why = f"begins with all that call {last} read and wrote"
    if is_cut(before.finish_reason):
        kind, why = "TRUNCATED", f"the answer of call {last} was cut off ({before.finish_reason}) and stays so"
    elif tokenizer is not None and _ended_anew(tokenizer, before.completion, added):
        kind, why = "REALIGNED", "the template's own ending follows the one that the model wrote"
    elif tokenizer is not None and (other := _encoded_anew(tokenizer, before.completion)) is not None:
        kind, why = "REALIGNED", f"the model's own ids stay; encoded anew the answer would be {_tokens(other)}"
    return Boundary(kind=kind, why=why, after=last, shared=shared)


def _ended_anew(tokenizer: Any, completion: Sequence[int], added: Ids) -> bool:
    """Whether a stop token follows an answer that ended in another."""
    wrote, known = completion[-1], getattr(tokenizer, "added_tokens_decoder", None) or {}
    special = wrote in known and known[wrote].special
    return special and len(added) > 0 and int(added[0]) == tokenizer.eos_token_id != wrote


def _goes_on_from(calls: Sequence[CallTokens], number: int) -> int | None:
    """The latest call but the last one with all of whose tokens the prompt begins, unless a later one took them up: a
    fork of the past goes on from what the call before shares with it."""
    prompt = np.asarray(calls[number].prompt, np.int64)
    last = calls[number - 1].held
    for earlier in range(number - 2, -1, -1):
        held = calls[earlier].held
        if len(held) <= len(prompt) and np.array_equal(prompt[: len(held)], held):
            return None if shared_prefix(last, held) == len(held) else earlier
    return None


def _left_out(prompt: Ids, held: Ids, shared: int) -> int | None:
    """How many ids stand in `held` from `shared` on that the prompt leaves out, the rest following; None where it does
    not follow."""
    rest = prompt[shared:]
    for out in range(1, len(held) - shared if len(rest) else 0):
        if held[shared + out] == rest[0] and len(rest) >= len(held) - shared - out:
            tail = held[shared + out :]
            if np.array_equal(rest[: len(tail)], tail):
                return out
    return None


def _in_an_answer(calls: Sequence[CallTokens], start: int, stop: int) -> bool:
    """Whether a stretch of the past is a part of one answer, such as its thinking: a template drops that, no window."""
    return any(len(call.prompt) <= start and stop <= len(call.prompt) + len(call.completion) for call in calls)


def _is_ending(ids: Ids, tokenizer: Any) -> bool:
    """Whether the end of an answer holds no words: special tokens and space alone."""
    if tokenizer is None:
        return len(ids) == 1
    text = str(tokenizer.decode(ids.tolist(), skip_special_tokens=True))
    return len(ids) <= SEAM and not text.strip()


def _reads_alike(tokenizer: Any, prompt: Ids, held: Ids, shared: int) -> bool:
    """Whether the prompt's text begins with the text that was held, special tokens and space at its end aside."""
    text = str(tokenizer.decode(held[shared:].tolist(), skip_special_tokens=True)).rstrip()
    size = 2 * (len(held) - shared) + 16
    return bool(text) and str(
        tokenizer.decode(prompt[shared : shared + size].tolist(), skip_special_tokens=True)
    ).lstrip("\ufffd").startswith(text.lstrip("\ufffd"))


def _encoded_anew(tokenizer: Any, ids: Sequence[int]) -> int | None:
    """How many ids the text of an answer is when it is encoded, None where it is the same ones again."""
    listed = np.asarray(ids, np.int64).tolist()
    anchor = next(iter(getattr(tokenizer, "all_special_tokens", ())), "")  # else a space may be put before the text
    text = str(tokenizer.decode(listed, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    again = list(tokenizer.encode(anchor + text, add_special_tokens=False))
    if anchor:
        again = again[1:]
    return None if again == listed or "\ufffd" in text else len(again)


def _tokens(number: int) -> str:
    return "1 token" if number == 1 else f"{number} tokens"
