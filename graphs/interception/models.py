"""The chat models of a graph, found without calling anything of it."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.language_models import BaseChatModel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.store.base import BaseStore

from .code_references import fields_of, is_a, referred
from .discovery import starts

_NO_MODELS = (BaseCallbackHandler, BaseCallbackManager, BaseCheckpointSaver, BaseStore)
_NAMES = ("model_version", "served_version", "model_name", "model", "deployment_name", "model_id")
"""The fields by which chat models say what they are, the most exact first."""


def models_of(graph: Any) -> list[str]:
    """The chat models that the graph's nodes and conditional edges refer to, each once, sorted: the version of its
    weights where it knows one, else the name under which it is asked for, else its class; with its temperature.

    A model that is made inside a node, or looked up by a name made at run time, is not found.

    >>> from langchain_core.language_models import GenericFakeChatModel
    >>> from cm2_agent.graphs import agent
    >>> from cm2_agent.graphs.interception.models import models_of
    >>> models_of(agent(GenericFakeChatModel(messages=iter([])), []))
    ['GenericFakeChatModel']
    """
    found = (
        value
        for _, start in starts(graph)
        for value, _ in referred(start, lambda value: is_a(value, (BaseChatModel, *_NO_MODELS)))
        if is_a(value, BaseChatModel)
    )
    return sorted({_name(model) for model in found})


def _name(model: Any) -> str:
    fields = fields_of(model)
    said = (fields.get(name) for name in _NAMES)
    name = next((one for one in said if type(one) is str and one), type(model).__name__)
    temperature = fields.get("temperature")
    return name if temperature is None else f"{name} (temperature {temperature:g})"


__all__ = ["models_of"]
