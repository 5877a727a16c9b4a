"""The chat models of a graph: found wherever its code refers to them, by their version before their name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import GenericFakeChatModel
from langgraph.graph import START, MessagesState, StateGraph
from transformers import Qwen3Config, Qwen3ForCausalLM

from cm2_agent import openai_compatible
from cm2_agent.graphs import agent
from cm2_agent.graphs.interception.models import models_of
from cm2_agent.models import byte_tokenizer
from cm2_agent.models.local import LocalChatModel
from tests.tracing import apps

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "head_dim": 8,
    "num_attention_heads": 2,
}
ELSEWHERE = apps.ScriptedModel(model_name="elsewhere")


def look(key: int) -> str:
    """Look a key up."""
    return str(key)


def local(version: str = "") -> LocalChatModel:
    tokenizer = byte_tokenizer()
    network = Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=1, vocab_size=len(tokenizer)))
    return LocalChatModel(model=network, tokenizer=tokenizer, model_name="local", model_version=version)


def by_node(node: Any) -> Any:
    graph = StateGraph(MessagesState)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    return graph.compile()


def of_closure(model: Any) -> Any:
    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    return by_node(node)


def of_method(model: Any) -> Any:
    class Clerk:
        def __init__(self) -> None:
            self.models = {"policy": model}

        def __call__(self, state: MessagesState) -> dict[str, Any]:
            return {"messages": [self.models["policy"].invoke(state["messages"])]}

    return by_node(Clerk())


MAKERS: dict[str, Callable[[Any], Any]] = {
    "agent": lambda model: agent(model, [look]),
    "without tools": lambda model: agent(model, []),
    "create_agent": lambda model: create_agent(model, [look]),
    "the model itself": by_node,
    "bound": lambda model: by_node(model.bind(stop=["x"])),
    "a closure": of_closure,
    "an instance": of_method,
    "a subgraph": lambda model: by_node(agent(model, [look])),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_a_model_is_found_wherever_a_node_refers_to_it(maker: str) -> None:
    assert models_of(MAKERS[maker](apps.ScriptedModel(model_name="policy-7"))) == ["policy-7"]


def test_a_model_in_a_global_is_found() -> None:
    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [ELSEWHERE.invoke(state["messages"])]}

    assert models_of(by_node(node)) == ["elsewhere"]


def test_what_tells_one_model_from_another() -> None:
    first, second = local(), local()
    names = [models_of(agent(model, [])) for model in (first, second, local("v3"))]
    assert [one.partition(" ")[0] for (one,) in names] == [first.model_version, second.model_version, "v3"]
    assert first.model_version != second.model_version
    hot = openai_compatible("http://localhost:1/v1", "served", temperature=0.7)
    assert models_of(agent(hot, [look])) == ["served (temperature 0.7)"]
    versioned = openai_compatible("http://localhost:1/v1", "served", model_version="v9", temperature=1)
    assert models_of(agent(versioned, [])) == ["v9 (temperature 1)"]
    assert models_of(agent(GenericFakeChatModel(messages=iter([])), [])) == ["GenericFakeChatModel"]


def test_a_graph_without_a_model_has_none() -> None:
    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": []}

    assert models_of(by_node(node)) == []
