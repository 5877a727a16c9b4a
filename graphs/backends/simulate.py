"""Tools that a language model answers in place of (method.md §7); apart from the other backends because it asks a
model, and may fail as a model does."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.language_models import BaseChatModel
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_ai.messages import ModelRequest, UserPromptPart
from pydantic_ai.models import Model

from cm2_agent.errors import ToolError
from cm2_agent.llm.client import LLMClient, RequestFailed, RequestFailure, Schema, unfenced
from cm2_agent.llm.limits import RateLimits
from cm2_agent.llm.prices import Price
from cm2_agent.llm.providers import language_model
from cm2_agent.llm.usage import Usage
from cm2_agent.types.json_values import JSON, content_hash
from cm2_agent.types.task import Task

from ..tools.json_schema import why_invalid
from .calls import Answer, Call, Journal
from .simulate_consistency import contradictions, same_answer
from .simulate_prompt import INSTRUCTIONS, PROMPT_VERSION, Shots, data_of, prompt_of, reply_schema
from .simulations import SimulationCache

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


class SimulatedTools:
    """Answers calls of one task's tools as the real ones would: `Answering` for the switch, and called
    by name: `await tools(name, arguments)`.

    `model`: a pydantic-ai model or its name, `local:FOLDER`, or a LangChain chat model. Shown are the tool and its
    schemas, at most `shots` of this task's recorded calls and no others (`Shots`), the dialogue, and what was answered
    in it. `seed` decides between inventions that are equally plausible; with a `cache` the same seed and dialogue give
    the same answers, also in another process, without a model being asked. `settings` are pydantic-ai's, beside
    temperature 0 and the seed. `timeout` seconds and `retries` a request, the first retry after about `backoff`
    seconds. A reply that is malformed, breaks the tool's `output` schema or contradicts what was answered before is
    asked again `re_asks` times, the reason named. `limits` may be shared with other models; `price` where the published
    one is not yours. `of_cache` counts answers that were known.

    One object may serve many dialogues, each with its journal; the calls of one are answered one after the other, so
    that none contradicts another. Raises ToolError, ModelError (a name that is no model), MissingExtra.

    >>> from cm2_agent.types.messages import ToolSpec
    >>> from cm2_agent.types.task import RecordedCall
    >>> shipped = RecordedCall(name="get_order", result="shipped")
    >>> task = Task(id="t", tools=[ToolSpec(name="get_order")], recorded=[shipped])
    >>> SimulatedTools("test", task=task, seed=3).version.startswith("test:test;prompt=")
    True
    """

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
    ) -> None:
        for name, value, least in (("timeout", timeout, 0.001), ("retries", retries, 0), ("re_asks", re_asks, 0)):
            if not value >= least:
                raise ToolError(f"{name} is {value}; expected {least} or more")
        self.task, self.seed, self.cache, self.re_asks = task, seed, cache, re_asks
        self.of_cache = 0
        self.journal = Journal()
        """What was answered by name; a switch brings a journal for each dialogue."""
        self._shots = Shots(task, shots)
        self._tools = {tool.name: tool for tool in task.tools}
        self._settings = {"temperature": 0.0, **(settings or {})}
        self._asker = LLMClient(
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
        model = self._asker.model
        parts = [
            f"{model.system}:{model.model_name}",
            f"prompt={PROMPT_VERSION}",
            f"settings={content_hash(self._settings)[:8]}",
        ]
        return ";".join([*parts, f"shots={self._shots.most}", f"seed={self.seed}"])

    @property
    def usage(self) -> Usage:
        """Requests, tokens and dollars of this simulator alone."""
        return self._asker.usage

    async def answer(self, call: Call, journal: Journal) -> Answer:
        """The tool's answer; `error` where it fails as the real one would, or the arguments break its schema (no model
        is asked then).

        Raises ToolError where the model gives no usable answer, BudgetExhausted where it may not be asked.
        """
        wrong = why_invalid(dict(call.arguments), call.tool.parameters, f"tool {call.tool.name!r}")
        if wrong is not None:
            return Answer(
                content=f"Error: the arguments of {call.tool.name} are not valid: {wrong}",
                error=True,
                backend="simulate",
            )
        async with self._turn(journal):
            return same_answer(journal, call) or await self._simulated(call, journal)

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
        call = Call(tool=tool, arguments=arguments)
        answer = await self.answer(call, self.journal)
        self.journal.add(call, answer)
        if answer.error:
            return {"error": answer.content}
        try:
            return json.loads(str(answer.content))
        except ValueError:
            return answer.content

    async def aclose(self) -> None:
        """Close the connections that this event loop's calls left open."""
        await self._asker.aclose()

    async def _simulated(self, call: Call, journal: Journal) -> Answer:
        data = data_of(call, journal, self._shots.of(call))
        schema = reply_schema(call.tool)
        key = content_hash([self.version, schema, prompt_of(data, call, self.seed)])
        known = None if self.cache is None else self.cache.get(key)
        if known is not None:
            self.of_cache += 1
            try:
                return _answer(call, journal, known)
            except _Unusable as error:
                raise ToolError(
                    f"the kept answer of tool {call.tool.name!r} cannot be used: {error}. Take another seed"
                ) from error
        body, answer = await self._asked(data, call, journal, Schema(name="tool_answer", body=schema, strict=False))
        if self.cache is not None:
            self.cache.put(key, call.tool.name, body)
            kept = self.cache.get(key)
            if kept is not None and kept != body:  # somebody else asked at the same time, and was first
                return _answer(call, journal, kept)
        return answer

    async def _asked(self, data: str, call: Call, journal: Journal, schema: Schema) -> tuple[str, Answer]:
        """The reply's JSON text and the answer that it is, once it can be used."""

        def read(text: str) -> tuple[str, Answer]:
            text = unfenced(text)
            return text, _answer(call, journal, text)

        problem: str | None = None
        for asked in range(self.re_asks + 1):
            prompt = UserPromptPart(content=prompt_of(data, call, self.seed, problem))
            message = ModelRequest(parts=[prompt], instructions=INSTRUCTIONS)
            try:
                return await self._asker.ask(
                    [message], read, schema=schema, answer_tokens=_ANSWER_TOKENS, re_ask=asked > 0
                )
            except _Unusable as error:
                problem = str(error)
            except RequestFailed as error:
                raise ToolError(f"the simulator of tool {call.tool.name!r} failed: {error}") from error
        raise ToolError(
            f"the simulator of tool {call.tool.name!r} gave no usable answer, asked {self.re_asks + 1} times: {problem}"
        )

    @asynccontextmanager
    async def _turn(self, journal: Journal) -> AsyncIterator[None]:
        """One call of a dialogue at a time, within an event loop."""
        key = (id(journal), id(asyncio.get_running_loop()))
        lock = self._turns.get(key)
        if lock is None:
            lock = self._turns[key] = asyncio.Lock()
            weakref.finalize(journal, self._turns.pop, key, None)
        async with lock:
            yield


def _answer(call: Call, journal: Journal, text: str) -> Answer:
    """The answer that a reply is. Raises _Unusable."""
    try:
        given = json.loads(text, parse_constant=_refused)
        reply = _Reply.model_validate(given)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, detail["loc"]))
        raise _Unusable(
            f"the reply is not the object that was asked for: {place + ': ' if place else ''}{detail['msg']}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _Unusable(f"the reply is not JSON: {str(error)[:200]}") from error
    if not {"result", "error"} & set(given):
        raise _Unusable("the reply has neither result nor error")
    if reply.error:
        if reply.result is not None:
            raise _Unusable("the reply has both a result and an error; expected null for one of them")
        return Answer(content=reply.error, error=True, backend="simulate")
    if call.tool.output is not None:
        wrong = why_invalid(reply.result, call.tool.output, f"tool {call.tool.name!r}")
        if wrong is not None:
            raise _Unusable(f"the result breaks the tool's result schema: {wrong}")
    content = reply.result if isinstance(reply.result, str) else json.dumps(reply.result, ensure_ascii=False)
    against = contradictions(journal, call, content)
    if against:
        raise _Unusable(f"the result contradicts what was answered before: {'; '.join(against)[:1000]}")
    return Answer(content=content, backend="simulate")


def _refused(constant: str) -> JSON:
    raise ValueError(f"{constant} is no JSON number")


__all__ = ["SimulatedTools"]
