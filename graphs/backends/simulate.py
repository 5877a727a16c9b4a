"""Tools simulated by a language model (docs/method.md §7)."""

from __future__ import annotations

import asyncio
import copy
import json
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

from langchain_core.language_models import BaseChatModel
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_ai.messages import ModelRequest, UserPromptPart
from pydantic_ai.models import Model

from cm2_agent.errors import ToolError
from cm2_agent.llm.client import LLMClient
from cm2_agent.llm.failures import RequestFailed, RequestFailure
from cm2_agent.llm.limits import RateLimits
from cm2_agent.llm.prices import Price
from cm2_agent.llm.providers import language_model
from cm2_agent.llm.reply_json import json_replies
from cm2_agent.llm.reply_modes import Schema
from cm2_agent.llm.usage import Usage
from cm2_agent.redaction.redacted_run import redacted_message
from cm2_agent.redaction.redacted_task import redacted_task
from cm2_agent.redaction.redactor import Redactor
from cm2_agent.types.json_values import JSON, content_hash
from cm2_agent.types.protocols import ToolBackend
from cm2_agent.types.task import Task
from cm2_agent.types.text import first_problem
from cm2_agent.types.tool_calls import CallLog, ToolAnswer, ToolRequest

from ..tools.json_schema import why_invalid
from .simulate_consistency import contradictions, same_answer
from .simulate_prompt import INSTRUCTIONS, PROMPT_VERSION, Shots, data_of, prompt_of, reply_schema
from .simulation_cache import SimulationCache

_ANSWER_TOKENS = 300


class _Reply(BaseModel):
    """A simulator's whole reply."""

    model_config = ConfigDict(extra="forbid")

    result: Any = None
    error: str | None = None


class _Unusable(RequestFailed):
    """A reply that cannot be the tool's answer: it is asked again, with the reason named."""

    def __init__(self, problem: str) -> None:
        super().__init__(RequestFailure(cause="infrastructure", explanation=problem, reply=True))


class Simulate:
    """Answers tool calls as the real tools would, for every task of a run: `SimulatedTools`, one for each task.

    Args:
        model: A pydantic-ai model or its name, `local:FOLDER`, a LangChain chat model, or a function that makes a
            task's simulator (any `ToolBackend`, such as a `SimulatedTools` with settings of its own).
        seed: Decides between inventions that are equally plausible; None: the run's.
        cache: Where known answers are stored; None: the run's, which is the store's where the run has one.
        limits: Requests, tokens and dollars at most; may be shared with other models.
        price: Where the published one is not yours.
        redact: Replaces personal data in what the model is shown; None: the run's. Not for a function of a task.

    Raises:
        ToolError: `model` is none of these.
        ModelError: A name that is no model.
        MissingExtra: The model's package is not installed.

    >>> from cm2_agent import Task
    >>> from cm2_agent.graphs import Simulate
    >>> tools = {"refund": Simulate("test", seed=3)}
    >>> tools["refund"].of(Task(id="t")).version.endswith(";seed=3")
    True
    """

    name = "simulate"

    def __init__(
        self,
        model: str | Model | BaseChatModel | Callable[[Task], ToolBackend],
        *,
        seed: int | None = None,
        cache: SimulationCache | None = None,
        limits: RateLimits | None = None,
        price: Price | None = None,
        redact: Redactor | None = None,
    ) -> None:
        if not isinstance(model, str | Model | BaseChatModel) and not callable(model):
            raise ToolError(
                f"the simulator is a {type(model).__name__}; expected a model, its name, or a function of a task"
            )
        self.seed, self.cache, self.limits, self.price, self.redact = seed, cache, limits, price, redact
        self._model = language_model(model, "simulator") if isinstance(model, str | Model | BaseChatModel) else None
        self._make = None if self._model is not None else cast("Callable[[Task], ToolBackend]", model)
        self._of_task: dict[tuple[str, int], ToolBackend] = {}

    def with_defaults(self, *, seed: int, cache: SimulationCache | None, redact: Redactor | None = None) -> Simulate:
        """The same, with a run's seed, cache and redactor where it has none of its own."""
        made = copy.copy(self)
        made.seed = seed if self.seed is None else self.seed
        made.cache = cache if self.cache is None else self.cache
        made.redact = redact if self.redact is None else self.redact
        made._of_task = {}
        return made

    def of(self, task: Task) -> ToolBackend:
        """The simulator of one task's tools."""
        key = (task.id, task.version)
        if key not in self._of_task:
            self._of_task[key] = self._new(task)
        return self._of_task[key]

    def _new(self, task: Task) -> ToolBackend:
        if self._model is None:
            assert self._make is not None
            return self._make(task)
        return SimulatedTools(
            self._model,
            task=task,
            seed=self.seed or 0,
            cache=self.cache,
            limits=self.limits,
            price=self.price,
            redact=self.redact,
        )

    async def answer(self, request: ToolRequest, log: CallLog) -> Any:
        """What the task's simulator answers. Raises ToolError for a request that names no task."""
        if request.task is None:
            raise ToolError(
                f"Simulate was asked for tool {request.tool.name!r} without a task; give the dialogue's:"
                " Backends(…, task=task)"
            )
        return await self.of(request.task).answer(request, log)


class SimulatedTools:
    """Answers calls of one task's tools as the real ones would: a `ToolBackend`, and callable by a tool's name.

    The model is shown the tool and its schemas, at most `shots` of this task's recorded calls and no others, the
    dialogue, and what was answered in it. A reply that is malformed, breaks the tool's `output` schema or contradicts
    what was answered before is asked for again, with the reason. One object may serve many dialogues, each with its
    log; the calls of one dialogue are answered one after the other, so that none contradicts another. `of_cache`
    counts answers that were known.

    Args:
        model: A pydantic-ai model or its name, `local:FOLDER`, or a LangChain chat model.
        task: Whose tools are simulated.
        seed: Decides between inventions that are equally plausible.
        cache: Known answers: the same seed and dialogue give the same answers, in every process, without a model.
        settings: pydantic-ai's, beside temperature 0 and the seed.
        shots: Recorded calls shown as examples, 0 or more.
        timeout: Seconds of a request.
        retries: Of a request that fails, 0 or more.
        re_asks: Of a reply that cannot be used, 0 or more.
        backoff: Seconds before the first retry, about.
        limits: Requests, tokens and dollars at most; may be shared with other models.
        price: Where the published one is not yours.
        redact: Replaces personal data in what the model is shown; its answers then hold the placeholders.

    Raises:
        ToolError: A setting out of its range.
        ModelError: A name that is no model.
        MissingExtra: The model's package is not installed.

    >>> from cm2_agent import RecordedCall, Task, ToolSpec
    >>> from cm2_agent.graphs import SimulatedTools
    >>> shipped = RecordedCall(name="get_order", result="shipped")
    >>> task = Task(id="t", tools=[ToolSpec(name="get_order")], recorded=[shipped])
    >>> SimulatedTools("test", task=task, seed=3).version.startswith("test:test;prompt=")
    True
    """

    name = "simulate"

    def __init__(
        self,
        model: str | Model | BaseChatModel,
        *,
        task: Task,
        seed: int = 0,
        cache: SimulationCache | None = None,
        settings: Mapping[str, Any] | None = None,
        shots: int = 8,
        timeout: float = 60.0,
        retries: int = 2,
        re_asks: int = 2,
        backoff: float = 0.5,
        limits: RateLimits | None = None,
        price: Price | None = None,
        redact: Redactor | None = None,
    ) -> None:
        for name, value, least in (("timeout", timeout, 0.001), ("retries", retries, 0), ("re_asks", re_asks, 0)):
            if not value >= least:
                raise ToolError(f"{name} is {value}; expected {least} or more")
        self.task, self.seed, self.cache, self.re_asks = task, seed, cache, re_asks
        self.of_cache = 0
        self.log = CallLog()
        """What was answered to calls by name; a dialogue brings its own log."""
        self.redact = redact
        self._shots = Shots(task if redact is None else redacted_task(task, redact), shots)
        self._tools = {tool.name: tool for tool in task.tools}
        self._settings = {"temperature": 0.0, **(settings or {})}
        self._client = LLMClient(
            language_model(model, "simulator"),
            of="simulator",
            settings={"seed": seed, **self._settings},
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            limits=limits,
            price=price,
        )
        self._turns: dict[tuple[int, int], asyncio.Lock] = {}

    @property
    def version(self) -> str:
        """Names the model as asked for, the prompt, the settings, the number of examples and the seed."""
        model = self._client.model
        parts = [
            f"{model.system}:{model.model_name}",
            f"prompt={PROMPT_VERSION}",
            f"settings={content_hash(self._settings)[:8]}",
        ]
        parts += [f"shots={self._shots.most}", *([] if self.redact is None else ["redacted"]), f"seed={self.seed}"]
        return ";".join(parts)

    @property
    def usage(self) -> Usage:
        """Requests, tokens and dollars of this simulator alone."""
        return self._client.usage

    async def answer(self, request: ToolRequest, log: CallLog) -> ToolAnswer:
        """The tool's answer; `error` where it fails as the real one would, or the arguments break its schema (no model
        is asked then).

        Raises ToolError where the model gives no usable answer, BudgetExhausted where it may not be asked.
        """
        wrong = why_invalid(dict(request.arguments), request.tool.parameters, f"tool {request.tool.name!r}")
        if wrong is not None:
            return ToolAnswer(
                content=f"Error: the arguments of {request.tool.name} are not valid: {wrong}",
                error=True,
                backend="simulate",
            )
        async with self._turn(log):
            return same_answer(log, request) or await self._simulated(*self._shown(request, log))

    async def __call__(self, name: str, arguments: JSON) -> JSON:
        """The result of the task's tool, as JSON where it is; what fails as the real tool would is `{"error":
        text}`."""
        tool = self._tools.get(name)
        if tool is None:
            raise ToolError(
                f"task {self.task.id!r} has no tool {name!r}; its tools are {', '.join(sorted(self._tools)) or 'none'}"
            )
        if not isinstance(arguments, Mapping):
            raise ToolError(f"the arguments of tool {name!r} are {type(arguments).__name__}; expected an object")
        request = ToolRequest(tool=tool, arguments=arguments)
        answer = await self.answer(request, self.log)
        self.log.add(request, answer)
        if answer.error:
            return {"error": answer.content}
        try:
            return json.loads(str(answer.content))
        except ValueError:
            return answer.content

    async def aclose(self) -> None:
        """Close the connections that this event loop's calls left open."""
        await self._client.aclose()

    def _shown(self, request: ToolRequest, log: CallLog) -> tuple[ToolRequest, CallLog]:
        """The call and what was answered before, without personal data where that is asked for."""
        if self.redact is None:
            return request, log
        redact = self.redact

        def shown(one: ToolRequest) -> ToolRequest:
            messages = tuple(redacted_message(message, redact) for message in one.messages)
            return replace(one, arguments=redact.redact_json(dict(one.arguments)), messages=messages)

        entries = [
            replace(
                entry,
                request=shown(replace(entry.request, messages=())),
                answer=replace(entry.answer, content=redact.redact_json(entry.answer.content)),
            )
            for entry in log.entries
        ]
        return shown(request), CallLog(entries)

    async def _simulated(self, request: ToolRequest, log: CallLog) -> ToolAnswer:
        data = data_of(request, log, self._shots.of(request))
        schema = reply_schema(request.tool)
        key = content_hash([self.version, schema, prompt_of(data, request, self.seed)])
        known = None if self.cache is None else self.cache.get(key)
        if known is not None:
            self.of_cache += 1
            try:
                return _answer(request, log, known)
            except _Unusable as error:
                raise ToolError(
                    f"the cached answer of tool {request.tool.name!r} cannot be used: {error}. Take another seed"
                ) from error
        body, answer = await self._asked(data, request, log, Schema(name="tool_answer", body=schema, strict=False))
        if self.cache is not None:
            self.cache.put(key, request.tool.name, body)
            stored = self.cache.get(key)
            if stored is not None and stored != body:  # somebody else asked at the same time, and was first
                return _answer(request, log, stored)
        return answer

    async def _asked(self, data: str, request: ToolRequest, log: CallLog, schema: Schema) -> tuple[str, ToolAnswer]:
        """The reply's JSON text and the answer that it is, once it can be used."""

        def read(text: str) -> tuple[str, ToolAnswer]:
            found = [value for value in json_replies(text) if isinstance(value, dict)]
            text = json.dumps(found[0], ensure_ascii=False) if len(found) == 1 else text.strip()
            return text, _answer(request, log, text)

        problem: str | None = None
        for asked in range(self.re_asks + 1):
            prompt = UserPromptPart(content=prompt_of(data, request, self.seed, problem))
            message = ModelRequest(parts=[prompt], instructions=INSTRUCTIONS)
            try:
                return await self._client.ask(
                    [message], read, schema=schema, answer_tokens=_ANSWER_TOKENS, re_ask=asked > 0
                )
            except _Unusable as error:
                problem = str(error)
            except RequestFailed as error:
                raise ToolError(f"the simulator of tool {request.tool.name!r} failed: {error}") from error
        raise ToolError(
            f"the simulator of tool {request.tool.name!r} gave no usable answer, asked {self.re_asks + 1} times:"
            f" {problem}"
        )

    @asynccontextmanager
    async def _turn(self, log: CallLog) -> AsyncIterator[None]:
        """One call of a dialogue at a time, within an event loop."""
        key = (id(log), id(asyncio.get_running_loop()))
        lock = self._turns.get(key)
        if lock is None:
            lock = self._turns[key] = asyncio.Lock()
            weakref.finalize(log, self._turns.pop, key, None)
        async with lock:
            yield


def _answer(request: ToolRequest, log: CallLog, text: str) -> ToolAnswer:
    """The answer that a reply is. Raises _Unusable."""
    try:
        given = json.loads(text, parse_constant=_refused)
        reply = _Reply.model_validate(given)
    except ValidationError as error:
        raise _Unusable(f"the reply is not the object that was asked for: {first_problem(error)}") from error
    except (ValueError, RecursionError) as error:
        raise _Unusable(f"the reply is not JSON: {str(error)[:200]}") from error
    if not {"result", "error"} & set(given):
        raise _Unusable("the reply has neither result nor error")
    if reply.error:
        if reply.result is not None:
            raise _Unusable("the reply has both a result and an error; expected null for one of them")
        return ToolAnswer(content=reply.error, error=True, backend="simulate")
    if request.tool.output is not None:
        wrong = why_invalid(reply.result, request.tool.output, f"tool {request.tool.name!r}")
        if wrong is not None:
            raise _Unusable(f"the result breaks the tool's result schema: {wrong}")
    content = reply.result if isinstance(reply.result, str) else json.dumps(reply.result, ensure_ascii=False)
    against = contradictions(log, request, content)
    if against:
        raise _Unusable(f"the result contradicts what was answered before: {'; '.join(against)[:1000]}")
    return ToolAnswer(content=content, backend="simulate")


def _refused(constant: str) -> JSON:
    raise ValueError(f"{constant} is no JSON number")


__all__ = ["Simulate", "SimulatedTools"]
