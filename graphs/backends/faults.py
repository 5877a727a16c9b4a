"""Faults injected into tool calls, so that agents learn to recover from errors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

from cm2_agent.errors import ToolError
from cm2_agent.types.json_values import JSON, canonical_json
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest

Fault: TypeAlias = Literal["timeout", "error", "empty", "truncated"]
FAULTS: tuple[Fault, ...] = ("timeout", "error", "empty", "truncated")
BEFORE = frozenset({"timeout", "error"})
"""Faults that come before the tool: it is not called, so no write happens."""


class Faults:
    """Faults at set rates: `run(…, faults=Faults(timeout=0.02, error=0.05))`.

    A call meets at most one. The draw is a hash of the seed, the task, the call and how often it was answered before in
    the dialogue: the rollouts of a group meet the same fault in the same call, and a call that is repeated draws anew.

    Args:
        timeout: Probability in [0, 1] that the tool is not called and the agent reads of a time-out.
        error: Probability that the tool is not called and the agent reads of a service that is down.
        empty: Probability that an answer, of a real write too, becomes empty.
        truncated: Probability that an answer is cut; an error stays an error.
        seed: Of the draws.
        tools: Other rates for single tools, `{tool: {fault: rate}}`; a fault that is not named keeps the general rate.
        task: The task whose calls are drawn; `for_task` sets it.

    Raises:
        ToolError: A rate out of [0, 1], rates that sum to more than 1, or a fault that does not exist.

    >>> from cm2_agent import ToolSpec
    >>> from cm2_agent.graphs import CallLog, Faults, ToolRequest
    >>> Faults(timeout=1).draw(ToolRequest(tool=ToolSpec(name="get_order"), arguments={}), CallLog())
    'timeout'
    """

    def __init__(
        self,
        *,
        timeout: float = 0.0,
        error: float = 0.0,
        empty: float = 0.0,
        truncated: float = 0.0,
        seed: int = 0,
        tools: Mapping[str, Mapping[str, float]] | None = None,
        task: str = "",
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ToolError(f"seed={seed!r} of the faults is no whole number; give one, such as seed=0")
        self.rates = _rates({"timeout": timeout, "error": error, "empty": empty, "truncated": truncated}, "every tool")
        self.tools = {name: _rates({**self.rates, **own}, f"tool {name!r}") for name, own in (tools or {}).items()}
        self.seed, self.task = seed, task

    @classmethod
    def parse(cls, text: str) -> Faults:
        """From the command line: `timeout=0.02,error=0.05`, and also `seed=3` and `TOOL.timeout=0.1`. Raises
        ToolError."""
        rates: dict[str, float] = {}
        tools: dict[str, dict[str, float]] = {}
        seed = 0
        expected = (
            "expected NAME=RATE pairs such as timeout=0.02,refund.error=0.05,seed=1, the names being"
            f" {', '.join(FAULTS)}"
        )
        seen: set[str] = set()
        for pair in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = (part.strip() for part in pair.partition("="))
            tool, _, fault = name.rpartition(".")
            if not equals or name in seen or (fault not in FAULTS and name != "seed"):
                raise ToolError(
                    f"faults {text!r}: {pair!r} {'is named twice' if name in seen else 'is not known'}; {expected}"
                )
            seen.add(name)
            try:
                if name == "seed":
                    seed = int(value)
                else:
                    (tools.setdefault(tool, {}) if tool else rates)[fault] = float(value)
            except ValueError:
                raise ToolError(f"faults {text!r}: {value!r} is no number; {expected}") from None
        return cls(
            timeout=rates.get("timeout", 0.0),
            error=rates.get("error", 0.0),
            empty=rates.get("empty", 0.0),
            truncated=rates.get("truncated", 0.0),
            seed=seed,
            tools=tools,
        )

    def for_task(self, task_id: str) -> Faults:
        """The same faults as one task meets them."""
        made = Faults(seed=self.seed, tools=self.tools, task=task_id)
        made.rates = self.rates
        return made

    @property
    def version(self) -> str:
        """Rates and seed as canonical JSON, for the trace's attribute FAULTS: the same for all tasks."""
        return canonical_json({**self.rates, "seed": self.seed, "tools": self.tools})

    def draw(self, request: ToolRequest, log: CallLog) -> str | None:
        """The fault that this call meets, None for none."""
        rates = self.tools.get(request.tool.name, self.rates)
        left = _uniform([self.seed, self.task, request.key, log.count(request.key)])
        for fault, rate in rates.items():
            if left < rate:
                return fault
            left -= rate
        return None

    def faulty(self, fault: str, request: ToolRequest, answer: ToolAnswer | None) -> ToolAnswer:
        """The answer that the agent gets. `answer` is what the tool gave, which `timeout` and `error` don't have. A
        truncated answer is shorter by at least a character, where it had two. Raises ToolError for an unknown fault, or
        one that lacks its answer."""
        if fault in BEFORE:
            message = f"Tool {request.tool.name} timed out after 30 s" if fault == "timeout" else _UNAVAILABLE
            return ToolAnswer(
                content=message, error=True, backend="simulate" if answer is None else answer.backend, fault=fault
            )
        if fault not in FAULTS or answer is None:
            why = "is unknown" if fault not in FAULTS else "changes an answer, and was given none"
            raise ToolError(
                f"the fault {fault!r} of tool {request.tool.name!r} {why}; expected one of {', '.join(FAULTS)}"
            )
        if fault == "empty":
            return replace(answer, content="", fault=fault)
        return replace(
            answer,
            content=_truncated(answer.content, _uniform([self.seed, self.task, request.key, answer.content])),
            fault=fault,
        )


_UNAVAILABLE = "503 Service Unavailable: the service cannot answer at the moment. Try again later."


def _rates(rates: Mapping[str, float], whose: str) -> dict[str, float]:
    for fault, rate in rates.items():
        if fault not in FAULTS:
            raise ToolError(f"faults of {whose}: {fault!r} is no fault; expected {', '.join(FAULTS)}")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise ToolError(f"faults of {whose}: {fault}={rate!r} is no rate; expected a number from 0 to 1")
    if sum(rates.values()) > 1 + 1e-9:
        spelled = ", ".join(f"{fault}={rate}" for fault, rate in rates.items())
        raise ToolError(
            f"faults of {whose} come to more than 1 ({spelled}); a call meets at most one fault, so their rates may sum"
            " to 1"
        )
    return {fault: float(rates[fault]) for fault in FAULTS}


def _uniform(parts: list[JSON]) -> float:
    """A number in [0, 1), the same wherever it is drawn from the same parts."""
    digest = hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _truncated(content: str | list[JSON], place: float) -> str | list[JSON]:
    """The first part: cut between a tenth and nine tenths of its text, and never at its very end."""
    if isinstance(content, str):
        return content[: _cut(len(content), place)]
    texts = [len(text) for block in content if (text := _text_of(block)) is not None]
    left = _cut(sum(texts), place)
    shown: list[JSON] = []
    for block in content:
        text = _text_of(block)
        if text is not None and len(text) > left:
            return (
                [*shown, text[:left] if isinstance(block, str) else {**block, "text": text[:left]}] if left else shown
            )
        left -= len(text or "")
        shown.append(block)
    return shown[:-1] if len(shown) > 1 else shown  # nothing but pictures


def _cut(size: int, place: float) -> int:
    return size if size < 2 else min(max(int(size * (0.1 + 0.8 * place)), 1), size - 1)


def _text_of(block: JSON) -> str | None:
    text = block.get("text") if isinstance(block, Mapping) else block
    return text if isinstance(text, str) else None


__all__ = ["BEFORE", "FAULTS", "Fault", "Faults"]
