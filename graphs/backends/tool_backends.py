"""Who may answer a tool's calls: the tool itself, a recording, a simulator, both, or a backend of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from cm2_agent.errors import ToolError
from cm2_agent.types.protocols import ReplayBackend, ToolBackend
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest

from .record import CallRecorder
from .replay import message_content

Backend: TypeAlias = Literal["real", "record", "replay", "simulate", "hybrid"]
BACKENDS: tuple[Backend, ...] = ("real", "record", "replay", "simulate", "hybrid")
REAL = frozenset({"real", "record"})
"""The names under which the tool itself is called."""


class Real:
    """The tool itself answers. `run` calls it only where `allow_real` names it.

    >>> from cm2_agent.graphs import Real
    >>> Real().name
    'real'
    """

    name = "real"


class Record(Real):
    """The tool itself answers, and `recorder` writes each call down; close the recorder when the run is over.

    >>> import tempfile
    >>> from cm2_agent.graphs import CallRecorder, Record
    >>> with CallRecorder(f"{tempfile.mkdtemp()}/calls.jsonl") as recorder:
    ...     tools = {"get_order": Record(recorder)}
    """

    name = "record"

    def __init__(self, recorder: CallRecorder) -> None:
        self.recorder = recorder


class Hybrid:
    """`replay` answers what was recorded, `simulated` everything else; each call's span names the one that answered.

    >>> from cm2_agent.graphs import Hybrid, Replay, Simulate
    >>> tools = {"get_order": Hybrid(Replay(), Simulate("test"))}
    """

    name = "hybrid"

    def __init__(self, replay: ReplayBackend, simulated: ToolBackend) -> None:
        """Raises ToolError where `replay` cannot say what was recorded."""
        if isinstance(replay, type | str) or not callable(getattr(replay, "find", None)):
            raise ToolError(
                f"the first backend of Hybrid is {type(replay).__name__}; expected Replay(recording), or a backend"
                " with find(request, log)"
            )
        self.replay, self.simulated = replay, simulated

    def find(self, request: ToolRequest, log: CallLog) -> ToolAnswer | None:
        """The recorded answer, None where there is none."""
        return self.replay.find(request, log)

    async def answer(self, request: ToolRequest, log: CallLog) -> ToolAnswer:
        """Raises ToolError where the simulator fails."""
        found = self.find(request, log)
        if found is not None:
            return found
        return answer_of(await self.simulated.answer(request, log), name_of(self.simulated))


BackendFunction: TypeAlias = Callable[..., Any]
"""A function of a request, or of a request and the dialogue's CallLog, sync or async: a backend named as it is."""
BackendChoice: TypeAlias = "Backend | ToolBackend | Real | BackendFunction"
ToolChoice: TypeAlias = "BackendChoice | Mapping[str, BackendChoice]"
"""What `run(tools=)` takes: one backend for all tools, or `{tool: backend}`."""


@dataclass(frozen=True, kw_only=True)
class ResolvedBackend:
    """One backend as the switch uses it. `name` is what was chosen and `answers_as` what the span of a call says that
    `find` could not answer; `version` is "" where the backend has none; `ask` is None for a real tool."""

    name: str
    version: str = ""
    answers_as: str
    ask: Callable[[ToolRequest, CallLog], Any] | None = None
    find: Callable[[ToolRequest, CallLog], ToolAnswer | None] | None = None
    recorder: CallRecorder | None = None

    @property
    def label(self) -> str:
        """What `cm2.tool.backends` says: `name`, or `name:version`."""
        return f"{self.name}:{self.version}" if self.version else self.name

    @property
    def found_as(self) -> str:
        """What the span of a call says that `find` could answer."""
        return "replay" if self.name == "hybrid" else self.name

    def found(self, request: ToolRequest, log: CallLog) -> ToolAnswer | None:
        """What `find` answers, None where it cannot."""
        given = None if self.find is None else self.find(request, log)
        return None if given is None else answer_of(given, self.found_as)

    async def answer(self, request: ToolRequest, log: CallLog) -> ToolAnswer:
        """What the backend answers to a call that `find` does not know. Raises what the backend raises."""
        assert self.ask is not None
        given = self.ask(request, log)
        return answer_of(await given if inspect.isawaitable(given) else given, self.answers_as)


def resolved(choice: Any) -> ResolvedBackend:
    """A backend object, or a function, as the switch uses it. Raises ToolError for what is no backend."""
    if isinstance(choice, Real):
        recorder = choice.recorder if isinstance(choice, Record) else None
        return ResolvedBackend(name=choice.name, answers_as=choice.name, recorder=recorder)
    if isinstance(choice, Hybrid):
        simulated = resolved(choice.simulated)
        return replace(simulated, name=choice.name, version=_own_version(simulated), find=choice.find)
    name, ask = name_of(choice), getattr(choice, "answer", choice)
    version = "" if name in BACKENDS else str(getattr(choice, "version", "") or "")
    return ResolvedBackend(
        name=name,
        version=version,
        answers_as=name,
        ask=ask if _takes_log(ask) else lambda request, log: ask(request),
        find=getattr(choice, "find", None),
    )


def _own_version(backend: ResolvedBackend) -> str:
    return "" if backend.name in BACKENDS else backend.label


def name_of(backend: Any) -> str:
    """The name that spans and groups bear: the attribute `name`, else the function's or the class's own. Raises
    ToolError for what is no backend, a lambda without a name, and one of our names on a class that is not ours."""
    if isinstance(backend, type) or not (callable(getattr(backend, "answer", None)) or callable(backend)):
        shown = f"the class {backend.__name__}" if isinstance(backend, type) else repr(backend)[:80]
        raise ToolError(
            f"{shown} is no tool backend; expected one of {', '.join(BACKENDS)}, an object with an async"
            " answer(request, log), or an async function of a request"
        )
    name = getattr(backend, "name", None) or getattr(backend, "__name__", None) or type(backend).__name__
    kind = type(backend).__name__
    if name == "<lambda>":
        raise ToolError("a tool backend is a lambda, which has no name; write a function or a class")
    if not isinstance(name, str) or not name.isprintable():
        raise ToolError(f"a tool backend, {kind}, is named {name!r}; give it a `name` of printable text")
    if name in BACKENDS and type(backend).__module__.partition(".")[0] != "cm2_agent":
        raise ToolError(f"a tool backend, {kind}, is named {name!r}, which is a name of cm2's own; choose another")
    return name


def answer_of(given: Any, name: str) -> ToolAnswer:
    """What a backend returned, as an answer of that backend: a ToolAnswer, text, content blocks, or JSON. Raises
    ToolError for a value that is not JSON."""
    if isinstance(given, ToolAnswer):
        return given if given.backend == name else replace(given, backend=name)
    return ToolAnswer(content=message_content(given), backend=name)


def check_backends(chosen: Any) -> None:
    """Raises ToolError for what names no backend."""
    for value in choices(chosen):
        if not isinstance(value, str | int | float | None):
            if not isinstance(value, Real):
                name_of(value)
        elif value not in BACKENDS:
            raise ToolError(
                f"tools names the backend {value!r}; expected one of {', '.join(BACKENDS)}, a backend object such as"
                " Replay(), or {tool: backend}"
            )


def choices(chosen: Any) -> Iterator[Any]:
    """The backends that were chosen, each as often as it was."""
    yield from chosen.values() if isinstance(chosen, Mapping) else (chosen,)


def short_names(chosen: Any) -> frozenset[str]:
    """The short forms among the backends that were chosen."""
    return frozenset(value for value in choices(chosen) if isinstance(value, str))


def is_real(chosen: Any, tool: str) -> bool:
    """Whether the tool itself would be called."""
    choice = chosen.get(tool, "real") if isinstance(chosen, Mapping) else chosen
    return choice in REAL if isinstance(choice, str) else isinstance(choice, Real)


def _takes_log(ask: Callable[..., Any]) -> bool:
    """Whether a backend is asked with the dialogue's log: where it has room for two arguments."""
    try:
        inspect.signature(ask).bind(None, None)
    except (TypeError, ValueError):
        return False
    return True


__all__ = [
    "BACKENDS",
    "REAL",
    "Backend",
    "BackendChoice",
    "CallLog",
    "Hybrid",
    "Real",
    "Record",
    "ResolvedBackend",
    "ToolAnswer",
    "ToolBackend",
    "ToolChoice",
    "ToolRequest",
    "answer_of",
    "check_backends",
    "choices",
    "is_real",
    "name_of",
    "resolved",
    "short_names",
]
