"""What a command is told of a run's environment: who answers for the tools, who speaks for the user, and what may go
wrong; apart from the commands that run or check it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from cm2_agent.errors import CM2Error, ToolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cm2_agent.graphs.backends.backends import Answering
    from cm2_agent.llm.limits import Limits
    from cm2_agent.llm.prices import Price
    from cm2_agent.store import SQLStore
    from cm2_agent.types.protocols import User
    from cm2_agent.types.task import Task

KEY = "CM2_SIMULATOR_API_KEY"
MODEL_KEY = "CM2_MODEL_API_KEY"

ToolsOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--tools", metavar="[NAME=]BACKEND", help="real (default), record, replay, simulate, hybrid; or NAME=BACKEND."
    ),
]
SimulatorOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--simulator", metavar="MODEL", help="Who answers in place of tools: openai-chat:gpt-5-mini, local:FOLDER, …"
    ),
]
UserOption: TypeAlias = Annotated[
    str | None, typer.Option("--user", metavar="MODEL", help="Who speaks for the users of tasks that have a persona.")
]
BaseUrlOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--simulator-base-url", metavar="URL", help=f"An OpenAI-compatible server of both (key: {KEY})."),
]
BudgetOption: TypeAlias = Annotated[
    float | None,
    typer.Option("--budget-usd", min=0, help="Stop before simulator and user have cost more; run again to go on."),
]
PriceOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--price", metavar="INPUT,OUTPUT", help="USD a million tokens, where the published price is not yours."
    ),
]
FaultsOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--faults", metavar="KIND=RATE,…", help="Tools that fail: timeout=0.02,error=0.05,empty=0.01,truncated=0.01."
    ),
]
RecordingOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--recording", metavar="FILE", help="Calls that --record wrote, replayed beside each task's own."),
]
RecordOption: TypeAlias = Annotated[
    Path | None, typer.Option("--record", metavar="FILE", help="Write the calls of tools with the backend record down.")
]


@dataclass(frozen=True, kw_only=True)
class Models:
    """The models that were named, behind one server and one budget where those were."""

    simulator: str | None
    user: str | None = None
    base_url: str | None = None
    budget_usd: float | None = None
    price: str | None = None

    def limits(self) -> Limits:
        from cm2_agent.llm.limits import Limits

        return Limits(budget_usd=self.budget_usd, of="simulator")

    def make(
        self, store: SQLStore | None, *, seed: int, limits: Limits, remembers: bool = True
    ) -> tuple[Callable[[Task], Answering] | None, Callable[[Task], User] | None]:
        """What makes a task's simulator, and what makes its user; None for what was not named. A simulator that
        `remembers` keeps its answers in the store, in memory where there is none. Raises CM2Error for a model that
        cannot be asked."""
        from cm2_agent.llm.prices import Price

        price = None if self.price is None else Price.parse(self.price)
        if self.simulator is None and self.user is None:
            given = {"--simulator-base-url": self.base_url, "--budget-usd": self.budget_usd, "--price": self.price}
            alone = [name for name, value in given.items() if value is not None]
            if alone:
                raise ToolError(f"{', '.join(alone)} without a model; name one: --simulator MODEL, or --user MODEL")
        return (
            None if self.simulator is None else self._simulating(store, seed, limits, price, remembers),
            None if self.user is None else self._speaking(seed, limits, price),
        )

    def _simulating(
        self, store: SQLStore | None, seed: int, limits: Limits, price: Price | None, remembers: bool
    ) -> Any:
        from cm2_agent.graphs.backends.simulate import SimulatedTools
        from cm2_agent.graphs.backends.simulations import MemorySimulations

        model = self._model(str(self.simulator), "simulator")
        cache: Any = None
        if remembers:
            cache = MemorySimulations() if store is None else store.simulation_cache()
        return lambda task: SimulatedTools(model, task=task, seed=seed, cache=cache, limits=limits, price=price)

    def _speaking(self, seed: int, limits: Limits, price: Price | None) -> Any:
        from cm2_agent.graphs.users import LLMUser

        model = self._model(str(self.user), "user")
        return lambda task: (
            None if task.persona is None else LLMUser(model, task.persona, seed=seed, limits=limits, price=price)
        )

    def _model(self, name: str, of: str) -> Any:
        from cm2_agent.llm.providers import language_model, openai_model

        if self.base_url is None:
            return language_model(name, of=of)
        if not re.match(r"https?://[^/]", self.base_url):
            raise CM2Error(
                f"--simulator-base-url is {self.base_url!r}; expected the server's URL, such as http://localhost:8000/v1"
            )
        return openai_model(self.base_url, name.removeprefix("openai:"), api_key=os.environ.get(KEY))


def backends(given: list[str] | None) -> Any:
    """`hybrid`, or `{tool: backend}` of NAME=BACKEND options. Raises ToolError."""
    from cm2_agent.graphs.backends.backends import check_backends

    if not given:
        return "real"
    plain = [one for one in given if "=" not in one]
    if plain and len(given) > 1:
        raise ToolError(
            f"--tools was given as {', '.join(given)}; expected one BACKEND for all tools, or NAME=BACKEND for each"
        )
    chosen: str | Mapping[str, str] = plain[0] if plain else dict(one.split("=", 1) for one in given)
    check_backends(chosen)
    return chosen
