"""A small agent on a scripted chat model: what the capture tests and the benchmark watch. The model streams tool calls
as chunks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, SystemMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import BaseTool, tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import interrupt

SYSTEM = "You look things up."


class ScriptedModel(BaseChatModel):
    """Says `script[n]`, n being the number of assistant messages it was shown (`per_turn`: since the last user
    message), at the end the last entry again.

    A script entry that is an exception is raised. Messages carry token ids like those of a local model.
    """

    script: list[Any] = []  # noqa: RUF012
    per_turn: bool = False
    model_name: str = "scripted"
    pause: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "scripted"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model_name, "temperature": 0.5}

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(item) for item in tools], **kwargs)

    def _next(self, messages: Sequence[BaseMessage]) -> AIMessage:
        last = max((i for i, m in enumerate(messages) if m.type == "human"), default=0) if self.per_turn else 0
        number = sum(isinstance(message, AIMessage) for message in messages[last:])
        reply = self.script[min(number, len(self.script) - 1)]
        if isinstance(reply, BaseException):
            raise reply
        ids = list(range(len(messages) + 2))
        sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 9, "logprobs": "processed"}
        return AIMessage(
            content=reply.content,
            tool_calls=reply.tool_calls,
            invalid_tool_calls=reply.invalid_tool_calls,
            usage_metadata={"input_tokens": len(ids), "output_tokens": 2, "total_tokens": len(ids) + 2},
            response_metadata={
                "model_name": self.model_name,
                "model_version": "v1",
                "prompt_ids": ids,
                "completion_ids": [number, 7],
                "logprobs": [-0.5, -0.25],
                "sampling": sampling,
                "finish_reason": "tool_calls" if reply.tool_calls else "stop",
            },
        )

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._next(messages))])

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        await asyncio.sleep(self.pause)
        return self._generate(messages)

    def _chunks(self, messages: Sequence[BaseMessage]) -> Iterator[ChatGenerationChunk]:
        reply = self._next(messages)
        for letter in reply.text:
            yield ChatGenerationChunk(message=AIMessageChunk(content=letter))
        for number, call in enumerate(reply.tool_calls):
            text = json.dumps(call["args"])
            first = tool_call_chunk(name=call["name"], args=text[:2], id=call["id"], index=number)
            yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[first]))
            rest = tool_call_chunk(name=None, args=text[2:], id=None, index=number)
            yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[rest]))
        last = AIMessageChunk(
            content="", response_metadata=reply.response_metadata, usage_metadata=reply.usage_metadata
        )
        yield ChatGenerationChunk(message=last)

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in self._chunks(messages):
            if run_manager is not None:
                run_manager.on_llm_new_token(str(chunk.message.content), chunk=chunk)
            yield chunk

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._chunks(messages):
            await asyncio.sleep(self.pause)
            if run_manager is not None:
                await run_manager.on_llm_new_token(str(chunk.message.content), chunk=chunk)
            yield chunk


@tool
def look(key: int) -> str:
    """Look a key up."""
    if key < 0:
        raise ValueError(f"no key {key}")
    return f"value {key}"


@tool
def ask_human(question: str) -> str:
    """Ask a human."""
    return f"human said {interrupt(question)}"


def calls(*keys: int, text: str = "") -> AIMessage:
    """An assistant message that looks up keys."""
    asked: list[Any] = [{"name": "look", "args": {"key": key}, "id": f"call{key}", "type": "tool_call"} for key in keys]
    return AIMessage(content=text, tool_calls=asked)


def says(*texts: str) -> ScriptedModel:
    """A model that replies with the texts, from the first again in each turn."""
    return ScriptedModel(script=[AIMessage(content=text) for text in texts], per_turn=True)


def asks(question: str) -> AIMessage:
    return AIMessage(
        content="", tool_calls=[{"name": "ask_human", "args": {"question": question}, "id": "ask", "type": "tool_call"}]
    )


def agent(
    model: BaseChatModel, tools: Sequence[BaseTool] = (look, ask_human), handle_errors: Any = True, **compile_: Any
) -> Any:
    """The ordinary loop: the model calls tools until it answers."""
    bound = model.bind_tools(tools)

    def speak(state: MessagesState) -> dict[str, Any]:
        return {"messages": [bound.invoke([SystemMessage(SYSTEM), *state["messages"]])]}

    async def aspeak(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await bound.ainvoke([SystemMessage(SYSTEM), *state["messages"]])]}

    graph = StateGraph(MessagesState)
    graph.add_node("agent", RunnableLambda(speak, afunc=aspeak, name="agent"))
    graph.add_node("tools", ToolNode(list(tools), handle_tool_errors=handle_errors))
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_edge("tools", "agent")
    return graph.compile(**compile_)
