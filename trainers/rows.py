"""Token rows: what a stored trace becomes for training, by the ids that the model really read and wrote.

Nothing here needs torch: `cm2 train --rows-only` counts rows on any machine.

A model call is its prompt and its completion. While each call's prompt extends what the row already holds, the calls
of a dialogue share one row, over turns and runs; where a template rewrote the past (Qwen3's own drops earlier
thinking) the row forks and a new one begins. Model tokens stand in spans, one a step, so that a token's turn, step,
logprob and advantage are never guessed; everything else (prompts, tool results, messages that the graph wrote itself)
is outside the spans and masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cm2_agent.errors import TrainError
from cm2_agent.types.packed import Packed
from cm2_agent.types.run import ModelCall
from cm2_agent.types.trace import Step, Trace

TEXT_ONLY = "no token ids"
"""The reason of a trace that is words alone: imported, or from a hosted model that gives no ids."""
TOO_LONG = "longer than max_length"
NO_STEP = "no assistant step"

Floats: TypeAlias = NDArray[np.float64]
Credit: TypeAlias = Callable[[int, int], float]
"""The advantage of every token of step (turn, step in the turn), both 0-based."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """The tokens of one step in a row: `ids[start:stop]`, 0 < start < stop. `turn` and `step` (within the turn) are
    0-based.

    `logprobs` are log μ, one a token, as the sampler recorded them; None in a row for imitation. `advantage` holds for
    every token.
    """

    start: int
    stop: int
    turn: int
    step: int
    logprobs: Sequence[float] | None = None
    advantage: float = 0.0

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training sequence of T tokens. Spans are in order and do not overlap.

    `temperature` is that of the behaviour policy and `policy` its version. `exact`: the logprobs are those of the
    model's whole distribution at that temperature, so that the same weights must give them again. A `retokenised` row
    was made from words: its ids need not be what any model wrote, and there is no logprob; it is for imitation and
    never for GRPO.
    """

    trace_id: str
    ids: Sequence[int]
    """(T,) packed as int32 (`numpy.asarray` takes them as they are): in the memory of the trace where it was stored."""
    spans: tuple[Span, ...]
    temperature: float | None = None
    policy: str | None = None
    exact: bool = False
    retokenised: bool = False

    @property
    def trainable_by_grpo(self) -> bool:
        return not self.retokenised and all(span.logprobs is not None for span in self.spans)

    @property
    def trained(self) -> int:
        """How many tokens are the model's own."""
        return sum(len(span) for span in self.spans)

    @property
    def mask(self) -> tuple[int, ...]:
        """(T,) 1 where the token is the model's own."""
        mask = [0] * len(self.ids)
        for span in self.spans:
            mask[span.start : span.stop] = [1] * len(span)
        return tuple(mask)

    @property
    def logprobs(self) -> tuple[float | None, ...]:
        """(T,) log μ of model tokens, None elsewhere."""
        return tuple(
            None if span is None or span.logprobs is None else span.logprobs[place - span.start]
            for place, span in self._places()
        )

    @property
    def advantages(self) -> tuple[float, ...]:
        """(T,) the advantage of model tokens, 0 elsewhere."""
        return tuple(0.0 if span is None else span.advantage for _, span in self._places())

    @property
    def places(self) -> tuple[tuple[int, int] | None, ...]:
        """(T,) turn and step of model tokens, None elsewhere."""
        return tuple(None if span is None else (span.turn, span.step) for _, span in self._places())

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """(trained,) where the model tokens stand in `ids`."""
        return np.concatenate([np.arange(span.start, span.stop) for span in self.spans])

    @cached_property
    def mu(self) -> Floats:
        """(trained,) the recorded log μ of the model tokens, in their order."""
        logprobs = [span.logprobs for span in self.spans if span.logprobs is not None]
        return np.concatenate([np.asarray(one, np.float64) for one in logprobs]) if logprobs else np.empty(0)

    @cached_property
    def token_advantages(self) -> Floats:
        """(trained,) the advantages of the model tokens, in their order."""
        return np.repeat([span.advantage for span in self.spans], [len(span) for span in self.spans])

    def _places(self) -> Iterator[tuple[int, Span | None]]:
        spans = iter(self.spans)
        span = next(spans, None)
        for place in range(len(self.ids)):
            if span is not None and place >= span.stop:
                span = next(spans, None)
            yield place, span if span is not None and span.start <= place else None


@dataclass(frozen=True, kw_only=True)
class StepTokens:
    """One step's tokens before they are joined into rows: the ids that were read, and those that were written."""

    prompt: Sequence[int]
    completion: Sequence[int]
    turn: int
    step: int
    logprobs: Sequence[float] | None = None


def rows_of(
    trace: Trace, credit: Credit | None = None, *, imitation: bool = False, agent: str | None = None
) -> list[Row]:
    """The token rows of a trace, by the recorded ids of its main-line calls; each model token stands in exactly one
    span.

    `credit` gives the advantage of a step's tokens (0 where there is none). With `imitation` only ids are needed: how
    the tokens were sampled does not matter then. `agent`: the steps of this agent alone. Raises TrainError where there
    is an `untrainable_reason`: a rollout is used whole or not at all, since the advantage of its tokens is the worth of
    all of its steps.
    """
    reason = untrainable_reason(trace, imitation=imitation, agent=agent)
    if reason is not None:
        raise TrainError(
            f"trace {trace.id!r} cannot become rows: {reason}. Expected every step's model call with prompt and"
            " completion ids"
            + ("" if imitation else " and the sampler's own logprobs at a temperature above 0")
            + "; record it with LocalChatModel or an endpoint that returns them, or leave it to SFT."
        )
    return _rows(trace, credit, imitation=imitation, agent=agent)


def rows_or_reason(trace: Trace, credit: Credit | None = None, *, agent: str | None = None) -> list[Row] | str:
    """The rows of a trace (or of one agent's steps in it) as GRPO trains on them, or the reason why it is left out."""
    return untrainable_reason(trace, agent=agent) or _rows(trace, credit, imitation=False, agent=agent)


def _rows(trace: Trace, credit: Credit | None, *, imitation: bool, agent: str | None) -> list[Row]:
    steps = recorded_steps(trace, agent)
    calls = [call for _, call in steps]
    tokens = [
        StepTokens(
            prompt=call.prompt_ids or (),
            completion=call.completion_ids or (),
            logprobs=None if imitation else call.logprobs,
            turn=step.turn,
            step=step.index,
        )
        for step, call in steps
    ]
    temperatures = {_temperature(call) for call in calls}
    versions = {call.model_version for call in calls}
    return join(
        tokens,
        credit,
        trace_id=trace.id,
        temperature=temperatures.pop() if len(temperatures) == 1 else None,
        policy=versions.pop() if len(versions) == 1 else None,
        exact=all(exact(call) for call in calls),
    )


def join(
    steps: Sequence[StepTokens],
    credit: Credit | None,
    *,
    trace_id: str,
    temperature: float | None = None,
    policy: str | None = None,
    exact: bool = False,
    retokenised: bool = False,
) -> list[Row]:
    """Calls in order → rows: a call whose prompt begins with all that a row holds extends it, any other begins a new
    one. It is the latest such row: where agents take turns, each has its own.
    """
    rows: list[tuple[Sequence[int], list[Span]]] = []
    for one in steps:
        spans: list[Span] = []
        extended = next((at for at in reversed(range(len(rows))) if _begins_with(one.prompt, rows[at][0])), len(rows))
        if extended < len(rows):
            spans = rows[extended][1]
        start = len(one.prompt)
        spans.append(
            Span(
                start=start,
                stop=start + len(one.completion),
                turn=one.turn,
                step=one.step,
                logprobs=one.logprobs,
                advantage=0.0 if credit is None else credit(one.turn, one.step),
            )
        )
        rows[extended : extended + 1] = [(_joined(one.prompt, one.completion), spans)]
    return [
        Row(
            trace_id=trace_id,
            ids=Packed.of_ids(ids),
            spans=tuple(spans),
            temperature=temperature,
            policy=policy,
            exact=exact,
            retokenised=retokenised,
        )
        for ids, spans in rows
    ]


def _begins_with(prompt: Sequence[int], held: Sequence[int]) -> bool:
    if isinstance(prompt, Packed):
        return prompt.begins_with(held)
    return len(prompt) >= len(held) and tuple(prompt[: len(held)]) == held


def _joined(prompt: Sequence[int], completion: Sequence[int]) -> Sequence[int]:
    if isinstance(prompt, Packed) and isinstance(completion, Packed):
        return prompt.joined(completion)
    return (*prompt, *completion)


def recorded_steps(trace: Trace, agent: str | None = None) -> list[tuple[Step, ModelCall]]:
    """The steps (of one agent, where asked for) that a recorded model call wrote, in order. A step without a call is
    the graph's own words: part of what the model reads. Calls of a sub-agent that wrote no step are left out.
    """
    return [
        (step, step.call) for step in trace.steps if step.call is not None and (agent is None or step.agent == agent)
    ]


def untrainable_reason(trace: Trace, *, imitation: bool = False, agent: str | None = None) -> str | None:
    """Why a rollout is left out, in words that are the same for every rollout with that reason; None where it can be
    used. With `agent`, its steps alone decide.
    """
    steps = recorded_steps(trace, agent)
    if not trace.steps:
        return NO_STEP
    if agent is not None and all(step.agent != agent for step in trace.steps):
        return f"no step of the agent {agent}"
    if not steps:
        return TEXT_ONLY
    for _, call in steps:
        sampled = call.changed is None  # else the ids hold what somebody found wrong
        reason = _no_ids(call) if imitation and sampled else (call.untrainable or _no_ids(call))
        if reason is not None:
            return reason
    if not imitation:
        if len({_temperature(call) for _, call in steps}) > 1:
            return "several temperatures in one dialogue"
        if len({call.model_version for _, call in steps}) > 1:
            return "several policies in one dialogue"
    return None


def exact(call: ModelCall) -> bool:
    """Whether the logprobs are of the model's whole distribution at the call's temperature, nothing cut off or
    penalised.
    """
    sampling = call.sampling
    shaped = any(sampling.get(key) for key in ("grammar", "presence_penalty", "frequency_penalty", "min_p"))
    plain = sampling.get("top_p") in (None, 1, 1.0) and sampling.get("top_k") in (None, 0, -1)
    return plain and not shaped and sampling.get("repetition_penalty") in (None, 1, 1.0)


def _no_ids(call: ModelCall) -> str | None:
    if call.prompt_ids is None or call.completion_ids is None:
        return TEXT_ONLY
    if not call.prompt_ids:
        return "empty prompt"
    return None if call.completion_ids else "empty completion"


def _temperature(call: ModelCall) -> float | None:
    value = call.sampling.get("temperature")
    return None if value is None else float(value)
