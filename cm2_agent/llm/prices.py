"""What a language model's tokens cost, in US dollars, as genai-prices publishes it.

A price that nobody knows is None, never 0: a budget in dollars cannot be held by it and is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cm2_agent.errors import JudgeError


@dataclass(frozen=True, kw_only=True)
class Price:
    """US dollars a million tokens, where the published price is not what you pay (a local model: both 0).

    `cached` and `cache_write` are those of input read from a provider's cache and written to it; None: as any input.

    >>> from cm2_agent.llm import Price
    >>> Price(input=0.25, output=2.0).cost(1_000_000, 500_000)
    1.25
    """

    input: float
    output: float
    cached: float | None = None
    cache_write: float | None = None

    def __post_init__(self) -> None:
        given = [self.input, self.output, *(one for one in (self.cached, self.cache_write) if one is not None)]
        if not all(math.isfinite(value) and value >= 0 for value in given):
            raise JudgeError(
                f"a price is {', '.join(map(str, given))}; expected US dollars a million tokens (input, output, cached"
                " input, input written to a cache), 0 or more"
            )

    @classmethod
    def parse(cls, text: str) -> Price:
        """`INPUT,OUTPUT[,CACHED[,WRITTEN]]` as the command line writes it. Raises JudgeError."""
        try:
            given = [float(part) for part in text.split(",")]
        except ValueError:
            given = []
        if not 2 <= len(given) <= 4:
            raise JudgeError(
                f"a price is {text!r}; expected US dollars a million tokens as INPUT,OUTPUT, such as 0.25,2, and after"
                " them, where they differ, those of input read from the provider's cache and written to it"
            )
        names = ("input", "output", "cached", "cache_write")
        return cls(**dict(zip(names, given, strict=False)))

    def cost(
        self, input_tokens: int, output_tokens: int, *, cached_tokens: int = 0, cache_write_tokens: int = 0
    ) -> float:
        """US dollars; the cached and the written tokens are among the input's."""
        cached = self.input if self.cached is None else self.cached
        written = self.input if self.cache_write is None else self.cache_write
        plain = max(0, input_tokens - cached_tokens - cache_write_tokens)
        dollars = self.input * plain + cached * cached_tokens + written * cache_write_tokens
        return (dollars + self.output * output_tokens) / 1e6


def cost(
    model: str,
    input_tokens: int,
    output_tokens: int,
    *,
    provider: str | None = None,
    cached_tokens: int = 0,
    cache_write_tokens: int = 0,
    price: Price | None = None,
) -> float | None:
    """US dollars for these tokens; None where the model's price is not known. `cached_tokens`, read from a provider's
    cache, and `cache_write_tokens` are among the input's.

    `model` is a name such as `openai:gpt-5-mini` or the one that a reply returned, with its `provider` beside it.
    `price` overrides what is published.

    >>> cost("openai:gpt-5-mini", 1_000_000, 0)
    0.25
    >>> cost("somebody:unheard-of", 1000, 10) is None
    True
    """
    if price is not None:
        return price.cost(
            input_tokens, output_tokens, cached_tokens=cached_tokens, cache_write_tokens=cache_write_tokens
        )
    from genai_prices import Usage, calc_price

    named, _, name = model.rpartition(":")
    try:
        usage = Usage(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cache_read_tokens=cached_tokens,
            cache_write_tokens=cache_write_tokens,
        )
        found = calc_price(usage, name, provider_id=_PROVIDERS.get(provider or named, provider or named) or None)
    except LookupError:
        return None
    return float(found.total_price)


_PROVIDERS = {
    "openai-responses": "openai",
    "openai-chat": "openai",
    "google-gla": "google",
    "google-vertex": "google",
    "google-cloud": "google",
    "gateway/openai": "openai",
    "gateway/anthropic": "anthropic",
}
"""Names under which pydantic-ai and genai-prices know the same seller."""


__all__ = ["Price", "cost"]
