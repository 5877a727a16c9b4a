"""Forecast: what a judge would be asked, without asking it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cm2_agent.llm.client import CHARACTERS_A_TOKEN
from cm2_agent.llm.failures import RequestFailure
from cm2_agent.llm.prices import cost

from .client import TOKENS_AN_ANSWER, JudgeClient, ServedAnswer
from .prompt import INSTRUCTIONS, Window, tail

_NOT_ASKED = RequestFailure(
    cause="infrastructure", explanation="a forecast: nobody was asked", retry=False, asked=False
)


@dataclass(kw_only=True)
class Forecast:
    """First calls, the questions in them, and their tokens: four characters a token in, 150 tokens an answer out. `usd`
    is None where the price is not known. Items of which a judge is to say whether they apply count as if they did.
    Asking again, and retries of failed calls, come on top."""

    calls: int = 0
    questions: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float | None = 0.0

    def __sub__(self, other: Forecast) -> Forecast:
        """What came after `other`, an earlier copy."""
        return Forecast(
            calls=self.calls - other.calls,
            questions=self.questions - other.questions,
            input_tokens=self.input_tokens - other.input_tokens,
            output_tokens=self.output_tokens - other.output_tokens,
            usd=None if self.usd is None or other.usd is None else self.usd - other.usd,
        )

    def __add__(self, other: Forecast) -> Forecast:
        return self - (Forecast() - other)

    def copy(self) -> Forecast:
        return replace(self)


class ForecastClient(JudgeClient):
    """Takes the place of a judge's client: counts what it would ask in `forecast`, and asks nobody. What the same
    content was asked before is not counted again, as the judge's cache would have it; `votes` are the samples an
    item."""

    def __init__(self, client: JudgeClient, votes: int) -> None:
        super().__init__(client.model, settings=client.settings, limits=client.limits, price=client.price)
        self.forecast = Forecast()
        self._votes = votes
        self._seen: Counter[tuple[str, str, str]] = Counter()

    async def verdicts(
        self,
        window: Window,
        items: Mapping[str, str],
        found: dict[str, ServedAnswer | RequestFailure],
        *,
        note: str = "",
        re_ask: bool = False,
    ) -> None:
        """A failure for every item, which says that nobody was asked."""
        found.update(dict.fromkeys(items, _NOT_ASKED))
        fresh = {name: line for name, line in items.items() if self._is_new(window, line)}
        if not fresh:
            return
        shown = len(INSTRUCTIONS) + len(window.text) + len(tail(window, list(fresh.items()), note))
        read, made = shown // CHARACTERS_A_TOKEN, TOKENS_AN_ANSWER * len(fresh)
        usd = cost(self.model.model_name, read, made, provider=self.model.system, price=self.price)
        self.forecast += Forecast(calls=1, questions=len(fresh), input_tokens=read, output_tokens=made, usd=usd)

    def _is_new(self, window: Window, line: str) -> bool:
        key = (window.digest, window.scope, line)
        self._seen[key] += 1
        return self._seen[key] <= self._votes


__all__ = ["Forecast", "ForecastClient"]
