"""The judge that a command names: its options, what it took, and a second opinion beside the first; apart from the
commands that ask it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from cm2_agent.cli.common import console, one_line, plain
from cm2_agent.errors import JudgeError

if TYPE_CHECKING:
    from cm2_agent.analysis.version_diff import Change
    from cm2_agent.rewards.judges.llm_judge import LLMJudge
    from cm2_agent.store import SQLStore

KEY = "CM2_JUDGE_API_KEY"

JudgeOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--judge", metavar="MODEL", help="Who answers the questions: openai:gpt-5-mini, ollama:…, local:FOLDER."
    ),
]
BaseUrlOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--judge-base-url", metavar="URL", help=f"An OpenAI-compatible server that has MODEL (key: {KEY})."),
]
VotesOption: TypeAlias = Annotated[
    int | None, typer.Option("--votes", min=1, help="Samples an item, decided by majority (default: 1).")
]


class Protocol(Enum):
    turn = "turn"
    per_step = "per_step"


ProtocolOption: TypeAlias = Annotated[
    Protocol | None, typer.Option("--protocol", help="A call a turn (default), or the paper's call a step and item.")
]
UsdOption: TypeAlias = Annotated[
    float | None, typer.Option("--budget-usd", min=0, help="Stop before the judge has cost more; run again to go on.")
]
CallsOption: TypeAlias = Annotated[
    int | None, typer.Option("--budget-calls", min=0, help="Stop after this many calls of the judge.")
]
ConcurrencyOption: TypeAlias = Annotated[
    int | None, typer.Option("--concurrency", min=1, help="Calls at a time (default: 16).")
]
RpmOption: TypeAlias = Annotated[float | None, typer.Option("--rpm", min=1, help="Calls a minute.")]
TpmOption: TypeAlias = Annotated[float | None, typer.Option("--tpm", min=1, help="Tokens a minute.")]
PriceOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--price", metavar="INPUT,OUTPUT", help="USD a million tokens, where the published price is not yours."
    ),
]


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """What was typed."""

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

    def make(self) -> LLMJudge | None:
        """The judge, None where none was named. Raises JudgeError where options stand without one, or its price is not
        known."""
        if self.model is None:
            given = [f"--{name.replace('_', '-')}" for name, value in self.__dict__.items() if value is not None]
            if given:
                raise JudgeError(f"{', '.join(given)} without a judge; name one: --judge openai:gpt-5-mini")
            return None
        from cm2_agent.llm.limits import Limits
        from cm2_agent.llm.prices import Price
        from cm2_agent.rewards.judges.judge_models import openai_judge_model
        from cm2_agent.rewards.judges.llm_judge import LLMJudge

        model: Any = self.model
        if self.base_url is not None:
            if not re.match(r"https?://[^/]", self.base_url):
                raise JudgeError(
                    f"--judge-base-url is {self.base_url!r}; expected the server's URL, such as http://localhost:8000/v1"
                )
            model = openai_judge_model(self.base_url, self.model.removeprefix("openai:"), api_key=os.environ.get(KEY))
        limits = Limits(
            concurrency=self.concurrency or 16,
            rpm=self.rpm,
            tpm=self.tpm,
            budget_usd=self.budget_usd,
            budget_calls=self.budget_calls,
        )
        price = None if self.price is None else Price.parse(self.price)
        protocol: Any = "turn" if self.protocol is None else self.protocol.value
        return LLMJudge(model, votes=self.votes or 1, protocol=protocol, limits=limits, price=price)


def again(store: SQLStore, version: str) -> tuple[str, str | None, str]:
    """For a second opinion: the reward version to score under, the one to compare it with, and the salt of its cache.

    A version that is new by itself (another judge or checklist) is its own second opinion. Else a number makes it one,
    `…;again=1`; an opinion that was interrupted is gone on with."""
    known = store.reward_versions()
    if version not in known:
        name = _checklist_name(version)
        return version, next((one for one in known if _checklist_name(one) == name), None), ""
    numbers = {
        int(found[1]): one for one in known if (found := re.fullmatch(re.escape(version) + r";again=(\d+)", one))
    }
    last = max(numbers, default=0)
    if last and next(store.traces(unscored=True, reward=numbers[last], limit=1), None) is not None:
        last -= 1
    earlier = numbers.get(last, version)
    return f"{version};again={last + 1}", earlier, f"again={last + 1}"


def _checklist_name(version: str) -> str:
    return re.split("[@:;]", version, maxsplit=1)[0]


def told(usage: Mapping[str, Any]) -> str:
    """What judging took, in words."""
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
    words += [f"{usage['re_asks']} re-asks"] if usage.get("re_asks") else []
    words += [f"{usage['escalated']} items escalated"] if usage.get("escalated") else []
    words += [f"{usage['cached']} verdicts known already"] if asked and usage.get("cached") else []
    return ", ".join(words)


def print_flips(change: Change) -> None:
    """The flip table: how many verdicts of each item went from what to what, with McNemar's p; and what became of the
    rewards."""
    from rich.table import Table
    from rich.text import Text

    from cm2_agent.analysis.version_diff import WORDS

    table = Table(title=plain(f"{change.traces} traces: {change.old} → {change.new}"), title_justify="left")
    moves = [(old, new) for old in (True, False, None) for new in (True, False, None) if old is not new]
    for name in ("item", "n", "flips", "p"):
        table.add_column(name, justify="right" if name in {"n", "p"} else "left", overflow="fold")
    for flips in (*change.items, change.overall):
        name = "(all)" if flips.item is None else one_line(flips.item, 60)
        moved = [f"{count} {WORDS[old]}→{WORDS[new]}" for old, new in moves if (count := flips.counts.get((old, new)))]
        table.add_row(
            *(Text(cell) for cell in (name, str(flips.compared), ", ".join(moved) or "none", f"{flips.p:.3g}"))
        )
    out = console(err=True)
    out.print(table)
    out.print(f"of {change.both_true} verdicts true in both, {change.same_step} hold from the same step")
    out.print(f"rewards: {change.up} higher, {change.down} lower, {change.same} the same")
    for (old, new), count in change.null.items():
        out.print(plain(f"{count} × {old or 'a reward'} → {new or 'a reward'}"), soft_wrap=True)
