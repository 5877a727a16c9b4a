"""The judge that asks a language model: one first-pass call a scope for all its open items, each answer checked against
the transcript before it counts. Apart from the asking (judge_call), the prompt (judge_prompt) and the evidence rules
(evidence), which it joins."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, cast

from langchain_core.language_models import BaseChatModel
from pydantic_ai.models import Model

from cm2_agent.errors import BudgetExhausted, JudgeError
from cm2_agent.llm.client import CHARACTERS_A_TOKEN, RequestFailure
from cm2_agent.llm.limits import RateLimits
from cm2_agent.llm.prices import Price
from cm2_agent.llm.usage import Usage, note
from cm2_agent.types.checklist_item import Item
from cm2_agent.types.json_values import content_hash
from cm2_agent.types.score import Verdict
from cm2_agent.types.trace import Trace

from .cache import VerdictCache
from .client import TOKENS_AN_ANSWER, JudgeClient, ServedAnswer
from .evidence import quote_problem
from .judge_models import judge_model
from .panel import majority
from .prompt import INSTRUCTIONS, PROMPT_VERSION, Transcript, Window, item_line

Protocol = Literal["turn", "per_step"]
_REMEMBERED = 256
_AGAIN = (
    "You were asked these items before. Your answers could not be used: {problems}. Answer anew. Quote verbatim from"
    " the judged steps, or answer no or cannot_tell."
)
_T = TypeVar("_T")


class LLMJudge:
    """Asks a model about a scope's items, and gives verdicts whose evidence stands in the transcript.

    `model`: a pydantic-ai model or its name, `local:FOLDER`, or a LangChain chat model (`judge_model`);
    `openai_judge_model(base_url, name)` for a server of your own. `votes`: samples an item, decided by majority.
    `settings`: pydantic-ai model settings such as `{"temperature": 0}`. `timeout` seconds and `retries` a call. A scope
    is split where it has more than `max_items` open items or the call would pass `max_tokens_per_call`.
    `protocol="per_step"` is the paper's: a call for each step of each item. `limits` may be shared with other judges;
    `budget_usd` makes one. `cache` keeps verdicts so that the same content is not asked twice (`run`, `score_traces`
    and `watch` give one to a judge that has none). `price` where the published one is not yours. `images=True` where
    the model takes them. `redact` is applied to every text before it is shown.

    A yes needs a quote that stands in the named step and part; else the item is asked once more and then NULL
    (content). No failure becomes a verdict (judge_call). `evidence` of a verdict: `{turn, step, from, snippet, judge}`
    with 0-based turn and step as in a checklist's own evidence, or `{judge}` alone where nothing was quoted; `judge` is
    the model's returned name. Raises JudgeError, MissingExtra.

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
    ) -> None:
        for name, value, least in (
            ("votes", votes, 1),
            ("retries", retries, 0),
            ("max_items", max_items, 1),
            ("timeout", timeout, 0.001),
        ):
            if not value >= least:
                raise JudgeError(f"{name} is {value}; expected {least} or more")
        if protocol not in ("turn", "per_step"):
            raise JudgeError(
                f"protocol is {protocol!r}; expected 'turn' (one call a scope) or 'per_step' (one a step and item)"
            )
        if limits is not None and budget_usd is not None:
            raise JudgeError("both limits and budget_usd were given; give RateLimits(budget_usd=…) alone")
        self.model = judge_model(model)
        self.votes, self.max_items, self.max_tokens_per_call, self.protocol = (
            votes,
            max_items,
            max_tokens_per_call,
            protocol,
        )
        self.limits = limits or RateLimits(budget_usd=budget_usd)
        self.cache, self.images, self.redact = cache, images, redact
        self.name = f"{self.model.system}:{self.model.model_name}"
        self.settings: dict[str, Any] = dict(settings or {})
        self._caller = JudgeClient(
            self.model,
            settings=self.settings,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            longest_wait=longest_wait,
            limits=self.limits,
            price=price,
        )
        self._identity = content_hash([self.name, self.settings, PROMPT_VERSION, images])
        self._served: str | None = None
        self._names: list[str] | None = None
        self._transcripts: OrderedDict[int, Transcript] = OrderedDict()
        self._lines: OrderedDict[int, tuple[Item, str]] = OrderedDict()

    @property
    def version(self) -> str:
        """Names the model as asked for, the prompt, votes, protocol and settings. `served` is what answered."""
        parts = [self.name, f"prompt={PROMPT_VERSION}"]
        parts += [f"votes={self.votes}"] if self.votes > 1 else []
        parts += [self.protocol] if self.protocol != "turn" else []
        parts += [f"settings={content_hash(self.settings)[:8]}"] if self.settings else []
        parts += [name for name, given in (("images", self.images), ("redacted", self.redact)) if given]
        return ";".join(parts)

    @property
    def served(self) -> str | None:
        """The model that answered last, by the name it returned; None before any answer."""
        return self._served

    @property
    def usage(self) -> Usage:
        """Calls, re-asks, tokens and dollars of this judge alone; first-pass calls are `calls − re_asks` less the
        retries of failed calls."""
        return self._caller.usage

    @property
    def spent_usd(self) -> float | None:
        """US dollars so far, None where a price was not known."""
        return self._caller.usage.usd

    async def aclose(self) -> None:
        """Close the connections that this event loop's calls left open."""
        await self._caller.aclose()

    async def __call__(self, trace: Trace, turn: int | None, items: Sequence[Item]) -> Sequence[Verdict]:
        """A verdict for each item, in the items' order. Raises BudgetExhausted where the budget stops it (what was
        judged by then is in the cache); JudgeError where the scope has no step."""
        if not items:
            return []
        transcript = self._transcript(trace)
        if self.protocol == "per_step":
            rounds = await _all([self._per_step(transcript, turn, items, vote) for vote in range(self.votes)])
        else:
            window = transcript.window(turn)
            rounds = await _all([self._judged(transcript, window, items, vote) for vote in range(self.votes)])
        if self.votes == 1:
            return rounds[0]
        return [majority([verdicts[place] for verdicts in rounds]) for place in range(len(items))]

    async def _per_step(
        self, transcript: Transcript, turn: int | None, items: Sequence[Item], vote: int
    ) -> list[Verdict]:
        window = transcript.window(turn)
        steps = range(1, window.last - window.first + 2)
        windows = [transcript.window(turn, upto=step) for step in steps]
        rows = await _all([self._judged(transcript, shown, [item], vote) for item in items for shown in windows])
        return [
            _by_steps(item, [row[0] for row in rows[place * len(steps) : (place + 1) * len(steps)]])
            for place, item in enumerate(items)
        ]

    async def _judged(self, transcript: Transcript, window: Window, items: Sequence[Item], vote: int) -> list[Verdict]:
        """The items' verdicts within one window: those known first, the others asked."""
        lines = [self._line(item) for item in items]
        known = self._known(window, lines, vote)
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
        """One call for the items, a second one for those whose evidence does not hold."""
        if self._caller.estimate(window, {items[0][0].id: items[0][1]}) > self.max_tokens_per_call:
            too_long = RequestFailure(
                cause="content", explanation=f"the transcript passes {self.max_tokens_per_call} tokens a call"
            )
            return {item.id: _failed(item, too_long) for item, _ in items}
        answers: dict[str, ServedAnswer | RequestFailure] = {}
        try:
            await self._caller.verdicts(window, {item.id: line for item, line in items}, answers)
        except BudgetExhausted:
            paid = [(item, line) for item, line in items if item.id in answers]
            self._keep(window, paid, self._checked(transcript, window, paid, answers)[0], vote)
            raise
        verdicts, problems = self._checked(transcript, window, items, answers)
        self._keep(window, items, verdicts, vote)
        if problems:
            again = [(item, line) for item, line in items if item.id in problems]
            told = _AGAIN.format(problems="; ".join(f"{name}: {problem}" for name, problem in problems.items()))
            answers = {}
            await self._caller.verdicts(
                window, {item.id: line for item, line in again}, answers, note=told, re_ask=True
            )
            second, unproved = self._checked(transcript, window, again, answers)
            second |= {
                item.id: Verdict(
                    item=item.id,
                    value=None,
                    weight=0,
                    reason="judge failed",
                    cause="content",
                    explanation=f"unverifiable evidence: {unproved[item.id]}",
                    evidence=({"judge": self._served},),
                )
                for item, _ in again
                if item.id in unproved
            }
            self._keep(window, again, second, vote)
            verdicts |= second
        return verdicts

    def _checked(
        self,
        transcript: Transcript,
        window: Window,
        items: Sequence[tuple[Item, str]],
        answers: Mapping[str, ServedAnswer | RequestFailure],
    ) -> tuple[dict[str, Verdict], dict[str, str]]:
        """Verdicts by id, and what is wrong with the answers that are none."""
        verdicts: dict[str, Verdict] = {}
        problems: dict[str, str] = {}
        for item, _ in items:
            answered = answers[item.id]
            if isinstance(answered, RequestFailure):
                verdicts[item.id] = _failed(item, answered)
                continue
            self._serve(answered.served)
            made = _verdict(item, answered, transcript, window)
            if isinstance(made, str):
                problems[item.id] = made
            else:
                verdicts[item.id] = made
        return verdicts, problems

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

    def _key(self, window: Window, line: str, vote: int, served: str) -> str:
        text = (
            f"{self._identity}\0{served}\0{window.digest}\0{window.turn}:{window.first}-{window.last}\0{vote}\0{line}"
        )
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def _known(self, window: Window, lines: Sequence[str], vote: int) -> list[Verdict | None]:
        if self.cache is None:
            return [None] * len(lines)
        served = self._remembered()
        if served is None:
            return [None] * len(lines)
        keys = [self._key(window, line, vote, served) for line in lines]
        found = self.cache.get(keys)
        if found:
            self._caller.usage.add(cached=len(found))
            note(cached=len(found))
        return [found.get(key) for key in keys]

    def _keep(
        self, window: Window, items: Sequence[tuple[Item, str]], verdicts: Mapping[str, Verdict], vote: int
    ) -> None:
        if self.cache is None:
            return
        kept = {}
        for item, line in items:
            verdict = verdicts.get(item.id)
            if verdict is not None and verdict.evidence:  # a failure quotes no judge: it is asked again
                kept[self._key(window, line, vote, str(verdict.evidence[0]["judge"]))] = verdict
        if kept:
            self.cache.put(kept)

    def _remembered(self) -> str | None:
        """The returned name under which verdicts are looked up: the one that answered last, else the newest that the
        cache knows for this model and settings. Another returned name is another judge, so what the old one said is not
        found under it."""
        if self._served is None:
            if self._names is None:
                self._names = self._names_known()
            if self._names:
                self._served = self._names[-1]
        return self._served

    def _names_known(self) -> list[str]:
        """The names that this model has returned, oldest first, kept in the cache under numbers: entries there are
        never overwritten."""
        assert self.cache is not None
        names: list[str] = []
        while (kept := self.cache.get([self._name_key(len(names))])) and (
            name := next(iter(kept.values())).explanation
        ):
            names.append(name)
        return names

    def _name_key(self, number: int) -> str:
        return content_hash(["returned model", self._identity, number])

    def _serve(self, served: str) -> None:
        if served == self._served and self._names is not None:
            return
        self._served = served
        if self.cache is None:
            return
        if self._names is None:
            self._names = self._names_known()
        if served not in self._names:
            record = Verdict(item="returned model", value=None, weight=0, cause="content", explanation=served)
            self.cache.put({self._name_key(len(self._names)): record})
            self._names.append(served)

    def _transcript(self, trace: Trace) -> Transcript:
        """The trace's rendering, made once; the trace is held, so its id cannot be another's."""
        known = self._transcripts.get(id(trace))
        if known is None or known.trace is not trace:
            known = self._transcripts[id(trace)] = Transcript(trace=trace, images=self.images, redact=self.redact)
            if len(self._transcripts) > _REMEMBERED:
                self._transcripts.popitem(last=False)
        return known

    def _line(self, item: Item) -> str:
        known = self._lines.get(id(item))
        if known is None or known[0] is not item:
            known = self._lines[id(item)] = (item, item_line(item))
            if len(self._lines) > _REMEMBERED * 16:
                self._lines.popitem(last=False)
        return known[1]


def _verdict(item: Item, answered: ServedAnswer, transcript: Transcript, window: Window) -> Verdict | str:
    """The verdict that an answer is, or what is wrong with its evidence."""
    answer, judge = answered.answer, {"judge": answered.served}
    if answer.verdict == "cannot_tell":
        return Verdict(
            item=item.id,
            value=None,
            weight=0,
            reason="abstained",
            cause="content",
            explanation=answer.analysis,
            evidence=(judge,),
        )
    yes = answer.verdict == "yes"
    value = yes != (item.kind == "avoid")
    last = window.last - window.first + 1
    if not yes:
        return Verdict(
            item=item.id,
            value=value,
            weight=0,
            step=last if value else None,
            explanation=answer.analysis,
            evidence=(judge,),
        )
    quote = answer.evidence
    if quote is None:
        return "a yes without a quote"
    if not window.first <= quote.step <= window.last:
        return f"step {quote.step} is not among the judged {window.first} to {window.last}"
    wrong = quote_problem(item, quote.part, quote.quote, transcript.texts(quote.step, quote.part))
    if wrong is not None:
        return wrong
    at = transcript.step(quote.step)
    shown = {"turn": at.turn, "step": at.index, "from": quote.part, "snippet": quote.quote, **judge}
    flip = None if not value else quote.step - window.first + 1 if item.kind == "reach" else last
    return Verdict(item=item.id, value=value, weight=0, step=flip, explanation=answer.analysis, evidence=(shown,))


def _failed(item: Item, failure: RequestFailure) -> Verdict:
    return Verdict(
        item=item.id, value=None, weight=0, reason="judge failed", cause=failure.cause, explanation=failure.explanation
    )


def _by_steps(item: Item, rows: Sequence[Verdict]) -> Verdict:
    """One verdict from those after each step, as `shaping.flip_of` reads answers; a NULL leaves open what it could have
    changed."""
    if item.kind == "hold":
        return rows[-1]
    decisive = item.kind == "reach"  # the value that ends the matter: satisfied for reach, violated for avoid
    for step, verdict in enumerate(rows, 1):
        if verdict.value is decisive:
            return replace(verdict, step=step if decisive else None)
        if verdict.value is None and decisive:
            return verdict
    return next((verdict for verdict in rows if verdict.value is None), rows[-1])


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
