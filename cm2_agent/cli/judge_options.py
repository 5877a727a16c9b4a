"""The options by which a command names a judge, and the judge they make."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from cm2_agent.errors import JudgeError

if TYPE_CHECKING:
    from cm2_agent.llm.limits import Ledger
    from cm2_agent.rewards.judges.llm_judge import LLMJudge

KEY = "CM2_JUDGE_API_KEY"

JudgeOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--judge", metavar="MODEL", help="The model that judges: openai:gpt-5-mini, ollama:…, local:FOLDER."),
]
BaseUrlOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--judge-base-url", metavar="URL", help=f"An OpenAI-compatible server of MODEL (key: {KEY})."),
]
VotesOption: TypeAlias = Annotated[
    int | None, typer.Option("--votes", min=1, help="Votes per item, decided by majority (default: 1).")
]


class Protocol(Enum):
    turn = "turn"
    per_step = "per_step"


ProtocolOption: TypeAlias = Annotated[
    Protocol | None,
    typer.Option("--protocol", help="One call per turn (default), or per step and item as in the paper."),
]
UsdOption: TypeAlias = Annotated[
    float | None, typer.Option("--budget-usd", min=0, help="Stop before the judge costs more; run again to resume.")
]
CallsOption: TypeAlias = Annotated[
    int | None, typer.Option("--budget-calls", min=0, help="Stop after this many judge calls.")
]
ConcurrencyOption: TypeAlias = Annotated[
    int | None, typer.Option("--concurrency", min=1, help="Concurrent calls (default: 16).")
]
RpmOption: TypeAlias = Annotated[float | None, typer.Option("--rpm", min=1, help="Calls per minute.")]
TpmOption: TypeAlias = Annotated[float | None, typer.Option("--tpm", min=1, help="Tokens per minute.")]
PriceOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--price",
        metavar="INPUT,OUTPUT[,CACHED[,WRITTEN]]",
        help="USD per million tokens, where you do not pay the published price.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """The judge options of one command."""

    model: str | None
    base_url: str | None
    votes: int | None
    protocol: Protocol | None
    budget_usd: float | None
    budget_calls: int | None
    concurrency: int | None
    rpm: float | None
    tpm: float | None
    price: str | None

    def make(self, redact: Callable[[str], str] | None = None, *, ledger: Ledger | None = None) -> LLMJudge | None:
        """The judge, or None where no model is named; `redact` is applied to all that it is shown. A `ledger` holds
        rate and budget.

        Raises JudgeError where other options are given without a model, or its price is unknown."""
        if self.model is None:
            others = [f"--{name.replace('_', '-')}" for name, value in self.__dict__.items() if value is not None]
            if others:
                raise JudgeError(f"{', '.join(others)} needs a judge; name one: --judge openai:gpt-5-mini")
            return None
        from cm2_agent.llm.limits import RateLimits
        from cm2_agent.llm.prices import Price
        from cm2_agent.rewards.judges.client import openai_judge_model
        from cm2_agent.rewards.judges.llm_judge import LLMJudge

        model: Any = self.model
        if self.base_url is not None:
            if not re.match(r"https?://[^/]", self.base_url):
                raise JudgeError(
                    f"--judge-base-url is {self.base_url!r}; expected the server's URL, such as http://localhost:8000/v1"
                )
            model = openai_judge_model(self.base_url, self.model, api_key=os.environ.get(KEY))
        limits = RateLimits(
            concurrency=self.concurrency or 16,
            rpm=self.rpm,
            tpm=self.tpm,
            budget_usd=self.budget_usd,
            budget_calls=self.budget_calls,
            ledger=ledger,
        )
        price = None if self.price is None else Price.parse(self.price)
        protocol: Any = "turn" if self.protocol is None else self.protocol.value
        return LLMJudge(model, votes=self.votes or 1, protocol=protocol, limits=limits, price=price, redact=redact)


def usage_text(usage: Mapping[str, Any]) -> str:
    """What judging cost, as text."""
    if not usage:
        return "no judge was asked"
    usd = usage.get("usd")
    cost = "at an unknown price" if usd is None else f"{usd:.4g} USD"
    asked = usage.get("cached", 0) + usage.get("calls", 0)
    words = [
        f"{usage.get('calls', 0)} calls",
        f"{usage.get('input_tokens', 0)} + {usage.get('output_tokens', 0)} tokens",
        cost,
    ]
    words += [f"tokens of {usage['estimated']} calls estimated"] if usage.get("estimated") else []
    words += [f"{usage['re_asks']} re-asks"] if usage.get("re_asks") else []
    words += [f"{usage['escalated']} items escalated"] if usage.get("escalated") else []
    words += [f"{usage['cached']} verdicts known already"] if asked and usage.get("cached") else []
    return ", ".join(words)
