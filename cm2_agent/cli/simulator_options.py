"""The options of a run's environment: tool backends, the simulator, the simulated user, and faults."""

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

    from cm2_agent.llm.limits import RateLimits
    from cm2_agent.llm.prices import Price
    from cm2_agent.redaction.redactor import Redactor
    from cm2_agent.store import SQLStore
    from cm2_agent.types.protocols import ToolBackend, User
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
        "--simulator", metavar="MODEL", help="The model that simulates tools: openai-chat:gpt-5-mini, local:FOLDER."
    ),
]
UserOption: TypeAlias = Annotated[
    str | None, typer.Option("--user", metavar="MODEL", help="The model that plays the users of tasks with a persona.")
]
BaseUrlOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--simulator-base-url", metavar="URL", help=f"An OpenAI-compatible server of both (key: {KEY})."),
]
BudgetOption: TypeAlias = Annotated[
    float | None,
    typer.Option("--budget-usd", min=0, help="Stop before simulator and user cost more; run again to resume."),
]
PriceOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--price", metavar="INPUT,OUTPUT", help="USD per million tokens, where you do not pay the published price."
    ),
]
FaultsOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--faults", metavar="KIND=RATE,…", help="Make tools fail: timeout=0.02,error=0.05,empty=0.01,truncated=0.01."
    ),
]
RecordingOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--recording", metavar="FILE", help="Calls written by --record, replayed with each task's own."),
]
RecordOption: TypeAlias = Annotated[
    Path | None, typer.Option("--record", metavar="FILE", help="Write the calls of tools with backend record to FILE.")
]


@dataclass(frozen=True, kw_only=True)
class SimulatorModels:
    """The named models, with the one server and budget they share."""

    simulator: str | None
    user: str | None = None
    base_url: str | None = None
    budget_usd: float | None = None
    price: str | None = None
    redact: Redactor | None = None

    def limits(self) -> RateLimits:
        from cm2_agent.llm.limits import RateLimits

        return RateLimits(budget_usd=self.budget_usd, of="simulator")

    def make(
        self, store: SQLStore | None, *, seed: int, limits: RateLimits, cached: bool = True
    ) -> tuple[Callable[[Task], ToolBackend] | None, Callable[[Task], User] | None]:
        """Functions that make a task's simulator and its user, None for a model that is not named. With `cached` the
        simulator caches its answers in the store, or in memory without one. Raises CM2Error for a model that cannot
        be used."""
        from cm2_agent.llm.prices import Price

        price = None if self.price is None else Price.parse(self.price)
        if self.simulator is None and self.user is None:
            others = {"--simulator-base-url": self.base_url, "--budget-usd": self.budget_usd, "--price": self.price}
            unused = [name for name, value in others.items() if value is not None]
            if unused:
                raise ToolError(f"{', '.join(unused)} needs a model; name one: --simulator MODEL, or --user MODEL")
        return (
            None if self.simulator is None else self._simulator_factory(store, seed, limits, price, cached),
            None if self.user is None else self._user_factory(seed, limits, price),
        )

    def _simulator_factory(
        self, store: SQLStore | None, seed: int, limits: RateLimits, price: Price | None, cached: bool
    ) -> Any:
        from cm2_agent.graphs.backends.simulate import SimulatedTools
        from cm2_agent.graphs.backends.simulation_cache import MemorySimulations

        model = self._model(str(self.simulator), "simulator")
        cache: Any = None
        if cached:
            cache = MemorySimulations() if store is None else store.simulation_cache()
        return lambda task: SimulatedTools(
            model, task=task, seed=seed, cache=cache, limits=limits, price=price, redact=self.redact
        )

    def _user_factory(self, seed: int, limits: RateLimits, price: Price | None) -> Any:
        from cm2_agent.graphs.users import LLMUser

        model = self._model(str(self.user), "user")
        return lambda task: (
            None
            if task.persona is None
            else LLMUser(model, task.persona, seed=seed, limits=limits, price=price, redact=self.redact)
        )

    def _model(self, name: str, of: str) -> Any:
        from cm2_agent.llm.providers import language_model, openai_model

        if self.base_url is None:
            return language_model(name, of=of)
        if not re.match(r"https?://[^/]", self.base_url):
            raise CM2Error(
                f"--simulator-base-url is {self.base_url!r}; expected the server's URL, such as http://localhost:8000/v1"
            )
        return openai_model(self.base_url, name, api_key=os.environ.get(KEY))


def backends(options: list[str] | None) -> Any:
    """One backend for all tools, or `{tool: backend}` from NAME=BACKEND options. Raises ToolError."""
    from cm2_agent.graphs.backends.tool_backends import check_backends

    if not options:
        return "real"
    for_all = [one for one in options if "=" not in one]
    if for_all and len(options) > 1:
        raise ToolError(
            f"--tools was given as {', '.join(options)}; expected one BACKEND for all tools, or NAME=BACKEND for each"
        )
    chosen: str | Mapping[str, str] = for_all[0] if for_all else dict(one.split("=", 1) for one in options)
    check_backends(chosen)
    return chosen
