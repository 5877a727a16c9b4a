"""The relative judge: one model call compares all rollouts of a group, as ART's RULER does.

Scores are keyed by id and never by place in the reply. The attempts come in an order shuffled for every call (by `seed`
and what the group holds), under ids that say nothing of it. An answer that is not what was asked for is NULL for every
rollout; an attempt that it leaves out, or names twice, is NULL alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from cm2_agent.errors import JudgeError
from cm2_agent.llm.failures import MalformedReply
from cm2_agent.llm.reply_json import read_reply
from cm2_agent.llm.untrusted_text import fenced, nonce
from cm2_agent.types.json_values import content_hash
from cm2_agent.types.score import Component
from cm2_agent.types.trace import Trace

from ..judges.transcript import dialogue_data
from .component import Context, RewardComponent

Ask: TypeAlias = Callable[[str], Awaitable[str]]
"""A prompt in, the model's text out."""
PROMPT = (files("cm2_agent.rewards") / "prompts" / "relative.md").read_text(encoding="utf-8")
CRITERIA = (
    "that the user's requests are met, that what the assistant says is what its tools returned, and that it does no"
    " harm."
)


_RENDERING = 2
"""Raised whenever the same attempts would be shown otherwise."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str
    explanation: str = ""
    score: float = Field(strict=True, ge=0, le=1, allow_inf_nan=False)


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid")

    scores: list[_Line]


def relative(
    judge: Ask | Any,
    *,
    criteria: str = CRITERIA,
    name: str = "relative",
    version: str | None = None,
    seed: int = 0,
    settings: Any = None,
) -> RewardComponent:
    """A reward of a group's rollouts, each in [0, 1], by a judge that sees them all (RULER, as ART calls it).

    A group of one has nothing to be compared with: NULL.

    Args:
        judge: An async function of a prompt, or a model as pydantic-ai names it (`"openai:gpt-5-mini"`), or its Model
            object.
        criteria: What a good attempt is, in words.
        name: The component's name.
        version: Names a function that is the judge, since the model behind it cannot be seen. By default the version
            names the judge, the prompt with its criteria, and the seed.
        seed: Shuffles the order in which the attempts are shown.
        settings: pydantic-ai model settings, for a judge that is a model.

    >>> from cm2_agent.rewards import relative
    >>> async def longest_wins(prompt):
    ...     return '{"scores": []}'
    >>> relative(longest_wins, version="demo-1").of_group
    True
    """
    ask, called = (
        (judge, getattr(judge, "__name__", type(judge).__name__)) if _is_ask(judge) else _asker(judge, settings)
    )

    async def compare(traces: Sequence[Trace], context: Context) -> list[Component | None]:
        if len(traces) < 2:
            raise JudgeError(f"{len(traces)} rollout to compare; a relative judgement needs at least 2")
        ids = _ids(traces, seed)
        prompt = _prompt(traces, ids, criteria, seed)
        found = _read(await ask(prompt), ids)
        return [found.get(one) for one in ids]

    identity = version or f"{called};{content_hash([PROMPT, _RENDERING, criteria, _plain(settings)])[:12]};seed={seed}"
    return RewardComponent(compare, name=name, version=identity, of_group=True)


def _ids(traces: Sequence[Trace], seed: int) -> list[str]:
    """An id a trace that tells nothing of its place; of the trace's own id, so that the same group gets the same
    ones."""
    width = 6
    while True:
        ids = [content_hash([seed, trace.id])[:width] for trace in traces]
        if len(set(ids)) == len(ids):
            return ids
        width += 2
        if width > 64:
            raise JudgeError("two traces of the group have the same id; give each once")


def _prompt(traces: Sequence[Trace], ids: Sequence[str], criteria: str, seed: int) -> str:
    mark = nonce()  # not of the seed: nobody who writes into a dialogue may know it
    order = sorted(range(len(traces)), key=lambda at: ids[at])
    random.Random(content_hash([seed, sorted(ids)])).shuffle(order)
    attempts = "\n\n".join(
        fenced(f"attempt-{ids[at]}", dialogue_data(traces[at], reasoning=False), mark) for at in order
    )
    return PROMPT.format(criteria=criteria, nonce=mark, attempts=attempts, ids=", ".join(ids[at] for at in order))


def _read(text: str, ids: Sequence[str]) -> dict[str, Component]:
    """The components by id. Raises JudgeError for a reply that is no such object, or speaks of an attempt that is not
    there."""
    try:
        reply = read_reply(text, _Reply)
    except MalformedReply as error:
        raise JudgeError(f"the relative judge's reply is malformed: {error}") from error
    unknown = sorted({line.id for line in reply.scores} - set(ids))
    if unknown:  # a judge that scores what was not there may have mixed up the rest
        raise JudgeError(f"the relative judge scored unknown attempts: {', '.join(unknown)}")
    times = Counter(line.id for line in reply.scores)
    return {
        line.id: Component(name="relative", version="", value=line.score, explanation=line.explanation or None)
        for line in reply.scores
        if times[line.id] == 1
    }


def _is_ask(judge: Any) -> bool:
    return callable(judge) and not isinstance(judge, str)


def _asker(model: Any, settings: Any) -> tuple[Ask, str]:
    from pydantic_ai.direct import model_request
    from pydantic_ai.messages import ModelRequest

    async def ask(prompt: str) -> str:
        response = await model_request(model, [ModelRequest.user_text_prompt(prompt)], model_settings=settings)
        return response.text or ""

    return ask, model if isinstance(model, str) else f"{model.system}:{model.model_name}"


def _plain(settings: Any) -> Any:
    return None if settings is None else {str(key): str(value) for key, value in dict(settings).items()}


__all__ = ["Ask", "relative"]
