"""LLMJudge: a language model that answers a checklist's questions with quotes that are checked.

One first-pass call a turn asks for all its open items, and one for those about the model's thinking, which no other is
shown; each answer is checked against the transcript before it counts."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

from langchain_core.language_models import BaseChatModel
from pydantic_ai.models import Model

from cm2_agent.errors import JudgeError
from cm2_agent.llm.client import CHARACTERS_A_TOKEN
from cm2_agent.llm.failures import RequestFailure
from cm2_agent.llm.limits import RateLimits
from cm2_agent.llm.prices import Price
from cm2_agent.llm.untrusted_text import control_tokens
from cm2_agent.llm.usage import Usage, note
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.json_values import content_hash
from cm2_agent.types.score import Verdict
from cm2_agent.types.trace import Trace

from .cache import VerdictCache
from .client import TOKENS_AN_ANSWER, JudgeClient, judge_model
from .forecast import Forecast, ForecastClient
from .known_verdicts import KnownVerdicts
from .panel import majority
from .prompt import INSTRUCTIONS, PROMPT_VERSION, Transcript, Window, item_line
from .rounds import Reversals, Rounds
from .transcript import REASONING
from .verdicts import failed_verdict, verdict_over_steps

Protocol = Literal["turn", "per_step"]
_MOST_TRANSCRIPTS = 256
_T = TypeVar("_T")


class LLMJudge:
    """Asks a model about a turn's items, and gives verdicts whose evidence stands in the transcript.

    A yes needs a quote that stands in the named step and part, word for word; else the item is asked once more and is
    then NULL (content). No failure becomes a verdict. `evidence` of a verdict is `{turn, step, from, snippet, judge}`
    with 0-based turn and step, as in a checklist's own evidence, or `{judge}` alone where nothing was quoted; `snippet`
    is the quote widened to its sentence, or to its key and value in JSON, and the quote itself is `quote` where it is
    another; `judge` is the name that the model returned, `reversed` what asking an absence in reverse brought.
    Raises JudgeError for arguments that cannot be used, MissingExtra where the provider's
    package is not installed.

    Args:
        model: A pydantic-ai model or its name (`openai:gpt-5-mini`), `local:FOLDER`, or a LangChain chat model;
            `openai_judge_model(base_url, name)` for a server of your own.
        votes: Samples an item, decided by majority (1 or more).
        settings: pydantic-ai model settings such as `{"temperature": 0}`.
        timeout: Seconds a request may take.
        retries: Requests beyond the first where the provider failed or the reply could not be read.
        backoff: Seconds before the first retry; doubled at each and jittered.
        longest_wait: Seconds; a provider that asks to wait longer is given up.
        max_items: A turn with more open items is split into several calls.
        max_tokens_per_call: So is one whose call would pass this many tokens, in and out.
        protocol: `"turn"`: one call a turn. `"per_step"` is the paper's: a call for each step of each item.
        limits: Concurrency, requests and tokens a minute, and a budget; may be shared with other judges.
        budget_usd: US dollars to spend in all, in place of `limits`.
        cache: Where verdicts are cached so that the same content is not asked twice; `run`, `score_traces` and `watch`
            give one to a judge that has none.
        price: US dollars a million tokens, where the published price is not yours.
        images: Show images to the model, which must take them.
        redact: Applied to every text before it is shown.
        reversed_share: Of the absences (an `avoid` item that was not violated, any other "no") this share, 0 to 1, is
            asked in reverse: "quote the violation, if there is one". Where that finds one, the verdict is NULL.
        seed: Draws them, together with what was judged: the same every time.

    >>> from cm2_agent import LLMJudge
    >>> judge = LLMJudge("test", votes=3)
    >>> judge.version.startswith("test:test;prompt=") and judge.version.endswith(";votes=3")
    True
    """

    def __init__(
        self,
        model: str | Model | BaseChatModel,
        *,
        votes: int = 1,
        settings: Mapping[str, Any] | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        backoff: float = 0.5,
        longest_wait: float = 60.0,
        max_items: int = 16,
        max_tokens_per_call: int = 200_000,
        protocol: Protocol = "turn",
        limits: RateLimits | None = None,
        budget_usd: float | None = None,
        cache: VerdictCache | None = None,
        price: Price | None = None,
        images: bool = False,
        redact: Callable[[str], str] | None = None,
        reversed_share: float = 0.1,
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            ("votes", votes, 1),
            ("retries", retries, 0),
            ("max_items", max_items, 1),
            ("timeout", timeout, 0.001),
        ):
            if not value >= least:
                raise JudgeError(f"{name} is {value}; expected {least} or more")
        if not 0 <= reversed_share <= 1:
            raise JudgeError(f"reversed_share is {reversed_share}; expected a share from 0 to 1")
        if protocol not in ("turn", "per_step"):
            raise JudgeError(
                f"protocol is {protocol!r}; expected 'turn' (one call a scope) or 'per_step' (one a step and item)"
            )
        if limits is not None and budget_usd is not None:
            raise JudgeError("both limits and budget_usd were given; give RateLimits(budget_usd=…) alone")
        self.model = judge_model(model)
        self.votes, self.protocol = votes, protocol
        self.max_items, self.max_tokens_per_call = max_items, max_tokens_per_call
        self.limits = limits or RateLimits(budget_usd=budget_usd)
        self.images, self.redact = images, redact
        self.reversals = Reversals(share=reversed_share, seed=seed)
        self._control = _control_of(self.model)
        self.name = f"{self.model.system}:{self.model.model_name}"
        self.settings: dict[str, Any] = dict(settings or {})
        self._client = JudgeClient(
            self.model,
            settings=self.settings,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            longest_wait=longest_wait,
            limits=self.limits,
            price=price,
        )
        self._known = KnownVerdicts(
            cache, content_hash([self.name, self.settings, PROMPT_VERSION, images, reversed_share, seed])
        )
        self._transcripts: OrderedDict[int, Transcript] = OrderedDict()
        self._lines: OrderedDict[int, tuple[Item, str]] = OrderedDict()

    @property
    def version(self) -> str:
        """Names the model as asked for, the prompt, votes, protocol and settings. `served` is what answered."""
        parts = [self.name, f"prompt={PROMPT_VERSION}"]
        parts += [f"votes={self.votes}"] if self.votes > 1 else []
        parts += [self.protocol] if self.protocol != "turn" else []
        parts += [f"settings={content_hash(self.settings)[:8]}"] if self.settings else []
        standard = Reversals()
        parts += [f"reversed={self.reversals.share:g}"] if self.reversals.share != standard.share else []
        parts += [f"seed={self.reversals.seed}"] if self.reversals.seed != standard.seed else []
        parts += [name for name, given in (("images", self.images), ("redacted", self.redact)) if given]
        return ";".join(parts)

    @property
    def served(self) -> str | None:
        """The model that answered last, by the name it returned; None before any answer."""
        return self._known.served

    @property
    def cache(self) -> VerdictCache | None:
        """Where verdicts are cached; None where every item is asked anew."""
        return self._known.cache

    @cache.setter
    def cache(self, cache: VerdictCache | None) -> None:
        self._known.cache = cache

    @property
    def usage(self) -> Usage:
        """Calls, re-asks, tokens and dollars of this judge alone; first-pass calls are `calls − re_asks` less the
        retries of failed calls."""
        return self._client.usage

    @property
    def spent_usd(self) -> float | None:
        """US dollars so far, None where a price was not known."""
        return self._client.usage.usd

    @property
    def is_free(self) -> bool:
        """Whether the price is known, and is nothing."""
        return self._client.is_free

    def forecast(self) -> Forecast:
        """What the judge was asked since the first call of this method, a copy: from that call on it asks nobody, and
        gives NULLs."""
        if not isinstance(self._client, ForecastClient):
            self._client = ForecastClient(self._client, self.votes)
        return self._client.forecast.copy()

    async def aclose(self) -> None:
        """Close the connections that this event loop's calls left open."""
        await self._client.aclose()

    @property
    def refused(self) -> str | None:
        """Why the provider last refused a request as it would any: its key, the model's name or the credit."""
        return self._client.refused

    async def __call__(self, trace: Trace, turn: int | None, items: Sequence[Item]) -> Sequence[Verdict]:
        """A verdict for each item, in the items' order. Raises BudgetExhausted where the budget stops it (what was
        judged by then is in the cache), JudgeRefused where its provider would refuse any request (the key, the model's
        name or the credit), and JudgeError where the scope has no step."""
        if not items:
            return []
        transcript = self._transcript(trace)
        if self.protocol == "per_step":
            rounds = await _all([self._per_step(transcript, turn, items, vote) for vote in range(self.votes)])
        else:
            rounds = await _all([self._in_turn(transcript, turn, items, vote) for vote in range(self.votes)])
        if self.votes == 1:
            return rounds[0]
        return [majority([verdicts[place] for verdicts in rounds]) for place in range(len(items))]

    async def _in_turn(
        self, transcript: Transcript, turn: int | None, items: Sequence[Item], vote: int
    ) -> list[Verdict]:
        """Who judges what was said and done is not shown what the model thought: items about its thinking are asked
        apart."""
        window = transcript.window(turn)
        if all(item.focus_on != REASONING for item in items):
            return await self._judged(transcript, window, items, vote)
        thinking = transcript.window(turn, reasoning=True)
        if thinking is window:
            return await self._judged(transcript, window, items, vote)
        parts = [
            (window, [item for item in items if item.focus_on != REASONING]),
            (thinking, [item for item in items if item.focus_on == REASONING]),
        ]
        judged = await _all([self._judged(transcript, one, some, vote) for one, some in parts if some])
        verdicts = {verdict.item: verdict for row in judged for verdict in row}
        return [verdicts[item.id] for item in items]

    async def _per_step(
        self, transcript: Transcript, turn: int | None, items: Sequence[Item], vote: int
    ) -> list[Verdict]:
        window = transcript.window(turn)
        steps = range(1, window.last - window.first + 2)
        shown = [
            (item, transcript.window(turn, upto=step, reasoning=item.focus_on == REASONING))
            for item in items
            for step in steps
        ]
        rows = await _all([self._judged(transcript, window, [item], vote) for item, window in shown])
        return [
            verdict_over_steps(item, [row[0] for row in rows[place * len(steps) : (place + 1) * len(steps)]])
            for place, item in enumerate(items)
        ]

    async def _judged(self, transcript: Transcript, window: Window, items: Sequence[Item], vote: int) -> list[Verdict]:
        """The items' verdicts within one window: those known first, the others asked."""
        lines = [self._line(item) for item in items]
        known = self._known.get(window, lines, vote)
        if cached := sum(verdict is not None for verdict in known):
            self._client.usage.add(cached=cached)
            note(cached=cached)
        waiting = [(item, line) for item, line, verdict in zip(items, lines, known, strict=True) if verdict is None]
        fresh: dict[str, Verdict] = {}
        if waiting:
            for part in await _all(
                [self._asked(transcript, window, chunk, vote) for chunk in self._chunks(window, waiting)]
            ):
                fresh |= part
        return [verdict or fresh[item.id] for item, verdict in zip(items, known, strict=True)]

    async def _asked(
        self, transcript: Transcript, window: Window, items: Sequence[tuple[Item, str]], vote: int
    ) -> dict[str, Verdict]:
        """One call for the items, and more about those whose evidence does not hold."""
        if self._client.estimate(window, {items[0][0].id: items[0][1]}) > self.max_tokens_per_call:
            too_long = RequestFailure(
                cause="content", explanation=f"the transcript passes {self.max_tokens_per_call} tokens a call"
            )
            return {item.id: failed_verdict(item, too_long) for item, _ in items}
        rounds = Rounds(
            client=self._client,
            known=self._known,
            transcript=transcript,
            window=window,
            vote=vote,
            reversals=self.reversals,
        )
        return await rounds.verdicts(items)

    def _chunks(self, window: Window, items: Sequence[tuple[Item, str]]) -> list[Sequence[tuple[Item, str]]]:
        """The items in as few calls as the two limits allow."""
        shown = (len(INSTRUCTIONS) + len(window.text)) // CHARACTERS_A_TOKEN
        chunks: list[list[tuple[Item, str]]] = [[]]
        size = shown
        for pair in items:
            tokens = len(pair[1]) // CHARACTERS_A_TOKEN + TOKENS_AN_ANSWER
            if chunks[-1] and (len(chunks[-1]) >= self.max_items or size + tokens > self.max_tokens_per_call):
                chunks.append([])
                size = shown
            chunks[-1].append(pair)
            size += tokens
        return list(chunks)

    def _transcript(self, trace: Trace) -> Transcript:
        """The trace's rendering, made once; the trace is held, so its id cannot be another's."""
        known = self._transcripts.get(id(trace))
        if known is None or known.trace is not trace:
            known = self._transcripts[id(trace)] = Transcript(
                trace=trace, images=self.images, redact=self.redact, control=self._control
            )
            if len(self._transcripts) > _MOST_TRANSCRIPTS:
                self._transcripts.popitem(last=False)
        return known

    def _line(self, item: Item) -> str:
        known = self._lines.get(id(item))
        if known is None or known[0] is not item:
            known = self._lines[id(item)] = (item, item_line(item))
            if len(self._lines) > _MOST_TRANSCRIPTS * 16:
                self._lines.popitem(last=False)
        return known[1]


def _control_of(model: Model) -> frozenset[str]:
    """The special tokens of a local model's own tokenizer: no text that is judged may write one."""
    tokenizer = getattr(getattr(model, "chat", None), "tokenizer", None)
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    named = getattr(tokenizer, "all_special_tokens", ())
    return control_tokens({*map(str, named), *(str(token.content) for token in added if token.special)})


async def _all(tasks: Sequence[Awaitable[_T]]) -> list[_T]:
    """All results; where one fails the others are still awaited, so that what they learn is kept, and the first failure
    is raised."""
    if len(tasks) == 1:
        return [await tasks[0]]
    done = await asyncio.gather(*tasks, return_exceptions=True)
    for result in done:
        if isinstance(result, BaseException):
            raise result
    return cast("list[_T]", done)


__all__ = ["LLMJudge"]
