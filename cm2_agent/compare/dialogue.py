"""SampledDialogue: one dialogue of a desk as a stream of tokens, which becomes a trace as LangGraph's would be."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage

from cm2_agent.benchmarks.training_desk import TrainingDesk
from cm2_agent.langchain_messages import from_langchain
from cm2_agent.types.json_values import JSON
from cm2_agent.types.messages import Message
from cm2_agent.types.packed import Packed
from cm2_agent.types.run import ModelCall, Run, ToolRun
from cm2_agent.types.run_attributes import CUT
from cm2_agent.types.task import Task
from cm2_agent.types.trace import Trace

from .chat_text import ChatText

Uniforms = Callable[[int, int], np.ndarray[Any, Any]]
"""For a call's number and length the numbers in [0, 1) that decide its tokens."""


class SampledDialogue:
    """A `Stream` that plays one task: it knows what the user says, runs the tools in the dialogue's own world, and
    writes down runs and calls.

    Args:
        task: with scripted turns.
        desk: whose tools and rules.
        text: the policy's chat template and sampling.
        world: of this dialogue alone.
        thread: the trace's id.
        facts: the attributes of its runs.
        uniforms: decide the tokens.
    """

    def __init__(
        self,
        task: Task,
        desk: TrainingDesk,
        text: ChatText,
        *,
        world: Any,
        thread: str,
        facts: Mapping[str, JSON],
        uniforms: Uniforms,
    ) -> None:
        self.task, self.desk, self.text, self.world = task, desk, text, world
        self.thread, self.facts, self._uniforms = thread, facts, uniforms
        self.done = False
        self._system = [] if task.system is None else [SystemMessage(task.system)]
        self._runs: list[Run] = []
        self._calls = 0
        self._logprobs: list[float] = []
        self._packed: Packed[int] = Packed.of_ids([])
        self._begin()
        self.ids: list[int] = text.first([*self._system, HumanMessage(task.turns[0])])
        self._prompt = len(self.ids)
        self._decide()

    @property
    def trace(self) -> Trace:
        """The dialogue so far, without outcomes."""
        return Trace(id=self.thread, runs=tuple(self._runs))

    def next_uniform(self) -> float:
        return float(self._drawn[len(self._logprobs)])

    def draws(self, token: int, logprob: float) -> None:
        self.ids.append(token)
        self._logprobs.append(logprob)
        stopped = token in self.text.stops
        if stopped or len(self._logprobs) == self._limit:
            self._written(stopped)

    def _begin(self) -> None:
        """The user's next message opens a run."""
        said = HumanMessage(self.task.turns[len(self._runs)])
        opening = [*self._system, said] if not self._runs else [said]
        self._messages: list[Message] = [from_langchain(message) for message in opening]
        self._model_calls: list[ModelCall] = []
        self._tool_runs: list[ToolRun] = []
        self._started = time.time_ns()

    def _decide(self) -> None:
        """How long the next answer may be, and its numbers; the dialogue ends where the model reads no further."""
        self._limit = min(self.text.max_tokens, self.text.context - self._prompt)
        if self._limit <= 0:
            self._end_run({CUT: "context"})
            self.done = True
        else:
            self._drawn = self._uniforms(self._calls, self._limit)

    def _written(self, stopped: bool) -> None:
        """An answer is whole: its calls run, or the user goes on, or the dialogue is over."""
        prompt, completion = self.ids[: self._prompt], self.ids[self._prompt :]
        answer = self.text.read(completion, prompt, salt=f"{self.thread}:{self._calls}")
        finish = "length" if not stopped else "tool_calls" if answer.tool_calls else "stop"
        answer.response_metadata = {"finish_reason": finish}
        message = from_langchain(answer)
        self._calls += 1
        self._packed = self._packed.followed_by(array("i", self.ids[len(self._packed) :]))
        self._model_calls.append(
            ModelCall(
                span_id=f"{self.thread}#{self._calls}",
                model=self.text.model_name,
                model_version=self.text.model_version,
                output=message,
                tools=self.text.specs,
                prompt_ids=self._packed[: self._prompt],
                completion_ids=self._packed[self._prompt :],
                logprobs=tuple(self._logprobs),
                sampling=self.text.sampling,
                usage={"input_tokens": len(prompt), "output_tokens": len(completion)},
                finish_reason=finish,
                message=len(self._messages),
                started=self._started,
                ended=time.time_ns(),
            )
        )
        self._messages.append(message)
        self._logprobs = []
        answers = [self._run_tool(call) for call in answer.tool_calls]
        self._messages += [from_langchain(one) for one in answers]
        following: list[HumanMessage | ToolMessage] = [*answers]
        if not answers or len(self._model_calls) == self.desk.max_calls:
            self._end_run()
            if len(self._runs) == len(self.task.turns):
                self.done = True
                return
            self._begin()
            following.append(HumanMessage(self.task.turns[len(self._runs)]))
        self.ids += self.text.after(following, stopped=stopped)
        self._prompt = len(self.ids)
        self._decide()

    def _run_tool(self, call: Any) -> ToolMessage:
        """What the graph's tool node would answer."""
        answer = self.desk.call(self.world, call["name"], call["args"])
        if answer.ran:
            self._tool_runs.append(
                ToolRun(
                    span_id=f"{self.thread}#{self._calls}.{len(self._tool_runs)}",
                    name=call["name"],
                    call_id=call["id"],
                    arguments=call["args"],
                    result=None if answer.failed else answer.text,
                    error=answer.text if answer.failed else None,
                    backend="real",
                    started=self._started,
                    ended=time.time_ns(),
                )
            )
        status = "error" if answer.failed else "success"
        return ToolMessage(answer.text, tool_call_id=call["id"], name=call["name"], status=status)

    def _end_run(self, more: Mapping[str, JSON] | None = None) -> None:
        self._runs.append(
            Run(
                id=f"{self.thread}#{len(self._runs)}",
                thread=self.thread,
                name=self.desk.name,
                messages=tuple(self._messages),
                calls=tuple(self._model_calls),
                tools=tuple(self._tool_runs),
                attributes={**self.facts, **(more or {})},
                started=self._started,
                ended=time.time_ns(),
            )
        )
