"""Whether the prompts that a model read hold what users and tools had said by then: asked of the tokens' text, since
logprobs that agree say nothing about words that were never shown."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cm2_agent.errors import TrainError

from .dataset import RolloutDataset, RolloutRows
from .shown_words import Said
from .validation import leave_out

LOST = "a prompt does not hold what users or tools said"
"""The reason of a rollout in which the model was never shown a message that it seems to answer."""
SYSTEMATIC = 0.5
"""The share of rollouts with lost words above which nothing is trained: the recording or the tokenizer is wrong."""
_NOT_LETTERS = re.compile(r"[\W_]+")


@dataclass(frozen=True, kw_only=True)
class LostWords:
    """A text that a call's prompt does not hold: of which role, and how the prompt ends."""

    trace_id: str
    span_id: str
    role: str
    text: str
    prompt: str

    def __str__(self) -> str:
        return (
            f"call {self.span_id} of trace {self.trace_id} does not hold the {self.role}'s {self.text[:80]!r}; its"
            f" prompt ends {self.prompt[-80:]!r}"
        )


def leave_out_lost(dataset: RolloutDataset, tokenizer: Any) -> RolloutDataset:
    """The dataset less the rollouts with lost words, counted under LOST. Raises TrainError where they are more than
    half, or nothing is left to learn from."""
    rollouts = [rollout for group in dataset.groups for rollout in group.rollouts]
    lost = {id(rollout): words for rollout in rollouts if (words := lost_words(rollout, tokenizer)) is not None}
    if len(lost) > SYSTEMATIC * len(rollouts):
        raise TrainError(
            f"{len(lost)} of {len(rollouts)} rollouts have prompts that do not hold what users or tools said:"
            f" {next(iter(lost.values()))}. Expected token ids of prompts that show each message. Either the policy"
            " has another tokenizer than the sampler, or the sampler's chat template loses messages; sample anew with"
            " a template that `cm2 model check` passes"
        )
    return leave_out(dataset, lost.keys(), LOST) if lost else dataset


def lost_words(rollout: RolloutRows, tokenizer: Any) -> LostWords | None:
    """The first text of a user or a tool that the prompt after it does not hold, in its order; None where all is
    there, and where the trace does not say what its model was shown.

    What a call was shown are its recorded messages (`ModelCall.input`), which a graph may have summarised. Without
    them it is the dialogue, if the first prompt holds its beginning. Templates may trim a text, or write it as JSON.
    """
    first = True
    shown = iter(rollout.shown)
    for row in rollout.rows:
        start = 0
        for span, one in zip(row.spans, shown, strict=False):
            prompt = _decoded(tokenizer, row.ids[start if one.goes_on else 0 : span.start])
            missing = missing_text(one.said, prompt, tokenizer)
            if missing is not None:
                if first and not one.recorded:
                    return None  # the ids were made from other words than the dialogue's
                role, text = missing
                return LostWords(trace_id=rollout.trace_id, span_id=one.span_id, role=role, text=text, prompt=prompt)
            start, first = span.stop, False
    return None


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    listed = np.asarray(ids, dtype=np.int64).tolist()
    return str(tokenizer.decode(listed, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def missing_text(said: Iterable[Said], prompt: str, tokenizer: Any) -> Said | None:
    """The first text of users and tools that is not in the prompt. Answers of tools may stand in another order than
    they came."""
    folded = _letters(prompt)
    place = end = 0
    used: dict[str, int] = {}
    for role, text in said:
        if role != "tool" or not used:
            place, used = end, {}
        for form in _forms(text, tokenizer):
            letters = _letters(form)
            if not letters:
                if form.strip() in prompt:
                    break
                continue
            found = folded.find(letters, used.get(letters, place))
            if found >= 0:
                after = found + len(letters)
                end = max(end, after)
                if role == "tool":
                    used[letters] = after
                break
        else:
            return role, text
    return None


def _forms(text: str, tokenizer: Any) -> Iterator[str]:
    """How a text may stand in a prompt, the likeliest first: as it is, as JSON, as HTML, as what its tokens say."""
    yield text
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield json.dumps(text)[1:-1]
    yield html.escape(text)
    for form in (text, text.strip()):
        try:
            yield _decoded(tokenizer, tokenizer.encode(form, add_special_tokens=False))
        except (TypeError, ValueError, UnicodeError):  # lone surrogates have no tokens
            continue


def _letters(text: str) -> str:
    """Letters and digits alone, without accents and case: what trimming, quoting and normalising leave."""
    return _NOT_LETTERS.sub("", unicodedata.normalize("NFKD", text).casefold())
