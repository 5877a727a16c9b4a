"""pydantic-ai agents that are watched: their own instrumentation writes spans to a provider of ours, which become runs.

Nothing here imports pydantic-ai before an agent of it is given: an application without one should not pay for it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

from cm2_agent.incidents import Incidents
from cm2_agent.tracing.span_trees import SpanTreeProcessor
from cm2_agent.types.run import Run

__all__ = ["check_agent", "is_agent", "watched_agent"]

VERSION: Final = 6
"""The format of pydantic-ai's spans that is asked for: answers of tools in messages of their own."""
_MARK: Final = "cm2_watch"
A = TypeVar("A")


def is_agent(given: object) -> bool:
    """Whether it is a pydantic-ai Agent, or wraps one."""
    module: Any = sys.modules.get("pydantic_ai.agent")
    return module is not None and isinstance(given, module.AbstractAgent)


def check_agent(agent: Any, *, selected: bool) -> None:
    """Raises TypeError for what cannot be watched: a wrapper around an agent, and selectors, which an agent has no use
    for; ValueError for an agent whose instrumentation writes elsewhere."""
    from pydantic_ai import Agent
    from pydantic_ai.models.instrumented import InstrumentedModel

    if not isinstance(agent, Agent):
        raise TypeError(
            f"watch was given a pydantic-ai {type(agent).__name__}; expected an Agent: watch the one that it wraps"
        )
    if selected:
        raise TypeError("input= and output= were given with a pydantic-ai Agent, which says itself what was said")
    if hasattr(agent.instrument, _MARK):
        raise ValueError(
            "the agent is watched already, so each of its runs would be stored twice; pass what this call adds to the"
            " first watch"
        )
    instrument = agent.instrument if agent.instrument is not None else agent._instrument_default
    if instrument or isinstance(agent.model, InstrumentedModel):
        raise ValueError(
            "the agent is instrumented already, and has one instrumentation alone; expected an agent without: capture"
            " the provider of its instrumentation (cm2_agent.capture(provider)), or take its instrument= away"
        )


def watched_agent(agent: A, on_run: Callable[[Run], None], incidents: Incidents) -> A:
    """The same kind of agent, whose runs go to `on_run`; the given one is as it was."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON
    from pydantic_ai.models.instrumented import InstrumentationSettings

    provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
    provider.add_span_processor(SpanTreeProcessor(on_run, incidents))
    settings = InstrumentationSettings(
        tracer_provider=provider, include_content=True, include_binary_content=True, version=VERSION
    )
    setattr(settings, _MARK, True)
    watched: Any = copy.copy(agent)
    watched.instrument = settings
    return watched  # type: ignore[no-any-return]  # a copy of what was given
